"""`python -m reference.compare A B`: two logits files (.npy), or two selection dumps (.npz), side by side.

Logits: for every step the mean and the largest |A - B|, then the number of steps whose mean is above
--tolerance. Selections: every (step, layer, kv head) where the chosen pages differ, with A's relative
margin, first one first: later flips may follow from it. Exit status 1 when more than --allowed of the steps
are above the tolerance, or a selection differs.
"""

import argparse
import sys

import numpy as np


def logits_apart(a, b):
    """(mean, max) |a - b| of every row; NaN anywhere counts as infinity."""
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape}")
    distance = np.abs(a.astype(np.float64) - b.astype(np.float64))
    distance[np.isnan(distance)] = np.inf
    return distance.mean(axis=1), distance.max(axis=1)


def flips(a, b):
    """Indices (step, layer, kv head) where two selections differ."""
    return np.argwhere((a["chosen"] != b["chosen"]).any(axis=-1))


def main(arguments=None):
    p = argparse.ArgumentParser(prog="reference.compare", description=__doc__.split("\n")[0])
    p.add_argument("a")
    p.add_argument("b")
    p.add_argument("--tolerance", type=float, default=1e-3)
    p.add_argument(
        "--allowed", type=float, default=0.05, help="share of steps that may be above the tolerance"
    )
    o = p.parse_args(arguments)
    a, b = np.load(o.a), np.load(o.b)
    if o.a.endswith(".npz"):
        found = flips(a, b)
        for step, layer, g in found:
            print(f"step {step} layer {layer} kv head {g}: margin {a['margin'][step, layer, g]:.3g}")
        print(f"{len(found)} of {a['margin'].size} selections differ")
        return int(len(found) > 0)
    mean, largest = logits_apart(a, b)
    for n in range(len(mean)):
        print(f"row {n}: mean {mean[n]:.3g} max {largest[n]:.3g}")
    n_above = int((mean > o.tolerance).sum())
    print(
        f"{n_above} of {len(mean)} rows above {o.tolerance:g}; mean {mean.mean():.3g}, worst {mean.max():.3g}"
    )
    return int(n_above > o.allowed * len(mean))


if __name__ == "__main__":
    sys.exit(main())
