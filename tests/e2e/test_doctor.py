"""retro doctor: what it finds on one machine, and that it sees what is wrong."""

import json
import os
import subprocess

import cli


def doctor(*words, ranks=1, launcher=(), env=None):
    """(exit code, object of --json)."""
    command = ["mpirun", *launcher, "-n", str(ranks)] if ranks > 1 else []
    done = subprocess.run([*command, str(cli.RETRO), "doctor", "--json", *map(str, words)], capture_output=True,
                          env={**os.environ, **cli.MPI_ENV, **(env or {})}, timeout=300)
    assert done.stdout, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


def line(report, name):
    return next(x for x in report["lines"] if x["name"] == name)


def test_two_ranks(real_model):
    code, report = doctor("--model", real_model, "--threads", 1, ranks=2)
    assert code == 0 and report["verdict"] in ("ok", "warn"), report["lines"]
    assert [r["rank"] for r in report["ranks"]] == [0, 1]
    assert all(r["memory_gb_s"] > 0 and r["file_gb_s"] > 0 for r in report["ranks"])
    assert "Open MPI" in line(report, "MPI")["text"]
    shared, mpi = report["all_reduce"]
    assert "shared memory" in shared["transport"] and "MPI" in mpi["transport"]
    for transport in (shared, mpi):
        sizes = transport["sizes"]
        assert [s["bytes"] for s in sizes] == [16, 8192, 65536, 1048576, 16777216]
        assert all(s["correct"] and 0 < s["median_us"] <= s["worst_us"] for s in sizes)


def test_alone():
    code, report = doctor()
    assert code == 0 and report["all_reduce"] == [] and len(report["ranks"]) == 1
    text = cli.run_ok("doctor").stdout.decode()
    assert text.splitlines()[-1] in ("ok", "warn") and "memory speed" in text


def test_several_threads_on_one_core():
    code, report = doctor("--threads", 2, ranks=2, launcher=["--bind-to", "core"],
                          env={"OMPI_MCA_hwloc_base_binding_policy": "core"})
    found = line(report, "binding")
    assert code == 0 and found["verdict"] == "warn" and "--bind-to none" in found["text"]
    assert report["verdict"] == "warn"


def test_more_threads_than_cores_without_yielding():
    threads = os.cpu_count()
    env = {"OMPI_MCA_mpi_yield_when_idle": "0"}
    _, report = doctor("--threads", threads, ranks=2, env=env)
    found = line(report, "oversubscribed")
    assert found["verdict"] == "warn" and "mpi_yield_when_idle=1" in found["text"]


def test_a_folder_without_weights_fails(tmp_path):
    code, report = doctor("--model", tmp_path)
    assert code == 5 and report["verdict"] == "fail"
    assert line(report, "model files")["verdict"] == "fail"
