"""retro doctor: what it finds on one machine, and that it sees what is wrong."""

import json
import os
import subprocess

import cli
import pytest


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
        assert all(s["right"] and 0 < s["us_p10"] <= s["us"] <= s["us_p90"] for s in sizes)


def test_alone():
    code, report = doctor()
    assert code == 0 and report["all_reduce"] == [] and len(report["ranks"]) == 1
    text = cli.run_ok("doctor").stdout.decode()
    assert text.splitlines()[-1] in ("ok", "warn") and "memory speed" in text


def test_what_is_wrong_with_the_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "model.safetensors").touch()
    for name, words in (("empty", "holds no *.safetensors"), ("nothing", "holds no *.safetensors"), ("file", "Not a directory"), ("none", "No such file")):
        code, report = doctor("--model", tmp_path / name)
        found = line(report, "model files")
        assert code == 5 and found["verdict"] == "fail" and words in found["text"], found


# Rank 1's wall clock goes LATE_US ahead of the others'.
LATE = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *t)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    int bad = (int)syscall(SYS_clock_gettime, id, t);
    if (bad || id != CLOCK_REALTIME || !rank || strcmp(rank, "1")) return bad;
    long us = atol(getenv("LATE_US"));
    t->tv_sec += us / 1000000;
    t->tv_nsec += us % 1000000 * 1000;
    if (t->tv_nsec >= 1000000000) t->tv_nsec -= 1000000000, t->tv_sec++;
    return 0;
}
"""


@pytest.mark.parametrize("late_s, verdict", [(0.1, "ok"), (3.25, "warn")])
def test_clocks_that_differ(tmp_path, late_s, verdict):
    (tmp_path / "late.c").write_text(LATE)
    library = tmp_path / "late.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "late.c"], check=True)
    code, report = doctor(ranks=2, env={"LD_PRELOAD": str(library), "LATE_US": str(int(late_s * 1e6))})
    clocks = line(report, "clocks")
    assert code == 0 and clocks["verdict"] == verdict, clocks
    # Half of a message's round trip is the error; where others take the processor it is milliseconds.
    assert report["ranks"][1]["clock_skew_s"] == pytest.approx(late_s, abs=0.5)
    assert ("run a time service" in clocks["text"]) == (verdict == "warn")


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


GIB = 1 << 30
SMI = """#!/bin/sh
case "$*" in
*--query-gpu=*)
    echo '570.86.15, 0, GPU-aaaa, 81559, 1024, 80535, NVIDIA H100 80GB HBM3'
    echo '570.86.15, 1, GPU-bbbb, 81559, 4, 81555, NVIDIA H100 80GB HBM3'
    echo '570.86.15, 2, GPU-cccc, 81559, 40000, [N/A], NVIDIA H100 80GB HBM3' ;;
*--query-compute-apps=*)
    echo 'GPU-aaaa, 4711, 1000, python3, with a comma' ;;
esac
"""


def with_smi(folder, text):
    """An environment whose nvidia-smi is this script."""
    (folder / "nvidia-smi").write_text(text)
    (folder / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_who_holds_gpus(tmp_path):
    _, report = doctor(env=with_smi(tmp_path, SMI))
    (host,) = report["hosts"]
    assert host["gpu_driver"] == "570.86.15" and host["nvidia_smi"] == ""
    held, free, hidden = host["gpus"]
    assert held["processes"] == [{"pid": 4711, "name": "python3, with a comma", "bytes": 1000 << 20}]
    assert held["memory_bytes"] == 81559 << 20 and held["free_bytes"] == 80535 << 20 and held["uuid"] == "GPU-aaaa"
    assert free["processes"] == [] and hidden["free_bytes"] is None
    lines = [x for x in report["lines"] if x["name"] == "GPU users"]
    assert [x["verdict"] for x in lines] == ["warn", "ok", "warn"]
    assert "4711 python3" in lines[0]["text"] and "nobody else" in lines[1]["text"] and "not shown" in lines[2]["text"]
    assert "GPU-bbbb" in lines[1]["text"] and "79.6 GiB free of 79.6 GiB" in lines[1]["text"]


def test_an_nvidia_smi_that_fails(tmp_path):
    _, report = doctor(env=with_smi(tmp_path, "#!/bin/sh\necho No devices, were found; exit 6\n"))
    (host,) = report["hosts"]
    assert host["gpus"] == [] and "No devices" in host["nvidia_smi"]


def test_wanted_gpus_that_are_not_there():
    code, report = doctor("--device", "cuda", env={"CUDA_VISIBLE_DEVICES": ""})
    assert code == 5 and report["verdict"] == "fail"
    assert any(x["verdict"] == "fail" and "--device cpu" in x["text"] for x in report["lines"])
