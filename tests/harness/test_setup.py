"""scripts/setup with made-up apt-get, clang and Python: what it says and how it ends where it cannot install, and that
a set-up which was interrupted is completed by the next one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VENV_PYTHON = "#!/bin/sh\necho python $@ >>$LOG\n"
STUBS = {
    "id": 'echo "$USER_ID"',
    "dpkg-query": 'case " $MISSING " in *" $4 "*) exit 1 ;; esac; printf installed',
    "apt-get": 'echo apt-get "$@" >>$LOG; exit $APT_CODE',
    "clang": "exit 0",
    "python3": 'mkdir -p "$4/bin" && cp new-python "$4/bin/python"',  # -m venv --clear FOLDER
}
TOOLS = ("bash", "sh", "env", "dirname", "mkdir", "cp", "cmp", "sed", "cut")


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    for name in ("setup", "requirements.txt"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    for name in TOOLS:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    for name, body in STUBS.items():
        write_program(tmp_path / "bin" / name, f"#!/bin/sh\n{body}\n")
    write_program(tmp_path / "new-python", VENV_PYTHON)
    return tmp_path


def write_program(path, text):
    path.write_text(text)
    path.chmod(0o755)


def setup(tree, missing="", user=0, apt_code=0):
    log = tree / "log"
    log.write_text("")
    env = {"PATH": str(tree / "bin"), "LOG": str(log), "MISSING": missing, "USER_ID": str(user), "APT_CODE": str(apt_code)}
    done = subprocess.run([tree / "scripts/setup"], cwd=tree, env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), log.read_text()


def test_twice(tree):
    code, out, err, log = setup(tree, "gcc cmake")
    assert (code, out, err) == (0, ["setup: done"], [])
    assert "install -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends gcc cmake\n" in log and "-m pip install" in log
    code, out, err, log = setup(tree)
    assert (code, out, err) == (0, ["setup: done"], []) and "apt-get" not in log and "pip" not in log


@pytest.mark.parametrize("user,apt_code", [(0, 100), (1000, 0)])  # no package index; neither root nor sudo
def test_packages_that_cannot_be_installed(tree, user, apt_code):
    code, _, err, _ = setup(tree, "gcc cmake", user, apt_code)
    assert code == 2 and len(err) == 1 and err[0].startswith("setup: ") and err[0].endswith("install gcc cmake")


def test_what_tests_alone_need_may_be_missing(tree):
    code, out, err, _ = setup(tree, "chromium clang-format-14", user=1000)
    assert (code, err, out[-1]) == (0, [], "setup: done")
    assert [line.split()[1] for line in out[:-1]] == ["chromium", "clang-format-14"]


def test_pip_that_fails(tree):
    write_program(tree / "new-python", VENV_PYTHON + "exit 1\n")
    code, out, err, _ = setup(tree)
    assert code == 2 and out == [] and len(err) == 1 and "pip could not install" in err[0]
    write_program(tree / "new-python", VENV_PYTHON)
    assert setup(tree)[0] == 0


def test_half_made_environment(tree):
    (tree / ".venv/bin").mkdir(parents=True)
    no_pip = '[ "$2" != pip ] || exit 1\n'  # killed before the environment had its pip
    write_program(tree / ".venv/bin/python", VENV_PYTHON + no_pip)
    assert setup(tree)[:3] == (0, ["setup: done"], [])
