"""scripts/scaling: lines with the machine's facts, goes on where it stopped, says what failed, draws both formats."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "e2e")]

import cli  # noqa: E402
from tools import tiny_model  # noqa: E402

SHAPE = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 301, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shape")
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return folder


def scaling_command(out, shape, *words, policies="dense,retro:2"):
    command = [sys.executable, cli.ROOT / "scripts" / "scaling", out, "--model", shape, "--machine", "h100", "--tokens",
               3, "--contexts", 100, "--batches", 1, "--ranks", 1, "--policies", policies, *words]
    return [str(x) for x in command]


def scaling(*args, **options):
    return subprocess.run(scaling_command(*args, **options), capture_output=True, text=True, timeout=600)


def results(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_sweep_resume_and_plots(shape, tmp_path):
    out = tmp_path / "out"
    assert scaling(out, shape).returncode == 0
    first = results(out)
    assert [(x["policy"], x["ranks"], x["batch"]) for x in first] == [("dense", 1, 1), ("retro", 1, 1)]
    for x in first:
        assert x["tokens_per_s"] > 0 and x["plan_tokens_per_s"] > 0 and x["facts"]["cores"] >= 1 and x["facts"]["host"]
        assert sum(x["ops_share"].values()) == pytest.approx(1) and x["ops_share"]["linear"] > 0
    for name in ("ranks-strong", "breakdown", "exposure"):
        assert (out / f"{name}.png").stat().st_size > 1000 and "<svg" in (out / f"{name}.svg").read_text()
    again = scaling(out, shape)
    assert again.returncode == 0 and "tokens/s" not in again.stdout and results(out) == first
    text = (out / "results.jsonl").read_text()
    (out / "results.jsonl").write_text(text[:-40])  # interrupted while it wrote
    assert scaling(out, shape).returncode == 0
    assert results(out)[0] == first[0] and len(results(out)) == 2


def test_lines_that_are_no_results(shape, tmp_path):
    out = tmp_path / "out"
    assert scaling(out, shape, policies="dense").returncode == 0
    first = (out / "results.jsonl").read_text()
    (out / "results.jsonl").write_text('{"mode": "strong"}\n17\n{"cut\n\n' + first + first[:50])
    done = scaling(out, shape, policies="dense")
    assert done.returncode == 0 and "1 results" in done.stdout and done.stderr.count("no whole result is left out") >= 4
    (tmp_path / "file").touch()
    done = scaling(tmp_path / "file", shape)
    assert done.returncode == 2 and done.stderr.startswith("scaling: ") and "file" in done.stderr


def test_what_else_is_measured_is_not_there_yet(tmp_path):
    """The weights of the folder instead of random ones: another run, and another machine."""
    folder = tiny_model.make(tmp_path / "tiny", family="llama3")
    words = ("--threads", 1, "--machine", "calibrated")
    for n, more in ((1, ()), (2, ("--weights",))):
        done = scaling(tmp_path / "out", folder, *words, *more, policies="dense")
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(results(tmp_path / "out")) == len(list((tmp_path / "out").glob("machine-1-*.jsonl"))) == n


def test_a_run_that_fails_is_told_and_tried_again(shape, tmp_path):
    done = scaling(tmp_path / "out", shape, policies="dense,retro:99")
    assert done.returncode == 1 and "FAILED" in done.stdout
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert [x["window"] for x in failed] == [99] and "--window 99" in failed[0]["why"]
    assert len(results(tmp_path / "out")) == 1


def test_a_lost_rank_and_an_interruption_say_run_again(shape, tmp_path):
    done = scaling(tmp_path / "lost", shape, "--launcher", "sh -c 'exit 5' --", "--ranks", "1,2", policies="dense")
    assert done.returncode == 75 and len(results(tmp_path / "lost")) == 1
    assert json.loads((tmp_path / "lost" / "failed.jsonl").read_text().splitlines()[0])["lost"] is True
    begun = tmp_path / "begun"
    command = scaling_command(tmp_path / "out", shape, "--launcher", f"sh -c 'touch {begun}; exec sleep 600' --", "--ranks", "2")
    sweep = subprocess.Popen([*cli.DIES_WITH_US, *command], stderr=subprocess.PIPE, text=True)
    while not begun.exists():
        assert sweep.poll() is None
        time.sleep(0.05)
    sweep.terminate()
    assert sweep.wait(120) == 75 and "run it again" in sweep.stderr.read()
