"""What config.json says: the numbers of a model and the meaning that each family gives to its keys.

Families: llama, mistral, qwen2, qwen3.  Absent keys take the default that the family has in Hugging Face
`transformers` (a Mistral config without `sliding_window` means 4096, one with null means none).  Anything
that would change the arithmetic and is not covered here is refused by name: another family, another
activation, partial rotary embeddings, rope types beyond default, linear, llama3 and yarn.

Sources: Llama 2 (arXiv 2307.09288), Mistral 7B (2310.06825), Qwen2 (2407.10671), Qwen3 (2505.09388),
YaRN (2309.00071), and the configuration pages of `transformers`.
"""

import dataclasses
import json
import math
import os

import numpy as np

FAMILIES = {
    # biases: attention projections that have one; "config" means: all four when attention_bias is true.
    "llama": dict(biases="config", qk_norm=False, kv_heads=None, head_dim=None, eps=1e-6),
    "mistral": dict(biases="", qk_norm=False, kv_heads=8, head_dim=None, eps=1e-6),
    "qwen2": dict(biases="qkv", qk_norm=False, kv_heads=32, head_dim=None, eps=1e-6),
    "qwen3": dict(biases="config", qk_norm=True, kv_heads=32, head_dim=128, eps=1e-6),
}


@dataclasses.dataclass
class Config:
    family: str
    n_layers: int
    dim: int  # D
    n_heads: int  # H
    n_kv_heads: int  # K
    head_dim: int  # E
    ffn_dim: int
    vocab: int
    eps: float
    biases: str  # subset of "qkvo"
    mlp_bias: bool
    qk_norm: bool
    tied: bool
    windows: list  # per layer: sliding window in tokens, or None
    inv_freq: np.ndarray  # (E/2,) float64, radians a position
    rope_gain: float  # cos and sin are multiplied by it (yarn)

    @property
    def group(self):
        return self.n_heads // self.n_kv_heads  # G


def layer_windows(family, raw, n_layers):
    """Sliding window of each layer.  A key is visible to the query at p when p - window < position <= p."""
    if family == "mistral":
        return [raw.get("sliding_window", 4096)] * n_layers
    if family in ("qwen2", "qwen3") and raw.get("use_sliding_window", False):
        window = raw.get("sliding_window", 4096)
        if "layer_types" in raw and raw["layer_types"] is not None:
            return [window if kind == "sliding_attention" else None for kind in raw["layer_types"]]
        n_full = raw.get("max_window_layers", 28)
        return [window if layer >= n_full else None for layer in range(n_layers)]
    return [None] * n_layers


def yarn_mscale(factor, mscale=1.0):
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_frequencies(plain, scaling, theta, head_dim, max_positions):
    """YaRN, "NTK-by-parts": high frequencies stay, low ones are divided by the factor, a ramp between."""
    original = scaling.get("original_max_position_embeddings") or max_positions
    factor = scaling.get("factor") or max_positions / original
    beta_fast = scaling.get("beta_fast") or 32.0
    beta_slow = scaling.get("beta_slow") or 1.0

    def dimension_of(rotations):  # the (fractional) index whose wave turns so often within `original`
        return head_dim * math.log(original / (rotations * 2.0 * math.pi)) / (2.0 * math.log(theta))

    low, high = dimension_of(beta_fast), dimension_of(beta_slow)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)
    gain = scaling.get("attention_factor")
    if gain is None:
        mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        if mscale and mscale_all:
            gain = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all)
        else:
            gain = yarn_mscale(factor)
    return plain / factor * ramp + plain * (1.0 - ramp), float(gain)


def llama3_frequencies(plain, scaling):
    """Llama 3.1: waves longer than the old context are slowed by the factor, short ones stay, a blend between
    (the model card's reference code).
    """
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2.0 * math.pi / plain
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    blended = (1.0 - smooth) * plain / factor + smooth * plain
    return np.where(
        wavelength > original / low, plain / factor, np.where(wavelength < original / high, plain, blended)
    )


def rope_frequencies(raw, head_dim):
    """(inv_freq (E/2,), gain) for rope_theta and rope_scaling (or the newer rope_parameters)."""
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = scaling.get("rope_theta") or raw.get("rope_theta") or 10000.0
    if (scaling.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("config.json: partial_rotary_factor: only 1 is known")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    plain = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / scaling["factor"], 1.0
    if kind == "llama3":
        return llama3_frequencies(plain, scaling), 1.0
    if kind == "yarn":
        return yarn_frequencies(plain, scaling, theta, head_dim, raw.get("max_position_embeddings", 2048))
    raise ValueError(f"config.json: rope type {kind!r}: known are default, linear, llama3, yarn")


def parse(raw):
    """The Config of a parsed config.json."""
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"config.json: model_type {family!r}: known are {', '.join(FAMILIES)}")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"config.json: hidden_act {raw['hidden_act']!r}: only silu is known")
    row = FAMILIES[family]
    n_heads = raw["num_attention_heads"]
    n_kv_heads = raw.get("num_key_value_heads") or row["kv_heads"] or n_heads
    head_dim = raw.get("head_dim") or row["head_dim"] or raw["hidden_size"] // n_heads
    if n_heads % n_kv_heads or head_dim % 2:
        raise ValueError(
            f"config.json: {n_heads} heads, {n_kv_heads} kv heads, head_dim {head_dim} do not fit"
        )
    biases = row["biases"]
    if biases == "config":
        biases = "qkvo" if raw.get("attention_bias", False) else ""
    inv_freq, gain = rope_frequencies(raw, head_dim)
    return Config(
        family=family,
        n_layers=raw["num_hidden_layers"],
        dim=raw["hidden_size"],
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_dim=raw["intermediate_size"],
        vocab=raw["vocab_size"],
        eps=raw.get("rms_norm_eps", row["eps"]),
        biases=biases,
        mlp_bias=family == "llama" and raw.get("mlp_bias", False),
        qk_norm=row["qk_norm"],
        tied=raw.get("tie_word_embeddings", False),
        windows=layer_windows(family, raw, raw["num_hidden_layers"]),
        inv_freq=inv_freq,
        rope_gain=gain,
    )


def read(folder):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        return parse(json.load(file))
