"""Runs build/tests/service_tool: requests in, what every one of them got out."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "e2e")]

import cli  # noqa: E402

TOOL = cli.RETRO.parent / "tests" / "service_tool"


def run(model, requests, ranks=1, timeout=600, options=(), **settings):
    """(results in the order of the requests, statistics). settings: slots, context, rows, queue ..."""
    launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
    words = [f"{name}={value}" for name, value in settings.items()]
    done = subprocess.run(
        [*launcher, str(TOOL), *words, "--", "--model", str(model), *map(str, options)],
        input="".join(json.dumps(r) + "\n" for r in requests).encode(),
        capture_output=True,
        env={**os.environ, **cli.MPI_ENV},
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(requests) + 1
    stats = lines.pop()
    assert stats["running"] == stats["waiting"] == 0
    assert stats["blocks_free"] + stats["blocks_cached"] == stats["blocks"], stats
    return lines, stats


def ids(result, choice=0):
    return result["choices"][choice]["ids"]
