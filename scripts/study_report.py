"""Tables and plots of the fidelity study from its lines of results; see scripts/fidelity.

A loss is nll minus dense's over the same text. Means are over texts; the interval is the 2.5 to 97.5 % quantiles of
that mean over texts drawn again with replacement (bootstrap, 10,000 draws, a fixed seed). `share` is the ratio of the
summed losses to Quest's with the paper's setting over the same texts, with its own interval from the same draws.
"""

import collections
import json
import sys

import numpy as np

QUEST = ("--page-size 16", "--preset paper --policy quest --kv-budget 0.15")
DRAWS = 10_000


def read(o):
    found = [json.loads(line) for line in o.results.read_text().splitlines() if line.strip()] if o.results.exists() else []
    return [r for r in found if o.steps in (None, r["steps"])]


def table(records, key=lambda r: (r["run"], r["policy_spec"])):
    """{policy: {text: record}} of one prompt and number of steps."""
    policies = collections.defaultdict(dict)
    for r in records:
        policies[key(r)][r["text"]] = r
    return policies


def loss(r):
    return r["nll"] - r["nll_dense"]


def interval(values):
    return np.quantile(values, [0.025, 0.975])


def draws(n):
    return np.random.default_rng(0).integers(0, n, (DRAWS, n))


def row(policies, at, quest):
    texts = sorted(set(policies[at]) & set(quest))
    mine = [policies[at][t] for t in texts]
    x, q = np.array([loss(r) for r in mine]), np.array([loss(quest[t]) for t in texts])
    picks = draws(len(texts))
    low, high = interval(x[picks].mean(axis=1))
    ratio = interval(x[picks].sum(axis=1) / q[picks].sum(axis=1))

    def mean(field, digits):
        values = [r[field] for r in mine if field in r]
        return f"{np.mean(values):.{digits}f}" if values else ""

    settings = f"{at[0]} {at[1]}".replace("--", "")
    return [f"`{settings}`", str(len(texts)), mean("kv_read_share", 3), f"{x.mean():.4f} ({low:.4f} to {high:.4f})",
            f"{x.sum() / q.sum():.3f} ({ratio[0]:.3f} to {ratio[1]:.3f})", mean("kl", 4), mean("top1", 3),
            mean("exposure", 2), mean("attention_error", 3), mean("attention_error_revised", 3)]


HEAD = ["setting", "texts", "read", "loss, nats", "share of Quest's", "KL", "top-1", "exposure", "error used",
        "error revised"]


def print_rows(head, rows):
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for r in rows:
        print("| " + " | ".join(r) + " |")
    print()


def print_texts(policies, quest):
    print_rows(["text", "kind", "dense nll", "Quest's loss"],
               [[t, r["kind"], f"{r['nll_dense']:.4f}", f"{loss(r):.4f}"] for t, r in sorted(quest.items())])


def print_task(records):
    rows = []
    for at, by_text in sorted(table(records).items()):
        x = np.array([[r["answers_right"], r["answers_right_dense"], r["answers_as_dense"], r["kv_read_share"]]
                      for r in by_text.values()])
        low, high = interval(x[draws(len(x)), 0].mean(axis=1))
        rows.append([f"`{at[0]} {at[1]}`".replace("--", ""), str(len(x)), f"{x[:, 3].mean():.3f}",
                     f"{100 * x[:, 0].mean():.1f} ({100 * low:.1f} to {100 * high:.1f})", f"{100 * x[:, 1].mean():.1f}",
                     f"{100 * x[:, 2].mean():.1f}"])
    print_rows(["setting", "seeds", "read", "right, %", "dense right, %", "as dense, %"], rows)


def plot(o, policies, steps):
    """Loss against what is read, and loss along the output."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "retro"  # else names inside the file are random
    import matplotlib.pyplot as plt

    o.plots.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    families = collections.defaultdict(list)
    for (settings, spec), by_text in policies.items():
        some = list(by_text.values())
        family = f"{'paper' if 'paper' in spec else some[0]['policy'] if some[0]['policy'] == 'streaming' else 'ours'}"
        name = f"{family}, page {some[0]['page_size']}, w {some[0]['window']}"
        families[name].append((np.mean([r["kv_read_share"] for r in some]), np.mean([loss(r) for r in some])))
    for name, points in sorted(families.items()):
        points.sort()
        axes[0].plot(*zip(*points), marker="o", ms=3, lw=1, label=name)
    axes[0].set(xlabel="kv_read_share", ylabel="loss, nats a token", yscale="log")
    axes[0].legend(fontsize=6)
    for at, by_text in sorted(policies.items()):
        if at != QUEST and "window 2" not in at[1]:
            continue
        rows = [np.array([b[0] for b in r["bins"]]) - np.array(r["bins_dense"]) for r in by_text.values() if "bins" in r]
        if rows:
            width = steps / len(rows[0])
            axes[1].plot((np.arange(len(rows[0])) + 0.5) * width, np.mean(rows, axis=0), lw=1,
                         label=f"{at[0]} {at[1]}".replace("--", "")[:60])
    axes[1].set(xlabel="decode step", ylabel="loss, nats a token")
    axes[1].legend(fontsize=5)
    figure.tight_layout()
    path = o.plots / f"fidelity-{steps}.svg"
    figure.savefig(path, metadata={"Date": None})
    print(f"plot: {path}\n")


def report(o):
    records = read(o)
    if not records:
        sys.exit(f"fidelity: {o.results}: no results{'' if o.steps is None else f' of {o.steps} steps'}")
    task = [r for r in records if r["kind"] == "task"]
    if task:
        print("### Long-answer task\n")
        print_task(task)
    for prompt, steps in sorted({(r["prompt"], r["steps"]) for r in records if r["kind"] != "task"}):
        policies = table([r for r in records if (r["prompt"], r["steps"]) == (prompt, steps) and r["kind"] != "task"])
        print(f"### {steps} steps after a prompt of {prompt}\n")
        quest = policies.get(QUEST)
        if not quest:
            print("no Quest to compare with\n")
            continue
        print_texts(policies, quest)
        print_rows(HEAD, [row(policies, at, quest) for at in sorted(policies)])
        plot(o, policies, steps)
