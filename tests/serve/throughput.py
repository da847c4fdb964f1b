"""Tokens/s of 1 and N concurrent streams on the real model: python tests/serve/throughput.py [N] [repeats]

bf16, dense, 32 prompt tokens, 2 threads. Medians of the times between tokens, so that a stranger on the machine
disturbs both alike; the last figure is how many times the tokens/s of one stream N streams have together."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import service  # noqa: E402
from service import cli  # noqa: E402


def step_us(n, tokens=64):
    """(fastest, median) time of a step that decodes n sequences."""
    random = np.random.default_rng(n)
    requests = [{"prompt": [int(t) for t in random.integers(100, 40000, 32)], "max_tokens": tokens, "ignore_eos": True}
                for _ in range(n)]
    results, _ = service.run(cli.REAL_MODEL, requests, slots=n, context=256, options=("--policy", "dense", "--threads", "2"))
    usage = results[0]["usage"]
    return usage["least_gap_us"], usage["decode_us"] / (tokens - 1)


def main():
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 3):
        (fastest, mean), (fastest_n, mean_n) = step_us(1), step_us(n)
        print(f"1 stream {1e6 / mean:.1f} tokens/s, {n} streams {n * 1e6 / mean_n:.1f}: {n * mean / mean_n:.2f} times; "
              f"by the fastest steps {n * fastest / fastest_n:.2f} times", flush=True)


if __name__ == "__main__":
    main()
