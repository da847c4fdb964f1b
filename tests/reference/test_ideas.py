"""scripts/study_ideas.py: its baseline is the reference's decoder, and its variants are what they say."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from .common import N_PROMPT, N_STEPS, model_of, tokens_of
from .decoder import Decoder, Settings

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import study_ideas as ideas  # noqa: E402

SHAPE = dict(num_attention_heads=9, num_key_value_heads=3, hidden_size=36)


def run(variants, replay=None):
    """Log-probabilities (steps, variants, V), the batch, and the pages of the first variant by (step, layer, head)."""
    model = ideas.slim(model_of(dtype=np.float32, **SHAPE))
    tokens = tokens_of(model)
    keys, values, _ = ideas.dense(model, tokens, N_PROMPT, N_STEPS)
    batch, chosen = ideas.Batch(model, variants, keys, values, N_STEPS), {}
    select = batch.select

    def record(i, place, k_of):
        pages, counted = select(i, place, k_of)
        for g in range(pages.shape[1]):
            chosen[batch.p - N_PROMPT, i, g] = np.sort(pages[0, g][counted[0, g]])
        return pages, counted

    batch.select = record
    return np.stack([batch.step(t) for t in tokens[N_PROMPT:]]), batch, chosen


@pytest.mark.parametrize("window", [2, 3, 8])
def test_baseline_is_the_reference(window):
    found, batch, chosen = run([ideas.Variant("ours", "ours", window)])
    model, margins = model_of(dtype=np.float32, **SHAPE), []
    tokens = tokens_of(model)
    settings = Settings(window=window, kv_budget=ideas.BUDGET, page_size=4, dense_layers=0, score_alpha=0.15,
                        summary="q4", kv_dtype="bf16")
    decoder = Decoder(model, settings, len(tokens), lambda *at: margins.append(at[-1]["margin"]), lambda *at: chosen[at])
    decoder.prefill(tokens[:N_PROMPT])
    for n, token in enumerate(tokens[N_PROMPT:]):
        logits = decoder.step(token).astype(float)
        expected = logits - np.log(np.exp(logits).sum())
        np.testing.assert_allclose(found[n, 0], expected, atol=0.03)
        assert np.abs(found[n, 0] - expected).mean() < 0.01
    assert np.mean(np.array(margins) < 0) < 0.05  # near ties turned by rounding
    assert 1 + batch.met[0] / batch.loaded[0] == pytest.approx(decoder.counters.exposure)
    assert batch.read[0] / batch.read_dense[0] == pytest.approx(decoder.counters.kv_read_share)


def test_carrying_every_row_is_the_baseline_and_none_is_window_one():
    ours = ideas.Variant("ours", "ours", 4)
    some = [ours] + [dataclasses.replace(ours, **c) for c in (
        dict(carry="ages", ages=(1, 2, 3)), dict(carry="weight", tau=0.0), dict(carry="layer", tau=0.0),
        dict(carry="ages"), dict(carry="none"))]
    found, batch, _ = run(some)
    for s in (1, 2, 3):
        np.testing.assert_allclose(found[:, s], found[:, 0], atol=0.01)
        assert batch.carried[s] == batch.old[s]
    np.testing.assert_allclose(found[:, 4], found[:, 5], atol=0.01)  # folding alone reaches no key and no token
    assert batch.carried[4] == 0 and batch.met[4] > 0 and batch.met[5] == 0
    assert np.abs(found[:, 0] - found[:, 5]).max() > 0.05


def test_all_read_the_same_bytes():
    some = [v for v in ideas.variants() if v.window == 2]
    for page in (2, 4):
        group = [v for v in some if v.page == page]
        _, batch, _ = run(group)
        _, ours, _ = run([ideas.Variant("ours", "ours", 2)])
        for s, v in enumerate(group):
            # Few steps: a page more or less at the end, and what steering has not made up yet.
            assert batch.read[s] / ours.read[0] == pytest.approx(1, abs=0.05 if v.share == "mass" else 0.025), v.name


def test_budget_of_heads_is_shared():
    ours = ideas.Variant("ours", "ours", 2)
    _, batch, _ = run([ours, dataclasses.replace(ours, share="pool"), dataclasses.replace(ours, share="pool", floor=1.0)])
    found = np.zeros((3, 3, 40), np.float32)
    found[:, 0, 5:25] = 1
    counts = batch.counts(found, found, np.array([8, 8, 8]))
    assert counts.tolist() == [[8, 8, 8], [18, 3, 3], [8, 8, 8]]


def test_missing_pages_count():
    ours = ideas.Variant("ours", "ours", 4)
    found, batch, _ = run([ours, dataclasses.replace(ours, miss=0.0001), dataclasses.replace(ours, miss=1.0)])
    assert batch.met[2] > 1.1 * batch.met[0]
    assert abs(batch.met[1] / batch.met[0] - 1) < 0.03


def patched(variants, weigh, fold):
    """A run in which older rows are told the weights `weigh(layer)`, and with their supplements left out unless fold."""
    attend = ideas.Batch.attend

    def told(batch, i, place, *chosen):
        o, lse = batch.o[i].copy(), batch.lse[i].copy()
        weights = attend(batch, i, place, *chosen)
        old = np.arange(batch.w) != place
        if not fold:
            batch.o[i][:, :, old], batch.lse[i][:, :, old] = o[:, :, old], lse[:, :, old]
        weights[:, old] = weigh(i)
        return weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ideas.Batch, "attend", told)
        return run(variants)


def test_a_row_woken_in_a_layer_goes_on_from_what_entered_it():
    some = [ideas.Variant("d", "layer", 4, carry="layer", tau=0.5), ideas.Variant("ours", "none", 4, carry="none")]
    found, batch, _ = patched(some, lambda i: float(i == 2), fold=False)
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=0.01)  # nothing was folded: the same keys again
    assert batch.carried[0] / batch.old[0] == pytest.approx(3 / 5)  # of 5 layers, the last three


def test_a_row_is_carried_once_its_supplements_weigh_enough():
    some = [ideas.Variant("d", "weight", 8, carry="weight", tau=0.5)]
    _, batch, _ = patched(some, lambda i: 0.3, fold=True)  # 1 - 0.7 ** 2 > 0.5: at ages 3 and 6
    ages = [age for step in range(N_STEPS) for age in range(1, min(step, 7) + 1)]
    assert batch.carried[0] / batch.old[0] == pytest.approx(np.mean(np.isin(ages, (3, 6))))
