"""Retro under a real slurmctld and slurmd: a batch job, srun, an array, a requeue, tasks that each believe to be alone,
and the page for users (retro batch: test_batch_scripts.py)."""

import json
import os
import shutil

import pytest

import cli
import page
from hosts import wait_until

RUN = cli.ROOT / "scripts/slurm/run.sbatch"
EVAL = cli.ROOT / "scripts/slurm/eval.sbatch"


def options(model, file, steps):
    return ("--model", model, "--tokens", file, "--prompt", 32, "--steps", steps, "--kv-dtype", "f32", "--threads", 1,
            "--policy", "dense", "--greedy")


def root(folder):
    return {"RETRO_ROOT": str(cli.ROOT), "RETRO_PROGRAM": str(cli.RETRO), "RETRO_LOGS": str(folder / "logs")}


def assert_exact(text, model, file, steps):
    """The last object measured what one process on this machine measures: the same tokens, the same likelihood."""
    alone = json.loads(cli.run_ok("eval", *options(model, file, steps), "--json").stdout.decode().splitlines()[-1])
    there = json.loads([x for x in text.splitlines() if x.startswith("{")][-1])  # srun may say something behind it
    assert len(there["tokens"]) == steps and there["tokens"] == alone["tokens"]
    assert there["nll"] == pytest.approx(alone["nll"], rel=1e-5)


def test_batch_job_on_three_nodes(slurm, tiny, tokens, folder):
    file = tokens("short", 200)
    job = slurm.submit("-N", 3, "--ntasks-per-node=1", "-o", folder / "out", RUN, "eval", *options(tiny, file, 40),
                       "--json", cwd=folder, env=root(folder))
    slurm.wait(job, "COMPLETED")
    assert_exact((folder / "out").read_text(), tiny, file, 40)
    hosts = {json.loads(line)["host"] for r in range(3)
             for line in (folder / "logs" / f"rank-{r}.jsonl").read_text().splitlines()}
    assert hosts <= {"h1", "h2", "h3"} and hosts


def test_srun_starts_ranks_itself(slurm, tiny, tokens, folder):
    file = tokens("short", 200)
    out = slurm.on("h0", "srun", "-N", 3, "-n", 3, "--mpi=pmix", cli.RETRO, "eval", *options(tiny, file, 40), "--json",
                   cwd=folder, env={"OMPI_MCA_mpi_yield_when_idle": "1"})
    assert_exact(out, tiny, file, 40)
    assert json.loads(out.strip().splitlines()[-1])["ranks"] == 3


def test_tasks_that_believe_to_be_alone_are_refused(slurm, tiny, folder):
    done = slurm.on("h0", "srun", "-N", 2, "-n", 2, "--mpi=none", cli.RETRO, "generate", "--model", tiny, "--prompt",
                    "x", cwd=folder, check=False)
    assert done.returncode == 2, done.stderr
    assert "2 tasks but each one sees a world of 1 rank" in done.stderr and "--mpi=pmix" in done.stderr


def test_array_resumes_what_is_missing(slurm, tiny, tokens, folder):
    files = [tokens(f"array-{'x' * i}", 150 + i) for i in range(3)]
    (folder / "list").write_text("".join(f"{f}\n" for f in files))
    results = folder / "results"
    results.mkdir()
    there = results / f"{files[1].name}.json"
    there.write_text("measured before\n")
    words = ("--array=0-2", "-N", 1, "-n", 2, "-o", folder / "out.%a", EVAL, folder / "list", results)
    more = ("--model", tiny, "--prompt", 32, "--steps", 20, "--kv-dtype", "f32", "--threads", 1, "--policy", "dense",
            "--greedy")
    env = root(folder)
    del env["RETRO_LOGS"]
    job = slurm.submit(*words, *more, cwd=folder, env=env)
    assert slurm.tasks_end(job) == {0: "0:0", 1: "0:0", 2: "0:0"}, (folder / "out.0").read_text()
    assert there.read_text() == "measured before\n"
    for file in (files[0], files[2]):
        assert_exact((results / f"{file.name}.json").read_text(), tiny, file, 20)
    assert sorted(p.name for p in results.iterdir()) == sorted(f"{f.name}.json" for f in files)


def test_the_page_for_users(slurm):
    """docs/running.md, followed word by word."""
    if "RETRO_BUILD" in os.environ:
        pytest.skip("the page says build/retro")
    (cli.ROOT / "build" / "retro.out").unlink(missing_ok=True)
    page.follow("Slurm, as a user", slurm.environment(), launcher=slurm.hosts.enter("h0"))


def begun(folder):
    """The ranks of a job say that they are ready."""
    log = folder / "logs" / "rank-0.jsonl"
    return log.exists() and "KV" in log.read_text()


def test_requeue_in_the_middle(slurm, tiny, tokens, folder):
    file, steps = tokens("long", 1500), 600
    job = slurm.submit("-N", 3, "--ntasks-per-node=1", "-o", folder / "out", RUN, "eval", *options(tiny, file, steps),
                       "--json", cwd=folder, env=root(folder))
    assert wait_until(lambda: begun(folder), 120), (folder / "out").read_text()
    shutil.rmtree(folder / "logs")
    slurm.on("h0", "scontrol", "requeue", job)
    slurm.wait(job, "COMPLETED", seconds=300)
    assert slurm.fields(job)["Restarts"] == "1"
    assert_exact((folder / "out").read_text(), tiny, file, steps)
