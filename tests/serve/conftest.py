import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "e2e")]

import cli  # noqa: E402
import server as server_module  # noqa: E402
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


@pytest.fixture(scope="session")
def real(real_model):
    """One server with the real model for all tests that only ask."""
    s = server_module.Server(real_model, "--max-context", 2048, "--max-seqs", 17, "--max-queue", 64, "--threads", 2)
    yield s
    s.close()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model.make(folder, family="smollm")
    return folder


@pytest.fixture
def start(tiny_folder):
    """start(*options, ...): a server with the tiny model, closed with the test."""
    opened = []

    def make(*options, model=None, **more):
        for name, value in (("--threads", 1), ("--max-context", 512)):
            options = options if name in options else (name, value, *options)
        opened.append(server_module.Server(model or tiny_folder, *options, **more))
        return opened[-1]

    yield make
    for s in opened:
        s.close()


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    s = server_module.Server(tiny_folder, "--threads", 1, "--max-context", 512, "--max-seqs", 4)
    yield s
    s.close()
