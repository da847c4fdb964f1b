"""The maker of tiny models: fields, shapes, bytes, and that its attention and logits are worth testing
with."""

import json

import jinja2
import numpy as np
import pytest
import tokenizers
from reference import weights
from reference.model import Model
from reference.rounding import store

from . import tiny_model, tiny_tokenizer

COMMON = """architectures bos_token_id eos_token_id hidden_act hidden_size initializer_range intermediate_size
max_position_embeddings model_type num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps
tie_word_embeddings torch_dtype transformers_version use_cache vocab_size""".split()
# What the published config.json files have beyond COMMON: Llama-2-7b, Llama-3.1-8B, SmolLM2-135M,
# Mistral-7B-v0.1, Qwen2.5-0.5B, Qwen3-0.6B.
PUBLISHED = {
    "llama2": "pretraining_tp rope_scaling",
    "llama3": "pretraining_tp rope_scaling rope_theta attention_bias attention_dropout mlp_bias",
    "smollm": "pretraining_tp rope_scaling rope_theta attention_bias attention_dropout mlp_bias "
    "rope_interleaved pad_token_id",
    "mistral": "rope_theta sliding_window attention_dropout",
    "qwen2": "rope_theta sliding_window attention_dropout use_sliding_window max_window_layers",
    "qwen3": "rope_theta sliding_window attention_dropout use_sliding_window max_window_layers "
    "attention_bias head_dim rope_scaling",
}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def ids_of(model, n):
    return np.random.default_rng(5).integers(0, len(model.embedding), n)


@pytest.mark.parametrize("family", tiny_model.FAMILIES)
def test_fields_are_the_family_s(tmp_path, family):
    config = config_of(tiny_model.make(tmp_path / "m", family))
    assert sorted(config) == sorted(COMMON + PUBLISHED[family].split())


@pytest.mark.parametrize("family", tiny_model.FAMILIES)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        dict(hidden=36, layers=3, heads=9, kv_heads=3, head_dim=10, ffn=31, vocab=17, tokenizer=False),
        dict(heads=3, kv_heads=1, hidden=20, head_dim=2, layers=1, tied=False, vocab=400),
    ],
)
def test_any_shape_is_a_whole_model(tmp_path, family, shape):
    folder = tiny_model.make(tmp_path / "m", family, **shape)
    model = Model.load(folder)  # the reference refuses missing tensors and wrong shapes
    config = config_of(folder)
    assert (len(model.layers), model.embedding.shape) == (
        shape.get("layers", 2),
        (config["vocab_size"], config["hidden_size"]),
    )
    names = set(weights.read_folder(folder))
    assert ("lm_head.weight" in names) == (not config["tie_word_embeddings"])
    assert ("model.layers.0.self_attn.q_proj.bias" in names) == (family == "qwen2")
    assert ("model.layers.0.self_attn.o_proj.bias" in names) is False
    assert ("model.layers.0.self_attn.q_norm.weight" in names) == (family == "qwen3")


def test_biases_of_llama(tmp_path):
    names = set(
        weights.read_folder(tiny_model.make(tmp_path / "m", "llama3", attention_bias=True, mlp_bias=True))
    )
    for tensor in (
        "self_attn.o_proj.bias",
        "self_attn.k_proj.bias",
        "mlp.down_proj.bias",
        "mlp.gate_proj.bias",
    ):
        assert "model.layers.1." + tensor in names


@pytest.mark.parametrize("rope", tiny_model.ROPES)
@pytest.mark.parametrize("family", ["llama3", "qwen2", "qwen3", "mistral"])
def test_rope_scaling(tmp_path, family, rope):
    folder = tiny_model.make(tmp_path / "m", family, rope=rope, rope_factor=4.0, context=512, rope_theta=1e4)
    scaling = config_of(folder).get("rope_scaling")
    if rope == "default":
        assert scaling is None
        return
    assert scaling.get("rope_type", scaling.get("type")) == rope and scaling["factor"] == 4.0
    plain = Model.load(tiny_model.make(tmp_path / "p", family, rope="default", rope_theta=1e4, context=512))
    assert not np.allclose(Model.load(folder).config.inv_freq, plain.config.inv_freq)


def test_sliding_windows(tmp_path):
    mistral = Model.load(tiny_model.make(tmp_path / "a", "mistral", sliding_window=7))
    assert set(mistral.config.windows) == {7}
    qwen = Model.load(tiny_model.make(tmp_path / "b", "qwen2", sliding_window=9, layers=4))
    assert [w == 9 for w in qwen.config.windows] == [False, False, True, True]


def test_same_options_same_bytes(tmp_path):
    options = dict(hidden=32, vocab=420, seed=3, shards=2)
    a, b = (tiny_model.make(tmp_path / n, "qwen3", **options) for n in "ab")
    files = sorted(p.name for p in a.iterdir())
    assert files == sorted(p.name for p in b.iterdir())
    assert all((a / n).read_bytes() == (b / n).read_bytes() for n in files)
    other = weights.read_folder(tiny_model.make(tmp_path / "c", "qwen3", **dict(options, seed=4)))
    same = weights.read_folder(a)
    assert not any(np.array_equal(same[n], other[n]) for n in same)


@pytest.mark.parametrize("dtype", tiny_model.DTYPES)
@pytest.mark.parametrize("shards", [1, 2, 5, 20])
def test_shards_and_types_hold_the_same_weights(tmp_path, dtype, shards):
    whole = weights.read_folder(tiny_model.make(tmp_path / "w", dtype="f32"))
    folder = tiny_model.make(tmp_path / "m", dtype=dtype, shards=shards)
    read = weights.read_folder(folder)
    assert read.keys() == whole.keys()
    for name, x in whole.items():
        np.testing.assert_array_equal(read[name], store(x, dtype))
    if shards > 1:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) == shards
        assert (
            index["metadata"]["total_size"]
            == sum(x.size for x in whole.values()) * tiny_model.DTYPES[dtype][2]
        )


@pytest.mark.parametrize("family", tiny_model.FAMILIES)
def test_attention_is_peaked_and_logits_spread(tmp_path, family):
    """A quarter of the pages by Quest's bound must hold far more weight than a quarter of the keys would at
    random."""
    n, page = 256, 16
    model = Model.load(
        tiny_model.make(
            tmp_path / "m", family, dtype="f32", **({"sliding_window": n} if family == "mistral" else {})
        )
    )
    c, ids = model.config, ids_of(model, n)
    x = model.embed(ids)
    for i in range(c.n_layers):
        q, k, v = model.qkv(i, x, np.arange(n))
        k, v = k.repeat(c.group, axis=1), v.repeat(c.group, axis=1)
        scores = np.einsum("ihe,jhe->hij", q, k) / np.sqrt(c.head_dim)
        scores[:, ~np.tri(n, dtype=bool)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        late = p[:, -32:]
        keys_used = 1 / (late**2).sum(-1)  # n for uniform attention
        assert np.median(keys_used) < n / 8
        pages = k.reshape(n // page, page, *k.shape[1:])
        low, high = pages.min(1), pages.max(1)
        bound = np.maximum(q[-32:, None] * low, q[-32:, None] * high).sum(-1).transpose(2, 0, 1)
        held = late.reshape(*late.shape[:2], n // page, page).sum(-1)
        best = np.argsort(-bound, axis=-1)[..., : n // page // 4]
        assert np.take_along_axis(held, best, -1).sum(-1).mean() > 0.4
        x = model.after_attention(i, x, np.einsum("hij,jhe->ihe", p, v))
    logits = np.stack([model.logits(row) for row in x[-64:]])
    top = np.sort(logits, axis=-1)
    assert 2 < logits.std() < 3.2
    assert np.median(top[:, -1] - top[:, -2]) > 0.2
    assert len(set(logits.argmax(-1))) > 16 and (logits.argmax(-1) == ids[-64:]).mean() < 0.3


def test_unused_ids_are_never_chosen(tmp_path):
    folder = tiny_model.make(tmp_path / "m", "qwen2", vocab=420, unused_ids=9)
    head = weights.read_folder(folder)["model.embed_tokens.weight"]
    assert not head[-9:].any() and head[:-9].any(axis=1).all()
    assert tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == 411


def test_contradictions_are_refused(tmp_path):
    for bad in (
        dict(family="gpt"),
        dict(heads=4, kv_heads=3),
        dict(head_dim=7),
        dict(vocab=40),
        dict(dtype="int8"),
        dict(sliding_window=5),
        dict(family="qwen2", mlp_bias=True),
        dict(unused_ids=512),
        dict(shards=99),
        dict(family="llama2", chat="deepseek-r1"),
    ):
        with pytest.raises(ValueError):
            tiny_model.make(tmp_path / "m", **bad)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        tiny_model.make(tmp_path / "full")


def test_command_line(tmp_path, capsys):
    made = tiny_model.make(tmp_path / "a", "qwen3", kv_heads=4, head_dim=6, dtype="f16", tied=False, seed=2)
    assert (
        tiny_model.main(
            [
                str(tmp_path / "b"),
                "--family",
                "qwen3",
                "--kv-heads",
                "4",
                "--head-dim",
                "6",
                "--dtype",
                "f16",
                "--no-tied",
                "--seed",
                "2",
            ]
        )
        == 0
    )
    for path in made.iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert tiny_model.main([str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---- tokenizers

TEXTS = [
    "Hello, the world's  12345 trees.\n\n  def x(y):\n\treturn 7    \r\n",
    " leading",
    "trailing ",
    "a\u00a0b\u3000c",
    "ΑΒΓ Привет 你好 שלום مرحبا 한국어 हिन्दी 😀👍🏽 \x00\x7f",
    "<|im_start|>user</s>[INST]",
    "",
    "▁ _ ▁▁",
    "naïve",
]


@pytest.mark.parametrize("form", tiny_tokenizer.FORMS)
@pytest.mark.parametrize("size", [None, 512, 1500])
def test_tokenizer_gives_text_back(form, size):
    size = size or tiny_tokenizer.least_size(form)
    tok = tokenizers.Tokenizer.from_str(tiny_tokenizer.build(form, size)[0])
    vocab = tok.get_vocab()
    assert sorted(vocab.values()) == list(range(size))
    for text in TEXTS:
        ids = tok.encode(text, add_special_tokens=False).ids
        back = tok.decode(ids, skip_special_tokens=False)
        if form in ("llama2", "mistral") and text != TEXTS[0]:
            # As published: U+2581 is a blank, Metaspace drops one at the start, Prepend adds one after
            # special tokens.
            text, back = (t.replace("▁", "").replace(" ", "") for t in (text, back))
        assert back == text
    words = tok.encode("the of and that", add_special_tokens=False).tokens
    assert size < 512 or len(words) < 10  # merges are used


def test_forms_differ_where_the_families_do():
    toks = {
        form: tokenizers.Tokenizer.from_str(tiny_tokenizer.build(form, 1500)[0])
        for form in tiny_tokenizer.FORMS
    }
    bos = {form: tok.encode("x").tokens[0] for form, tok in toks.items()}
    assert (bos["llama3"], bos["llama2"], bos["mistral"]) == ("<|begin_of_text|>", "<s>", "<s>")
    assert "<" not in bos["qwen"] + bos["smollm"]
    assert toks["qwen"].encode("e\u0301").ids == toks["qwen"].encode("\u00e9").ids
    assert toks["llama3"].encode("e\u0301").ids != toks["llama3"].encode("\u00e9").ids
    assert "<0xF0>" in toks["llama2"].encode("🦙").tokens
    digits = {
        form: [len(t) for t in tok.encode("2024", add_special_tokens=False).tokens if t.isdigit()]
        for form, tok in toks.items()
    }
    assert all(set(digits[form]) == {1} for form in ("smollm", "qwen", "llama2", "mistral"))
    assert (
        toks["llama2"].encode("[INST]").tokens[-1] != "[INST]" == toks["mistral"].encode("[INST]").tokens[-1]
    )
    assert "<tool_call>" in toks["qwen"].decode(toks["qwen"].encode("<tool_call><|im_end|>").ids)


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
RENDERED = {
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "qwen2": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "mistral": "<s>[INST] Hi [/INST]Hello</s>[INST] Bye [/INST]",
    "deepseek-r1": "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜>Hello<｜end▁of▁sentence｜><｜User｜>Bye"
    "<｜Assistant｜><think>\n",
}


@pytest.mark.parametrize("name", RENDERED)
def test_chat_templates(tmp_path, name):
    family, chat = ("llama3", name) if name not in tiny_model.FAMILIES else (name, None)
    folder = tiny_model.make(tmp_path / "m", family, chat=chat)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {
        k: (config[k]["content"] if isinstance(config[k], dict) else config[k]) or ""
        for k in ("bos_token", "eos_token")
    }
    messages = (
        CONVERSATION[1:] if name == "mistral" else CONVERSATION
    )  # its first format has no system messages
    text = jinja2.Template(config["chat_template"], keep_trailing_newline=True).render(
        messages=messages, add_generation_prompt=True, **tokens
    )
    assert text == RENDERED[name]
    tok = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tok.encode(text, add_special_tokens=False).ids
    if tokens["bos_token"]:
        assert ids[0] == tok.token_to_id(tokens["bos_token"]) == config_of(folder)["bos_token_id"]
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tok.token_to_id(tokens["eos_token"]) in (ends if isinstance(ends, list) else [ends])
