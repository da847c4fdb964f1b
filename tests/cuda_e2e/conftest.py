"""Runs the CUDA build on the stand-ins of tests/emulator, or with RETRO_REAL_GPU=1 on hardware."""

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "e2e"), str(TESTS / "serve"), str(Path(__file__).resolve().parent)]

import cli  # noqa: E402
from tools import tiny_model  # noqa: E402

REAL_GPU = os.environ.get("RETRO_REAL_GPU") == "1"
STAND_INS = cli.RETRO.parent / "emulator" / "lib"


@pytest.fixture(scope="session", autouse=True)
def gpus():
    """Children find the stand-ins in front of CUDA's own libraries; EMU_* switches pass through."""
    if not REAL_GPU:
        assert (STAND_INS / "libcudart.so.13").exists(), "build with CUDA first"
        old = os.environ.get("LD_LIBRARY_PATH")
        os.environ["LD_LIBRARY_PATH"] = str(STAND_INS) + (":" + old if old else "")
        os.environ["OPENBLAS_NUM_THREADS"] = "1"


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
