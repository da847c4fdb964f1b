"""`retro plan` as a user and a script meet it; the model itself is tested in tests/runtime/test_plan.c."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import cli  # noqa: E402

SHAPES = cli.ROOT / "configs" / "shapes"
L70 = SHAPES / "llama-3.1-70b"


def plan(*words, model=L70):
    done = cli.run_ok("plan", "--model", model, *words, "--json")
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def test_70b_on_8_h100_with_16_sequences_of_32k():
    """What fits, tokens/s dense, quest and retro, and where the time goes."""
    dense, quest, retro = plan("--tp", 8, "--machine", "h100", "--contexts", 32768, "--batches", 16)
    assert [x["policy"] for x in (dense, quest, retro)] == ["dense", "quest", "retro"]
    assert dense["fits"] and dense["largest_context"] > 32768 and dense["largest_batch"] > 16
    assert dense["weights_bytes"] == pytest.approx(141.1e9 / 8, rel=0.01)
    assert dense["kv_bytes"] == pytest.approx(16 * 32768 * 327680 * (1 + 1 / 16) / 8, rel=0.01)
    assert 1.2 < retro["tokens_per_s"] / dense["tokens_per_s"] < 1.9
    assert quest["step_us"] < retro["step_us"] < dense["step_us"]
    for x in (dense, quest, retro):
        assert sum(x["parts_us"].values()) == pytest.approx(x["step_us"], rel=1e-6)
        assert x["tokens_per_s"] == pytest.approx(16e6 / x["step_us"], rel=1e-6)
        assert len(x["ranks"]) == 8 and max(r["total_bytes"] for r in x["ranks"]) == x["total_bytes"]
    assert dense["parts_us"]["attend"] > 4 * retro["parts_us"]["attend"]
    assert dense["parts_us"]["select"] == 0 < retro["parts_us"]["select"]


@pytest.mark.parametrize("file", sorted((cli.ROOT / "configs").glob("llama-*.conf")), ids=lambda f: f.stem)
def test_published_setups_fit(file):
    """What each file's comment tells to run, from Retro's folder; its sequences fill what it gives to keys and values."""
    lines = file.read_text().splitlines()
    options = dict(line.split(" = ") for line in lines if line[0] != "#")
    (command,) = (line[2:] for line in lines if "build/retro plan" in line)
    words = [cli.ROOT / w if w.startswith("configs/") else w for w in command.split()[1:]]
    cell = json.loads(cli.run_ok(*words, "--json").stdout.splitlines()[0])
    assert cell["fits"] and cell["total_bytes"] < 70 * 2**30 and cell["tp"] == int(options["tp"])
    assert 16 * cell["context"] == int(options["kv-tokens"]) and options["max-seqs"] == "16"


def test_one_gpu_is_too_small():
    one = plan("--policy", "dense", "--contexts", 128, "--batches", 1)[0]
    assert not one["fits"] and one["largest_context"] == 0 and one["weights_bytes"] > 130e9
    assert b"DOES NOT FIT" in cli.run_ok("plan", "--model", L70).stdout


GPUS = ("h100", "h200", "a100", "b200")


@pytest.mark.parametrize("machine, link", [("cpu", None), *((m, k) for m in GPUS for k in (None, "infiniband"))])
def test_machines_and_links(machine, link):
    cell = plan("--tp", 8, "--machine", machine, "--policy", "retro", *(("--link", link) if link else ()))[0]
    assert cell["step_us"] > 0 and cell["machine"] == machine
    assert (cell["link"] == "infiniband") == bool(link)


def test_faster_machines_are_faster():
    us = [plan("--tp", 8, "--machine", m, "--policy", "dense")[0]["step_us"] for m in ("a100", "h100", "h200", "b200")]
    assert us == sorted(us, reverse=True)
    assert plan("--tp", 8, "--link", "infiniband", "--policy", "dense")[0]["step_us"] > us[1]


def test_files_of_your_own(tmp_path):
    (tmp_path / "m.json").write_text('{"name": "mine", "read_bytes_s": 3.35e12, "flops_s": 1e15, "memory_bytes": 8e10}')
    (tmp_path / "l.json").write_text('{"link_base_us": 5, "link_bytes_s": 2e11}')
    cell = plan("--tp", 8, "--machine", tmp_path / "m.json", "--link", tmp_path / "l.json", "--policy", "dense")[0]
    assert cell["machine"] == "mine" and cell["parts_us"]["all_reduce"] == pytest.approx(
        161 * (5 + 1.75 * 16 * 8192 * 4 / 2e11 * 1e6), rel=1e-6
    )


def test_text_names_everything():
    text = cli.run_ok("plan", "--model", L70, "--tp", 8).stdout.decode()
    for word in ("weights", "summaries", "output cache", "fits", "at most", "GEMM", "attend", "all-reduce", "in all",
                 "tokens/s", "over dense", "--tp 1 to 64", "1 2 4 8 16 32 64", "excludes"):
        assert word in text


def test_a_budget_of_tokens_is_named():
    words = ("--contexts", 32768, "--kv-budget-tokens", 2048, "--tp", 8)
    assert b"budget 2048 tokens\n" in cli.run_ok("plan", "--model", L70, *words).stdout
    assert b"budget 0.197\n" in cli.run_ok("plan", "--model", L70, "--tp", 8).stdout
    assert [x["kv_budget_tokens"] for x in plan(*words)] == [2048] * 3
    assert plan("--tp", 8)[0]["kv_budget_tokens"] == 0


def test_only_retro_has_a_window():
    """A start with another policy makes no room for the window; without --policy the memory is one that serves all."""
    words = ("--contexts", 2048, "--batches", 4, "--tp", 8)
    one, wide = (plan(*words, "--policy", "retro", "--window", w)[0] for w in (1, 16))
    for policy in ("dense", "quest", "streaming"):
        cell = plan(*words, "--policy", policy, "--window", 16)[0]
        assert cell["ranks"] == one["ranks"] and cell["total_bytes"] < wide["total_bytes"], policy
    assert [x["ranks"] for x in plan(*words, "--window", 16)] == [wide["ranks"]] * 3


def test_ranks_are_those_that_were_started():
    words = ("plan", "--model", SHAPES / "smollm2-135m", "--contexts", 64, "--policy", "dense", "--json")
    tp = [json.loads(cli.run_ok(*words, *more, ranks=3).stdout)["tp"] for more in ((), ("--tp", 2))]
    assert tp == [3, 2]


def test_what_the_table_does_not_say_is_warned_of():
    def warnings(*words):
        return cli.run_ok("plan", "--model", SHAPES / "smollm2-135m", *words).stderr.decode()

    assert "--contexts 8193: the model's own limit is 8192" in warnings("--contexts", "8192,8193")
    assert "--policy streaming chooses" in warnings("--contexts", "8192", "--policy", "streaming")
    assert warnings("--contexts", "8192", "--policy", "streaming", "--json") == warnings("--contexts", "8192") == ""


def test_uneven_ranks_are_shown_apart():
    text = cli.run_ok("plan", "--model", SHAPES / "smollm2-135m", "--tp", 2).stdout.decode()
    assert "rank 0 " in text and "rank 1 " in text
    assert "ranks 0 to 7" in cli.run_ok("plan", "--model", L70, "--tp", 8).stdout.decode()


def test_what_it_says_of_options_is_true(tmp_path):
    """The rules that the text lists are those that a start checks."""
    (tmp_path / "config.json").write_text((SHAPES / "smollm2-135m" / "config.json").read_text())
    start = ("bench", "decode", "--model", tmp_path, "--random-weights", "--contexts", "0", "--tokens", "1")
    cli.one_line(cli.run(*start, "--kv-budget", "0.2", "--kv-budget-tokens", "64"), 2, "give one of them")
    cli.one_line(cli.run(*start, "--page-size", "12"), 2, "4, 8, 16 or 32")
    cli.one_line(cli.run(*start, "--summary", "q8", "--score-alpha", "1"), 2, "--score-alpha 1")
    cli.one_line(cli.run(*start, "--policy", "streaming", "--device", "cuda"), 2, "--device cuda")
    cli.one_line(cli.run(*start, "--page-size", "16", "--block-size", "40"), 2, "--block-size 40")


@pytest.mark.parametrize(
    "words, pattern",
    [
        (["--machine", "h900"], "h900.*h100, h200, a100, b200"),
        (["--link", "string"], "string.*nvlink, infiniband"),
        (["--tp", "65"], "--tp 65.*1 to 64"),
        (["--contexts", "0"], "--contexts 0"),
        (["--batches", "x"], "--batches x"),
        (["--kv-budget", "0.1", "--kv-budget-tokens", "10"], "give one of them"),
        (["--threads", "2"], "--threads.*not an option of this command"),
    ],
)
def test_refusals(words, pattern):
    cli.one_line(cli.run("plan", "--model", L70, *words), 2, pattern)


def test_a_folder_without_config(tmp_path):
    cli.one_line(cli.run("plan", "--model", tmp_path), 3, "config.json")
    cli.one_line(cli.run("plan"), 2, "--model")
