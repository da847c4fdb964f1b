"""RETRO_SAMPLE=N (.ci/run sets it): of a test marked `sampled` only one case in N is run, chosen so that every value of
every parameter comes up as often as it can. Nothing is sampled without it. What is left out counts nowhere."""

import collections
import os

import pytest

SAMPLE = int(os.environ.get("RETRO_SAMPLE") or 1)


def pytest_configure(config):
    config.addinivalue_line("markers", "sampled: a part of the cases is enough for CI")


def chosen(cases, n):
    """n of these dictionaries of parameters: always the one whose values were taken least often."""
    used, left, taken = collections.Counter(), list(range(len(cases))), []
    while len(taken) < n:
        best = min(left, key=lambda i: (sum(used[kv] ** 2 for kv in cases[i]), i))
        used.update(cases[best])
        left.remove(best)
        taken.append(best)
    return set(taken)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    groups = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled") and hasattr(item, "callspec"):
            groups[item.nodeid.split("[")[0]].append(item)
    out = []
    for group in groups.values():
        cases = [tuple((k, str(v)) for k, v in sorted(item.callspec.params.items())) for item in group]
        keep = chosen(cases, -(-len(cases) // max(SAMPLE, 1)))
        out += [item for i, item in enumerate(group) if i not in keep]
    if out:
        config.hook.pytest_deselected(items=out)
        left_out = set(out)
        items[:] = [item for item in items if item not in left_out]
