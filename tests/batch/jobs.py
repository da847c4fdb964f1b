"""Batches for the tests: files of requests, a run of `retro batch` over them, and what its files must hold."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import cli

# Small pages and a small budget: most pages of a prompt of a hundred tokens are left out and revised.
POLICY = ["--page-size", "4", "--block-size", "16", "--kv-budget", "0.2", "--dense-layers", "1", "--threads", "1"]


def line(custom_id, url="/v1/completions", **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "tiny", **body}})


def write_requests(path, n, seed=1, tokens=30):
    """n requests of all kinds, every ninth line bad; returns the numbers of the bad ones."""
    r = random.Random(seed)
    lines, bad = [], []
    for i in range(n):
        name, length = f"id-{i}", r.randint(1, tokens)
        prompt = " ".join(str(r.randint(0, 999)) for _ in range(r.randint(1, 40)))
        kind = i % 9
        if kind == 4:
            bad.append(i + 1)
            lines.append(r.choice(["{", line(f"id-{i - 1}"), line(name, prompt="a", what=1), line(name)]))
        elif kind % 3 == 0:
            messages = [{"role": "user", "content": prompt}]
            lines.append(line(name, "/v1/chat/completions", messages=messages, max_tokens=length))
        elif kind == 1:
            lines.append(line(name, prompt=[prompt, "x"], n=2, max_tokens=length, seed=i, temperature=1.5))
        elif kind == 2:
            lines.append(line(name, prompt=prompt, max_tokens=length, temperature=0, logprobs=2, echo=i % 2 == 0))
        else:
            lines.append(line(name, prompt=prompt, max_tokens=length, ignore_eos=True, stop=["7"]))
    Path(path).write_text("\n".join(lines) + "\n")
    return bad


class Batch:
    """One input and its files of results in a folder of their own."""

    def __init__(self, folder, model, source, errors=True, sequences=4):
        folder.mkdir(parents=True, exist_ok=True)
        self.model, self.source, self.sequences = model, source, sequences
        self.output, self.errors = folder / "out.jsonl", folder / "err.jsonl" if errors else None
        self.journal = folder / "out.jsonl.journal"

    def words(self, *more):
        errors = ["--errors", self.errors] if self.errors else []
        words = ["batch", "--model", self.model, "--input", self.source, "--output", self.output, *errors]
        return [*map(str, words), *POLICY, "--max-seqs", str(self.sequences), "--max-context", "512", *more]

    def run(self, *more, ranks=1, **options):
        return cli.run(*self.words(*more), ranks=ranks, **options)

    def start(self, *more, ranks=1, **options):
        launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
        return subprocess.Popen(
            [*cli.DIES_WITH_US, *launcher, str(cli.RETRO), *self.words(*more)],
            env={**os.environ, **cli.MPI_ENV}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )

    def results(self):
        """The bytes of the files of results."""
        return self.output.read_bytes(), self.errors.read_bytes() if self.errors else None

    def n_records(self):
        """Whole lines of the journal behind its head."""
        return max(self.journal.read_bytes().count(b"\n") - 1, 0) if self.journal.exists() else 0

    def wait_for_records(self, n, process, limit_s=300):
        until = time.monotonic() + limit_s
        while self.n_records() < n:
            assert process.poll() is None and time.monotonic() < until, (self.n_records(), process.poll())
            time.sleep(0.005)

    def no_leftovers(self):
        names = {self.output.name, self.journal.name} | ({self.errors.name} if self.errors else set())
        assert {p.name for p in self.output.parent.iterdir()} == names


def children(pid):
    """Process ids of the running children of `pid`."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def ended(process, limit_s=300):
    """Waits; (exit code, standard error)."""
    _, text = process.communicate(timeout=limit_s)
    return process.returncode, text.decode(errors="replace")


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def gone(pids, limit_s=120):
    """Waits until none of these runs."""
    until = time.monotonic() + limit_s
    while any(running(p) for p in pids):
        assert time.monotonic() < until, "a rank outlived its launcher"
        time.sleep(0.01)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
