import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
sys.path[:0] = [str(HERE), str(TESTS), str(TESTS / "e2e")]

import cli  # noqa: E402
import hosts as hosts_module  # noqa: E402
from tools import tiny_model  # noqa: E402


@pytest.fixture
def hosts():
    """Three fresh hosts that see the tree."""
    reason = hosts_module.why_impossible()
    if reason:
        pytest.skip(reason)
    with hosts_module.Hosts(3, visible=[cli.ROOT]) as h:
        yield h


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small model with a long context: it generates for minutes. Below the tree, where all hosts see it."""
    folder = cli.RETRO.parent / "test-logs" / "cluster" / "tiny"
    tiny_model.make(folder, family="llama3", hidden=96, layers=6, heads=6, kv_heads=3, head_dim=32, context=65536, force=True)
    return folder
