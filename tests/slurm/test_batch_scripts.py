"""batch.sbatch and serve.sbatch under a real Slurm: an array, a requeue in the middle and a lost node with the
very bytes of a run that nobody disturbed, and the time limit with what was finished kept."""

import json
import re

import pytest

import cli
from hosts import wait_until
from test_slurm import root

BATCH = cli.ROOT / "scripts/slurm/batch.sbatch"
SERVE = cli.ROOT / "scripts/slurm/serve.sbatch"


@pytest.fixture
def requests(folder, tiny):
    """requests(name, n): a file of n requests, two of them bad, and the options of every run over it."""

    def make(name, n):
        lines = [json.dumps({"custom_id": f"id-{i}", "method": "POST", "url": "/v1/completions",
                             "body": {"model": "tiny", "prompt": f"{i} and {i * 7 % 31}", "max_tokens": 5 + i % 17,
                                      "ignore_eos": True}}) for i in range(n)]
        lines[1], lines[3] = "{", lines[0]
        (folder / name).write_text("\n".join(lines) + "\n")
        return folder / name

    return make


def settings(model):
    return ("--model", model, "--kv-dtype", "f32", "--threads", 1, "--max-seqs", 3, "--max-context", 256,
            "--page-size", 4, "--block-size", 16, "--drain", 2)


@pytest.fixture
def requests_for(requests, folder, tiny):
    """requests_for(name, seconds): as many as two ranks here need about that long for; machines differ fiftyfold."""

    def make(name, seconds):
        sample = requests("sample.jsonl", 20)
        done = cli.run_ok("batch", "--input", sample, "--output", folder / "sample.out", "--errors",
                          folder / "sample.err", *settings(tiny), ranks=2)
        took = re.search(r"tokens in ([0-9.]+) s", done.stderr.decode()).group(1)
        return requests(name, min(max(int(20 * seconds / (float(took) + 0.1)), 30), 20000))

    return make


def undisturbed(folder, model, file, ranks):
    """Bytes of results and errors of a run on this machine with as many ranks."""
    out, err = folder / f"{file.name}.expected.out", folder / f"{file.name}.expected.err"
    done = cli.run("batch", "--input", file, "--output", out, "--errors", err, *settings(model), ranks=ranks)
    assert done.returncode == 0, done.stderr.decode()
    return out.read_bytes(), err.read_bytes()


def results(folder, file):
    name = file.name.removesuffix(".jsonl")
    return tuple((folder / "results" / f"{name}.{kind}.jsonl").read_bytes() for kind in ("out", "err"))


def records(folder, file):
    journal = folder / "results" / (file.name.removesuffix(".jsonl") + ".out.jsonl.journal")
    return max(journal.read_bytes().count(b"\n") - 1, 0) if journal.exists() else 0


def submit(slurm, folder, tiny, source, *words):
    return slurm.submit(*words, "-o", folder / "out", BATCH, source, folder / "results", *settings(tiny), cwd=folder,
                        env=root(folder))


def test_array_of_batches(slurm, tiny, requests, folder):
    files = [requests(f"a{i}.jsonl", 12 + i) for i in range(2)]
    (folder / "list").write_text("".join(f"{f}\n" for f in files))
    env = root(folder)
    del env["RETRO_LOGS"]
    job = slurm.submit("--array=0-1", "-N", 1, "-n", 1, "-o", folder / "out.%a", BATCH, folder / "list",
                       folder / "results", *settings(tiny), cwd=folder, env=env)
    assert slurm.tasks_end(job) == {0: "0:0", 1: "0:0"}, (folder / "out.0").read_text()
    for file in files:
        assert results(folder, file) == undisturbed(folder, tiny, file, 1)


def test_requeue_and_a_lost_node(slurm, tiny, requests_for, folder):
    """One job is put back by hand, then its node loses power; it ends with the bytes of an undisturbed run."""
    file = requests_for("in.jsonl", 12)
    expected = undisturbed(folder, tiny, file, 2)
    job = submit(slurm, folder, tiny, file, "-N", 2, "--ntasks-per-node=1")
    assert wait_until(lambda: records(folder, file) > 3, 60), (folder / "out").read_text()
    slurm.on("h0", "scontrol", "requeue", job)
    slurm.wait(job, "RUNNING", seconds=60)
    n = records(folder, file)
    assert wait_until(lambda: records(folder, file) > n, 60), (folder / "out").read_text()
    victim = slurm.nodes(job)[-1]
    assert victim != slurm.fields(job)["BatchHost"]
    slurm.hosts.power_cut(victim)
    slurm.wait(job, "COMPLETED", seconds=300)
    assert int(slurm.fields(job)["Restarts"]) >= 2
    assert results(folder, file) == expected
    slurm.power_on(victim)


def test_time_limit_drains(slurm, tiny, requests, folder):
    """TERM comes before the limit: what is computed gets its time, nothing finished is lost, the job goes back."""
    file = requests("endless.jsonl", 50000)
    job = submit(slurm, folder, tiny, file, "-N", 2, "--ntasks-per-node=1", "-t", 1, "--signal=B:TERM@50")
    assert wait_until(lambda: slurm.fields(job)["Restarts"] == "1", 70, 0.5), (folder / "out").read_text()
    slurm.on("h0", "scancel", job)
    text = (folder / "out").read_text()
    assert "done and on the disk" in text and "interrupted: back to the queue" in text
    assert not (folder / "logs" / "failure.json").exists()
    assert records(folder, file) > 0
    assert wait_until(lambda: not slurm.hosts.processes("retro"), 10)


def test_server(slurm, tiny, folder):
    """serve.sbatch answers under the address that it tells, ends in good order when asked, and comes back."""
    url_file = folder / "url"
    env = {**root(folder), "RETRO_URL_FILE": str(url_file)}
    job = slurm.submit("-N", 2, "--ntasks-per-node=1", "-o", folder / "out", SERVE, *settings(tiny), cwd=folder,
                       env=env)

    def answer():
        assert wait_until(url_file.exists, 60), (folder / "out").read_text()
        body = json.dumps({"model": "tiny", "prompt": "a b", "max_tokens": 5, "ignore_eos": True, "temperature": 0})
        text = slurm.on("h0", "curl", "-sS", "--max-time", 30, "-H", "Content-Type: application/json", "-d", body,
                        url_file.read_text().strip() + "v1/completions")
        return json.loads(text)["choices"][0]["text"]

    first = answer()
    slurm.on("h0", "scancel", "--batch", "--signal=TERM", job)
    assert wait_until(lambda: slurm.fields(job)["Restarts"] == "1" and not url_file.exists(), 60, 0.5), \
        (folder / "out").read_text()
    assert not (folder / "logs" / "failure.json").exists()
    slurm.wait(job, "RUNNING")
    assert answer() == first
    slurm.on("h0", "scancel", job)
    assert wait_until(lambda: not slurm.hosts.processes("retro"), 20)
    slurm.wait(job, "CANCELLED", seconds=20)
    assert slurm.fields(job)["Restarts"] == "1" and not url_file.exists()
