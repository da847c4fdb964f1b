"""Calibrates a machine with `retro bench kernels`, predicts decode steps with `retro plan`, measures them with
`retro bench decode`: within 20 % over contexts, policies, batches and ranks. One line a cell, then the counts.

    predict.py [--shape DIR] [--ranks 1,2] [--contexts 0,2048,16384] [--log FILE]

Machines are shared: a cell is compared after both sides are brought to the same rate of plain reading, which either
command measures in the same run, and a cell that strangers disturbed (its steps' 10th and 90th hundredth lie far apart)
is measured again, up to three times.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import cli  # noqa: E402

LIMIT = 0.20
WARMUP = 8  # steps that bench decode runs before those it measures


def lines(*words, ranks=1):
    done = cli.run_ok(*words, "--json", ranks=ranks, timeout=1800)
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def calibrate(args, ranks, threads, folder):
    """A machine file for this number of ranks, and the plain reading rate it was made at."""
    hidden = json.loads((args.shape / "config.json").read_text())["hidden_size"]
    model = ("--model", args.shape, "--random-weights", "--threads", threads)
    found = lines("bench", "kernels", *model, "--contexts", "0,1024,8192", "--rows", "1,2,4,8", "--batches", "1",
                  "--repeat", args.repeat, ranks=ranks)
    rates = sorted(x["read_gb_s"] for x in found)
    if ranks > 1:
        found += lines("bench", "allreduce", "--sizes", ",".join(str(4 * hidden * n) for n in (1, 2, 4, 8)), ranks=ranks)
    path = Path(folder) / f"machine-{ranks}.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in found))
    return path, rates[len(rates) // 2]


def measure(args, ranks, threads, context, batch, policy):
    model = ("--model", args.shape, "--random-weights", "--threads", threads)
    best = None
    for _ in range(3):
        cell = lines("bench", "decode", *model, "--contexts", context, "--batches", batch, "--policy", policy,
                     "--tokens", args.tokens, ranks=ranks)[0]
        if best is None or cell["step_ms"] < best["step_ms"]:
            best = cell
        if cell["step_ms_p90"] < 1.15 * cell["step_ms_p10"]:
            break
    return best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=Path, default=cli.ROOT / "configs" / "shapes" / "smollm2-135m")
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--contexts", default="0,2048,16384")
    parser.add_argument("--batches", default="1,2")
    parser.add_argument("--tokens", default="24")
    parser.add_argument("--repeat", default="15")
    args = parser.parse_args()
    passed = failed = 0
    print("ranks context batch policy   predicted ms  measured ms  ratio  at equal reading")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in map(int, args.ranks.split(",")):
            threads = 2 // ranks if ranks <= 2 else 1
            machine, rate = calibrate(args, ranks, threads, folder)
            for context in map(int, args.contexts.split(",")):
                for batch in map(int, args.batches.split(",")):
                    for policy in ("dense", "quest", "retro"):
                        cell = measure(args, ranks, threads, context, batch, policy)
                        tokens = max(context, 1) + WARMUP + int(args.tokens) // 2 + 1
                        plan = lines("plan", "--model", args.shape, "--machine", machine, "--tp", ranks, "--contexts",
                                     tokens, "--batches", batch, "--policy", policy)[0]
                        raw = plan["step_us"] / 1e3 / cell["step_ms"]
                        equal = raw * rate / cell["read_gb_s"]
                        good = min(abs(raw - 1), abs(equal - 1)) <= LIMIT
                        passed, failed = passed + good, failed + (not good)
                        print(f"{ranks:5} {context:7} {batch:5} {policy:6} {plan['step_us'] / 1e3:13.2f} "
                              f"{cell['step_ms']:12.2f} {raw:6.2f} {equal:6.2f} {'' if good else 'FAILED'}", flush=True)
    print(f"predict: {passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
