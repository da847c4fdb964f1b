"""What must hold of docs/algorithm.md, on tiny random models.

The heart is `Definition`: the algorithm written a second time straight from its definition, with sets of
pages in place of last_loaded, unnormalised float64 sums in place of log-sum-exp merges, every layer
recomputed for every row in place of kept entries, and no pages at all in its storage.
"""

import math

import numpy as np
import pytest

from .attention import attend
from .common import N_PROMPT, N_STEPS, Run, model_of, settings_of, tokens_of
from .decoder import PAPER
from .pages import visible
from .rounding import store

SLIDING = dict(sliding_window=29)
MODELS = [
    ("llama", dict(num_attention_heads=9, num_key_value_heads=3, hidden_size=36)),
    ("mistral", SLIDING),
    ("qwen2", dict(SLIDING, use_sliding_window=True, max_window_layers=3)),
    ("qwen3", dict(num_attention_heads=5, num_key_value_heads=1)),
]
CASES = [
    dict(),
    dict(PAPER, window=2, kv_budget=0.2, page_size=4, dense_layers=1),
    dict(window=8, score_group="mean", sink_pages=2),
    dict(window=4, kv_budget_tokens=22, page_size=5, dense_layers=0),
    dict(policy="quest"),
]


class Definition:
    """keys, values: lists [layer][position] of (K, E); sums: {(layer, h, r): (numerator, denominator)}."""

    def __init__(self, model, settings):
        self.m, self.s = model, settings
        self.n_layers = model.config.n_layers
        self.keys = [[] for _ in range(self.n_layers)]
        self.values = [[] for _ in range(self.n_layers)]
        self.sums, self.met, self.tokens, self.first = {}, {}, [], None

    def sees(self, layer, r, j):
        window = self.m.config.windows[layer]
        return j <= r and (window is None or r - j < window)

    def partial(self, layer, h, q, r, positions):
        """Unnormalised attention sums of query q over the given positions that r may see."""
        g = h // self.m.config.group
        seen = [j for j in positions if self.sees(layer, r, j)]
        weights = [math.exp(q @ self.keys[layer][j][g] / math.sqrt(len(q))) for j in seen]
        return sum((w * self.values[layer][j][g] for w, j in zip(weights, seen)), np.zeros(len(q))), sum(
            weights
        )

    def choose(self, layer, g, queries, p):
        size, s = self.s.page_size, self.s
        pages = sorted({j // size for j in range(p + 1) if self.sees(layer, p, j)})
        k = (
            math.ceil(s.kv_budget * len(pages))
            if s.kv_budget_tokens is None
            else -(-s.kv_budget_tokens // size)
        )
        k = max(3, k)
        if s.policy == "dense" or layer < s.dense_layers or k >= len(pages):
            return pages
        scores = []
        for q in queries:
            row = []
            for j in pages:
                keys = np.array(
                    [self.keys[layer][n][g] for n in range(j * size, min(p + 1, j * size + size))]
                )
                c, u = (keys.max(0) + keys.min(0)) / 2, (keys.max(0) - keys.min(0)) / 2
                row.append((q @ c + s.score_alpha * np.abs(q) @ u) / math.sqrt(len(q)))
            scores.append(np.exp(row) / np.exp(row).sum() if s.score_group == "softmax" else np.array(row))
        score = np.max(scores, 0) if s.score_group == "max" else np.mean(scores, 0)
        forced = [j for j in pages if j < s.sink_pages or j == pages[-1]]
        others = sorted((j for j in pages if j not in forced), key=lambda j: (-score[pages.index(j)], j))
        return sorted(forced + others[: k - len(forced)])

    def feed(self, token, decode):
        """One more token; decode False while it belongs to the prompt.  Returns the logits after it."""
        c, p = self.m.config, len(self.tokens)
        self.tokens.append(token)
        if decode and self.first is None:
            self.first = p
        w = self.s.window if self.s.policy == "retro" and decode else 1
        rows = [r for r in range(p - w + 1, p + 1) if r == p or decode and r >= self.first]
        x = self.m.embed([self.tokens[r] for r in rows])
        for layer in range(self.n_layers):
            q, k, v = self.m.qkv(layer, x, rows)
            for n, r in enumerate(rows):
                del self.keys[layer][r : r + 1], self.values[layer][r : r + 1]
                self.keys[layer].insert(r, k[n].astype(np.float32).astype(np.float64))
                self.values[layer].insert(r, v[n].astype(np.float32).astype(np.float64))
            o = np.empty_like(q)
            for g in range(c.n_kv_heads):
                heads = range(g * c.group, (g + 1) * c.group)
                everything = sorted({j // self.s.page_size for j in range(p + 1) if self.sees(layer, p, j)})
                chosen = set(self.choose(layer, g, q[-1, heads], p) if decode else everything)
                self.met[layer, g, p] = set()
                for n, r in enumerate(rows):
                    fresh = chosen - self.met[layer, g, r]
                    positions = [j for j in range(p + 1) if j // self.s.page_size in fresh]
                    for h in heads:
                        old = self.sums.get((layer, h, r), (0.0, 0.0))
                        new = self.partial(layer, h, q[n, h], r, positions)
                        self.sums[layer, h, r] = (old[0] + new[0], old[1] + new[1])
                        o[n, h] = self.sums[layer, h, r][0] / self.sums[layer, h, r][1]
                    self.met[layer, g, r] |= chosen
            x = self.m.after_attention(layer, x, o)
        return self.m.logits(x[-1])


def definition_logits(model, settings, tokens, n_prompt):
    definition = Definition(model, settings)
    logits = [definition.feed(token, n >= n_prompt) for n, token in enumerate(tokens)]
    return np.array(logits[n_prompt - 1 :])


@pytest.mark.parametrize("family,overrides", MODELS)
@pytest.mark.parametrize("changes", CASES)
def test_decoder_equals_the_definition(family, overrides, changes):
    model = model_of(family, num_hidden_layers=4, **overrides)
    tokens, settings = tokens_of(model, 64), settings_of(**changes)
    run = Run(model, settings, tokens, n_prompt=50)
    np.testing.assert_allclose(run.logits, definition_logits(model, settings, tokens, 50), atol=2e-5)


def test_the_definition_can_disagree():
    model = model_of("llama")
    tokens = tokens_of(model, 60)
    run = Run(model, settings_of(window=2), tokens, n_prompt=50)
    for changes in (
        dict(window=3),
        dict(policy="quest"),
        dict(score_alpha=1.0),
        dict(sink_pages=2),
        dict(dense_layers=0),
    ):
        other = definition_logits(model, settings_of(**{**dict(window=2), **changes}), tokens, 50)
        assert np.abs(run.logits - other).max() > 1e-3, changes


@pytest.mark.parametrize("family,overrides", MODELS)
def test_window_one_is_quest(family, overrides):
    model = model_of(family, **overrides)
    retro, quest = Run(model, settings_of(window=1)), Run(model, settings_of(policy="quest", window=7))
    np.testing.assert_array_equal(retro.logits, quest.logits)
    assert retro.counters == quest.counters and quest.counters.exposure == 1.0
    assert np.abs(Run(model, settings_of(window=2)).logits - quest.logits).max() > 1e-3


@pytest.mark.parametrize("family,overrides", MODELS)
@pytest.mark.parametrize("dtype,tolerance", [(np.float32, 1e-5), (np.float64, 1e-9)])
def test_budget_one_is_dense(family, overrides, dtype, tolerance):
    # Logits are of order 1 to 10.
    model = model_of(family, dtype=dtype, **overrides)
    dense = Run(model, settings_of(policy="dense", kv_dtype="f32"))
    for window in (1, 2, 4, 8):
        for dense_layers in (0, 2):
            run = Run(model, settings_of(kv_budget=1.0, window=window, dense_layers=dense_layers))
            np.testing.assert_allclose(run.logits, dense.logits, rtol=tolerance, atol=tolerance)
            assert run.counters.exposure == 1.0 and run.counters.kv_read_share == 1.0
    assert np.abs(Run(model, settings_of()).logits - dense.logits).max() > 1e-2


@pytest.mark.parametrize("family,overrides", MODELS)
def test_dense_decode_equals_prefill(family, overrides):
    model = model_of(family, **overrides)
    tokens = tokens_of(model)
    run = Run(model, settings_of(policy="dense"), tokens)
    for n in (0, 1, N_STEPS):
        again = Run(
            model, settings_of(policy="dense"), tokens[: N_PROMPT + n], n_prompt=N_PROMPT + n, chunk=13
        )
        np.testing.assert_allclose(again.logits[0], run.logits[n], atol=1e-6)


@pytest.mark.parametrize("family,overrides", MODELS)
@pytest.mark.parametrize("window", [2, 8])
def test_pages_met_are_counted_once_and_never_from_the_future(family, overrides, window):
    """Replays the record with sets: U_r is S minus everything loaded since r, cut to what r may see."""
    model = model_of(family, **overrides)
    run = Run(model, settings_of(window=window))
    c, size = model.config, 4
    loaded = met_later = n_revisions = 0
    for layer in range(1, c.n_layers):
        for g in range(c.n_kv_heads):
            for step in range(N_STEPS):
                record, p = run.records[step, layer, g], run.position(step)
                rows = range(max(N_PROMPT, p - window + 1), p)
                assert set(record["met"]) == set(rows)
                loaded += len(record["chosen"])
                for r in rows:
                    since = set()
                    for s in range(r - N_PROMPT, step):
                        since |= set(run.records[s, layer, g]["chosen"].tolist())
                    unmet = {j for j in record["chosen"].tolist() if j not in since and j * size <= r}
                    assert set(record["met"][r].tolist()) == unmet
                    n_revisions += bool(unmet)
                    met_later += len(unmet)
    assert n_revisions > 50
    assert (loaded, met_later) == (run.counters.pages_loaded, run.counters.pages_met_later)
    assert run.counters.exposure == (loaded + met_later) / loaded > 1.1


def test_no_query_reads_an_unwritten_or_later_key():
    """Unwritten slots are NaN, so one unmasked read of them would show in the logits.  And a later token,
    with all that it loads, cannot change an earlier prediction."""
    model = model_of("mistral", **SLIDING)
    tokens = tokens_of(model)
    run = Run(model, settings_of(window=8), tokens)
    assert np.isfinite(run.logits).all()
    other = tokens.copy()
    other[-3:] = (other[-3:] + 1) % model.config.vocab
    changed = Run(model, settings_of(window=8), other)
    np.testing.assert_array_equal(changed.logits[:-3], run.logits[:-3])
    assert np.abs(changed.logits[-3:] - run.logits[-3:]).max() > 1e-3


def test_revised_rows_ignore_keys_after_them():
    """Every cached output and log-sum-exp equals the definition's, which only ever sums positions up to r."""
    model = model_of("llama")
    tokens, settings = tokens_of(model, 62), settings_of(window=6)
    run, definition = Run(model, settings, tokens, n_prompt=50), Definition(model, settings)
    for n, token in enumerate(tokens):
        definition.feed(token, n >= 50)
    for layer in range(1, model.config.n_layers):
        cache = run.decoder.output_cache[layer]
        assert sorted(cache) == [57, 58, 59, 60, 61]  # the last w - 1 queries
        for r, (o, lse) in cache.items():
            for h in range(model.config.n_heads):
                numerator, denominator = definition.sums[layer, h, r]
                np.testing.assert_allclose(o[h], numerator / denominator, atol=2e-5)
                assert lse[h] == pytest.approx(math.log(denominator), abs=2e-5)


@pytest.mark.parametrize("dense_layers", [0, 1, 2])
def test_revision_changes_only_layers_after_the_first_sparse_one(dense_layers):
    model = model_of("llama")
    changes = dict(dense_layers=dense_layers)
    retro, quest = Run(model, settings_of(window=4, **changes)), Run(
        model, settings_of(policy="quest", **changes)
    )
    dense = Run(model, settings_of(policy="dense"))
    for layer in range(model.config.n_layers):
        ours, plain, full = (run.decoder.layers[layer] for run in (retro, quest, dense))
        n = N_PROMPT + N_STEPS
        k, quest_k, dense_k = (
            np.stack([pages.k, pages.v]).reshape(2, 2, -1, 8)[:, :, :n] for pages in (ours, plain, full)
        )
        if layer <= dense_layers:
            np.testing.assert_allclose(k, dense_k, atol=1e-6)
            np.testing.assert_allclose(quest_k, dense_k, atol=1e-6)
        else:
            np.testing.assert_allclose(k[:, :, :N_PROMPT], dense_k[:, :, :N_PROMPT], atol=1e-6)
            changed = np.abs(k - quest_k).max(axis=(0, 1, 3))[N_PROMPT:] > 1e-6
            # The newest row was only computed from revised context; every row before it was revised itself.
            assert changed.mean() > 0.8


def test_revision_overwrites_within_the_window_only():
    model = model_of("llama")
    run = Run(model, settings_of(window=3))
    before = [layer.k.copy() for layer in run.decoder.layers]
    grown = Run(model, settings_of(window=3), np.append(tokens_of(model), 5))
    n = run.decoder.n_tokens
    for layer, old in enumerate(before):
        new = grown.decoder.layers[layer].k.reshape(2, -1, 8)[:, :n]
        differs = np.flatnonzero(
            np.nan_to_num(np.abs(new - old.reshape(2, -1, 8)[:, :n])).max(axis=(0, 2)) > 1e-7
        )
        assert set(differs) <= {n - 2, n - 1}
        if layer <= 1:
            assert len(differs) == 0
    assert len(differs) == 2


def test_unchanged_query_folds_to_the_union():
    """With one layer of attention, queries never change: every cached output is attention over the union."""
    model = model_of("llama", num_hidden_layers=1)
    settings = settings_of(window=8, dense_layers=0)
    tokens = tokens_of(model)
    run = Run(model, settings, tokens)
    decoder, c = run.decoder, model.config
    q, _, _ = model.qkv(0, model.embed(tokens), np.arange(len(tokens)))
    layer = decoder.layers[0]
    for r, (o, lse) in decoder.output_cache[0].items():
        for g in range(c.n_kv_heads):
            union = sorted(
                set().union(*(run.records[s, 0, g]["chosen"].tolist() for s in range(r - N_PROMPT, N_STEPS)))
            )
            heads = slice(g * c.group, (g + 1) * c.group)
            whole = attend(
                q[r, heads], *layer.keys_values(g, union), visible(layer.positions(union), r, None)
            )
            np.testing.assert_allclose(o[heads], whole[0], atol=1e-12)
            np.testing.assert_allclose(lse[heads], whole[1], atol=1e-12)


def test_sliding_candidates_budget_and_sinks():
    model = model_of("mistral", **SLIDING)
    run = Run(model, settings_of(window=4, kv_budget=0.5, sink_pages=2))
    for (step, layer, g), record in run.records.items():
        p = run.position(step)
        pages = list(range((p - 28) // 4, p // 4 + 1))
        assert record["pages"].tolist() == pages and 0 not in pages and 1 not in pages
        if layer >= 1:
            assert len(record["chosen"]) == max(3, math.ceil(0.5 * len(pages)))
        assert p // 4 in record["chosen"] and set(record["chosen"].tolist()) <= set(pages)
    wide = model_of("mistral", sliding_window=N_PROMPT + N_STEPS)
    plain = model_of("mistral", sliding_window=None)
    np.testing.assert_array_equal(Run(wide, settings_of()).logits, Run(plain, settings_of()).logits)


def test_newest_and_sink_pages_are_always_chosen():
    run = Run(model_of("llama"), settings_of(sink_pages=2, kv_budget=0.25))
    for (step, layer, _), record in run.records.items():
        assert {0, 1, run.position(step) // 4} <= set(record["chosen"].tolist())
        n_pages = run.position(step) // 4 + 1
        assert len(record["chosen"]) == (n_pages if layer < 1 else max(3, math.ceil(0.25 * n_pages)))


@pytest.mark.parametrize("kv_dtype,n_bytes", [("f32", 4), ("bf16", 2)])
@pytest.mark.parametrize("family,overrides", [("llama", {}), ("mistral", SLIDING)])
def test_bytes_read(family, overrides, kv_dtype, n_bytes):
    model = model_of(family, **overrides)
    run = Run(model, settings_of(window=4, kv_dtype=kv_dtype, dense_layers=2))
    e, window = model.config.head_dim, model.config.windows[0]
    read = dense = 0
    for (step, layer, _), record in run.records.items():
        p = run.position(step)
        first = 0 if window is None else p - window + 1
        dense += (p + 1 - first) * 2 * e * n_bytes
        if layer < 2:
            read += (p + 1 - first) * 2 * e * n_bytes
        else:
            read += sum(min(4 * j + 4, p + 1) - max(4 * j, first) for j in record["chosen"]) * 2 * e * n_bytes
            read += (p // 4 + 1 - first // 4) * 2 * e * n_bytes
    assert (read, dense) == (run.counters.bytes_read, run.counters.bytes_dense)
    assert 0.3 < run.counters.kv_read_share < 1


@pytest.mark.parametrize("kv_dtype", ["f16", "bf16"])
def test_stored_types_are_rounded_and_close(kv_dtype):
    model = model_of("qwen3", dtype=np.float32)
    exact, rounded = Run(model, settings_of(policy="dense")), Run(
        model, settings_of(policy="dense", kv_dtype=kv_dtype)
    )
    distance = np.abs(exact.logits - rounded.logits)
    assert 1e-5 < distance.mean() < (0.02 if kv_dtype == "f16" else 0.1)
    for layer in rounded.decoder.layers:
        np.testing.assert_array_equal(store(layer.k, kv_dtype), layer.k)
    Run(model, settings_of(window=4, kv_dtype=kv_dtype))


def test_window_wider_than_the_steps():
    model = model_of("llama")
    run = Run(model, settings_of(window=100))
    assert set(run.records[N_STEPS - 1, 2, 0]["met"]) == set(range(N_PROMPT, N_PROMPT + N_STEPS - 1))
    assert np.isfinite(run.logits).all()


def test_prompt_may_be_one_token_and_chunks_do_not_matter():
    model = model_of("qwen2")
    short = Run(model, settings_of(window=4), tokens_of(model, 40), n_prompt=1)
    assert np.isfinite(short.logits).all() and short.counters.exposure > 1
    a, b = Run(model, settings_of(), chunk=512), Run(model, settings_of(), chunk=7)
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-6)
