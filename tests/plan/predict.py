"""`retro plan` against `retro bench decode` on this machine, in one run: the machine is measured by `retro bench kernels` and
`bench allreduce`, the plan says from that what a step takes, and the step must take that within 20 %. One line a cell,
one ratio, then the counts.

    predict.py [--shape DIR] [--ranks 1,2] [--policies dense,quest,retro:2,retro:8] [--contexts 0,2048,16384] [--batches 1,2]

Machines are shared: what memory gives may change by half from one second to the next. Both commands sample plain reading
beside whatever they measure, so both sides are measured in turn until each has samples at one and the same rate of reading
(within a tenth). Only those count, of each the middle one of at least three, and nothing is corrected. A machine that
does not hold still for as long as that is a failure. Where a cell fails, all of its policy is measured anew, once; the
first ratio stays in the list.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import cli  # noqa: E402

LIMIT = 0.20
ALIKE = 0.10  # of the reading rates
ENOUGH = 3  # samples of everything
WARMUP = 8  # steps that bench decode runs before those it measures


def lines(*words, ranks=1):
    done = cli.run_ok(*words, "--json", ranks=ranks, timeout=600)
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def middle(lines, time):
    return sorted(lines, key=lambda x: x[time])[len(lines) // 2]


class Samples:
    """Lines of several rounds by key, each with its rate of plain reading."""

    def __init__(self):
        self.of = {}

    def add(self, lines, *names):
        for x in lines:
            self.of.setdefault(tuple(x.get(name) for name in names), []).append(x)

    def near(self, key, rate):
        return [x for x in self.of[key] if abs(x["read_gb_s"] / rate - 1) <= ALIKE]

    def least(self, rate):
        """Samples near the rate of the key that has fewest of them."""
        return min(len(self.near(key, rate)) for key in self.of)

    def middle(self, key, rate, time):
        return middle(self.near(key, rate), time)


class Machine:
    """One number of ranks and one policy: what its ops take, and its steps."""

    def __init__(self, args, ranks, policy, folder):
        self.args, self.ranks, self.policy = args, ranks, policy
        self.path = Path(folder) / "machine.jsonl"
        self.model = ("--model", args.shape, "--random-weights", "--threads", args.cores // ranks or 1)
        self.ops, self.reduces, self.steps = Samples(), {}, Samples()
        for _ in range(args.rounds):
            self.measure_ops()
            self.measure_steps()
            rates = {x["read_gb_s"] for found in (*self.ops.of.values(), *self.steps.of.values()) for x in found}
            self.n_alike, self.rate = max((min(self.ops.least(r), self.steps.least(r)), r) for r in rates)
            if self.n_alike >= ENOUGH:
                break
        if self.n_alike >= ENOUGH:
            self.write()

    def measure_ops(self):
        args, ranks = self.args, self.ranks
        window = int(self.policy[3]) if "--window" in self.policy else 1
        rows = sorted({window * b for b in args.batches} | set(args.batches))  # the head has one row of a sequence
        found = lines("bench", "kernels", *self.model, *self.policy, "--contexts", "0,1024,8192", "--batches",
                      ",".join(map(str, args.batches)), "--rows", ",".join(map(str, rows)), "--repeat", args.repeat,
                      ranks=ranks)
        used = [x for x in found if x["test"] != "gemm" or x["matrix"] == "all"]  # the plan takes nothing of the others
        self.ops.add(used, "test", "matrix", "rows", "policy", "context", "batch")
        if ranks > 1:
            hidden = json.loads((args.shape / "config.json").read_text())["hidden_size"]
            sizes = ",".join(str(4 * hidden * n) for n in rows)
            for x in lines("bench", "allreduce", "--sizes", sizes, ranks=ranks):
                self.reduces.setdefault(x["bytes"], []).append(x)

    def measure_steps(self):
        found = lines("bench", "decode", *self.model, *self.policy, "--contexts", ",".join(map(str, self.args.contexts)),
                      "--batches", ",".join(map(str, self.args.batches)), "--tokens", self.args.tokens, ranks=self.ranks)
        self.steps.add(found, "context", "batch")

    def write(self):
        """The machine's file from the samples at its rate."""
        found = []
        for key in self.ops.of:
            x = self.ops.middle(key, self.rate, "ms")
            if "rest_ms" in x:
                x = {**x, "rest_ms": self.ops.middle(key, self.rate, "rest_ms")["rest_ms"]}
            found.append(x)
        found += [middle(x, "us") for x in self.reduces.values()]
        self.path.write_text("".join(json.dumps(x) + "\n" for x in found))

    def cells(self):
        """(context, batch, predicted ms, measured ms)."""
        for context, batch in sorted(self.steps.of):
            x = self.steps.middle((context, batch), self.rate, "step_ms")
            tokens = max(context, 1) + WARMUP + self.args.tokens // 2 + 1
            plan = lines("plan", "--model", self.args.shape, "--machine", self.path, "--tp", self.ranks, "--contexts", tokens,
                         "--batches", batch, *self.policy)[0]
            yield context, batch, plan["step_us"] / 1e3, x["step_ms"]


def words_of(text):
    kind, _, window = text.partition(":")
    return ("--policy", kind, *(("--window", window) if window else ()))


def judge(args, ranks, policy, again=False):
    """Prints a line for each cell; how many are off."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(args, ranks, words_of(policy), folder)
        if machine.n_alike < ENOUGH:
            print(f"{ranks:5} {policy}: no rate of reading held for both sides in {args.rounds} rounds", flush=True)
            return len(args.contexts) * len(args.batches)
        bad = 0
        for context, batch, plan, step in machine.cells():
            good = abs(plan / step - 1) <= LIMIT
            bad += not good
            word = "" if good else "FAILED" if again else "again"
            print(f"{ranks:5} {context:7} {batch:5} {policy:8} {plan:8.2f} {step:8.2f} {plan / step:6.2f} "
                  f"{machine.rate:9.1f} {word}", flush=True)
        return bad


def main():
    def numbers(text):
        return [int(x) for x in text.split(",")]

    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=Path, default=cli.ROOT / "configs" / "shapes" / "smollm2-135m")
    parser.add_argument("--ranks", type=numbers, default=[1, 2])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--policies", default="dense,quest,retro:2,retro:8")
    parser.add_argument("--contexts", type=numbers, default=[0, 2048, 16384])
    parser.add_argument("--batches", type=numbers, default=[1, 2])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    passed = failed = 0
    print("ranks context batch policy    plan ms  step ms  ratio   at GB/s")
    for ranks in args.ranks:
        for policy in args.policies.split(","):
            bad = judge(args, ranks, policy)
            if bad:
                bad = judge(args, ranks, policy, again=True)
            failed += bad
            passed += len(args.contexts) * len(args.batches) - bad
    print(f"predict: {passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
