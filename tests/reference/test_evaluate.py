"""The command: options, JSON, dumps, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from . import compare, evaluate, tiny

FIELDS = {"nll", "ppl", "exposure", "pages_loaded", "kv_read_share", "tokens_per_s"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.write(folder / "m", "llama")
    tokens = np.random.default_rng(0).integers(0, 61, 120)
    (folder / "ids").write_text(
        " ".join(map(str, tokens[:60])) + "\n" + ",".join(map(str, tokens[60:])) + "\n"
    )
    return folder, tokens


def call(files, capsys, *more, prompt=80, steps=30):
    folder, _ = files
    evaluate.main(
        [
            "--model",
            str(folder / "m"),
            "--tokens",
            str(folder / "ids"),
            "--prompt",
            str(prompt),
            "--steps",
            str(steps),
            "--page-size",
            "4",
            "--dense-layers",
            "2",
            "--json",
            *more,
        ]
    )
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_json_logits_and_selection(files, capsys, tmp_path):
    result = call(
        files,
        capsys,
        "--dump-logits",
        str(tmp_path / "l.npy"),
        "--dump-selection",
        str(tmp_path / "s.npz"),
        "--window",
        "4",
        "--kv-budget",
        "0.2",
    )
    assert set(result) == FIELDS
    logits = np.load(tmp_path / "l.npy")
    assert logits.shape == (31, 61) and logits.dtype == np.float32
    tokens = files[1]
    rows = logits[:30].astype(np.float64)
    picked = rows[np.arange(30), tokens[80:110]]
    assert result["nll"] == pytest.approx(float((np.log(np.exp(rows).sum(1)) - picked).mean()))
    assert result["ppl"] == pytest.approx(float(np.exp(result["nll"])))
    dump = np.load(tmp_path / "s.npz")
    assert dump["chosen"].shape == (30, 5, 2, 28) and dump["chosen"][:, 2:].sum() == result["pages_loaded"]
    assert dump["chosen"][3, 2, 1, 83 // 4] and not dump["chosen"][3, 2, 1, 83 // 4 + 1 :].any()
    assert np.isnan(dump["scores"][:, :2]).all() and np.isfinite(dump["scores"][:, 2:, :, :20]).all()
    assert dump["met"].any() and not (dump["met"] & ~dump["chosen"]).any()


def test_greedy_equals_its_own_tokens_fed(files, capsys, tmp_path):
    greedy = call(files, capsys, "--greedy", "--dump-logits", str(tmp_path / "a.npy"))
    assert set(greedy) == FIELDS | {"tokens"} and len(greedy["tokens"]) == 30
    logits = np.load(tmp_path / "a.npy")
    assert greedy["tokens"] == logits[:30].argmax(axis=1).tolist()
    folder, tokens = files
    (folder / "again").write_text(" ".join(map(str, [*tokens[:80], *greedy["tokens"]])))
    fed = call(files, capsys, "--tokens", str(folder / "again"), "--dump-logits", str(tmp_path / "b.npy"))
    np.testing.assert_array_equal(logits, np.load(tmp_path / "b.npy"))
    assert fed["nll"] == greedy["nll"]


def test_preset_and_policies(files, capsys):
    def nll(*options):
        return call(files, capsys, "--kv-budget", "0.2", "--kv-dtype", "f32", *options)["nll"]

    spelled = ["--score-alpha", "1", "--score-group", "max", "--sink-pages", "0"]
    assert nll("--preset", "paper") == nll(*spelled) != nll()
    assert nll("--preset", "paper", "--sink-pages", "1") == nll(*spelled[:4], "--sink-pages", "1")
    assert nll("--policy", "quest") == nll("--window", "1")
    assert nll("--policy", "dense") == pytest.approx(nll("--kv-budget", "1"), abs=1e-5)
    tokens = call(files, capsys, "--kv-budget-tokens", "1000", "--kv-dtype", "f32")["nll"]
    assert tokens == pytest.approx(nll("--policy", "dense"), abs=1e-5)


def test_defaults_are_the_documented_ones():
    from .decoder import Settings

    s, o = Settings(), evaluate.parser().parse_args("--model m --tokens t --prompt 1 --steps 1".split())
    assert (s.policy, s.window, s.kv_budget, s.page_size, s.dense_layers) == ("retro", 2, 0.197, 4, 0)
    assert (s.score_alpha, s.score_group, s.sink_pages) == (0.15, "softmax", 1)
    assert (o.policy, o.window, o.summary) == (s.policy, s.window, s.summary)


@pytest.mark.parametrize(
    "options,words",
    [
        (["--prompt", "100"], "token ids"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--kv-budget", "0"], "share above 0"),
        (["--window", "0"], "from 1"),
        (["--policy", "sparse"], "sparse"),
        (["--kv-budget", "0.5", "--kv-budget-tokens", "9"], "not allowed with"),
        (["--colour", "1"], "colour"),
    ],
)
def test_bad_options_are_refused(files, capsys, options, words):
    with pytest.raises(SystemExit) as refused:
        call(files, capsys, *options)
    assert refused.value.code not in (0, None)
    assert words in str(refused.value.code) + capsys.readouterr().err


def test_token_out_of_vocabulary_is_refused(files, capsys):
    (files[0] / "bad").write_text("1 2 61 3")
    with pytest.raises(SystemExit, match="token 2 is 61"):
        call(files, capsys, "--tokens", str(files[0] / "bad"), prompt=3, steps=1)


def test_module_runs_as_a_command(files):
    folder, _ = files
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "reference.evaluate",
            "--model",
            folder / "m",
            "--tokens",
            folder / "ids",
            "--prompt",
            "8",
            "--steps",
            "3",
            "--threads",
            "1",
        ],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(json.loads(done.stdout.splitlines()[-1])) == FIELDS and done.stdout.startswith("Settings(")


def test_compare(files, capsys, tmp_path):
    for name, options in (("a", []), ("b", []), ("c", ["--kv-dtype", "f32"])):
        call(
            files,
            capsys,
            "--kv-budget",
            "0.2",
            *options,
            "--dump-logits",
            str(tmp_path / f"{name}.npy"),
            "--dump-selection",
            str(tmp_path / f"{name}.npz"),
        )
    paths = {name: str(tmp_path / name) for name in ("a.npy", "b.npy", "c.npy", "a.npz", "b.npz", "c.npz")}
    assert compare.main([paths["a.npy"], paths["b.npy"]]) == 0
    assert compare.main([paths["a.npz"], paths["b.npz"]]) == 0
    assert compare.main([paths["a.npy"], paths["c.npy"], "--tolerance", "1e-5"]) == 1
    assert compare.main([paths["a.npy"], paths["c.npy"], "--tolerance", "100"]) == 0
    assert "rows above" in capsys.readouterr().out
    broken = np.load(paths["a.npy"])
    broken[:, 3] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    assert compare.main([paths["a.npy"], str(tmp_path / "nan.npy"), "--tolerance", "100"]) == 1


def test_replayed_selection_decides_and_its_margin_tells(files, capsys, tmp_path):
    def dumped(name, *options):
        call(
            files,
            capsys,
            "--kv-budget",
            "0.2",
            "--window",
            "4",
            *options,
            "--dump-logits",
            str(tmp_path / "l.npy"),
            "--dump-selection",
            str(tmp_path / name),
        )
        return np.load(tmp_path / "l.npy"), np.load(tmp_path / name)

    ours, _ = dumped("ours.npz")
    paper, paper_dump = dumped("paper.npz", "--preset", "paper")
    replayed, dump = dumped(
        "replayed.npz", "--replay-selection", str(tmp_path / "paper.npz"), "--sink-pages", "0"
    )
    np.testing.assert_array_equal(replayed, paper)
    np.testing.assert_array_equal(dump["chosen"], paper_dump["chosen"])
    assert np.abs(ours - paper).max() > 1e-3
    assert (paper_dump["margin"] >= 0).all() and dump["margin"].min() < -0.1
    with pytest.raises(SystemExit, match="are no choice"):
        call(files, capsys, "--kv-budget", "0.5", "--replay-selection", str(tmp_path / "paper.npz"))
