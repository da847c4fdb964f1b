"""retro doctor on GPUs: their versions over the ranks, their places, sums and times by NCCL."""

import json
import os
import subprocess

import pytest

import cli
from conftest import REAL_GPU

pytestmark = pytest.mark.skipif(REAL_GPU, reason="needs two emulated GPUs")


def doctor(*words, env=None, second=None):
    """(exit code, object of --json) of two ranks, the second with further variables."""
    rank = [str(cli.RETRO), "doctor", "--json", "--threads", "1", *words]
    other = ["env", *(f"{k}={v}" for k, v in (second or {}).items()), *rank]
    done = subprocess.run(["mpirun", "-n", "1", *rank, ":", "-n", "1", *other], capture_output=True, timeout=120,
                          env={**os.environ, **cli.MPI_ENV, **(env or {})})
    assert done.stdout, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


def lines(report, name):
    return [x for x in report["lines"] if x["name"] == name]


def test_two_ranks():
    code, report = doctor("--device", "cuda")
    assert code == 0, report["lines"]
    for rank, facts in enumerate(report["ranks"]):
        cuda = facts["cuda"]
        assert cuda["runtime"].startswith("13.") and cuda["cublas"].startswith("13.") and cuda["nccl"].startswith("2.")
        assert cuda["gpus_visible"] == 2 and cuda["gpu"]["number"] == rank and cuda["gpu"]["memory_bytes"] > 0
    assert report["ranks"][0]["cuda"]["gpu"]["uuid"] != report["ranks"][1]["cuda"]["gpu"]["uuid"]
    for name in ("CUDA runtime", "cuBLAS", "NCCL", "CUDA driver"):
        assert [x["verdict"] for x in lines(report, name)] == ["ok"], name
    nccl = report["all_reduce"][-1]
    assert "NCCL" in nccl["transport"] and len(report["all_reduce"]) == 3
    assert [s["bytes"] for s in nccl["sizes"]] == [16, 8192, 65536, 1048576, 16777216]
    assert all(s["right"] and 0 < s["us_p10"] <= s["us"] <= s["us_p90"] for s in nccl["sizes"])


def test_one_gpu_for_two_ranks():
    code, report = doctor(env={"EMU_DEVICES": "1"})
    assert code == 0 and lines(report, "GPUs")[0]["verdict"] == "warn"
    assert "share one of 1" in lines(report, "GPUs")[0]["text"] and len(report["all_reduce"]) == 2
    code, report = doctor("--device", "cuda", env={"EMU_DEVICES": "1"})
    assert code == 5 and lines(report, "GPUs")[0]["verdict"] == "fail"


def test_a_rank_without_gpu():
    code, report = doctor("--device", "cuda", second={"EMU_DEVICES": "0"})
    assert code == 5 and "rank 1" in lines(report, "GPUs")[0]["text"] and len(report["all_reduce"]) == 2


OTHER = """int ncclGetVersion(int *v) { *v = 22005; return 0; }
int cudaRuntimeGetVersion(int *v) { *v = 12080; return 0; }
int cublasGetProperty(int what, int *v) { *v = 9 + what; return 0; }
int cudaDriverGetVersion(int *v) { *v = DRIVER; return 0; }
"""


@pytest.mark.parametrize("driver, verdict, words", [(11040, "fail", "update the driver"), (13090, "warn", "13.9.0")])
def test_ranks_whose_libraries_differ(driver, verdict, words, tmp_path):
    (tmp_path / "other.c").write_text(OTHER)
    subprocess.run(["cc", "-shared", "-fPIC", f"-DDRIVER={driver}", "-o", tmp_path / "other.so", tmp_path / "other.c"],
                   check=True)
    code, report = doctor(second={"LD_PRELOAD": tmp_path / "other.so"})
    assert code == 5
    for name, what, text in (("NCCL", "fail", "2.20.5"), ("CUDA runtime", "fail", "12.8.0"),
                             ("cuBLAS", "fail", "9.10.11"), ("CUDA driver", verdict, words)):
        (line,) = lines(report, name)[:1]
        assert line["verdict"] == what and text in line["text"] and "rank 1" in line["text"]


def test_bench_allreduce_goes_over_nccl():
    done = cli.run_ok("bench", "allreduce", "--device", "cuda", "--sizes", "16384", "--json", ranks=2)
    line = json.loads(done.stdout)
    assert "NCCL" in line["group"] and line["right"] and line["us"] > 0
