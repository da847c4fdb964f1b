"""Pages, bounds, scores, choice, attention and merge as functions on their own."""

import itertools
import math

import numpy as np
import pytest

from . import pages as paging
from .attention import attend, merge
from .rounding import store, summary_bytes, to_codes


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# ---- pages and bounds


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "bf16"])
def test_bounds_are_exact_after_every_write(kv_dtype):
    layer = paging.LayerPages(3, 37, 4, 6, kv_dtype, np.float32)
    rng, keys = np.random.default_rng(0), {}
    writes = [range(0, 10)] + [range(max(0, p - int(rng.integers(1, 7))), p + 1) for p in range(10, 37)]
    for rows in writes:
        k, v = rng.standard_normal((2, len(rows), 3, 6)).astype(np.float32)
        layer.write(list(rows), k, v)
        keys.update(zip(rows, zip(store(k, kv_dtype), store(v, kv_dtype))))
        for j in range((layer.n_tokens + 3) // 4):
            inside = np.stack([keys[p][0] for p in range(4 * j, min(4 * j + 4, layer.n_tokens))])
            np.testing.assert_array_equal(layer.low[:, j], inside.min(axis=0))
            np.testing.assert_array_equal(layer.high[:, j], inside.max(axis=0))
    for g in range(3):
        k, v = layer.keys_values(g, np.array([2, 8]))
        at = layer.positions([2, 8])
        np.testing.assert_array_equal(k, [keys[p][0][g] for p in at])
        np.testing.assert_array_equal(v, [keys[p][1][g] for p in at])
    assert np.isnan(layer.k[:, 9, 1:]).all()


def test_alpha_one_is_quests_bound():
    keys, q = random(7, 5, 6, seed=1), random(3, 6, seed=2)
    low, high = keys.min(axis=1), keys.max(axis=1)
    scores = paging.page_scores(q, low, high, 1.0)
    for h, j in itertools.product(range(3), range(7)):
        quest = sum(max(q[h, i] * low[j, i], q[h, i] * high[j, i]) for i in range(6)) / math.sqrt(6)
        assert scores[h, j] == pytest.approx(quest)
        assert scores[h, j] >= (keys[j] @ q[h]).max() / math.sqrt(6) - 1e-12
    middle = paging.page_scores(q, low, high, 0.0)
    np.testing.assert_allclose(middle, q @ ((low + high) / 2).T / math.sqrt(6))
    np.testing.assert_allclose(paging.page_scores(q, low, high, 0.3), 0.7 * middle + 0.3 * scores)


@pytest.mark.parametrize("top,low", [(7, None), (15, 0), (127, None)])
def test_codes_are_the_nearest(top, low):
    x = np.abs(random(9, 40, seed=3)) if low == 0 else random(9, 40, seed=3)
    x[4] = 0
    codes, scale = to_codes(x, top, low)
    assert codes.max() <= top and codes.min() >= (-top if low is None else low)
    np.testing.assert_allclose(scale, np.abs(x).max(axis=1) / top, rtol=2.0**-8)
    # Half a step, and what holding to the top costs where bf16 rounded the scale down.
    assert (np.abs(codes * scale[:, None] - x) <= 0.5 * scale[:, None] * 1.0001 + np.abs(x) * 2.0**-8).all()
    assert not codes[4].any() and scale[4] == 0


def test_scores_of_codes_are_near_those_of_keys():
    keys, q = random(50, 4, 64, seed=1), random(3, 64, seed=2)
    low, high = keys.min(axis=1), keys.max(axis=1)
    exact = paging.page_scores(q, low, high, 0.2)
    for tops, apart in (((127, 127), 0.02), ((7, 15), 0.35)):
        coded = paging.code_scores(q, low, high, 0.2, *tops)
        assert np.abs(coded - exact).max() < apart and np.abs(coded - exact).max() > apart / 50
    assert not paging.code_scores(0 * q, low, high, 0.2, 7, 15).any()


def test_summary_bytes():
    assert [summary_bytes(s, "bf16", 64) for s in ("keys", "q8", "q4")] == [256, 132, 68]
    assert summary_bytes("keys", "f32", 64) == 512


def test_group_reductions():
    scores = random(3, 8)
    np.testing.assert_array_equal(paging.group_scores(scores, "max"), scores.max(axis=0))
    np.testing.assert_allclose(paging.group_scores(scores, "mean"), scores.sum(axis=0) / 3)
    soft = paging.group_scores(scores + 900, "softmax")
    expected = [sum(math.exp(s[j]) / sum(map(math.exp, s)) for s in scores) / 3 for j in range(8)]
    np.testing.assert_allclose(soft, expected)
    with pytest.raises(ValueError, match="median"):
        paging.group_scores(scores, "median")


def choose_naive(pages, scores, k, sink_pages):
    chosen = {pages[-1]} | {j for j in pages if j < sink_pages}
    while len(chosen) < k:
        best = max((scores[n] for n, j in enumerate(pages) if j not in chosen))
        chosen.add(min(j for n, j in enumerate(pages) if j not in chosen and scores[n] == best))
    return sorted(chosen)


def test_choice_equals_a_naive_one_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, first = int(rng.integers(4, 20)), int(rng.integers(0, 4))
        pages = np.arange(first, first + n)
        scores = rng.integers(0, 5, n).astype(np.float64)  # many ties
        k, sink_pages = int(rng.integers(3, n + 1)), int(rng.integers(0, 6))
        chosen = paging.choose(pages, scores, k, sink_pages)
        assert list(chosen) == choose_naive(list(pages), scores, k, sink_pages)
        assert paging.margin_of(pages, scores, chosen, sink_pages) >= 0
        assert len(chosen) == max(k, 1 + sum(j < sink_pages for j in pages[:-1]))


def test_sinks_are_forced_only_where_visible():
    pages, scores = np.arange(2, 9), np.array([0.0, 5, 4, 3, 2, 1, -9])
    assert list(paging.choose(pages, scores, 3, 2)) == [3, 4, 8]  # pages 0 and 1 have left the window
    assert list(paging.choose(pages, scores, 3, 3)) == [2, 3, 8]  # page 2 has not


def test_margin():
    pages, scores = np.arange(5), np.array([9.0, 4.0, 5.0, 2.0, 0.0])
    assert paging.margin_of(pages, scores, [0, 2, 4], 1) == pytest.approx((5 - 4) / 4)
    assert paging.margin_of(pages, scores, [0, 3, 4], 1) == pytest.approx((2 - 5) / 5)
    assert paging.margin_of(pages, scores, [0, 4], 1) == paging.margin_of(pages, scores, pages, 1) == math.inf


def test_budget():
    def k(n, b=0.15, tokens=None, size=16):
        return paging.budget_pages(n, size, b, tokens)

    assert [k(n) for n in (1, 3, 20, 21, 27, 100, 101)] == [3, 3, 3, 4, 5, 15, 16]
    assert [k(n, 1.0) for n in (1, 3, 4, 100)] == [3, 3, 4, 100]
    assert [k(9, tokens=t) for t in (1, 48, 49, 64, 1000)] == [3, 3, 4, 4, 63]
    assert k(9, tokens=49, size=4) == 13


def test_visibility_and_candidates():
    at = np.arange(40)
    assert paging.visible(at, 17, None).sum() == 18
    assert list(at[paging.visible(at, 17, 5)]) == [13, 14, 15, 16, 17]
    for p, size, window in itertools.product(range(40), (1, 3, 4), (None, 1, 2, 5, 39, 100)):
        naive = sorted({int(j) // size for j in at if j <= p and (window is None or p - j < window)})
        assert list(paging.candidates(p, size, window)) == naive


# ---- attention and merge


def test_attention_and_log_sum_exp():
    q, k, v = random(3, 6), random(11, 6, seed=1), random(11, 5, seed=2)
    seen = np.array([n % 3 != 0 for n in range(11)])
    k[~seen], v[~seen] = np.nan, np.nan
    o, lse = attend(q, k, v, seen)
    for h in range(3):
        e = {j: math.exp(q[h] @ k[j] / math.sqrt(6)) for j in range(11) if seen[j]}
        assert lse[h] == pytest.approx(math.log(sum(e.values())))
        np.testing.assert_allclose(o[h], sum(w * v[j] for j, w in e.items()) / sum(e.values()))
    far = attend(q * 1e4, k, v, seen)  # no overflow
    assert np.isfinite(far[0]).all() and np.isfinite(far[1]).all()


def test_empty_set_is_the_neutral_element():
    q, k, v = random(3, 6), random(4, 6, seed=1), random(4, 6, seed=2)
    empty = attend(q, k, v, np.zeros(4, bool))
    assert np.isneginf(empty[1]).all()
    whole = attend(q, k, v, np.ones(4, bool))
    for got in (merge(*whole, *empty), merge(*empty, *whole)):
        np.testing.assert_array_equal(got[0], whole[0])
        np.testing.assert_array_equal(got[1], whole[1])


@pytest.mark.parametrize("dtype,tolerance", [(np.float64, 1e-13), (np.float32, 2e-6)])
def test_folding_equals_attention_over_the_union(dtype, tolerance):
    rng = np.random.default_rng(3)
    q, k, v = (random(*s, seed=n).astype(dtype) for n, s in enumerate([(3, 6), (40, 6), (40, 6)]))
    part_of = rng.integers(0, 5, 40)  # part 4 is never folded in
    o, lse = attend(q, k, v, part_of == 0)
    for n in (1, 2, 3):
        o, lse = merge(o, lse, *attend(q, k, v, part_of == n))
    whole_o, whole_lse = attend(q, k, v, part_of < 4)
    np.testing.assert_allclose(o, whole_o, atol=tolerance)
    np.testing.assert_allclose(lse, whole_lse, atol=tolerance)
    assert np.abs(o - attend(q, k, v, part_of < 5)[0]).max() > 1e-3
    twice = merge(o, lse, *attend(q, k, v, part_of == 1))
    assert np.abs(twice[0] - whole_o).max() > 1e-3
