import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
sys.path[:0] = [str(HERE), str(TESTS), str(TESTS / "cluster"), str(TESTS / "e2e")]

import cli  # noqa: E402
import hosts as hosts_module  # noqa: E402
import slurm as slurm_module  # noqa: E402
from tools import tiny_model  # noqa: E402


@pytest.fixture(scope="session")
def work():
    """A folder that every host sees."""
    folder = cli.RETRO.parent / "test-logs" / "slurm" / "work"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny(work):
    tiny_model.make(work / "tiny", family="llama3", hidden=96, layers=6, heads=6, kv_heads=3, head_dim=32,
                    context=65536, force=True)
    return work / "tiny"


@pytest.fixture(scope="session")
def tokens(work):
    """tokens(name, n): a file of random ids."""

    def make(name, n):
        ids = np.random.default_rng(len(name)).integers(0, 500, n)
        return cli.write_ids(work / name, ids)

    return make


@pytest.fixture
def folder(work, request):
    """An empty folder of the test's own that every host sees."""
    path = work / request.node.name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def slurm():
    """A controller and three compute nodes for all tests."""
    reason = hosts_module.why_impossible() or slurm_module.why_impossible()
    if reason:
        pytest.skip(reason)
    with slurm_module.Slurm(3, visible=[cli.ROOT]) as s:
        yield s
