"""scaling.sbatch under a real Slurm: put back in the middle it measures what is missing, then draws."""

import json

import pytest

import cli
from hosts import wait_until
from test_slurm import root

SCALING = cli.ROOT / "scripts/slurm/scaling.sbatch"


@pytest.fixture
def words(tiny):
    return ("--model", tiny, "--machine", "h100", "--mode", "strong", "--contexts", 64, "--batches", 1, "--tokens", 3,
            "--threads", 1)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_a_sweep_that_is_requeued(slurm, words, folder):
    out = folder / "sweep"
    job = slurm.submit("-N", 2, "--ntasks-per-node=1", "-o", folder / "out", SCALING, out, *words, "--policies",
                       "dense,quest,retro:2", cwd=folder, env=root(folder))
    assert wait_until(lambda: len(lines(out / "results.jsonl")) >= 2, 300, 0.1), (folder / "out").read_text()
    first = lines(out / "results.jsonl")[:2]
    slurm.on("h0", "scontrol", "requeue", job)
    slurm.wait(job, "COMPLETED", seconds=300)
    assert slurm.fields(job)["Restarts"] == "1", (folder / "out").read_text()
    text = lines(out / "results.jsonl")
    found = [json.loads(line) for line in text]
    assert text[:2] == first and not lines(out / "failed.jsonl")
    assert [(x["ranks"], x["policy"]) for x in found] == [(r, p) for r in (1, 2) for p in ("dense", "quest", "retro")]
    assert all(x["facts"]["job"] == job and x["facts"]["nodes"] == "2" and x["tokens_per_s"] > 0 for x in found)
    for name in ("ranks-strong", "breakdown"):
        assert (out / f"{name}.svg").stat().st_size > 1000 and (out / f"{name}.png").stat().st_size > 1000


def test_more_ranks_than_tasks(slurm, words, folder):
    job = slurm.submit("-N", 1, "-n", 1, "-o", folder / "out", SCALING, folder / "sweep", *words, "--ranks=1,2",
                       cwd=folder, env=root(folder))
    slurm.wait(job, "FAILED")
    assert slurm.fields(job)["ExitCode"] == "2:0" and "--ranks 2: the allocation has 1 task" in (folder / "out").read_text()
