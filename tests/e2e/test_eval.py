"""What `retro eval` measures beyond nll: policies beside each other, distance from dense, attention errors."""

import numpy as np
import pytest

import cli
from reference.attention import attend
from reference.decoder import Decoder, Settings
from reference.evaluate import read_tokens
from reference.model import Model
from test_properties import SHAPES, SPARSE

PROMPT, STEPS = 100, 40


def spell(**policy):
    return " ".join(cli.flags(policy))


def test_policies_beside_each_other_are_those_alone(tiny, ids, tmp_path):
    folder, tokens = tiny(**SHAPES["llama3-gqa"]), ids(320, 200)
    run = dict(page_size=4, block_size=16, kv_dtype="f32", summary="keys")
    policies = [
        dict(policy="quest", kv_budget=0.3, dense_layers=0),
        dict(policy="retro", window=5, kv_budget=0.25, dense_layers=1, score_alpha=1, score_group="max"),
        dict(policy="dense"),
        dict(policy="retro", window=2, kv_budget_tokens=30, sink_pages=2),
    ]
    together = cli.evaluate_all(folder, tokens, PROMPT, STEPS, dump=tmp_path / "together.npy", **run, **policies[0],
                                also=[spell(**p) for p in policies[1:]])
    for policy, got in zip(policies, together, strict=True):
        alone = cli.evaluate(folder, tokens, PROMPT, STEPS, dump=tmp_path / "alone.npy", **run, **policy)
        for field in ("policy", "window", "nll", "pages_loaded", "pages_met", "kv_read_share", "kv_budget", "sink_pages"):
            assert got[field] == alone[field], (policy, field)
        if policy is policies[0]:
            assert (tmp_path / "together.npy").read_bytes() == (tmp_path / "alone.npy").read_bytes()


def test_a_budget_of_tokens_is_named(tiny, ids):
    words = ("eval", "--model", tiny(**SHAPES["llama3-gqa"]), "--tokens", ids(320, 50), "--prompt", 40, "--steps", 2)
    text = cli.run_ok(*words, "--kv-budget-tokens", 12, "--also", "--kv-budget 0.5").stdout.decode()
    assert "window 2, budget 12 tokens\n" in text and "window 2, budget 0.5\n" in text


def test_context_beyond_the_model_is_warned_of(tiny, ids):
    words = ("eval", "--model", tiny(family="llama3", context=64), "--tokens", ids(512, 100), "--steps", 10, "--json")
    cli.one_line(cli.run(*words, "--prompt", 60), 2, "70 tokens, the context limit is 64")
    beyond, within = (cli.run_ok(*words, "--prompt", p, "--max-context", c) for p, c in ((60, 80), (50, 64)))
    assert b"--max-context 80: the model's own limit is 64" in beyond.stderr and b"own limit" not in within.stderr


def test_threads_are_those_that_ran(tiny, ids):
    folder, tokens = tiny(**SHAPES["llama3-gqa"]), ids(320, 50)
    assert cli.evaluate(folder, tokens, 40, 2, threads=3)["threads"] == 3
    auto = cli.evaluate(folder, tokens, 40, 2)
    assert auto["threads"] > 0 and f"{auto['threads']} thread" in auto["device"]


def test_greedy_policies_each_go_their_own_way(tiny, ids):
    folder, tokens = tiny(**SHAPES["llama3-gqa"]), ids(320, 200)
    run = dict(page_size=4, block_size=16, kv_dtype="f32", greedy=True)
    sparse, dense = cli.evaluate_all(folder, tokens, PROMPT, STEPS, **run, policy="quest", kv_budget=0.1,
                                     also=[spell(policy="dense")])
    assert dense["tokens"] == cli.evaluate(folder, tokens, PROMPT, STEPS, **run, policy="dense")["tokens"]
    assert sparse["tokens"] != dense["tokens"]


def log_softmax(logits):
    x = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("ranks", [1, 2])
def test_distance_from_dense(tiny, ids, tmp_path, ranks):
    folder, tokens = tiny(**SHAPES["qwen3-norm"]), ids(320, 200)
    logits = {}
    for policy in ("dense", "quest"):
        cli.evaluate(folder, tokens, PROMPT, STEPS, dump=tmp_path / "l.npy", **SPARSE, policy=policy, ranks=ranks)
        logits[policy] = np.load(tmp_path / "l.npy")[:STEPS]
    dense, quest, full = cli.evaluate_all(folder, tokens, PROMPT, STEPS, **SPARSE, policy="quest", compare=True,
                                          also=[spell(policy="retro", window=3, kv_budget=1)],
                                          dump_steps=tmp_path / "s.npy", ranks=ranks)
    p, q = log_softmax(logits["dense"]), log_softmax(logits["quest"])
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    same = p.argmax(axis=1) == q.argmax(axis=1)
    fed = read_tokens(tokens, 200, 320)[PROMPT : PROMPT + STEPS]
    steps = np.load(tmp_path / "s.npy")
    assert steps.shape == (STEPS, 12)
    np.testing.assert_allclose(steps[:, 0], -p[np.arange(STEPS), fed], atol=1e-5)
    np.testing.assert_allclose(steps[:, 4], -q[np.arange(STEPS), fed], atol=1e-5)
    np.testing.assert_allclose(steps[:, 5], kl, atol=1e-5)
    np.testing.assert_array_equal(steps[:, 6], same)
    np.testing.assert_array_equal(steps[:, 7], q.argmax(axis=1) == fed)
    assert quest["accuracy"] == steps[:, 7].mean()
    assert 0.01 < kl.mean() == pytest.approx(quest["kl"], abs=1e-6) and quest["top1"] == same.mean() < 1
    assert dense["policy"] == "dense" and dense["kl"] == 0 and dense["top1"] == 1
    assert full["kl"] < 1e-9 and full["top1"] == 1 and full["nll"] == dense["nll"]


def test_steps_without_dense_hold_zeros_as_the_help_says(tiny, ids, tmp_path):
    folder, tokens = tiny(**SHAPES["qwen3-norm"]), ids(320, 200)
    (quest,) = cli.evaluate_all(folder, tokens, PROMPT, STEPS, **SPARSE, policy="quest", dump_steps=tmp_path / "s.npy")
    steps = np.load(tmp_path / "s.npy")
    assert steps.shape == (STEPS, 4) and (steps[:, 1:3] == 0).all()
    assert steps[:, 0].mean() == pytest.approx(quest["nll"], abs=1e-5) and steps[:, 3].mean() == quest["accuracy"]
    words = " ".join(cli.run_ok("eval", "--help").stdout.decode().split())
    assert "KL and the one after it are 0 without --compare" in words


class Probed(Decoder):
    """Compares what the first sparse layers' rows got with attention over every page, as --attention-error does."""

    def __init__(self, *arguments, every):
        super().__init__(*arguments)
        self.every, self.used, self.revised = every, [], []

    def sparse_attention(self, i, q, rows):
        o = super().sparse_attention(i, q, rows)
        if self.n_steps % self.every == 0:
            for n, kept in [(len(rows) - 1, self.used)] + [(0, self.revised)] * (len(rows) > 1):
                full = self.dense(i, q[n], rows[n])
                kept.append(np.linalg.norm(o[n] - full) / np.linalg.norm(full))
        return o

    def dense(self, i, q, r):
        layer, group = self.layers[i], self.model.config.group
        pages = np.arange(r // layer.page_size + 1)
        seen = layer.positions(pages) <= r
        return np.concatenate([
            attend(q[g * group : (g + 1) * group], *layer.keys_values(g, pages), seen)[0]
            for g in range(self.model.config.n_kv_heads)
        ])


@pytest.mark.parametrize("window, every", [(1, 1), (3, 1), (3, 7)])
def test_attention_error(tiny, ids, window, every):
    folder, tokens = tiny(**SHAPES["llama3-gqa"]), ids(320, 200)
    settings = dict(SPARSE, policy="retro", window=window)
    ours = cli.evaluate(folder, tokens, PROMPT, STEPS, attention_error=every, **settings)
    settings.pop("block_size")
    decoder = Probed(Model.load(str(folder)), Settings(**settings), PROMPT + STEPS, every=every)
    fed = read_tokens(tokens, 200, 320)
    decoder.prefill(fed[:PROMPT])
    for token in fed[PROMPT : PROMPT + STEPS]:
        decoder.step(token)
    assert ours["attention_error"] == pytest.approx(np.mean(decoder.used), rel=0.02)
    assert ours["attention_error"] > 0.05
    if window == 1:
        assert "attention_error_revised" not in ours and not decoder.revised
    else:
        assert ours["attention_error_revised"] == pytest.approx(np.mean(decoder.revised), rel=0.02)
        assert ours["attention_error_revised"] < ours["attention_error"]


def test_probe_changes_nothing(tiny, ids):
    folder, tokens = tiny(**SHAPES["mistral-slide"]), ids(320, 200)
    settings = dict(SPARSE, policy="retro", window=4)
    plain = cli.evaluate(folder, tokens, PROMPT, STEPS, **settings)
    probed = cli.evaluate(folder, tokens, PROMPT, STEPS, attention_error=1, **settings)
    for field in ("nll", "pages_loaded", "pages_met", "exposure", "kv_read_share"):
        assert plain[field] == probed[field]
    full = cli.evaluate(folder, tokens, PROMPT, STEPS, attention_error=3, **dict(settings, kv_budget=1))
    assert full["attention_error"] < 1e-5 and full["attention_error_revised"] < 1e-5


@pytest.mark.parametrize(
    "words, pattern",
    [
        (["--also", "--threads 2"], "--also: --threads: not an option"),
        (["--also", "--window 0"], "--also: --window 0: out of range"),
        (["--also", "retro"], "--also: retro: unexpected"),
        (["--page-size", "8", "--also", "--preset paper"], "--also: --preset: .*16.*--page-size 8"),
        (["--page-size", "4", "--also", "--policy quest --score-alpha 1"], "--also: --score-alpha 1: .*--summary"),
        (["--summary", "q8", "--preset", "paper"], "--score-alpha 1: .*--summary keys"),
        (["--compare", "--greedy"], "--compare and --greedy"),
        (["--dump-steps", "/nowhere/x"], "--dump-steps /nowhere/x: No such file"),
    ],
)
def test_refusals(tiny, ids, words, pattern):
    folder, tokens = tiny(**SHAPES["llama3-gqa"]), ids(320, 200)
    done = cli.run("eval", "--model", folder, "--tokens", tokens, "--prompt", 64, "--steps", 8, *words)
    cli.one_line(done, 2, pattern)
