import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(Path(__file__).resolve().parent)]

import cli  # noqa: E402
from tools import tiny_model  # noqa: E402


@pytest.fixture(scope="session")
def real_model():
    assert (cli.REAL_MODEL / "config.json").exists(), "run scripts/fetch-model"
    return cli.REAL_MODEL


@pytest.fixture(scope="session")
def texts(real_model, tmp_path_factory):
    """{name: file of token ids} of two real texts that every Debian has."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(real_model / "tokenizer.json"))
    folder = tmp_path_factory.mktemp("texts")
    found = {}
    for name in ("GPL-3", "Artistic"):
        ids = tokenizer.encode((cli.LICENSES / name).read_text(encoding="utf-8")).ids
        found[name] = cli.write_ids(folder / name, ids)
    return found


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny(name, **options of tiny_model.make): a folder, made once a session."""
    made = {}

    def make(family="llama3", **options):
        key = (family, tuple(sorted(options.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family)
            tiny_model.make(made[key], family=family, **options)
        return made[key]

    return make


@pytest.fixture
def ids(tmp_path):
    """ids(vocab, n): a file of random token ids."""

    def make(vocab, n, seed=1):
        return cli.write_ids(tmp_path / f"ids-{vocab}-{n}-{seed}", np.random.default_rng(seed).integers(0, vocab, n))

    return make
