"""Measures the cells of the fidelity study that are not measured yet; see scripts/fidelity.

A cell is (text, prompt, steps, run settings, policy). Cells that share text and run settings are sequences of one
`retro eval --compare` with dense decode beside them. A result is one JSON line: the cell, what was measured, and what
it was measured with. Running again skips every cell that has a line.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import study_report
import study_task
import study_texts

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "data" / "fidelity.jsonl"
COLUMNS = 4  # of --dump-steps for each policy: nll, KL, same as dense, right
BIN_STEPS = 250
GROUP_MAX = 11  # policies of one run: memory, and rows that still share a weight's read

PAPER = "--preset paper"
BUDGETS = ("0.15", "0.05", "0.10", "0.25")


APPENDING = threading.Lock()


class Failed(Exception):
    """The program ended with an error; the text is its command and what it said."""


def count(text):
    """An option's number, from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 1")
    return int(text)


def spell(policy, budget, *more):
    return " ".join([policy, "--kv-budget", budget, *more])


def paper_grid(budgets):
    return [spell(f"{PAPER} {kind}", b) for b in budgets
            for kind in ("--policy quest", "--window 2", "--window 4", "--window 8")]


def streaming(budgets):
    return [spell("--policy streaming", b, "--dense-layers 0") for b in budgets]


def ours(budget, *windows, more="--dense-layers 0 --score-alpha 0.15"):
    return [spell(f"--window {w}", budget, more) for w in windows]


def scored(*changes):
    """Ours with window 1 and one choice about scores changed."""
    return [spell("--window 1", "0.197", "--dense-layers 0", change) for change in changes]


# name: [(run settings, policies)]. Budgets of ours read what the paper's read: 0.15 there (2 of 30 layers dense, bounds
# 1/16 of keys and values) is 0.197 here with pages of 4 and q4, or of 8 and q8 (no dense layers, summaries 0.066).
SETS = {
    "main": [("--page-size 16", paper_grid(["0.15"])), ("--page-size 4 --summary q4", ours("0.197", 1, 2, 4, 8))],
    "pages": [
        ("--page-size 16", streaming(["0.26"]) + ours("0.2", 1, 2)),
        ("--page-size 8 --summary q8", ours("0.197", 1, 2)),
        ("--page-size 4 --summary keys", ours("0.197", 1)),
        ("--page-size 8 --summary keys", ours("0.197", 1)),
    ],
    "score": [("--page-size 4 --summary q4", [
        *scored(*(f"--score-alpha {a}" for a in ("0.05", "0.1", "0.25", "0.35"))),
        *scored(*(f"--score-alpha 0.15 {c}" for c in
                  ("--score-group mean", "--score-group max", "--sink-pages 0", "--sink-pages 4"))),
        "--window 1 --kv-budget 0.139 --dense-layers 2 --score-alpha 0.15",
    ])],
    "budgets": [
        ("--page-size 16", paper_grid(BUDGETS[1:]) + streaming(["0.172", "0.218", "0.358"])),
        ("--page-size 4 --summary q4", [p for b in ("0.105", "0.152", "0.291") for p in ours(b, 1, 2, 4, 8)]),
    ],
}


def model_hash(model):
    digest = hashlib.sha256()
    with open(model / "model.safetensors", "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]


def machine():
    name = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{name}, {os.cpu_count()} cores"


def commit():
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def read_results(path):
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def key_of(record):
    return tuple(record[k] for k in ("text", "text_sha", "model_sha", "prompt", "steps", "run", "policy_spec"))


def evaluate(o, ids, settings, policies, steps_file):
    """The JSON objects of one `retro eval`: dense, then the policies."""
    words = [o.retro, "eval", "--model", o.model, "--tokens", ids, "--prompt", o.prompt, "--steps", o.steps, "--json",
             "--compare", "--device", o.device, "--act-dtype", "f32", "--threads", o.threads, "--dump-steps", steps_file,
             "--attention-error", o.probe, "--log-level", "error", *settings.split(), *policies[0].split()]
    for policy in policies[1:]:
        words += ["--also", policy]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def bins(columns):
    """Means of nll, KL, same over stretches of BIN_STEPS steps."""
    return [[round(float(v), 6) for v in columns[at : at + BIN_STEPS, :3].mean(axis=0, dtype=float)]
            for at in range(0, len(columns), BIN_STEPS)]


KEPT = ("nll", "kl", "top1", "accuracy", "exposure", "kv_read_share", "attention_error", "attention_error_revised",
        "window", "policy", "kv_budget", "page_size", "summary", "kv_dtype", "device")


def measure(o, facts, text, ids, settings, policies):
    print(f"{text['text']}: {settings}: {len(policies)} policies", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = evaluate(o, ids, settings, policies, Path(folder) / "steps.npy")
        steps = np.load(Path(folder) / "steps.npy")
    dense, others = found[0], found[1:]
    for i, (policy, result) in enumerate(zip(policies, others, strict=True)):
        columns = steps[:, COLUMNS * (i + 1) : COLUMNS * (i + 2)]
        append(o, {
            **facts, **text, "run": settings, "policy_spec": policy, "nll_dense": dense["nll"],
            **{k: result[k] for k in KEPT if k in result},
            "bins": bins(columns), "bins_dense": [b[0] for b in bins(steps[:, :COLUMNS])],
        })


def groups_of(o):
    """(run settings, policies) that were asked for."""
    return [(o.settings, o.policy)] if o.policy else [group for name in o.sets.split(",") for group in SETS[name]]


def append(o, record):
    o.results.parent.mkdir(parents=True, exist_ok=True)
    with APPENDING, open(o.results, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def side_by_side(o, work):
    """Calls each (function, arguments), o.jobs at a time; the first failure ends the rest."""
    with concurrent.futures.ThreadPoolExecutor(o.jobs) as pool:
        running = [pool.submit(function, *arguments) for function, *arguments in work]
        try:
            for one in concurrent.futures.as_completed(running):
                one.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run(o):
    work = []
    done = {key_of(r) for r in read_results(o.results)}
    facts = dict(model_sha=model_hash(o.model), prompt=o.prompt, steps=o.steps, machine=machine(), commit=o.commit or commit())
    for settings, policies in groups_of(o):
        for name in study_texts.names(o.texts):
            ids, n_ids, sha = study_texts.ids_of(name, o.retro, o.model)
            if n_ids < o.prompt + o.steps:
                print(f"{name}: {n_ids} tokens, too few: left out", flush=True)
                continue
            text = dict(text=name, kind=study_texts.TEXTS[name][0], text_sha=sha)
            missing = [p for p in policies if key_of({**facts, **text, "run": settings, "policy_spec": p}) not in done]
            for at in range(0, len(missing), GROUP_MAX):
                work.append((measure, o, facts, text, ids, settings, missing[at : at + GROUP_MAX]))
    side_by_side(o, work)


def texts(o):
    for name in study_texts.names(o.texts):
        _, n, sha = study_texts.ids_of(name, o.retro, o.model)
        print(f"{name:18} {study_texts.TEXTS[name][0]:7} {n:6} tokens, sha256 {sha}")


def parser():
    p = argparse.ArgumentParser(prog="fidelity")
    commands = p.add_subparsers(dest="command", required=True)
    commands.add_parser("ideas", add_help=False, help="ideas that the program does not have, in NumPy")
    for name, function, what in (
        ("texts", texts, "fetch the study's texts and turn them into token ids"),
        ("run", run, "measure what is not measured yet"),
        ("task", study_task.run, "the same for the long-answer task"),
        ("report", study_report.report, "tables and plots from the results"),
    ):
        c = commands.add_parser(name, help=what)
        c.set_defaults(function=function)
        c.add_argument("--results", type=Path, default=RESULTS, help="file of JSON lines")
        if name == "report":
            c.add_argument("--plots", type=Path, default=ROOT / "docs" / "plots", help="folder of the plots")
            c.add_argument("--prompt", type=count, default=512)
            c.add_argument("--steps", type=count, help="only results of this many steps")
            continue
        c.add_argument("--model", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
        c.add_argument("--retro", type=Path, default=ROOT / "build" / "retro", help="the program")
        c.add_argument("--texts", help="names, separated by commas; default: all")
        c.add_argument("--threads", type=count, default=1, help="CPU threads of the program")
        c.add_argument("--device", default="cpu", help="of the program: cpu or cuda")
        c.add_argument("--jobs", type=count, default=1, help="programs that run side by side")
        c.add_argument("--commit", help="what to record as the program's commit; default: this checkout's")
        c.add_argument("--prompt", type=count, default=512, help="prompt tokens")
        c.add_argument("--steps", type=count, default=1500, help="decode steps")
        c.add_argument("--probe", default="25", help="look at attention outputs every so many steps")
        c.add_argument("--sets", default=",".join(SETS), help=f"sets of policies: {', '.join(SETS)}")
        c.add_argument("--seeds", type=count, default=4, help="task: how many texts")
        c.add_argument("--policy", action="append", help="a policy's options instead of the sets; may be repeated")
        c.add_argument("--settings", default="--page-size 16", help="the run's options beside --policy")
    return p


def refuse(text):
    print(f"fidelity: {text}", file=sys.stderr)
    sys.exit(2)


def need_model(folder):
    if not (folder / "model.safetensors").is_file():
        refuse(f"--model {folder}: holds no model.safetensors: run scripts/fetch-model")


def need(o):
    """Refuses what would fail only later."""
    for one in o.sets.split(","):
        if one not in SETS:
            refuse(f"--sets {one}: there are {', '.join(SETS)}")
    need_model(o.model)
    if not os.access(o.retro, os.X_OK) or not o.retro.is_file():
        refuse(f"--retro {o.retro}: no such program: run scripts/build")


def main():
    o = parser().parse_args()
    if o.command == "ideas":
        refuse("ideas: scripts/fidelity starts it")
    if o.command != "report":
        need(o)
    try:
        o.function(o)
    except study_texts.Missing as missing:
        print(f"fidelity: {missing}", file=sys.stderr)
        sys.exit(3)
    except Failed as failed:
        print(f"fidelity: {failed}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(75)


if __name__ == "__main__":
    main()
