"""The service with tiny models: what a request gets does not depend on what else there is."""

import numpy as np
import pytest

import service

EXACT = ("--kv-dtype", "f32", "--page-size", "4", "--block-size", "16", "--dense-layers", "1", "--kv-budget", "0.2",
         "--window", "4", "--prefill-chunk", "48")
POLICIES = ({"policy": "dense"}, {"policy": "quest"}, {"policy": "retro", "window": 2}, {"policy": "retro", "window": 4})


def prompt(n, seed):
    return [int(t) for t in np.random.default_rng(seed).integers(0, 320, n)]


def mixed(n, seed=1, **more):
    """n requests of all policies, greedy and sampled, of odd lengths."""
    random = np.random.default_rng(seed)
    requests = []
    for i in range(n):
        sampled = {"temperature": 0.8, "top_k": 40} if i % 3 == 2 else {}
        requests.append({"prompt": prompt(int(random.integers(1, 120)), 100 * seed + i), "seed": i,
                         "max_tokens": int(random.integers(1, 60)), "ignore_eos": True, **POLICIES[i % 4], **sampled, **more})
    return requests


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_same_tokens_alone_and_among_others(model, ranks):
    requests = mixed(17)
    together, stats = service.run(model, requests, ranks=ranks, slots=8, context=192, options=EXACT)
    assert stats["rows_revised"] > 0
    for request, result in zip(requests, together):
        assert result["choices"][0]["reason"] == "length" and len(service.ids(result)) == request["max_tokens"]
    for i in range(0, 17, 4):
        alone, _ = service.run(model, requests[i : i + 1], ranks=ranks, slots=1, context=192, options=EXACT)
        assert service.ids(alone[0]) == service.ids(together[i]), i


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("swap", [1 << 22, 0], ids=["swapped", "dropped"])
def test_interrupted_sequences_resume_to_the_same_tokens(model, ranks, swap):
    """12 blocks of 16 tokens for 6 slots: somebody is interrupted all the time, mid-window and mid-prompt."""
    requests = mixed(12, seed=7)
    for request in requests:
        request["max_tokens"] = 70 - len(request["prompt"]) // 3
    roomy, stats = service.run(model, requests, ranks=ranks, slots=6, context=192, options=EXACT)
    assert stats["preemptions"] == 0
    tight, stats = service.run(model, requests, ranks=ranks, slots=6, context=192, blocks=12, growth=1, swap=swap,
                               options=EXACT)
    assert stats["preemptions"] > 5
    assert sum(r["usage"]["preempted"] for r in tight) == stats["preemptions"]
    for a, b in zip(roomy, tight):
        assert a["choices"] == b["choices"]
        for field in ("exposure", "kv_read_share", "pages_loaded", "pages_met"):
            assert a["usage"][field] == b["usage"][field]
