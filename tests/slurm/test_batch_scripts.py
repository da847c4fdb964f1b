"""batch.sbatch and serve.sbatch under a real Slurm: an array, a requeue in the middle and a lost node with the
very bytes of a run that nobody disturbed, and the time limit with what was finished kept."""

import json
import os
import re
import shutil
import subprocess

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
        sample, took = requests("sample.jsonl", 20), []
        for i in range(3):  # the fastest: somebody else may be at work here
            done = cli.run_ok("batch", "--input", sample, "--output", folder / f"sample-{i}.out", "--errors",
                              folder / f"sample-{i}.err", *settings(tiny), ranks=2)
            took.append(float(re.search(r"tokens in ([0-9.]+) s", done.stderr.decode()).group(1)))
        return requests(name, min(max(int(20 * seconds / (min(took) + 0.1)), 30), 20000))

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
    file = requests_for("in.jsonl", 5)
    expected = undisturbed(folder, tiny, file, 2)
    job = submit(slurm, folder, tiny, file, "-N", 2, "--ntasks-per-node=1")
    assert wait_until(lambda: records(folder, file) > 3, 120), (folder / "out").read_text()
    slurm.on("h0", "scontrol", "requeue", job)
    slurm.wait(job, "RUNNING")
    n = records(folder, file)
    assert wait_until(lambda: records(folder, file) > n, 120), (folder / "out").read_text()
    victim = slurm.nodes(job)[-1]
    assert victim != slurm.fields(job)["BatchHost"]
    slurm.hosts.power_cut(victim)
    slurm.wait(job, "COMPLETED", seconds=600)
    assert int(slurm.fields(job)["Restarts"]) >= 2
    assert results(folder, file) == expected
    slurm.power_on(victim)


def test_time_limit_drains(slurm, tiny, requests, folder):
    """TERM comes before the limit: what is computed gets its time, nothing finished is lost, the job goes back. The limit is
    set when the job computes: it has one to two minutes then, and the signal was to come before that."""
    file = requests("endless.jsonl", 50000)
    job = submit(slurm, folder, tiny, file, "-N", 2, "--ntasks-per-node=1", "-t", 60, "--signal=B:TERM@130")
    assert wait_until(lambda: records(folder, file) > 3, 120), (folder / "out").read_text() + slurm.log()
    hours, minutes, _ = map(int, slurm.fields(job)["RunTime"].split(":"))
    slurm.on("h0", "scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 2}")
    assert wait_until(lambda: slurm.fields(job)["Restarts"] == "1", 110, 0.5), (folder / "out").read_text() + slurm.log()
    slurm.on("h0", "scancel", job)
    text = (folder / "out").read_text()
    assert "done and on the disk" in text and "interrupted: back to the queue" in text
    assert not (folder / "logs" / "failure.json").exists()
    assert records(folder, file) > 3
    assert wait_until(lambda: not slurm.hosts.processes("retro"), 30)


# What happens to a job's first start; the second one finds the file `begun` and is the real thing.
STARTS = {
    "mpirun is not there": ("mpirun", "exec sleep 300"),
    "no daemon is there": ("srun", "exec sleep 300"),
    "no daemon can be started": ("srun", "echo srun: the node is gone >&2; exit 1"),
}


@pytest.mark.parametrize("how", STARTS)
def test_a_start_that_comes_to_nothing(slurm, tiny, requests, folder, how):
    """A TERM that finds no rank yet, and a start that fails: the job goes back, and later all is computed."""
    program, body = STARTS[how]
    begun, bin = folder / "begun", folder / "bin"
    bin.mkdir()
    (bin / program).write_text(f"#!/bin/sh\n[ -e '{begun}' ] && exec {shutil.which(program)} \"$@\"\ntouch '{begun}'\n{body}\n")
    (bin / program).chmod(0o755)
    file = requests("in.jsonl", 12)
    env = {**root(folder), "PATH": f"{bin}:{os.environ['PATH']}"}
    job = slurm.submit("-N", 2, "--ntasks-per-node=1", "-o", folder / "out", BATCH, file, folder / "results", *settings(tiny),
                       cwd=folder, env=env)
    assert wait_until(begun.exists, 120), slurm.log()
    if "sleep" in body:
        slurm.on("h0", "scancel", "--batch", "--signal=TERM", job)
    slurm.wait(job, "COMPLETED")
    text = (folder / "out").read_text()
    assert slurm.fields(job)["Restarts"] == "1", text
    # A program that TERM ends at once may be gone before job.sh looks.
    said = r"interrupted( in the start)?" if "sleep" in body else "no rank was started, exit code 1"
    assert re.search(f"^job.sh: {said}: back to the queue$", text, re.M), text
    assert ("srun: the node is gone" in text) == ("gone" in body)
    assert results(folder, file) == undisturbed(folder, tiny, file, 2)


# What stands for Slurm and mpirun where a script runs alone.
STUBS = {
    "scontrol": 'echo "scontrol $*"; [ "$1" != show ] || echo "JobState=$STATE"; [ "$1" = show ]',
    "mpirun": 'echo "mpirun $*"; eval "$MPIRUN"',
}


def alone(folder, *words, **env):
    """A script without a Slurm; its processes have all ended when this returns."""
    for name, body in STUBS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    env = {**os.environ, **root(folder), "SLURM_JOB_ID": "7", "PATH": f"{folder}:{os.environ['PATH']}", "STATE": "RUNNING", **env}
    return subprocess.run(["bash", *map(str, words)], env=env, capture_output=True, text=True, timeout=60)


def job_sh(body):
    return "-c", f". {cli.ROOT}/scripts/slurm/job.sh; {body}; echo after"


def test_a_signal_before_the_start(tmp_path):
    """TERM while the script prepares something, and no second life when the job was cancelled meanwhile."""
    for state, said in (("RUNNING", "interrupted before the start: back to the queue"), ("COMPLETING", "")):
        done = alone(tmp_path, *job_sh("kill -TERM $$; retro_job generate"), STATE=state)
        assert done.returncode == 75 and "after" not in done.stdout and "mpirun" not in done.stdout, done
        assert said in done.stderr and ("scontrol requeue 7" in done.stdout) == bool(said)


def test_a_failure_of_another_run(tmp_path):
    """RETRO_LOGS may be where an earlier job left its own."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "failure.json").touch()
    done = alone(tmp_path, *job_sh("job_run true"))
    assert done.returncode == 0 and done.stdout == "after\n", done


def test_a_failure_that_mpirun_forgets(tmp_path):
    """It may end with 0 after it lost a node: no success, when the last try is over, too."""
    done = alone(tmp_path, *job_sh("retro_job generate"), MPIRUN='touch "$RETRO_LOGS/failure.json"', RETRO_RETRIES="0")
    assert done.returncode == 5 and "after" not in done.stdout, done


def test_tasks_of_an_array_have_logs_of_their_own(tmp_path):
    for task in "03":
        done = alone(tmp_path, *job_sh("retro_job eval"), SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID=task)
        assert done.returncode == 0 and f"--log-dir {tmp_path / 'logs' / task}\n" in done.stdout, done
        assert (tmp_path / "logs" / task).is_dir()


def test_nothing_of_a_server_stays(tmp_path):
    """What waits for its address ends with it, though the server never had one."""
    done = alone(tmp_path, SERVE, MPIRUN="exit 3", SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 3, done


@pytest.mark.parametrize("words", [(), ("in.jsonl",), ("in.jsonl", "--model", "DIR")])
def test_a_forgotten_folder_of_results(tmp_path, words):
    for script in (BATCH, BATCH.with_name("eval.sbatch")):
        done = alone(tmp_path, script, *words)
        assert done.returncode == 2 and done.stderr.startswith(f"{script.name}: name the ") and not done.stdout, done


def test_server(slurm, tiny, folder):
    """serve.sbatch answers under the address that it tells, ends in good order when asked, and comes back."""
    url_file = folder / "url"
    env = {**root(folder), "RETRO_URL_FILE": str(url_file)}
    job = slurm.submit("-N", 2, "--ntasks-per-node=1", "-o", folder / "out", SERVE, *settings(tiny), cwd=folder,
                       env=env)

    def answer():
        assert wait_until(url_file.exists, 120), (folder / "out").read_text()
        body = json.dumps({"model": "tiny", "prompt": "a b", "max_tokens": 5, "ignore_eos": True, "temperature": 0})
        text = slurm.on("h0", "curl", "-sS", "--max-time", 30, "-H", "Content-Type: application/json", "-d", body,
                        url_file.read_text().strip() + "v1/completions")
        return json.loads(text)["choices"][0]["text"]

    first = answer()
    slurm.on("h0", "scancel", "--batch", "--signal=TERM", job)
    assert wait_until(lambda: slurm.fields(job)["Restarts"] == "1" and not url_file.exists(), 120, 0.5), \
        (folder / "out").read_text()
    assert not (folder / "logs" / "failure.json").exists()
    slurm.wait(job, "RUNNING")
    assert answer() == first
    slurm.on("h0", "scancel", job)
    assert wait_until(lambda: not slurm.hosts.processes("retro"), 60)
    slurm.wait(job, "CANCELLED")
    assert slurm.fields(job)["Restarts"] == "1" and not url_file.exists()
