"""`retro bench` as a script calls it: fields, floors, ranks, folders with only config.json, refusals."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import cli  # noqa: E402

SHAPES = cli.ROOT / "configs" / "shapes"
TINY = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 301, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


def bench(*words, **options):
    done = cli.run_ok("bench", *words, "--json", **options)
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def decode(folder, *words, **options):
    return bench("decode", "--model", folder, "--random-weights", "--tokens", 3, *words, **options)


def weights_and_logits(config, batch):
    """Bytes of a step that attention does not read, by hand; bf16 weights."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = d // config["num_attention_heads"]
    heads, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer = d * (heads + 2 * kv) + heads * d + 3 * d * f
    return 2 * (config["num_hidden_layers"] * layer + v * d) + 4 * batch * v


def test_decode_cells_and_fields(tiny):
    cells = decode(tiny, "--contexts", "0,100,400", "--batches", "1,3", "--policy", "dense")
    assert [(c["context"], c["batch"]) for c in cells] == [(c, b) for c in (0, 100, 400) for b in (1, 3)]
    for c in cells:
        assert c["tokens_per_s"] > 0 and c["step_ms"] > 0 and c["floor_ms"] > 0 and c["threads"] >= 1
        assert (c["policy"], c["window"], c["ranks"], c["exposure"], c["kv_read_share"]) == ("dense", 1, 1, 1, 1)
        assert c["tokens_per_s"] == pytest.approx(c["batch"] * 1e3 / c["step_ms"], rel=1e-4)
        assert c["floor_ms"] == pytest.approx(c["bytes"] / c["read_gb_s"] * 1e-6, rel=1e-3)
        newest = max(c["context"], 1) + 8 + 1  # of the middle step
        kv = c["batch"] * (newest + 1) * 3 * 2 * 48 * 2  # layers, keys and values, 3 heads of 16, two bytes
        assert c["bytes"] == pytest.approx(weights_and_logits(TINY, c["batch"]) + kv, rel=1e-6)


def test_decode_reads_less_when_sparse(tiny):
    dense, quest, retro = (
        decode(tiny, "--contexts", 2000, "--policy", p, "--dense-layers", 0, "--kv-budget", 0.2)[0]
        for p in ("dense", "quest", "retro")
    )
    assert quest["bytes"] == retro["bytes"] < dense["bytes"]
    assert (quest["window"], retro["window"]) == (1, 2)
    assert quest["exposure"] == 1 < retro["exposure"] < 2
    fixed = weights_and_logits(TINY, 1)
    share = (retro["bytes"] - fixed) / (dense["bytes"] - fixed)
    assert share == pytest.approx(retro["kv_read_share"], rel=0.02)


@pytest.mark.parametrize("ranks", [2, 5])
def test_ranks(tiny, ranks):
    """Five ranks share three kv heads: replicas read their own copies."""
    words = ("--contexts", 300, "--batches", 2, "--threads", 1, "--policy", "dense")
    one, many = decode(tiny, *words)[0], decode(tiny, *words, ranks=ranks)[0]
    assert (many["ranks"], many["threads"]) == (ranks, 1)
    assert many["bytes"] == pytest.approx(one["bytes"], rel=1e-6) if ranks == 2 else many["bytes"] > one["bytes"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_kernels(tiny, ranks):
    lines = bench("kernels", "--model", tiny, "--random-weights", "--contexts", 500, "--rows", "1,7", "--repeat", 2,
                  "--kv-budget-tokens", 60, ranks=ranks)
    assert lines[0]["test"] == "read" and lines[0]["gb_s"] > 0
    gemms = [x for x in lines if x["test"] == "gemm"]
    assert {(x["matrix"], x["rows"]) for x in gemms} == {
        (m, r) for m in ("qkv", "o", "gate_up", "down", "head", "all") for r in (1, 7)
    }
    assert gemms[5]["bytes"] == pytest.approx(weights_and_logits(TINY, 0))
    attention = [x for x in lines if x["test"] == "attention"]
    assert [(x["policy"], x["kv_budget_tokens"]) for x in attention] == [("dense", 60), ("retro", 60)]
    for x in lines:
        assert x["ratio"] == pytest.approx(x["gb_s"] / x["read_gb_s"], rel=1e-4)


def test_kernels_of_a_model_that_takes_no_time(tmp_path):
    """Its ops end within the microsecond that the clock tells apart; reading it once does, too."""
    (tmp_path / "config.json").write_text(json.dumps({
        **TINY, "hidden_size": 4, "intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "vocab_size": 1,
    }))
    words = ("kernels", "--model", tmp_path, "--random-weights", "--contexts", 4, "--rows", "1,2", "--repeat", 6,
             "--threads", 1)
    lines = bench(*words)
    assert len(lines) == 15 and lines[0]["ratio"] == pytest.approx(1, abs=1e-5)
    for x in lines:
        assert x["ms"] > 0 and 0 < x["gb_s"] < 1e5 and 0 < x["read_gb_s"] < 1e5
    text = cli.run_ok("bench", *words).stdout.decode()
    assert "| qkv, 1 row  " in text and "| qkv, 2 rows " in text


def test_prefill(tiny):
    lines = bench("prefill", "--model", tiny, "--random-weights", "--lengths", "1,65", "--repeat", 2, ranks=2)
    assert [x["length"] for x in lines] == [1, 65]
    for x in lines:
        assert x["floor_ms"] > 0 and x["tokens_per_s"] == pytest.approx(x["length"] * 1e3 / x["ms"], rel=1e-3)


@pytest.mark.parametrize("ranks", [1, 3])
def test_allreduce(ranks):
    lines = bench("allreduce", "--sizes", "4,8192,65536", ranks=ranks)
    assert [x["bytes"] for x in lines] == [4, 8192, 65536]
    assert all(x["right"] and x["ranks"] == ranks for x in lines)


def test_a_model_with_weights(real_model):
    cell = bench("decode", "--model", real_model, "--contexts", 64, "--tokens", 2)[0]
    assert cell["bytes"] > weights_and_logits(json.loads((real_model / "config.json").read_text()), 1)


@pytest.fixture(scope="session")
def real_model():
    assert (cli.REAL_MODEL / "config.json").exists(), "run scripts/fetch-model"
    return cli.REAL_MODEL


def test_the_table(tiny):
    words = ("bench", "decode", "--model", tiny, "--random-weights", "--contexts", 40, "--tokens", 2)
    rows = [x for x in cli.run_ok(*words).stdout.decode().splitlines() if x.startswith("|")]
    assert len(rows) == 3 and len({row.count("|") for row in rows}) == 1 and "floor" in rows[0]
    words += ("--policy", "streaming", "--kv-budget-tokens", 16)
    rows = [x for x in cli.run_ok(*words).stdout.decode().splitlines() if x.startswith("|")]
    assert len({len(row) for row in rows}) == 1 and rows[2].split("|")[5].strip() == "16"


def test_built_in_shape_is_the_folder():
    """Without --model: configs/shapes/1b. Seen by the line about what does not fit, up to what is free."""
    words = ("bench", "decode", "--contexts", 16000000, "--batches", 64)
    lines = [
        cli.one_line(cli.run(*words, *more), 4, "GiB on a rank").split(" GiB free")[0].rsplit(", ", 1)[0]
        for more in ((), ("--model", SHAPES / "1b", "--random-weights"))
    ]
    assert lines[0] == lines[1] and "weights 1.94" in lines[0]


def test_what_does_not_fit_names_options_that_help(tiny):
    for command in ("decode", "kernels"):
        words = ("bench", command, "--contexts", 16000000, "--batches", 4096, "--model", tiny, "--random-weights")
        cli.one_line(cli.run(*words), 4, "(take [0-9]+ tokens off|lower) --contexts or --batches, or start more ranks")
    # No context is short enough for weights of 141 GB.
    words = ("bench", "prefill", "--model", SHAPES / "llama-3.1-70b", "--random-weights", "--lengths", 8)
    cli.one_line(cli.run(*words), 4, "GiB free: start more ranks")


@pytest.mark.parametrize(
    "words, pattern",
    [
        (["decode", "--contexts", "1,,2"], "--contexts 1,,2.*commas"),
        (["decode", "--contexts", "-1"], "--contexts -1"),
        (["decode", "--batches", "0"], "--batches 0"),
        (["decode", "--lengths", "5"], "--lengths.*not an option of this command"),
        (["prefill", "--policy", "dense"], "--policy.*not an option of this command"),
        (["allreduce", "--sizes", "6"], "--sizes: 6"),
        (["allreduce", "--tp", "2"], "--tp 2: 1 rank was started; start with mpirun -n 2"),
        (["decode", "--tp", "2"], "--tp 2"),
        (["speed"], "decode, prefill, kernels, allreduce"),
    ],
)
def test_refusals(tiny, words, pattern):
    more = [] if words[0] == "allreduce" or words == ["speed"] else ["--model", tiny, "--random-weights"]
    cli.one_line(cli.run("bench", *words, *more), 2, pattern)


def test_without_weights_and_without_the_flag(tiny):
    cli.one_line(cli.run("bench", "decode", "--model", tiny), 3, "safetensors")
