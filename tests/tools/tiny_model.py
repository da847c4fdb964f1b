#!/usr/bin/env python3
"""Tiny random models of every supported family, as Hugging Face folders.

    tiny_model.py FOLDER --family llama3 --hidden 64 --layers 2 --heads 4 --kv-heads 2 --vocab 512 --dtype f32
    make(folder, family="qwen3", hidden=48, heads=3, kv_heads=3, head_dim=32, vocab=512, seed=7)

config.json has the fields, and only the fields, that the family's published files have (Llama 2 names no
rope_theta and no head_dim, Qwen2 carries a sliding_window that use_sliding_window switches off, and so on).
Weights come from numpy's PCG64 with the seed and the tensor's name: the same options give the same bytes, and
one tensor does not depend on how many others there are.

How the weights are scaled, so that tests of page selection and of logits mean something:
1. q_proj and k_proj (q_norm and k_norm where the family has them) make the scores of a query vary with a
   standard deviation of `sharpness` (3 unless told): attention is peaked, a few keys out of hundreds hold
   most of the weight.
2. Most of that variation sits in the few slowest rope pairs of a head, as in trained models: element-wise
   bounds of a page then say something about its keys, and content decides more than distance.
3. Attention and MLP add to the residual about as much as the embedding holds, and logits have a standard
   deviation of about 2.5: no layer can be left out unnoticed and a greedy choice is rarely a near tie.
"""

import argparse
import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np

try:
    from . import tiny_tokenizer
except ImportError:  # run as a program or with this folder on the path
    import tiny_tokenizer

DTYPES = {"bf16": ("BF16", "bfloat16", 2), "f16": ("F16", "float16", 2), "f32": ("F32", "float32", 4)}
ROPES = ("default", "linear", "llama3", "yarn")
LOGIT_DEVIATION = 2.5

# family: (form of the tokenizer, chat format, tied head, rope scaling)
FAMILIES = {
    "llama2": ("llama2", "llama2", False, "default"),
    "llama3": ("llama3", "llama3", False, "llama3"),
    "smollm": ("smollm", "chatml", True, "default"),
    "mistral": ("mistral", "mistral", False, "default"),
    "qwen2": ("qwen", "chatml", True, "default"),
    "qwen3": ("qwen", "chatml-plain", True, "default"),
}


# ---------------------------------------------------------------------------------------------- config.json


def rope_scaling(family, kind, factor, original):
    """The rope_scaling object in the spelling that the family's files use; None for the default."""
    if kind == "default":
        return None
    if kind == "linear":
        return {"factor": factor, "type": "linear"}
    if kind == "llama3":
        return {
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
            "rope_type": "llama3",
        }
    key = "rope_type" if family == "qwen3" else "type"  # Qwen2.5's and Yarn-Llama-2's cards say "type"
    return {"factor": factor, "original_max_position_embeddings": original, key: "yarn"}


def make_config(
    family,
    *,
    hidden,
    layers,
    heads,
    kv_heads,
    head_dim,
    ffn,
    vocab,
    tied,
    dtype,
    context,
    norm_eps,
    rope,
    rope_factor,
    rope_theta,
    original_context,
    sliding_window,
    attention_bias,
    mlp_bias,
    ids,
):
    """config.json as a dict; ids: {"bos", "eos", "end", "pad"} to numbers or None."""
    c = {
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "max_position_embeddings": context,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": norm_eps,
        "tie_word_embeddings": tied,
        "torch_dtype": DTYPES[dtype][1],
        "transformers_version": "4.51.0",
        "use_cache": True,
        "vocab_size": vocab,
    }
    scaling = rope_scaling(family, rope, rope_factor, original_context)
    if family in ("llama2", "llama3", "smollm"):
        c.update(
            architectures=["LlamaForCausalLM"], model_type="llama", pretraining_tp=1, rope_scaling=scaling
        )
        if family != "llama2":
            c.update(
                attention_bias=attention_bias, attention_dropout=0.0, mlp_bias=mlp_bias, rope_theta=rope_theta
            )
        elif rope_theta != 10000.0:
            c.update(rope_theta=rope_theta)
        if family == "llama2" and (attention_bias or mlp_bias):
            c.update(attention_bias=attention_bias, mlp_bias=mlp_bias)
        if family == "llama3" and ids["end"] is not None:
            c.update(eos_token_id=[ids["end"], ids["eos"]])
        if family == "smollm":
            c.update(rope_interleaved=False, pad_token_id=ids["pad"])
    elif family == "mistral":
        c.update(
            architectures=["MistralForCausalLM"],
            model_type="mistral",
            attention_dropout=0.0,
            rope_theta=rope_theta,
            sliding_window=sliding_window,
        )
    else:
        c.update(
            architectures=[f"{family.capitalize()}ForCausalLM"],
            model_type=family,
            attention_dropout=0.0,
            rope_theta=rope_theta,
            use_sliding_window=sliding_window is not None,
        )
        # Qwen slides only in the layers from max_window_layers on; published files name a window that is
        # switched off
        c.update(
            max_window_layers=layers // 2 if sliding_window is not None else layers,
            sliding_window=sliding_window if sliding_window is not None or family == "qwen3" else context,
        )
        if family == "qwen3":
            c.update(attention_bias=attention_bias, rope_scaling=scaling)
        if ids["bos"] is None:
            c.update(bos_token_id=ids["end"])
    if scaling is not None:
        c["rope_scaling"] = scaling
    if family == "qwen3" or head_dim * heads != hidden:
        c["head_dim"] = head_dim
    return dict(sorted(c.items()))


def make_generation_config(config, ids):
    c = {k: config[k] for k in ("bos_token_id", "eos_token_id", "transformers_version")}
    if config["model_type"].startswith("qwen"):
        # the published files name more ends here than in config.json; these win
        c.update(
            do_sample=True,
            temperature=0.7,
            top_k=20,
            top_p=0.8,
            pad_token_id=ids["pad"],
            eos_token_id=[i for i in (ids["eos"], ids["end"]) if i is not None],
        )
    elif config["model_type"] == "llama":
        c.update(do_sample=True, temperature=0.6, top_p=0.9)
    return c


# ---------------------------------------------------------------------------------------------- weights


def head_profile(head_dim, sharpness):
    """Scale of every dimension of a query or key head so that scores deviate by `sharpness`: sum p^4 / E =
    s^2."""
    half = head_dim // 2
    from_slow = np.arange(half)[::-1]
    share = np.exp(-from_slow / max(0.6, half / 16))
    p4 = 0.95 * share / share.sum() + 0.05 / half
    p4 = np.concatenate([p4, p4])
    p4 *= head_dim * sharpness**2 / p4.sum()
    return p4**0.25


def tensor_plan(config, unused_ids, sharpness):
    """[(name, shape, kind, scale)] in file order. kind: "rows" is normal with deviation scale /
    sqrt(columns), scale a number or one per row; "bias" normal with deviation scale; "norm" scale * (1 + 0.1
    normal)."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    h, k = config["num_attention_heads"], config["num_key_value_heads"]
    e = config.get("head_dim", d // h)
    qk_norm, qkv_bias = config["model_type"] == "qwen3", config["model_type"] == "qwen2"
    bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    p = head_profile(e, sharpness)
    q_scale, k_scale = (1.0, 1.0) if qk_norm else (np.tile(p, h), np.tile(p, k))

    # One head row per token: logits deviate by LOGIT_DEVIATION. An untied embedding has deviation 1.
    head = np.full(v, LOGIT_DEVIATION)
    head[v - unused_ids :] = 0.0  # logit 0, which a greedy choice never takes
    embed = head if config["tie_word_embeddings"] else math.sqrt(d)

    def linear(name, rows, columns, scale, with_bias):
        out = [(name + ".weight", (rows, columns), "rows", scale)]
        if with_bias:
            out.append((name + ".bias", (rows,), "bias", 0.3 * np.asarray(scale)))
        return out

    plan = [("model.embed_tokens.weight", (v, d), "rows", embed)]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        plan.append((at + "input_layernorm.weight", (d,), "norm", 1.0))
        plan += linear(at + "self_attn.q_proj", h * e, d, q_scale, bias or qkv_bias)
        plan += linear(at + "self_attn.k_proj", k * e, d, k_scale, bias or qkv_bias)
        plan += linear(at + "self_attn.v_proj", k * e, d, 1.0, bias or qkv_bias)
        plan += linear(at + "self_attn.o_proj", d, h * e, 1.2, bias)
        if qk_norm:
            plan.append((at + "self_attn.q_norm.weight", (e,), "norm", p))
            plan.append((at + "self_attn.k_norm.weight", (e,), "norm", p))
        plan.append((at + "post_attention_layernorm.weight", (d,), "norm", 1.0))
        plan += linear(at + "mlp.gate_proj", f, d, 1.0, mlp_bias)
        plan += linear(at + "mlp.up_proj", f, d, 1.0, mlp_bias)
        plan += linear(at + "mlp.down_proj", d, f, 1.7, mlp_bias)  # silu(gate) * up deviates by about 0.6
    plan.append(("model.norm.weight", (d,), "norm", 1.0))
    if not config["tie_word_embeddings"]:
        plan.append(("lm_head.weight", (v, d), "rows", head))
    return plan


def make_tensor(name, shape, kind, scale, seed):
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    x = rng.standard_normal(shape, dtype=np.float32)
    if kind == "norm":
        return (scale * (1.0 + 0.1 * x)).astype(np.float32)
    if kind == "rows":
        return x * np.reshape(np.asarray(scale, np.float32) / np.float32(math.sqrt(shape[1])), (-1, 1))
    return x * np.asarray(scale, np.float32)


def to_bytes(x, dtype):
    if dtype == "f32":
        return x.astype("<f4").tobytes()
    if dtype == "f16":
        return x.astype("<f2").tobytes()
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype("<u2").tobytes()  # nearest, ties to even


def write_safetensors(path, plan, dtype, seed):
    """Returns the bytes of tensor data written."""
    label, _, width = DTYPES[dtype]
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _, _ in plan:
        end = offset + width * math.prod(shape)
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for entry in plan:
            out.write(to_bytes(make_tensor(*entry, seed), dtype))
    return offset


def write_weights(folder, plan, dtype, seed, shards):
    if shards == 1:
        write_safetensors(folder / "model.safetensors", plan, dtype, seed)
        return
    weight_map, total = {}, 0
    for n in range(shards):
        part = plan[len(plan) * n // shards : len(plan) * (n + 1) // shards]
        name = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        total += write_safetensors(folder / name, part, dtype, seed)
        weight_map.update((entry[0], name) for entry in part)
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------- the maker


def make(
    folder,
    family="llama3",
    *,
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=None,
    ffn=None,
    vocab=512,
    seed=0,
    dtype="bf16",
    tied=None,
    context=4096,
    norm_eps=None,
    rope=None,
    rope_factor=8.0,
    rope_theta=None,
    original_context=None,
    sliding_window=None,
    attention_bias=False,
    mlp_bias=False,
    shards=1,
    chat=None,
    tokenizer=True,
    unused_ids=0,
    sharpness=3.0,
    force=False,
):
    """Writes a model folder and returns its path. None means what the family publishes.

    rope: one of ROPES; original_context is a quarter of context unless told. sliding_window: tokens; Qwen
    slides in its upper half of layers, Llama has no window. unused_ids: that many ids at the end have no
    token (Qwen's vocabulary is padded like this). tokenizer=False writes none, and vocab may then be as small
    as 1. ValueError when the options contradict each other or the folder holds something and force is not
    set."""
    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is none of {', '.join(FAMILIES)}")
    form, family_chat, family_tied, family_rope = FAMILIES[family]
    head_dim = head_dim or (2 * max(hidden // heads, 8) if family == "qwen3" else hidden // heads)
    rope, chat = rope or family_rope, chat or family_chat
    if dtype not in DTYPES or rope not in ROPES or chat not in tiny_tokenizer.CHATS:
        raise ValueError(
            f"dtype {dtype}, rope {rope} or chat {chat}: not one of {[*DTYPES]}, {ROPES}, "
            f"{[*tiny_tokenizer.CHATS]}"
        )
    if (
        min(hidden, layers, heads, kv_heads, vocab, shards) < 1
        or heads % kv_heads
        or head_dim < 2
        or head_dim % 2
    ):
        raise ValueError(
            f"hidden {hidden}, layers {layers}, heads {heads}, kv heads {kv_heads}, head_dim {head_dim}, "
            f"vocab {vocab}, shards {shards}: all positive, heads a multiple of kv heads, head_dim even"
        )
    if sliding_window is not None and form in ("llama2", "llama3", "smollm"):
        raise ValueError(f"family {family} has no sliding window")
    if (attention_bias or mlp_bias) and family not in ("llama2", "llama3", "smollm"):
        raise ValueError(f"family {family}: biases are what the family says, not an option")
    if not 0 <= unused_ids < vocab:
        raise ValueError(f"unused_ids {unused_ids} must lie in 0..vocab-1")
    if family == "mistral" and sliding_window is None:
        sliding_window = 64  # small enough that a short test slides
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not force:
        raise ValueError(f"{folder} is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()

    ids = {"bos": None, "eos": None, "end": None, "pad": None}
    if tokenizer:
        text, names = tiny_tokenizer.build(form, vocab - unused_ids, chat == "deepseek-r1")
        value = json.loads(text)
        numbers = {t["content"]: t["id"] for t in value["added_tokens"]}
        ids = {key: numbers.get(names[key]) for key in ids}
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        write_json(
            folder / "tokenizer_config.json", tiny_tokenizer.make_config(form, text, names, chat, context)
        )
    if rope_theta is None:
        rope_theta = {"llama2": 10000.0, "llama3": 500000.0, "smollm": 100000.0, "mistral": 10000.0}.get(
            family, 1e6
        )
    if norm_eps is None:
        norm_eps = 1e-6 if form == "qwen" else 1e-5
    config = make_config(
        family,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn or -(-hidden * 8 // 3 // 8) * 8,
        vocab=vocab,
        dtype=dtype,
        context=context,
        tied=family_tied if tied is None else tied,
        norm_eps=norm_eps,
        rope=rope,
        rope_factor=rope_factor,
        rope_theta=rope_theta,
        sliding_window=sliding_window,
        original_context=original_context or max(1, context // 4),
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        ids=ids,
    )
    plan = tensor_plan(config, unused_ids, sharpness)
    if shards > len(plan):
        raise ValueError(f"{shards} shards for {len(plan)} tensors")
    write_weights(folder, plan, dtype, seed, shards)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", make_generation_config(config, ids))
    return folder


def spoil(folder):
    """Makes the final norm of a folder NaN, as a damaged file or an overflow leaves it: so are all its logits."""
    path = Path(folder) / "model.safetensors"
    raw = bytearray(path.read_bytes())
    n = int.from_bytes(raw[:8], "little")
    first, end = json.loads(raw[8 : 8 + n])["model.norm.weight"]["data_offsets"]
    raw[8 + n + first : 8 + n + end] = b"\xff" * (end - first)
    path.write_bytes(raw)


def main(arguments=None):
    p = argparse.ArgumentParser(
        prog="tiny_model.py", description="Makes a random model folder of a given shape."
    )
    p.add_argument("folder", type=Path)
    p.add_argument("--family", choices=FAMILIES, default="llama3")
    for name, default in (
        ("hidden", 64),
        ("layers", 2),
        ("heads", 4),
        ("kv-heads", 2),
        ("head-dim", None),
        ("ffn", None),
        ("vocab", 512),
        ("seed", 0),
        ("context", 4096),
        ("original-context", None),
        ("sliding-window", None),
        ("shards", 1),
        ("unused-ids", 0),
    ):
        p.add_argument("--" + name, type=int, default=default, metavar="N")
    for name, default in (("norm-eps", None), ("rope-factor", 8.0), ("rope-theta", None), ("sharpness", 3.0)):
        p.add_argument("--" + name, type=float, default=default, metavar="X")
    p.add_argument("--dtype", choices=DTYPES, default="bf16")
    p.add_argument("--rope", choices=ROPES)
    p.add_argument("--chat", choices=tiny_tokenizer.CHATS)
    p.add_argument("--tied", action=argparse.BooleanOptionalAction, help="LM head is the embedding matrix")
    p.add_argument("--tokenizer", action=argparse.BooleanOptionalAction, default=True)
    for name in ("attention-bias", "mlp-bias", "force"):
        p.add_argument("--" + name, action="store_true")
    options = vars(p.parse_args(arguments))
    try:
        print(make(options.pop("folder"), options.pop("family"), **options))
    except (ValueError, OSError) as error:
        print(f"tiny_model.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
