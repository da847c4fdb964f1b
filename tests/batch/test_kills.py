"""kill -9 of retro batch, of its mpirun and of single ranks at random moments: whatever happens, the run that goes on
from there leaves exactly the files of a run that nobody disturbed. RETRO_KILLS is the number of kills (8)."""

import json
import os
import random
import time

import pytest
from jobs import Batch, children, ended, gone, kill, write_requests

KILLS = int(os.environ.get("RETRO_KILLS", 8))
REQUESTS = 240


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    path = tmp_path_factory.mktemp("requests") / "in.jsonl"
    write_requests(path, REQUESTS, seed=2, tokens=60)
    return path


@pytest.fixture(scope="module")
def undisturbed(requests, model, tmp_path_factory):
    """undisturbed(ranks of a replica): the files of results and how long they took."""
    made = {}

    def run(ranks):
        if ranks not in made:
            batch = Batch(tmp_path_factory.mktemp("undisturbed"), model, requests)
            began = time.monotonic()
            done = batch.run(ranks=ranks)
            assert done.returncode == 0, done.stderr.decode()
            made[ranks] = batch.results(), time.monotonic() - began
        return made[ranks]

    return run


def victims(process, who):
    """Process ids to kill, and all that must be gone before the next run."""
    ranks = sorted(children(process.pid))
    if who in ("retro", "mpirun"):
        return [process.pid], [process.pid, *ranks]
    return ranks[int(who[-1]) :][:1], [process.pid, *ranks]


def random_moment(process, batch, seconds):
    """Half of the moments are anywhere in a run's life, the others while it computes."""
    if random.random() < 0.5:
        time.sleep(random.uniform(0, seconds))
        return
    n = batch.n_records()
    while process.poll() is None and batch.n_records() <= n:
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.3 * seconds))


def whole_lines(batch):
    """Every line of the journal but the last is a whole record of its own input line."""
    lines = batch.journal.read_bytes().split(b"\n")[1:-1] if batch.journal.exists() else []
    numbers = [json.loads(text)["line"] for text in lines]
    assert len(set(numbers)) == len(numbers)
    return set(numbers)


@pytest.mark.parametrize(
    "who, ranks, dp",
    [("retro", 1, 1), ("mpirun", 2, 1), ("rank 0", 2, 1), ("rank 1", 2, 1), ("rank 0", 2, 2), ("rank 1", 2, 2)],
)
def test_killed_at_random_moments(tmp_path, model, requests, undisturbed, who, ranks, dp):
    expected, seconds = undisturbed(ranks // dp)
    random.seed(f"{who} {KILLS}")
    replicas = ["--dp", str(dp)] if dp > 1 else []
    n_killed = n_batches = n_mid = 0
    kills = KILLS if who in ("retro", "mpirun") else max(KILLS // 2, 2)

    def go_on():  # a fast machine is done before most kills: more of them, until one came while there was work
        return n_killed < kills or (n_mid == 0 and n_killed < 20 * kills)

    while go_on():
        n_batches += 1
        batch = Batch(tmp_path / str(n_batches), model, requests)
        kept = set()
        while go_on():
            process = batch.start(*replicas, ranks=ranks)
            random_moment(process, batch, seconds)
            killed, others = victims(process, who)
            while not killed and process.poll() is None:  # mpirun has not started its ranks yet
                killed, others = victims(process, who)
            if process.poll() is not None:
                break  # it was done before
            for pid in killed:
                kill(pid)
            n_killed += 1
            ended(process)
            gone(others)
            if not batch.output.exists():
                now = whole_lines(batch)
                assert kept <= now, "a finished result was lost"
                n_mid += len(now) > len(kept)
                kept = now
        done = batch.run(*replicas, ranks=ranks)
        assert done.returncode == 0, done.stderr.decode()
        assert batch.results() == expected
        batch.no_leftovers()
    print(f"{who}: {n_killed} kills, {n_mid} of them after new results, {n_batches} batches")
    assert n_mid > 0, "no kill came while there was work"
