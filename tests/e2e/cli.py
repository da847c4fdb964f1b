"""Runs build/retro (or mpirun build/retro) for the end-to-end tests and reads what it prints."""

import json
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RETRO = Path(os.environ.get("RETRO_BUILD", ROOT / "build")) / "retro"
REAL_MODEL = Path(os.environ.get("RETRO_MODELS", ROOT / "models")) / "SmolLM2-135M-Instruct"
LICENSES = Path("/usr/share/common-licenses")

# Open MPI in small places: root, more ranks than cores (scripts/common.sh says why).
MPI_ENV = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}

# In front of a program that a test starts and stops itself: when the test's own process is killed (a time limit), so is
# the program. Ranks end by themselves when mpirun is gone.
DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"]


def run(*arguments, ranks=1, stdin="", timeout=600):
    """CompletedProcess of `retro ARGUMENTS`, under mpirun when ranks > 1."""
    launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
    return subprocess.run(
        [*DIES_WITH_US, *launcher, str(RETRO), *map(str, arguments)],
        input=stdin if isinstance(stdin, bytes) else stdin.encode(),
        capture_output=True,
        env={**os.environ, **MPI_ENV},
        timeout=timeout,
    )


def run_ok(*arguments, **options):
    done = run(*arguments, **options)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done


def flags(options):
    """{"kv_dtype": "f32", "greedy": True} as ["--kv-dtype", "f32", "--greedy"]; a list is an option given often."""
    words = []
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not False:
                words += ["--" + name.replace("_", "-")] + ([] if one is True else [str(one)])
    return words


def evaluate_all(model, tokens, n_prompt, n_steps, dump=None, ranks=1, **options):
    """The JSON objects of `retro eval`, one of each policy."""
    options = {"dump_logits": dump, **options} if dump else options
    done = run_ok(
        "eval", "--model", model, "--tokens", tokens, "--prompt", n_prompt, "--steps", n_steps, "--json",
        *flags(options), ranks=ranks,
    )
    return [json.loads(line) for line in done.stdout.decode().strip().splitlines()]


def evaluate(*arguments, **options):
    """The JSON object of a `retro eval` of one policy."""
    (only,) = evaluate_all(*arguments, **options)
    return only


def write_ids(path, ids):
    Path(path).write_text(" ".join(map(str, ids)) + "\n")
    return path


def one_line(done, code, *words):
    """The refusal is one line on standard error with these words, and the exit code is the one of its kind."""
    text = done.stderr.decode(errors="replace")
    lines = [line for line in text.splitlines() if re.match(r"retro(\[.*?\])?: error: ", line)]
    assert done.returncode == code, (done.returncode, text)
    assert len(lines) == 1, text
    for word in words:
        assert re.search(word, lines[0]), (word, lines[0])
    return lines[0]
