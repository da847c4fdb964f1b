"""scripts/fetch-model and scripts/convert_gguf.py: numbers against direct formulas, a whole conversion of a
tiny GGUF file made here, what is refused, and the real model in models/ (made by scripts/fetch-model)."""

import errno
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
from reference import weights
from reference.decoder import Decoder, Settings
from reference.model import Model

from . import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "convert_gguf.py"
spec = importlib.util.spec_from_file_location("convert_gguf", SCRIPT)
convert_gguf = importlib.util.module_from_spec(spec)
spec.loader.exec_module(convert_gguf)

D, F, LAYERS, HEADS, KV_HEADS, E, VOCAB = 64, 96, 2, 4, 2, 16, 300
MATRICES = {
    "attn_q": (HEADS * E, D),
    "attn_k": (KV_HEADS * E, D),
    "attn_v": (KV_HEADS * E, D),
    "attn_output": (D, HEADS * E),
    "ffn_gate": (F, D),
    "ffn_up": (F, D),
    "ffn_down": (D, F),
}
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


# ---- numbers


def test_bf16_is_the_nearest_with_ties_to_even():
    bits = np.random.default_rng(0).integers(0, 2**32, 200000, dtype=np.uint64).astype(np.uint32)
    low = np.concatenate([bits & 0xFFFF0000, (bits & 0xFFFF0000) | 0x8000, bits])  # exact, ties, anything
    x = low.view(np.float32)
    x = x[np.isfinite(x) & (np.abs(x) < 3.38e38)]
    got = convert_gguf.bf16_bits(x)
    down = x.view(np.uint32) & 0xFFFF0000
    candidates = np.stack([down, down + 0x10000])
    away = np.abs(candidates.view(np.float32).astype(np.float64) - x.astype(np.float64))
    odd = (candidates >> 16) & 1
    best = np.where(away[0] == away[1], odd[0] == 1, away[1] < away[0]).astype(int)
    np.testing.assert_array_equal(got, candidates[best, np.arange(len(x))] >> 16)


def test_sha256_of_python_3_10(tmp_path, monkeypatch):
    """Ubuntu 22.04 has Python 3.10, whose hashlib cannot take a file."""
    monkeypatch.delattr(hashlib, "file_digest", raising=False)
    for size in (0, 1, 1 << 20, (2 << 20) + 5):
        data = np.random.default_rng(size).bytes(size)
        (tmp_path / "file").write_bytes(data)
        assert convert_gguf.sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_row_order_keeps_rope():
    """Turning neighbours in GGUF's order and turning halves in Hugging Face's are the same rotation."""
    heads, e = 3, 10
    stored = np.random.default_rng(1).standard_normal((heads * e, 7))
    angle = np.arange(e // 2) * 0.3 + 0.1
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = stored.reshape(heads, e // 2, 2, 7).transpose(2, 0, 1, 3)
    turned = np.stack([a * cos - b * sin, b * cos + a * sin], axis=2).reshape(heads * e, 7)
    hf = convert_gguf.deinterleave(stored, heads).reshape(heads, 2, e // 2, 7)
    a, b = hf[:, 0], hf[:, 1]
    expected = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1).reshape(heads * e, 7)
    np.testing.assert_array_equal(convert_gguf.deinterleave(turned, heads), expected)
    assert not np.array_equal(convert_gguf.deinterleave(stored, heads), stored)


def blocks_q4_1(x):
    """Blocks of 32: f16 scale, f16 minimum, 16 bytes with values j (low nibble) and j + 16 (high).

    Returns (bytes per row, the values that they stand for)."""
    b = x.reshape(-1, 32)
    m = b.min(1, keepdims=True).astype(np.float16)
    d = ((b.max(1, keepdims=True) - m) / 15).astype(np.float16)
    q = np.clip(np.round((b - m) / d), 0, 15).astype(np.uint8)
    raw = np.concatenate([d.view(np.uint8), m.view(np.uint8), q[:, :16] | q[:, 16:] << 4], axis=1)
    return raw.reshape(x.shape[0], -1), (q * d.astype(np.float32) + m.astype(np.float32)).reshape(x.shape)


def blocks_q8_0(x):
    """Blocks of 32: f16 scale, 32 signed bytes."""
    b = x.reshape(-1, 32)
    d = (np.abs(b).max(1, keepdims=True) / 127).astype(np.float16)
    q = np.clip(np.round(b / d), -127, 127).astype(np.int8)
    raw = np.concatenate([d.view(np.uint8), q.view(np.uint8)], axis=1)
    return raw.reshape(x.shape[0], -1), (q * d.astype(np.float32)).reshape(x.shape)


# ---- a tiny file, converted whole


def write_gguf(path, change=lambda fields, tensors: None):
    """A GGUF file like the real one in small; returns {Hugging Face name: values it should give}."""
    rng = np.random.default_rng(2)
    tok = json.loads(tiny_tokenizer.build("smollm", VOCAB)[0])
    special = {t["id"] for t in tok["added_tokens"]}
    fields = {
        "llama.block_count": LAYERS,
        "llama.context_length": 512,
        "llama.embedding_length": D,
        "llama.feed_forward_length": F,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.dimension_count": E,
        "llama.rope.freq_base": 100000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": VOCAB,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": list(tok["model"]["vocab"]),
        "tokenizer.ggml.token_type": [3 if i in special else 1 for i in range(VOCAB)],
        "tokenizer.ggml.merges": tok["model"]["merges"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": tiny_tokenizer.CHATS["chatml"],
    }
    tensors, values = {}, {}

    def put(name, hf, x, blocks=None, kind=None):
        raw, stood_for = blocks(x) if blocks else (x, x)
        tensors[name], values[hf + ".weight"] = (raw, kind), stood_for

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    put(
        "token_embd.weight",
        "model.embed_tokens",
        normal(VOCAB, D),
        blocks_q8_0,
        gguf.GGMLQuantizationType.Q8_0,
    )
    put("output_norm.weight", "model.norm", normal(D))
    for i in range(LAYERS):
        for short, long in NAMES.items():
            name, hf = f"blk.{i}.{short}.weight", f"model.layers.{i}.{long}"
            if short in MATRICES:
                put(name, hf, normal(*MATRICES[short]), blocks_q4_1, gguf.GGMLQuantizationType.Q4_1)
            else:
                put(name, hf, normal(D))
    change(fields, tensors)
    writer = gguf.GGUFWriter(path, fields.pop("general.architecture", "llama"))
    for key, value in fields.items():
        add = {
            str: writer.add_string,
            int: writer.add_uint32,
            float: writer.add_float32,
            list: writer.add_array,
        }
        add[type(value)](key, value)
    for name, (raw, kind) in tensors.items():
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def row_in_hf(head, i):
    """The row of Hugging Face's q or k that GGUF keeps at place i of a head: even places are the first
    half."""
    return head * E + i // 2 + (i % 2) * (E // 2)


def test_whole_conversion(tmp_path):
    values = write_gguf(tmp_path / "m.gguf")
    folder = tmp_path / "m"
    folder.mkdir()
    convert_gguf.convert(tmp_path / "m.gguf", folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted((*convert_gguf.MADE, convert_gguf.MARK))
    read = weights.read_folder(folder)
    assert read.keys() == values.keys()
    for name, x in values.items():
        if "q_proj" in name or "k_proj" in name:
            moved = np.empty_like(x)
            for row in range(len(x)):
                moved[row_in_hf(row // E, row % E)] = x[row]
            x = moved
        np.testing.assert_array_equal(
            read[name].view(np.uint32) >> 16, convert_gguf.bf16_bits(x), err_msg=name
        )
    model = Model.load(folder)
    c = model.config
    assert (c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.eps) == (LAYERS, HEADS, KV_HEADS, E, 1e-5)
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] and config["rope_theta"] == 100000.0
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    ours = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    original = tokenizers.Tokenizer.from_str(tiny_tokenizer.build("smollm", VOCAB)[0])
    for text in convert_gguf.ROUND_TRIP + ("x = 1024\t\u00a0é 世界\n\n",):
        assert ours.encode(text).ids == original.encode(text).ids


def drop(name):
    return lambda fields, tensors: (tensors if name in tensors else fields).pop(name)


def setting(key, value):
    return lambda fields, tensors: fields.update({key: value})


def extra(fields, tensors):
    tensors["rope_freqs.weight"] = (np.ones(E // 2, np.float32), None)


def infinite(fields, tensors):
    tensors["output_norm.weight"][0][3] = np.inf


@pytest.mark.parametrize(
    "change,word",
    [
        (setting("general.architecture", "gemma"), "gemma"),
        (drop("blk.1.ffn_up.weight"), "blk.1.ffn_up.weight: missing"),
        (extra, "rope_freqs.weight: unknown"),
        (drop("llama.block_count"), "llama.block_count"),
        (setting("llama.feed_forward_length", F + 1), "gate_proj"),
        (setting("llama.rope.dimension_count", 8), "rope on 8 of 16"),
        (setting("llama.rope.scaling.type", "linear"), "scaling"),
        (setting("tokenizer.ggml.pre", "gpt-2"), "gpt-2"),
        (setting("tokenizer.ggml.token_type", [1] * (VOCAB - 1)), "token_type|tokens"),
        (infinite, "model.norm.weight"),
        (setting("llama.vocab_size", VOCAB + 1), "embed_tokens"),
    ],
)
def test_other_files_are_refused(tmp_path, change, word):
    write_gguf(tmp_path / "m.gguf", change)
    (tmp_path / "m").mkdir()
    with pytest.raises(convert_gguf.Failure, match=word) as caught:
        convert_gguf.convert(tmp_path / "m.gguf", tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m" / convert_gguf.MARK).exists()


def test_damaged_files_are_refused(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    rng = np.random.default_rng(3)
    for cut in (0, 3, 24, 5000, len(whole) - 10, *rng.integers(25, len(whole), 5)):
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        (tmp_path / f"{cut}").mkdir()
        with pytest.raises(convert_gguf.Failure):
            convert_gguf.convert(tmp_path / "cut.gguf", tmp_path / f"{cut}")


# ---- the steps around it


@pytest.fixture
def tiny_source(tmp_path, monkeypatch):
    """A wheel with a tiny GGUF file, known to the script by its SHA-256."""
    write_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr(convert_gguf, "GGUF_SHA256", convert_gguf.sha256(tmp_path / "m.gguf"))
    with zipfile.ZipFile(tmp_path / "m.whl", "w") as z:
        z.write(tmp_path / "m.gguf", convert_gguf.MEMBER)
    return tmp_path / "m.whl"


def left_in(parent):
    return sorted(p.name for p in parent.iterdir() if p.name != ".fetch-model.lock")


def test_fetch_makes_repeats_and_repairs(tmp_path, tiny_source, capsys):
    target = tmp_path / "models" / "M"
    convert_gguf.fetch(target, tiny_source, False)
    made = {p.name: (p.stat().st_ino, p.read_bytes()) for p in target.iterdir()}
    (tmp_path / "models" / ".M.stale").mkdir()  # what a killed run leaves
    capsys.readouterr()
    convert_gguf.fetch(target, None, False)  # would download if it did not see that all is there
    assert "checked" in capsys.readouterr().out
    assert {p.name: (p.stat().st_ino, p.read_bytes()) for p in target.iterdir()} == made
    for damage in (
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        lambda p: p.unlink(),
        lambda p: p.write_bytes(p.read_bytes()[:-1] + b"?"),
    ):
        for name in ("model.safetensors", "config.json"):
            damage(target / name)
            convert_gguf.fetch(target, tiny_source, False)
            assert {p.name: p.read_bytes() for p in target.iterdir()} == {n: b for n, (_, b) in made.items()}
    assert left_in(tmp_path / "models") == ["M"]


def test_fetch_keeps_what_is_not_ours(tmp_path, tiny_source):
    target = tmp_path / "models" / "M"
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    with pytest.raises(convert_gguf.Failure, match="--force"):
        convert_gguf.fetch(target, tiny_source, False)
    assert left_in(target) == ["config.json"]
    convert_gguf.fetch(target, tiny_source, True)
    assert convert_gguf.is_done(target) is None


def test_failure_leaves_the_earlier_folder(tmp_path, tiny_source, monkeypatch):
    target = tmp_path / "models" / "M"
    convert_gguf.fetch(target, tiny_source, False)
    before = {p.name: p.read_bytes() for p in target.iterdir()}

    def fail(path, src, config):
        raise convert_gguf.Failure("the disk is full")

    monkeypatch.setattr(convert_gguf, "write_weights", fail)
    with pytest.raises(convert_gguf.Failure, match="full"):
        convert_gguf.fetch(target, tiny_source, True)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before
    assert left_in(tmp_path / "models") == ["M"]


def run(parent, *arguments, **environment):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "RETRO_MODELS": str(parent), **environment},
    )


@pytest.mark.parametrize(
    "arguments,environment,code",
    [
        (["--source", "none.gguf"], {}, 3),
        (["--source", str(SCRIPT)], {}, 3),  # not the file with the known SHA-256
        ([], {"PIP_NO_INDEX": "1"}, 3),  # nothing can be downloaded
        (["--speed", "9"], {}, 2),
    ],
)
def test_one_line_and_an_exit_code(tmp_path, arguments, environment, code):
    done = run(tmp_path, *arguments, **environment)
    assert done.returncode == code
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("fetch-model: ") and (code == 2 or len(lines) == 1), done.stderr
    assert left_in(tmp_path) == []


def test_an_incomplete_set_up_is_told(tmp_path):
    (tmp_path / "gguf.py").write_text("raise ModuleNotFoundError('No module named gguf')\n")
    done = run(tmp_path / "models", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (2, "fetch-model: No module named gguf: run scripts/setup again\n")


def test_a_full_disk_is_told(tmp_path, tiny_source, monkeypatch, capsys):
    def fail(path, src, config):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert_gguf, "write_weights", fail)
    monkeypatch.setenv("RETRO_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(sys, "argv", ["fetch-model", "--source", str(tiny_source)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert convert_gguf.main() == 3
    assert capsys.readouterr().err == f"fetch-model: {tmp_path}/models: [Errno 28] No space left on device\n"
    assert left_in(tmp_path / "models") == []


def test_a_pip_that_breaks_is_told_by_its_last_line(tmp_path):
    (tmp_path / "pip.py").write_text(
        "import sys\nprint('ERROR: Exception:', file=sys.stderr)\nraise OSError(28, 'No space left on device')\n"
    )
    done = run(tmp_path / "models", PYTHONPATH=str(tmp_path))
    assert done.returncode == 3
    assert "OSError: [Errno 28] No space left on device" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_signal_leaves_nothing_behind(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it waits for ever
    parent = tmp_path / "models"
    maker = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, SCRIPT, "--source", tmp_path / "pipe"],
        env={**os.environ, "RETRO_MODELS": str(parent)},
    )
    deadline = time.monotonic() + 120
    while not (parent.exists() and left_in(parent)):
        assert time.monotonic() < deadline and maker.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)
    maker.send_signal(signal.SIGTERM)
    assert maker.wait(120) == 128 + signal.SIGTERM
    assert left_in(parent) == []


# ---- the real model

REAL = Path(os.environ.get("RETRO_MODELS") or ROOT / "models") / convert_gguf.NAME
ENGLISH = (
    "The capital of France is Paris. The Eiffel Tower is one of the most famous landmarks in the world, "
    "and it was built in 1889."
)


def nll(model, ids):
    """Mean negative log-likelihood of ids[1:], all rows in one pass."""
    decoder, at, x = Decoder(model, Settings(policy="dense"), len(ids)), np.arange(len(ids)), model.embed(ids)
    for i in range(model.config.n_layers):
        q, k, v = model.qkv(i, x, at)
        decoder.layers[i].write(at, k, v)
        x = model.after_attention(i, x, decoder.prefill_attention(i, q, at))
    logits = model.norm(x[:-1], model.final_norm) @ model.head.T
    top = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return (log_sum - logits[np.arange(len(ids) - 1), ids[1:]]).mean()


def test_the_real_model_reads_english():
    assert REAL.exists(), "run scripts/fetch-model first"
    assert convert_gguf.is_done(REAL) is None
    tok = tokenizers.Tokenizer.from_file(str(REAL / "tokenizer.json"))
    ids = tok.encode(ENGLISH).ids
    assert tok.decode(ids) == ENGLISH
    assert tok.encode("<|im_start|>user\nIn 1889").tokens == ["<|im_start|>", "user", "Ċ", "In", "Ġ", *"1889"]
    model = Model.load(REAL)
    right = nll(model, ids)
    assert right < 1.6
    # The check can fail: with q and k left in GGUF's order the same model reads worse.
    for layer in model.layers:
        for name, heads in (("q", 9), ("k", 3)):
            w = getattr(layer, name)
            setattr(layer, name, w.reshape(heads, 2, 32, -1).swapaxes(1, 2).reshape(w.shape))
    assert nll(model, ids) > right + 0.5
