"""scripts/test and tests/suites/lib.sh count what ran: made-up suites in a copy of the harness, good and bad."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIB = '. "$(dirname "$0")/lib.sh"\n'

# cmocka's own output, cut to the lines that are read.
GOOD = "[==========] Running 3 test(s).\n[==========] 3 test(s) run.\n[  PASSED  ] 3 test(s).\n"
MIXED = ("[==========] tests: Running 4 test(s).\n[==========] tests: 4 test(s) run.\n[  PASSED  ] 1 test(s).\n"
         "[  SKIPPED ] tests: 1 test(s), listed below:\n[  FAILED  ] tests: 2 test(s), listed below:\n")
NONE = "[==========] Running 0 test(s).\n[==========] 0 test(s) run.\n[  PASSED  ] 0 test(s).\n"


@pytest.fixture
def tree(tmp_path):
    for path in ("scripts/test", "scripts/common.sh", "tests/suites/lib.sh", "tests/suites/count.py"):
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, target)
    venv = tmp_path / ".venv/bin"
    venv.mkdir(parents=True)
    # A wrapper, not a link: Python finds its environment by the path it is called by.
    (venv / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (venv / "python").chmod(0o755)
    return tmp_path


def add_suite(tree, name, body, head=""):
    (tree / "tests/suites" / name).write_text(f"#!/usr/bin/env bash\n# A suite.\n{head}{body}")


def run_test(tree, *names, **environment):
    hidden = ("RETRO_", "PYTEST_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    done = subprocess.run([tree / "scripts/test", *names], env={**clean, **environment}, text=True, timeout=120,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout.rstrip("\n").split("\n")


def test_sums_of_suites(tree):
    add_suite(tree, "one", LIB + "pass; pass; skip why\n")
    add_suite(tree, "two", LIB + "check yes true\n")
    code, lines = run_test(tree)
    assert (code, lines[-1]) == (0, "3 passed, 0 failed, 1 skipped")
    assert "one: 2 passed, 0 failed, 1 skipped" in lines


def test_samples_hold_every_value_and_only_what_ran_counts(tree):
    shutil.copy(ROOT / "tests/conftest.py", tree / "tests/conftest.py")
    add_suite(tree, "one", LIB + "count_pytest tests/many\n")
    (tree / "tests/many").mkdir()
    (tree / "tests/many/test_many.py").write_text(
        "import os, pathlib, pytest\n"
        "def note(*values):\n"
        "    with open('ran', 'a') as f: print(*values, file=f)\n"
        "@pytest.mark.sampled\n"
        "@pytest.mark.parametrize('a', 'uvwx')\n"
        "@pytest.mark.parametrize('b', range(3))\n"
        "def test_marked(a, b): note(a, b)\n"
        "@pytest.mark.parametrize('a', range(5))\n"
        "def test_not_marked(a): note('n', a)\n"
        "def test_alone(): note('alone')\n")
    expected = {"": 12, "1": 12, "3": 4, "5": 3, "99": 1}
    for sample, n in expected.items():
        (tree / "ran").unlink(missing_ok=True)
        code, lines = run_test(tree, "one", RETRO_SAMPLE=sample)
        assert (code, lines[-1]) == (0, f"{n + 6} passed, 0 failed"), lines
        ran = (tree / "ran").read_text().split("\n")[:-1]
        marked = [line.split() for line in ran if line[0] in "uvwx"]
        assert len(ran) == n + 6 and len(marked) == n
        if sample == "3":
            assert {a for a, _ in marked} == set("uvwx") and {b for _, b in marked} == set("012")


def test_real_gpu_is_yes_or_no(tree):
    add_suite(tree, "one", LIB + 'check which test "${RETRO_REAL_GPU:-0}" = 1\n')
    assert run_test(tree, RETRO_REAL_GPU="1")[0] == 0
    assert [run_test(tree, RETRO_REAL_GPU=value)[0] for value in ("", "0")] == [1, 1]
    runner = [ROOT / "tests/emulator/run", tree, "true"]
    for value in ("yes", "2"):
        code, lines = run_test(tree, RETRO_REAL_GPU=value)
        assert code == 2 and lines[-1].startswith(f"RETRO_REAL_GPU={value}: set it to 1")
        done = subprocess.run(runner, env={**os.environ, "RETRO_REAL_GPU": value}, text=True, stderr=subprocess.PIPE)
        assert done.returncode == 2 and f"RETRO_REAL_GPU={value}: " in done.stderr
    # Hardware: the program as it is. Emulator, also by 0: there must be stand-ins in the build.
    assert subprocess.run(runner, env={**os.environ, "RETRO_REAL_GPU": "1"}).returncode == 0
    done = subprocess.run(runner, env={**os.environ, "RETRO_REAL_GPU": "0"}, text=True, stderr=subprocess.PIPE)
    assert done.returncode == 2 and "no stand-ins" in done.stderr


def test_no_skips_no_third_number(tree):
    add_suite(tree, "one", LIB + "pass\n")
    code, lines = run_test(tree)
    assert code == 0 and re.fullmatch("== one: [0-9]+ s", lines.pop(2))
    assert lines == ["== one", "one: 1 passed, 0 failed", "1 passed, 0 failed"]


@pytest.mark.parametrize("body,last", [
    (LIB + "pass; fail x\n", "1 passed, 1 failed"),
    (LIB + "check no false\n", "0 passed, 1 failed"),
    (LIB + "pass; exit 3\n", "1 passed, 1 failed"),             # dies after a success
    (LIB + "pass; kill -9 $$\n", "0 passed, 1 failed"),         # cannot report at all
    (LIB, "0 passed, 1 failed"),                                # ran nothing
    ("exit 0\n", "0 passed, 1 failed"),                         # says nothing
    ("echo bad: 7 passed, 0 failed; exit 1\n", "7 passed, 1 failed"),
])
def test_failures_are_seen(tree, body, last):
    add_suite(tree, "bad", body)
    code, lines = run_test(tree, "bad")
    assert (code, lines[-1]) == (1, last)


def test_too_slow_is_a_failure(tree):
    add_suite(tree, "slow", LIB + "pass; sleep 30\n")
    code, lines = run_test(tree, RETRO_SUITE_SECONDS="1")
    assert code == 1 and re.fullmatch(r"[01] passed, 1 failed", lines[-1])


def test_only_skips_is_no_success(tree):
    add_suite(tree, "one", LIB + "skip why\n")
    code, lines = run_test(tree)
    assert (code, lines[-1]) == (1, "0 passed, 0 failed, 1 skipped")


def test_unknown_suite_names_the_known(tree):
    add_suite(tree, "one", LIB + "pass\n")
    code, lines = run_test(tree, "one", "other")
    assert code == 2 and "'other'" in lines[-1] and "one" in lines[-1] and len(lines) == 1


def test_order_and_ci(tree):
    add_suite(tree, "a", LIB + "pass\n", "# order: 60\n")
    add_suite(tree, "b", LIB + "pass\n", "# order: 10\n")
    add_suite(tree, "c", LIB + "pass\n", "# order: 20\n# ci: no\n")
    assert [line for line in run_test(tree)[1] if re.fullmatch("== .", line)] == ["== b", "== a"]
    assert [line for line in run_test(tree, "all")[1] if re.fullmatch("== .", line)] == ["== b", "== c", "== a"]
    assert run_test(tree, "c")[1][-1] == "1 passed, 0 failed"


@pytest.mark.parametrize("programs,last", [
    ({"good": (GOOD, 0)}, "3 passed, 0 failed"),
    ({"good": (GOOD, 0), "plain": ("hello\n", 0)}, "4 passed, 0 failed"),
    ({"ranks": (GOOD + GOOD, 0)}, "6 passed, 0 failed"),
    ({"mixed": (MIXED, 2)}, "1 passed, 2 failed, 1 skipped"),
    ({"mixed": (MIXED, 0)}, "1 passed, 2 failed, 1 skipped"),   # failures, yet exit code 0
    ({"none": (NONE, 0)}, "0 passed, 1 failed"),                # a program without a test
    ({"crash": (GOOD, 139)}, "3 passed, 1 failed"),             # dies after its tests
    ({"plain": ("hello\n", 1)}, "0 passed, 1 failed"),
    ({}, "0 passed, 1 failed"),                                 # nothing matches
])
def test_counts_inside_ctest(tree, programs, last):
    dir = tree / "b"
    dir.mkdir()
    lines = []
    for name, (output, code) in programs.items():
        (dir / f"{name}.txt").write_text(output)
        lines.append(f'add_test({name} "sh" "-c" "cat {dir}/{name}.txt; exit {code}")\n')
    (dir / "CTestTestfile.cmake").write_text("".join(lines))
    add_suite(tree, "unit", LIB + f"count_ctest {dir}\n")
    code, out = run_test(tree, "unit")
    assert (code, out[-1]) == (0 if " 0 failed" in last else 1, last), out


@pytest.mark.parametrize("text,last", [
    ("def test_a(): pass\ndef test_b(): pass\n", "2 passed, 0 failed"),
    ("import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n@pytest.mark.skip\ndef test_c(): pass\n",
     "1 passed, 1 failed, 1 skipped"),
    ("import nowhere_at_all\n", "0 passed, 1 failed"),
    ("x = 1\n", "0 passed, 1 failed"),
])
def test_counts_of_pytest(tree, text, last):
    (tree / "tests/some").mkdir()
    (tree / "tests/some/test_some.py").write_text(text)
    add_suite(tree, "py", LIB + "count_pytest tests/some\n")
    code, out = run_test(tree, "py")
    assert (code, out[-1]) == (0 if " 0 failed" in last else 1, last), out


def test_folder_suites_are_found(tree):
    shutil.copy(ROOT / "tests/suites/folder.sh", tree / "tests/suites/folder.sh")
    (tree / "scripts/fetch-model").write_text("#!/bin/sh\nexit 0\n")
    (tree / "scripts/fetch-model").chmod(0o755)
    (tree / "tests/some").mkdir()
    (tree / "tests/some/test_some.py").write_text("def test_a(): pass\n")
    code, lines = run_test(tree, RETRO_BUILT="1")
    assert (code, lines[-1]) == (0, "1 passed, 0 failed") and "== some" in lines
