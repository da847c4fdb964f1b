"""scripts/compare-llama and its other side, without llama.cpp: the GGUF that is written, the state of a sequence made
longer, cells that resume, the table."""

import importlib.machinery
import importlib.util
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

import convert_gguf  # noqa: E402
import llama_side  # noqa: E402
from tools import tiny_model  # noqa: E402

loader = importlib.machinery.SourceFileLoader("compare_llama", str(ROOT / "scripts" / "compare-llama"))
compare = importlib.util.module_from_spec(importlib.util.spec_from_loader("compare_llama", loader))
loader.exec_module(compare)


def test_gguf_holds_the_folders_bits(tmp_path):
    import gguf

    folder = tmp_path / "tiny"
    tiny_model.make(folder, family="smollm", hidden=48, heads=6, kv_heads=3, head_dim=8, layers=2, ffn=64, vocab=320,
                    dtype="bf16", tokenizer=False)
    llama_side.write_gguf(folder, tmp_path / "out.gguf", False)
    ours, theirs = llama_side.safetensors(folder), gguf.GGUFReader(tmp_path / "out.gguf")
    found = {t.name: t for t in theirs.tensors}
    assert len(found) == len(ours) and "output.weight" not in found
    for name, source, heads in (("token_embd", "model.embed_tokens", 0),
                                ("blk.1.ffn_down", "model.layers.1.mlp.down_proj", 0),
                                ("blk.1.attn_q", "model.layers.1.self_attn.q_proj", 6),
                                ("blk.0.attn_k", "model.layers.0.self_attn.k_proj", 3)):
        t, w = found[name + ".weight"], ours[source + ".weight"]
        assert t.tensor_type == gguf.GGMLQuantizationType.BF16 and list(t.shape) == list(w.shape)[::-1]
        got = np.asarray(t.data).view(np.uint16).reshape(w.shape)
        if heads:  # rows 0 and 1 of a head are what rope pairs: 0 and half a head
            assert (got[1] == w[w.shape[0] // heads // 2]).all()
            got = convert_gguf.deinterleave(got, heads)
        assert (got == w).all(), name
    norm = np.asarray(found["output_norm.weight"].data)
    assert norm.dtype == np.float32 and (norm.view(np.uint32) >> 16 == ours["model.norm.weight"]).all()


def test_gguf_refuses_another_family(tmp_path):
    tiny_model.make(tmp_path / "m", family="mistral", hidden=48, heads=6, kv_heads=3, head_dim=8, layers=1, ffn=64,
                    vocab=320, dtype="bf16", tokenizer=False)
    with pytest.raises(SystemExit) as e:
        llama_side.write_gguf(tmp_path / "m", tmp_path / "out.gguf", False)
    assert e.value.code == 2


def state(n, streams, transposed, layers=2, row=6):
    """A sequence of n cells as llama.cpp writes it; the byte of a key or value is its cell."""
    out = b"head" + struct.pack("<II", streams, n)
    out += b"".join(struct.pack("<iIi", i, 1, 0) for i in range(n)) + struct.pack("<II", transposed, layers)
    cells = bytes(i % 64 for i in range(n))
    by_row = b"".join(bytes([c]) * row for c in cells)
    keys = (struct.pack("<iQ", 1, row) + by_row) * layers
    if transposed:
        by_two = b"".join(bytes([c]) * 2 for c in cells)
        values = (struct.pack("<iII", 1, 2, row // 2) + by_two * (row // 2)) * layers
    else:
        values = keys
    return out + keys + values + bytes(4 * (streams - 1))


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("streams", [1, 3])
def test_longer_state(streams, transposed):
    short = state(llama_side.CELLS, streams, transposed)
    for n in (65, 64, 1000):
        assert llama_side.repeat_cells(short, n, streams) == state(n, streams, transposed)


@pytest.mark.parametrize("damage", [lambda s: s + b"x", lambda s: s.replace(struct.pack("<I", 64), b"\xff" * 4, 1),
                                    lambda s: s[:40] + b"\x09" + s[41:]])
def test_state_of_another_layout_is_refused(damage):
    with pytest.raises(SystemExit) as e:
        llama_side.repeat_cells(damage(state(llama_side.CELLS, 1, 0)), 100, 1)
    assert e.value.code == 2


@pytest.fixture
def sides(monkeypatch, tmp_path):
    """Both sides by numbers: what was asked of them is kept."""
    asked = []

    def call(command):
        asked.append([str(c) for c in command])
        n = len(asked)
        if str(compare.RETRO) == asked[-1][0]:
            return {"tokens_per_s": 30.0 + n}
        return {"tokens_per_s": 10.0 + n, "flash": asked[-1][asked[-1].index("--flash") + 1], "llama_cpp_python": "0"}

    monkeypatch.setattr(compare, "call", call)
    monkeypatch.setattr(compare, "need", lambda: None)
    monkeypatch.setattr(compare, "facts", lambda: {"machine": "m", "commit": "c"})

    def main(*words):
        more = ["--results", str(tmp_path / "r.jsonl"), "--threads", "3"]
        monkeypatch.setattr(sys, "argv", ["compare-llama", *words, *more])
        compare.main()
        return asked

    main.results = tmp_path / "r.jsonl"
    return main


def test_cells_are_measured_in_turn_and_once(sides, capsys):
    asked = sides("run", "1b-decode-8192-retro", "--rounds", "2")
    assert [a[0] == str(compare.RETRO) for a in asked] == [False, True, False, True]
    assert "--random-weights" in asked[1] and asked[1][asked[1].index("--policy") + 1] == "retro"
    assert all(a[a.index("--threads") + 1] == "3" for a in asked)
    line, = map(json.loads, sides.results.read_text().splitlines())
    assert (line["retro_tokens_per_s"], line["llama_tokens_per_s"], line["llama_flash"]) == (34, 13, "off")
    assert line["ratio"] == 34 / 13 and line["retro_all"] == [32, 34] and line["llama_all"] == [11, 13]
    assert len(sides("run", "1b-decode-8192-retro")) == 4  # done: nothing more is asked
    assert len(sides("run", "135m-prefill-512", "--rounds", "1")) == 6
    with open(sides.results, "a") as f:  # another commit's: run would measure it again
        f.write(json.dumps({**line, "cell": "1b-decode-0", "commit": "b"}) + "\n")
    capsys.readouterr()
    sides("cells")
    assert {x for x in capsys.readouterr().out.splitlines() if "*" in x} == {"1b-decode-8192-retro *", "135m-prefill-512 *"}
    sides.results.write_text("".join(sides.results.read_text().splitlines(keepends=True)[:2]))
    sides("table")
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| 1")]
    assert [r[0] for r in rows] == ["| 1b-decode-8192", "| 135m-prefill-512"]
    assert rows[0][1:5] == ["0.15 of the pages, w = 2", "34.00", "13.00", "2.62"]


def test_refusals(sides, capsys):
    for words, said in ((("run", "1b-decode-7"), "1b-decode-7"), (("table",), "holds no results"),
                        (("cells", "1b-decode-0"), "only run"), (("run", "--rounds", "0"), "--rounds")):
        with pytest.raises(SystemExit) as e:
            sides(*words)
        assert e.value.code == 2 and said in capsys.readouterr().err
