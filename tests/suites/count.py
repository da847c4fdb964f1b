"""Counts the tests in a JUnit file of ctest or pytest: names of the failed ones, then `passed failed skipped`.

A ctest test is a program: where its output holds cmocka's closing lines, cmocka's tests are what is counted, summed
over all groups and ranks that wrote there. A program that ctest calls passed although cmocka ran nothing, or
reported a failure, is counted as failed; so is one that ctest calls failed whatever cmocka said.
"""
import re
import sys
import xml.etree.ElementTree as ElementTree


def cmocka_counts(output):
    """(run, passed, failed, skipped) of all groups in a program's output, or None where there is none of cmocka."""
    if "[==========]" not in output:
        return None

    def total(pattern):
        return sum(int(n) for n in re.findall(pattern, output))

    return (total(r"\[==========\] (?:\S+: )?(\d+) test\(s\) run"), total(r"\[  PASSED  \] (\d+) test\(s\)"),
            total(r"\[  FAILED  \] (?:\S+: )?(\d+) test\(s\)"), total(r"\[  SKIPPED \] (?:\S+: )?(\d+) test\(s\)"))


def case_counts(case):
    """(passed, failed, skipped) of one <testcase>."""
    bad = case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail"
    skipped = case.find("skipped") is not None or case.get("status") in ("notrun", "disabled")
    counts = cmocka_counts(case.findtext("system-out") or "")
    if counts is None or (skipped and not bad):
        return (0, 1, 0) if bad else (0, 0, 1) if skipped else (1, 0, 0)
    n_run, n_passed, n_failed, n_skipped = counts
    if bad or n_run == 0:
        n_failed = max(n_failed, 1)
    return n_passed, n_failed, n_skipped


def main():
    passed = failed = skipped = 0
    for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
        p, f, s = case_counts(case)
        if f:
            print("  failed:", ".".join(filter(None, (case.get("classname"), case.get("name")))))
        passed, failed, skipped = passed + p, failed + f, skipped + s
    print(passed, failed, skipped)


main()
