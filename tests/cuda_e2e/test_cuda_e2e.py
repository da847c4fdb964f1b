"""--device cuda beside --device cpu on tiny random models of all families: same pages, same tokens.

Both round alike here (activations, K and V in f32), so page lists and greedy tokens must be equal; a near tie would be
a difference that the test shows with its place. On the emulator a run repeats to the bit, so a pass stays one."""

import json
import os
import re
import subprocess

import numpy as np
import pytest

import cli
import service
from conftest import REAL_GPU

TOOL = cli.RETRO.parent / "tests" / "steps_tool"
F32 = dict(dtype="f32", vocab=320)
SHAPES = {
    "llama2-mha": dict(family="llama2", hidden=40, heads=5, kv_heads=5, head_dim=8, layers=3, ffn=52, **F32),
    "llama3-gqa": dict(family="llama3", hidden=64, heads=6, kv_heads=2, head_dim=16, layers=3, ffn=97, **F32),
    "smollm-tied": dict(family="smollm", hidden=48, heads=3, kv_heads=3, layers=3, **F32),
    "mistral-slide": dict(family="mistral", hidden=48, heads=4, kv_heads=1, head_dim=12, layers=3, sliding_window=30, **F32),
    "qwen2-bias": dict(family="qwen2", hidden=56, heads=7, kv_heads=1, head_dim=8, layers=3, **F32),
    "qwen3-norm": dict(family="qwen3", hidden=40, heads=4, kv_heads=2, head_dim=24, layers=3, **F32),
}
WORDS = dict(page_size=4, block_size=16, kv_budget=0.25, dense_layers=1, summary="keys", kv_dtype="f32", act_dtype="f32", threads=1)

POLICIES = ({"policy": "dense"}, {"policy": "quest"}, {"policy": "retro", "window": 4})


def tool(model, ranks=1, env=None, **options):
    launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
    words = [f"{k}={v}" for k, v in options.items()]
    done = subprocess.run([*launcher, str(TOOL), str(model), *words], capture_output=True, timeout=300,
                          env={**os.environ, **cli.MPI_ENV, **(env or {})})
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return json.loads(done.stdout.decode().strip().splitlines()[-1])


def same(a, b):
    """The runs read the same pages and chose the same tokens; else the first difference."""
    for i, (x, y) in enumerate(zip(a["sequences"], b["sequences"], strict=True)):
        for step, (p, q) in enumerate(zip(x["read"], y["read"], strict=True)):
            assert p == q, f"sequence {i}: decode step {step} reads other pages"
        assert x["tokens"] == y["tokens"], f"sequence {i}"
        assert x["counters"] == y["counters"], f"sequence {i}"


WIDE = dict(family="llama3", hidden=128, heads=4, kv_heads=2, head_dim=64, layers=2, vocab=320)  # tensor cores
MIXED = dict(seqs=5, policies="drqr", prompt=40, tokens=14, chunk=16, window=3)


@pytest.mark.parametrize("shape", SHAPES)
def test_several_sequences_and_policies(tiny, shape):
    """Five sequences, dense, quest and retro mixed, prompt chunks between decode steps."""
    folder = tiny(**SHAPES[shape], tokenizer=False)
    cpu = tool(folder, **MIXED)
    same(cpu, tool(folder, device="cuda", **MIXED))
    same(cpu, tool(folder, device="cuda", graphs=0, **MIXED))


def test_another_run_is_noticed(tiny):
    folder = tiny(**SHAPES["llama3-gqa"], tokenizer=False)
    cpu = tool(folder, **MIXED)
    with pytest.raises(AssertionError, match="reads other pages"):
        same(cpu, tool(folder, **dict(MIXED, budget=0.3)))
    with pytest.raises(AssertionError, match="sequence 0"):
        same(cpu, tool(folder, **dict(MIXED, seed=1, policies="d")))


def test_a_long_sequence_outgrows_its_graph(tiny):
    """Launches are made for 256 tokens, then for 384: pages behind the first limit must be scored and read."""
    folder = tiny(**SHAPES["llama3-gqa"], tokenizer=False)
    words = dict(seqs=2, policies="rd", prompt=246, tokens=20, chunk=64, window=2)
    cuda = tool(folder, device="cuda", **words)
    same(tool(folder, **words), cuda)
    assert cuda["replays"] > 5


def test_16_bits_with_and_without_graphs(tiny):
    """Tensor-core attention and bf16 GEMMs: padding rows and replaying change no token."""
    folder = tiny(**WIDE, tokenizer=False)
    words = dict(MIXED, kv="bf16", act="bf16", page=16, block=32, seqs=3, device="cuda")
    same(tool(folder, **words), tool(folder, graphs=0, **words))


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("shape", ["llama3-gqa", "qwen2-bias", "llama2-mha"])
def test_ranks(tiny, shape, ranks):
    """Uneven shards and replicated kv heads; the sums of two ranks have one order, those of three are close."""
    folder = tiny(**SHAPES[shape], tokenizer=False)
    cpu = tool(folder, ranks=ranks, **MIXED)
    cuda = tool(folder, ranks=ranks, device="cuda", **MIXED)
    same(cpu, cuda)
    assert "NCCL" in cuda["description"]
    one = tool(folder, device="cuda", **MIXED)
    assert [s["tokens"] for s in one["sequences"]] == [s["tokens"] for s in cuda["sequences"]]


def test_a_decode_step_is_one_launch(tiny):
    """What the CUDA runtime is asked for in a replayed step: one graph, one wait for its result, nothing else."""
    folder = tiny(**SHAPES["llama3-gqa"], tokenizer=False)
    for extra in (dict(), dict(top_k=20)):
        many = dict(MIXED, tokens=40, seqs=3, **extra)
        on = tool(folder, device="cuda", **many)
        off = tool(folder, device="cuda", graphs=0, **many)
        same(on, off)
        assert on["replays"] >= on["decode_steps"] // 2, on
        assert (on["graphs"], on["syncs"]) == (1, 1), on
        assert (on["launches"], on["copies"], on["allocs"], on["captures"]) == (0, 0, 0, 0), on
        assert off["replays"] == 0 and off["launches"] > 20 and off["allocs"] == 0, off
    two = tool(folder, ranks=2, device="cuda", **dict(MIXED, tokens=40, seqs=3))
    assert (two["graphs"], two["launches"], two["copies"], two["allocs"]) == (1, 0, 0, 0), two


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.skipif(REAL_GPU, reason="switches of the emulator")
def test_no_wait_is_missing(tiny, seed):
    """Work deferred and reordered by seed, shared-memory races looked for: the same pages and tokens."""
    folder = tiny(**SHAPES["llama3-gqa"], tokenizer=False)
    words = dict(MIXED, seqs=3)
    cpu = tool(folder, **words)
    for graphs in (0, 1):
        same(cpu, tool(folder, device="cuda", graphs=graphs, env={"EMU_SEED": str(seed), "EMU_RACE": "1"}, **words))


def test_candidates_are_those_of_all_logits(tiny):
    """generate draws the same text from 64 candidates as from all logits (a penalty so small that it changes nothing
    but the path), on both devices and over ranks."""
    folder = tiny(**SHAPES["llama3-gqa"])
    words = ["--prompt", "one two three", "--max-tokens", "12", "--temperature", "0.9", "--top-k", "30", "--top-p", "0.9",
             "--ignore-eos", "--watchdog", "300", *cli.flags(WORDS)]  # an emulated GPU takes its time
    all_logits = ["--repetition-penalty", "1.0000000001"]

    def text(*more, ranks=1):
        return cli.run_ok("generate", "--model", folder, *words, *more, ranks=ranks).stdout

    expected = text(*all_logits)
    assert text() == expected
    assert text("--device", "cuda") == expected
    assert text("--device", "cuda", "--cuda-graphs", "off", *all_logits) == expected
    assert text("--device", "cuda", ranks=2) == text(ranks=2) == expected


def test_all_reduce_in_bf16(tiny):
    """Half the bytes, rounded: close logits, and a plain refusal of nothing."""
    folder = tiny(**SHAPES["llama3-gqa"], tokenizer=False)
    words = dict(MIXED, seqs=2, tokens=6)
    f32 = tool(folder, ranks=2, device="cuda", **words)
    bf16 = tool(folder, ranks=2, device="cuda", all_reduce="bf16", **words)
    cpu = tool(folder, ranks=2, all_reduce="bf16", **words)
    same(cpu, bf16)
    assert [len(s["tokens"]) for s in bf16["sequences"]] == [len(s["tokens"]) for s in f32["sequences"]]


@pytest.mark.parametrize("ranks", [1, 3])
def test_generate(tiny, ranks):
    folder = tiny(**SHAPES["qwen3-norm"])
    words = ["generate", "--model", folder, "--prompt", "a b c d e f g h i j k l m n o p", "--max-tokens", "10",
             "--ignore-eos", *cli.flags(WORDS)]
    for policy in (["--policy", "dense"], ["--policy", "quest"], ["--policy", "retro", "--window", "3"]):
        cpu = cli.run_ok(*words, *policy, ranks=ranks)
        cuda = cli.run_ok(*words, *policy, "--device", "cuda", ranks=ranks)
        assert cpu.stdout == cuda.stdout
        assert (ranks == 1) or b"NCCL" in cuda.stderr


@pytest.mark.parametrize("ranks, room", [(1, "2048"), (2, "2048"), (1, "128")])
def test_batch(tiny, tmp_path, ranks, room):
    """Six requests at once, greedy and sampled, all policies: the results are those of the CPU byte for byte. With room
    for 128 tokens most of them wait for others to end."""
    folder, given = tiny(**SHAPES["llama3-gqa"]), tmp_path / "in.jsonl"
    with open(given, "w", encoding="utf-8") as f:
        for i in range(6):
            body = {"model": "m", "prompt": list(range(3 + i, 30 + 4 * i)), "max_tokens": 8 + i, "seed": i,
                    "temperature": 0 if i % 2 else 0.8, "top_k": 20,
                    "attention": {"policy": ["dense", "quest", "retro"][i % 3]}}
            line = {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body}
            f.write(json.dumps(line) + "\n")

    def results(device, ranks):
        out = tmp_path / f"{device}.jsonl"
        cli.run_ok("batch", "--model", folder, "--served-model-name", "m", "--input", given, "--output", out,
                   "--errors", tmp_path / f"{device}.errors", "--max-context", 96, "--kv-tokens", room, "--device", device,
                   *cli.flags(WORDS), ranks=ranks)
        return out.read_text()

    expected = results("cpu", 1)
    assert expected.count('"status_code": 200') == 6
    assert results("cuda", ranks) == expected


@pytest.mark.parametrize("ranks, swap", [(1, 1 << 22), (2, 1 << 22), (1, 0)], ids=["swapped", "swapped-2", "dropped"])
def test_interrupted_sequences_resume_to_the_same_tokens(tiny, ranks, swap):
    """Five slots share seven blocks: sequences of every policy go to host memory mid-window and mid-prompt (or are
    computed again) and come back to what they give undisturbed on the CPU."""
    folder = tiny(**SHAPES["llama3-gqa"], tokenizer=False)
    random = np.random.default_rng(3)
    requests = [{"prompt": random.integers(0, 320, n).tolist(), "seed": i, "max_tokens": 60 - n // 2,
                 "ignore_eos": True, **({"temperature": 0.8, "top_k": 40} if i % 3 == 2 else {}), **policy}
                for i, (n, policy) in enumerate(zip((50, 9, 33, 71, 20, 41), 2 * POLICIES))]
    options = cli.flags(dict(WORDS, window=4, prefill_chunk=32))
    roomy, stats = service.run(folder, requests, slots=5, context=96, options=options)
    assert stats["preemptions"] == 0
    tight, stats = service.run(folder, requests, ranks=ranks, slots=5, context=96, blocks=7, growth=1, swap=swap,
                               options=[*options, "--device", "cuda"])
    assert stats["preemptions"] > 2 and sum(r["usage"]["preempted"] for r in tight) == stats["preemptions"]
    for a, b in zip(roomy, tight):
        assert a["choices"] == b["choices"]
        for field in ("pages_loaded", "pages_met"):
            assert a["usage"][field] == b["usage"][field]


def test_eval(tiny, tmp_path):
    folder = tiny(**SHAPES["llama3-gqa"], tokenizer=False)
    ids = cli.write_ids(tmp_path / "ids", np.random.default_rng(5).integers(0, 320, 80))
    got = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / (device + ".npy")
        got[device] = cli.evaluate(folder, ids, 50, 20, dump=out, device=device, policy="retro", window=2, **WORDS)
        got[device]["logits"] = np.load(out)
    a, b = got["cpu"], got["cuda"]
    assert a["pages_loaded"] == b["pages_loaded"] and a["exposure"] == b["exposure"]
    assert a["nll"] == pytest.approx(b["nll"], abs=1e-5)
    assert np.abs(a["logits"] - b["logits"]).max() < 1e-3


def test_check_compares_every_op(tiny):
    folder = tiny(**SHAPES["llama3-gqa"], tokenizer=False)
    words = {k: v for k, v in WORDS.items() if k != "threads"}
    done = cli.run("check", "--model", folder, "--device", "cuda", "--prompt", 40, "--steps", 3, *cli.flags(words))
    text = done.stdout.decode()
    assert done.returncode == 0, text + done.stderr.decode()
    assert "equal within rounding" in text and int(re.search(r"(\d+) op calls", text)[1]) > 100
    wide = tiny(**WIDE, tokenizer=False)
    done = cli.run("check", "--model", wide, "--device", "cuda", "--prompt", 90, "--steps", 3, "--kv-dtype", "bf16")
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_trace_has_every_op(tiny, tmp_path):
    folder = tiny(**SHAPES["llama3-gqa"])
    file = tmp_path / "trace.json"
    cli.run_ok("generate", "--model", folder, "--prompt", "one two three four", "--max-tokens", "4", "--ignore-eos",
               "--device", "cuda", "--trace", file, *cli.flags(WORDS))
    events = json.loads(file.read_text())
    names = {e["name"] for e in events}
    assert {"embed", "rope_table", "add_norm", "linear", "rope_store", "select", "attend", "merge", "attend_prompt",
            "silu_mul", "gather", "argmax", "upload", "download", "all_reduce"} <= names
    assert all(e["ph"] == "X" and e["dur"] >= 0 for e in events)
    layers = sum(e["name"] == "attend" for e in events)
    assert layers == 3 * 3  # three decode steps of three layers, op by op


def test_two_ranks_on_one_gpu_are_refused(tiny):
    if REAL_GPU:
        pytest.skip("needs to say how many GPUs there are")
    folder = tiny(**SHAPES["llama3-gqa"])
    os.environ["EMU_DEVICES"] = "1"
    try:
        done = cli.run("generate", "--model", folder, "--prompt", "x", "--device", "cuda", ranks=2)
    finally:
        del os.environ["EMU_DEVICES"]
    cli.one_line(done, 2, "ranks 0 and 1 have the same GPU: GPU-")


@pytest.mark.skipif(REAL_GPU, reason="a GPU is here")
def test_no_gpu_is_one_line(tiny):
    folder = tiny(**SHAPES["llama3-gqa"])
    words = ["generate", "--model", folder, "--prompt", "x", "--device", "cuda"]
    os.environ["EMU_DEVICES"] = "0"
    path = os.environ["LD_LIBRARY_PATH"]
    try:
        for ranks in (1, 2):
            cli.one_line(cli.run(*words, ranks=ranks), 2, "--device cuda: .*use --device cpu")
        del os.environ["EMU_DEVICES"]
        del os.environ["LD_LIBRARY_PATH"]  # CUDA's own libraries, on a machine without a GPU or a driver
        cli.one_line(cli.run(*words), 2, "--device cuda: .*use --device cpu")
        assert cli.run("generate", "--model", folder, "--prompt", "x", "--max-tokens", "2").returncode == 0
    finally:
        os.environ["LD_LIBRARY_PATH"] = path
        os.environ.pop("EMU_DEVICES", None)


def test_the_real_model(tiny):
    """A few words of SmolLM2-135M in bf16: minutes on the emulator become seconds with a short prompt."""
    if not (cli.REAL_MODEL / "config.json").exists():
        pytest.skip("run scripts/fetch-model")
    done = cli.run_ok("generate", "--model", cli.REAL_MODEL, "--prompt", "The capital of France is", "--max-tokens", "3",
                      "--device", "cuda", timeout=300)
    assert "Paris" in done.stdout.decode()
