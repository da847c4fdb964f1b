"""Model files, rounding, configurations and the transformer itself, each against a direct formula."""

import json
import math

import numpy as np
import pytest

from . import config as configs
from . import rounding, tiny, weights
from .common import Run, model_of, settings_of, tokens_of
from .model import Model

FAMILIES = sorted(tiny.ARCHITECTURES)


# ---- files


@pytest.mark.parametrize("dtype,shards", [("F32", 1), ("F32", 3), ("F16", 1), ("BF16", 2)])
def test_folder_round_trip(tmp_path, dtype, shards):
    _, written = tiny.write(tmp_path, "qwen3", dtype=dtype, shards=shards)
    read = weights.read_folder(tmp_path)
    kv_dtype = dtype.lower()
    assert read.keys() == written.keys()
    for name, values in written.items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], rounding.store(values, kv_dtype))


def damage_truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def damage_length(folder):
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 7 + b"\x00" + path.read_bytes()[8:])


def damage_json(folder):
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:8] + b"[" + raw[9:])


def damage_dtype(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1))


def damage_remove(folder):
    (folder / "model.safetensors").unlink()


def damage_shape(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 37', '"intermediate_size": 36'))


def damage_layers(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"num_hidden_layers": 5', '"num_hidden_layers": 6'))


@pytest.mark.parametrize(
    "damage,words",
    [
        (damage_truncate, "do not hold"),
        (damage_length, "header does not fit"),
        (damage_json, "not JSON"),
        (damage_dtype, "I32"),
        (damage_remove, "neither"),
        (damage_shape, "config.json says"),
        (damage_layers, "missing"),
    ],
)
def test_damaged_folder_is_refused(tmp_path, damage, words):
    tiny.write(tmp_path, "llama")
    Model.load(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=words):
        Model.load(tmp_path)


# ---- rounding


def nearest_even(x, step):
    """x rounded to a multiple of step, ties to even multiples: Python's own round on exact fractions."""
    from fractions import Fraction

    return float(round(Fraction(x) / Fraction(step)) * Fraction(step))


@pytest.mark.parametrize("kv_dtype,bits,low_exp", [("bf16", 8, -126), ("f16", 11, -14)])
def test_rounding_is_to_nearest_even(kv_dtype, bits, low_exp):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(800) * 2.0 ** rng.integers(-20, 12, 800)).astype(np.float32)
    ties = np.float32(1) + np.arange(65, dtype=np.float32) * np.float32(2.0**-bits)  # every second is a tie
    x = np.concatenate([x, ties, -ties, [0.0, 1e-7, np.float32(2.0**-24)]]).astype(np.float32)
    expected = [
        nearest_even(float(a), 2.0 ** (max(math.frexp(float(a))[1] - 1, low_exp) - bits + 1)) for a in x
    ]
    got = rounding.store(x, kv_dtype)
    np.testing.assert_array_equal(got, np.float32(expected))
    np.testing.assert_array_equal(rounding.store(got, kv_dtype), got)


def test_rounding_keeps_infinities_and_nan():
    for kv_dtype in ("f32", "f16", "bf16"):
        got = rounding.store(np.float32([np.inf, -np.inf, np.nan]), kv_dtype)
        assert np.isposinf(got[0]) and np.isneginf(got[1]) and np.isnan(got[2])
    assert np.isposinf(rounding.store(np.float32([70000.0]), "f16"))[0]
    with pytest.raises(ValueError, match="int8"):
        rounding.store(np.float32([1.0]), "int8")


# ---- configuration


def parse(family="llama", **overrides):
    return configs.parse({**tiny.make(family)[0], **overrides})


@pytest.mark.parametrize(
    "overrides,words",
    [
        (dict(model_type="gpt2"), "gpt2"),
        (dict(hidden_act="gelu"), "gelu"),
        (dict(rope_scaling=dict(rope_type="dynamic", factor=2.0)), "dynamic"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor"),
        (dict(num_key_value_heads=4), "do not fit"),
    ],
)
def test_unknown_configuration_is_refused(overrides, words):
    with pytest.raises(ValueError, match=words):
        parse(**overrides)


def test_windows_of_families():
    assert parse("llama", sliding_window=8).windows == [None] * 5
    assert parse("mistral", sliding_window=8).windows == [8] * 5
    assert parse("mistral", sliding_window=None).windows == [None] * 5
    raw = tiny.make("mistral")[0]
    del raw["sliding_window"]
    assert configs.parse(raw).windows == [4096] * 5
    for family in ("qwen2", "qwen3"):
        assert (
            parse(family, sliding_window=8, use_sliding_window=False, max_window_layers=2).windows
            == [None] * 5
        )
        assert parse(family, sliding_window=8, use_sliding_window=True, max_window_layers=2).windows == [
            None,
            None,
            8,
            8,
            8,
        ]
        kinds = ["sliding_attention", "full_attention"] * 2 + ["full_attention"]
        assert parse(family, sliding_window=8, use_sliding_window=True, layer_types=kinds).windows == [
            8,
            None,
            8,
            None,
            None,
        ]


def test_rope_scalings():
    e, theta, original, factor = 64, 10000.0, 2048, 4.0
    plain = [theta ** (-2.0 * i / e) for i in range(e // 2)]
    sizes = dict(head_dim=e, rope_theta=theta, max_position_embeddings=original)

    np.testing.assert_allclose(parse(**sizes).inv_freq, plain, rtol=1e-14)
    linear = parse(**sizes, rope_scaling=dict(type="linear", factor=factor))
    np.testing.assert_allclose(linear.inv_freq, np.array(plain) / factor, rtol=1e-14)
    newer = dict(
        sizes, rope_theta=None, rope_parameters=dict(rope_type="linear", rope_theta=theta, factor=factor)
    )
    np.testing.assert_allclose(parse(**newer).inv_freq, linear.inv_freq, rtol=1e-14)

    llama3 = parse(
        **sizes,
        rope_scaling=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=original,
        ),
    )
    for freq, got in zip(plain, llama3.inv_freq):
        turns = original * freq / (2 * math.pi)  # within the old context
        share = min(max((turns - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        assert got == pytest.approx(freq * share + freq / 8.0 * (1 - share), rel=1e-12)
    assert (
        llama3.inv_freq[0] == plain[0] and llama3.inv_freq[-1] == plain[-1] / 8.0 and llama3.rope_gain == 1.0
    )


def test_yarn():
    e, theta, original, factor = 64, 10000.0, 2048, 4.0
    plain = np.array([theta ** (-2.0 * i / e) for i in range(e // 2)])
    scaling = dict(rope_type="yarn", factor=factor, original_max_position_embeddings=original)
    sizes = dict(head_dim=e, rope_theta=theta, max_position_embeddings=int(original * factor))
    yarn = parse(**sizes, rope_scaling=scaling)
    assert yarn.rope_gain == pytest.approx(0.1 * math.log(factor) + 1.0)
    # 32 turns within 2048 positions: wavelength 64, index 8.06 (floor 8); one turn: 2048, 20.1 (ceil 21).
    ratio = yarn.inv_freq / plain
    np.testing.assert_allclose(ratio[:9], 1.0)
    np.testing.assert_allclose(ratio[21:], 1.0 / factor)
    np.testing.assert_allclose(ratio[8:22], 1.0 - (1.0 - 1.0 / factor) * np.arange(14) / 13.0)
    # The factor as given counts, also where max_position_embeddings kept the old length (Qwen2.5's advice).
    same = parse(**{**sizes, "max_position_embeddings": original}, rope_scaling=scaling)
    np.testing.assert_array_equal(same.inv_freq, yarn.inv_freq)
    assert parse(**sizes, rope_scaling=dict(scaling, attention_factor=1.5)).rope_gain == 1.5
    both = parse(**sizes, rope_scaling=dict(scaling, mscale=1.0, mscale_all_dim=0.5))
    assert both.rope_gain == pytest.approx((0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1))


def test_rope_turns_halves_and_keeps_distances():
    yarn = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    model = model_of(head_dim=16, rope_scaling=yarn)
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 16))
    got = model.rope(q, [7])[0, 0]
    gain, freq = model.config.rope_gain, model.config.inv_freq
    for i in range(8):
        turned = (
            complex(q[0, 0, i], q[0, 0, i + 8]) * complex(math.cos(7 * freq[i]), math.sin(7 * freq[i])) * gain
        )
        assert got[i] == pytest.approx(turned.real) and got[i + 8] == pytest.approx(turned.imag)

    def dot(a, b):
        return float((model.rope(q, [a]) * model.rope(k, [b])).sum())

    assert dot(9, 4) == pytest.approx(dot(105, 100))
    assert dot(9, 4) != pytest.approx(dot(9, 5))
    assert dot(3, 3) == pytest.approx(gain**2 * float((q * k).sum()))


# ---- the forward pass, by a second writing of it: one token, one head, one key at a time


def naive_logits(raw, tensors, tokens):
    """Logits after the last token; float64, nothing shared with model.py."""
    t = {name: values.astype(np.float64) for name, values in tensors.items()}
    c = configs.parse(raw)

    def norm(x, w):
        return w * x / math.sqrt(float(np.dot(x, x)) / len(x) + raw["rms_norm_eps"])

    def project(name, x):
        y = t[name + ".weight"].dot(x)
        return y + t[name + ".bias"] if name + ".bias" in t else y

    def turn(x, position):
        y = np.empty_like(x)
        for i in range(len(x) // 2):
            cos, sin = math.cos(position * c.inv_freq[i]), math.sin(position * c.inv_freq[i])
            y[i] = c.rope_gain * (x[i] * cos - x[i + len(x) // 2] * sin)
            y[i + len(x) // 2] = c.rope_gain * (x[i + len(x) // 2] * cos + x[i] * sin)
        return y

    hidden = [t["model.embed_tokens.weight"][token] for token in tokens]
    for n in range(c.n_layers):
        at = f"model.layers.{n}."
        queries, keys, values = [], [], []
        for position, x in enumerate(hidden):
            h = norm(x, t[at + "input_layernorm.weight"])
            for store, name in ((queries, "q"), (keys, "k"), (values, "v")):
                heads = np.split(
                    project(f"{at}self_attn.{name}_proj", h), c.n_heads if name == "q" else c.n_kv_heads
                )
                if raw["model_type"] == "qwen3" and name != "v":
                    heads = [norm(head, t[f"{at}self_attn.{name}_norm.weight"]) for head in heads]
                store.append([turn(head, position) if name != "v" else head for head in heads])
        for position, x in enumerate(hidden):
            outputs = []
            for h in range(c.n_heads):
                g = h // (c.n_heads // c.n_kv_heads)
                seen = [j for j in range(position + 1) if c.windows[n] is None or position - j < c.windows[n]]
                e = [math.exp(np.dot(queries[position][h], keys[j][g]) / math.sqrt(c.head_dim)) for j in seen]
                outputs.append(sum(w * values[j][g] for w, j in zip(e, seen)) / sum(e))
            x = x + project(at + "self_attn.o_proj", np.concatenate(outputs))
            h = norm(x, t[at + "post_attention_layernorm.weight"])
            gate = project(at + "mlp.gate_proj", h)
            hidden[position] = x + project(
                at + "mlp.down_proj", gate / (1 + np.exp(-gate)) * project(at + "mlp.up_proj", h)
            )
    head = "model.embed_tokens.weight" if raw["tie_word_embeddings"] else "lm_head.weight"
    return t[head].dot(norm(hidden[-1], t["model.norm.weight"]))


VARIANTS = [
    (
        "llama",
        dict(
            num_attention_heads=9, num_key_value_heads=3, head_dim=4, hidden_size=36, tie_word_embeddings=True
        ),
    ),
    ("llama", dict(attention_bias=True, mlp_bias=True, num_key_value_heads=1)),
    (
        "llama",
        dict(
            rope_scaling=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=16,
            )
        ),
    ),
    ("mistral", dict(sliding_window=5)),
    ("qwen2", dict(sliding_window=6, use_sliding_window=True, max_window_layers=3)),
    ("qwen2", dict(rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16))),
    ("qwen3", dict(head_dim=12, num_attention_heads=5, num_key_value_heads=5)),
]


@pytest.mark.parametrize("family,overrides", VARIANTS)
def test_dense_decode_equals_a_naive_forward(family, overrides):
    raw, tensors = tiny.make(family, **overrides)
    model = Model(configs.parse(raw), tensors, np.float64)
    tokens = tokens_of(model, 19)
    run = Run(model, settings_of(policy="dense", kv_dtype="f32"), tokens, n_prompt=11, chunk=4)
    for n in (0, 1, 8):
        # K and V are stored as f32, hence not 1e-12.
        np.testing.assert_allclose(run.logits[n], naive_logits(raw, tensors, tokens[: 11 + n]), atol=3e-6)


def test_the_comparison_can_fail():
    raw, tensors = tiny.make("qwen3")
    model = Model(configs.parse(raw), tensors, np.float64)
    tokens = tokens_of(model, 19)
    run = Run(model, settings_of(policy="dense"), tokens, n_prompt=19)
    changed = dict(tensors, **{"model.layers.3.self_attn.q_norm.weight": np.ones(8, np.float32)})
    assert np.abs(run.logits[0] - naive_logits(raw, changed, tokens)).max() > 1e-3


def test_config_json_is_read(tmp_path):
    raw, _ = tiny.write(tmp_path, "qwen2")
    assert json.loads((tmp_path / "config.json").read_text()) == raw
    assert configs.read(tmp_path).biases == "qkv"
