import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "e2e"), str(Path(__file__).resolve().parent)]

from tools import tiny_model  # noqa: E402


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A tiny Llama; its name in requests is "tiny"."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model.make(folder, family="llama3", dtype="f32")
    return folder
