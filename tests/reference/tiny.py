"""Random models of every family in Hugging Face's layout, for tests: `write(folder, family, ...)`.

Weights are drawn so that attention is uneven (the q and k projections are scaled up), biases and norm
weights are not trivial, and every size may be odd.
"""

import json
import os

import numpy as np

from .rounding import to_bf16

SIZES = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=37,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    hidden_act="silu",
)
ARCHITECTURES = dict(
    llama="LlamaForCausalLM", mistral="MistralForCausalLM", qwen2="Qwen2ForCausalLM", qwen3="Qwen3ForCausalLM"
)


def make(family, seed=0, **overrides):
    """(config dict, {tensor name: float32 array})."""
    raw = dict(SIZES, model_type=family, architectures=[ARCHITECTURES[family]], torch_dtype="float32")
    if family == "mistral":
        raw["sliding_window"] = None
    raw.update(overrides)
    rng = np.random.default_rng(seed)
    d, f, e = raw["hidden_size"], raw["intermediate_size"], raw["head_dim"]
    n_q, n_kv = raw["num_attention_heads"] * e, raw["num_key_value_heads"] * e

    def matrix(n_out, n_in, gain=1.0):
        return (rng.standard_normal((n_out, n_in)) * gain / np.sqrt(n_in)).astype(np.float32)

    def vector(n, mean, spread):
        return (mean + spread * rng.standard_normal(n)).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(raw["vocab_size"], d, np.sqrt(d)),
        "model.norm.weight": vector(d, 1.0, 0.2),
    }
    if not raw["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(raw["vocab_size"], d, 2.0)
    for i in range(raw["num_hidden_layers"]):
        at = f"model.layers.{i}."
        tensors[at + "input_layernorm.weight"] = vector(d, 1.0, 0.2)
        tensors[at + "post_attention_layernorm.weight"] = vector(d, 1.0, 0.2)
        for name, n_out, n_in, gain in (
            ("q", n_q, d, 1.6),
            ("k", n_kv, d, 1.6),
            ("v", n_kv, d, 1.0),
            ("o", d, n_q, 1.5),
        ):
            tensors[f"{at}self_attn.{name}_proj.weight"] = matrix(n_out, n_in, gain)
            if (
                family == "qwen2"
                and name != "o"
                or raw.get("attention_bias")
                and family in ("llama", "qwen3")
            ):
                tensors[f"{at}self_attn.{name}_proj.bias"] = vector(n_out, 0.0, 0.3)
        if family == "qwen3":
            tensors[at + "self_attn.q_norm.weight"] = vector(e, 1.4, 0.2)
            tensors[at + "self_attn.k_norm.weight"] = vector(e, 1.4, 0.2)
        for name, n_out, n_in in (("gate", f, d), ("up", f, d), ("down", d, f)):
            tensors[f"{at}mlp.{name}_proj.weight"] = matrix(n_out, n_in)
            if raw.get("mlp_bias"):
                tensors[f"{at}mlp.{name}_proj.bias"] = vector(n_out, 0.0, 0.3)
    return raw, tensors


def encode(values, dtype):
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    return (to_bf16(values).view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()


def write_safetensors(path, tensors, dtype):
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, values in tensors.items():
        blob = encode(values, dtype)
        header[name] = dict(dtype=dtype, shape=list(values.shape), data_offsets=[offset, offset + len(blob)])
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def write(folder, family, seed=0, dtype="F32", shards=1, **overrides):
    """Write the folder; returns (config dict, tensors as they were before rounding to dtype)."""
    raw, tensors = make(family, seed, **overrides)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(raw, file, indent=1)
    names = list(tensors)
    if shards == 1:
        write_safetensors(os.path.join(folder, "model.safetensors"), tensors, dtype)
        return raw, tensors
    weight_map = {}
    for n in range(shards):
        shard = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[n::shards]}
        write_safetensors(os.path.join(folder, shard), part, dtype)
        weight_map.update({name: shard for name in part})
    with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        json.dump(dict(metadata={}, weight_map=weight_map), file)
    return raw, tensors
