"""Writes rope_expected.txt: rotary frequencies by the papers' formulas in float64, for test_arch.c to compare with.

    python tests/runtime/rope_expected.py > tests/runtime/rope_expected.txt

Written from the papers and not from rope.c: RoFormer (2104.09864), position interpolation (2306.15595), YaRN
(2309.00071) with the ramp over dimension indices that its published code uses, and the three bands of Llama 3.1
(keep above high_freq_factor turns within the old context, divide below low_freq_factor, blend between).  Each case is
one line with a JSON config, one with the attention factor and one with the head_dim/2 frequencies.
"""
import json
import math

import numpy as np


def plain(theta, head_dim):
    return np.array([theta ** (-2.0 * i / head_dim) for i in range(head_dim // 2)])


def llama3(theta, head_dim, factor, low, high, old):
    turns = old * plain(theta, head_dim) / (2 * math.pi)  # rotations of each wave within the old context
    share = np.clip((turns - low) / (high - low), 0, 1)  # of the unscaled frequency
    return plain(theta, head_dim) * (share + (1 - share) / factor)


def yarn(theta, head_dim, factor, old, fast=32.0, slow=1.0, truncate=True):
    def index(turns):  # solve old * theta^(-2d/E) / 2pi = turns for d
        return head_dim / 2 * math.log(old / (2 * math.pi * turns), theta)

    begin, end = index(fast), index(slow)
    if truncate:
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, head_dim - 1)
    if begin == end:
        end += 0.001
    stretched = np.clip((np.arange(head_dim // 2) - begin) / (end - begin), 0, 1)
    return plain(theta, head_dim) * (stretched / factor + 1 - stretched)


def gain(factor, weight=1.0):
    return 1.0 + 0.1 * weight * math.log(factor) if factor > 1 else 1.0


def cases():
    base = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 32768}

    def config(theta, head_dim, scaling=None, **more):
        return base | {"head_dim": head_dim, "rope_theta": theta, "rope_scaling": scaling} | more

    for theta in (10000.0, 500000.0, 1e6):
        for head_dim in (16, 64, 96, 128):
            yield config(theta, head_dim), 1.0, plain(theta, head_dim)
    for factor in (2.0, 4.0, 2.5):
        yield (config(10000.0, 128, {"type": "linear", "factor": factor}), 1.0, plain(10000.0, 128) / factor)
    for factor, low, high, old, head_dim in ((8.0, 1.0, 4.0, 8192, 128), (32.0, 1.0, 4.0, 8192, 64),
                                             (8.0, 1.0, 4.0, 8192, 80), (3.0, 0.5, 7.0, 777, 32)):
        scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                   "original_max_position_embeddings": old}
        yield config(500000.0, head_dim, scaling), 1.0, llama3(500000.0, head_dim, factor, low, high, old)

    old = {"original_max_position_embeddings": 32768}
    yield (config(1e6, 128, {"type": "yarn", "factor": 4.0} | old), gain(4), yarn(1e6, 128, 4, 32768))
    yield (config(1e6, 64, {"rope_type": "yarn", "factor": 2.5} | old), gain(2.5), yarn(1e6, 64, 2.5, 32768))
    yield (config(1e6, 128, {"rope_type": "yarn", "factor": 4.0, "truncate": False} | old), gain(4),
           yarn(1e6, 128, 4, 32768, truncate=False))
    yield (config(1e4, 128, {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096,
                             "beta_fast": 20, "beta_slow": 2}), gain(16), yarn(1e4, 128, 16, 4096, 20, 2))
    yield (config(1e4, 64, {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
                            "mscale": 0.707, "mscale_all_dim": 1.0}),
           gain(40, 0.707) / gain(40, 1.0), yarn(1e4, 64, 40, 4096))
    yield (config(1e4, 64, {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
                            "mscale": 0.707}), gain(40), yarn(1e4, 64, 40, 4096))
    yield (config(1e4, 64, {"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 4096,
                            "attention_factor": 1.25, "mscale": 2, "mscale_all_dim": 1}), 1.25, yarn(1e4, 64, 8, 4096))
    yield (config(1e4, 64, {"rope_type": "yarn", "original_max_position_embeddings": 8192}), gain(4),
           yarn(1e4, 64, 4, 8192))  # factor from the two lengths
    yield (config(1e4, 64, {"rope_type": "yarn", "factor": 4}), gain(4), yarn(1e4, 64, 4, 32768))
    yield (config(1e4, 16, {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64}), gain(4),
           yarn(1e4, 16, 4, 64))  # the ramp begins before dimension 0
    modern = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0} | old}
    yield config(1e4, 128, **modern), gain(4), yarn(5e5, 128, 4, 32768)


for raw, factor, frequencies in cases():
    print(json.dumps(raw))
    print(f"{factor:.17g}")
    print(" ".join(f"{f:.17g}" for f in frequencies))
