import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "e2e")]

import cli  # noqa: E402
from tools import tiny_model  # noqa: E402


@pytest.fixture(scope="session")
def real_model():
    assert (cli.REAL_MODEL / "config.json").exists(), "run scripts/fetch-model"
    return cli.REAL_MODEL


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A tiny model in f32 whose sums come out alike on 1, 2 and 3 ranks."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model.make(folder, family="llama3", hidden=48, heads=6, kv_heads=3, head_dim=8, layers=3, ffn=60, vocab=320,
                    dtype="f32", tokenizer=False)
    return folder
