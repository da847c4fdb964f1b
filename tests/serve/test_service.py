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


@pytest.mark.parametrize("ranks", [1, 2])
def test_choices_share_their_prompt(model, ranks):
    """Each choice is what it is alone with its number; the prompt is computed once."""
    request = {"prompt": prompt(70, 3), "max_tokens": 25, "ignore_eos": True, "temperature": 0.9, "seed": 11,
               "policy": "retro", "window": 4}
    (four,), stats = service.run(model, [{**request, "n": 4}], ranks=ranks, slots=4, context=192, options=EXACT)
    assert stats["rows_prompt"] == 70 + 3 and four["usage"]["completion"] == 100
    answers = [service.ids(four, i) for i in range(4)]
    assert len({tuple(a) for a in answers}) == 4  # drawn with different numbers
    (one,), _ = service.run(model, [request], ranks=ranks, slots=3, context=192, options=EXACT)
    assert service.ids(one) == answers[0]
    (two,), _ = service.run(model, [{**request, "n": 2}], ranks=ranks, slots=1, context=192, cache=0, options=EXACT)
    assert [service.ids(two, i) for i in range(2)] == answers[:2]  # one after the other, nothing shared
    (greedy,), _ = service.run(model, [{**request, "n": 3, "temperature": 0}], ranks=ranks, slots=3, context=192,
                               options=EXACT)
    assert service.ids(greedy, 0) == service.ids(greedy, 1) == service.ids(greedy, 2)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_cached_prompt_changes_nothing(model, ranks):
    """One after the other with a common beginning: later ones find its blocks, and say the same as without."""
    common = prompt(90, 5)
    requests = []
    for i in range(8):
        text = common[: 90 - 7 * (i // 4)] + prompt(10 + i, 50 + i)
        requests.append({"prompt": text, "max_tokens": 20, "ignore_eos": True, **POLICIES[i % 4]})
    hits, stats = service.run(model, requests, ranks=ranks, slots=1, context=192, cache=1, options=EXACT)
    none, plain = service.run(model, requests, ranks=ranks, slots=1, context=192, cache=0, options=EXACT)
    for a, b in zip(hits, none):
        assert a["choices"] == b["choices"] and a["usage"]["exposure"] == b["usage"]["exposure"]
        assert b["usage"]["cached"] == 0
    assert [r["usage"]["cached"] for r in hits] == [0] + [80] * 7
    assert stats["hits"] == 7 * 80 and plain["hits"] == 0 and plain["blocks_cached"] == 0
    assert plain["rows_prompt"] - stats["rows_prompt"] == 7 * 80
    # Eviction: a pool of 9 blocks holds little more than one sequence.
    tight, stats = service.run(model, requests, ranks=ranks, slots=1, context=192, cache=1, blocks=9, options=EXACT)
    assert [r["choices"] for r in tight] == [r["choices"] for r in none] and stats["hits"] > 0


def test_shared_blocks_while_all_of_them_decode(model):
    """Side by side, with other steps behind them: what one loaded, another has not met."""
    common = prompt(80, 9)
    requests = [{"prompt": common + prompt(i, 60 + i), "max_tokens": 30 + i, "ignore_eos": True, "delay_ms": 30 * i,
                 **POLICIES[3 - i % 2]} for i in range(8)]
    together, stats = service.run(model, requests, slots=8, context=192, cache=1, options=EXACT)
    assert stats["hits"] > 0
    for request, result in zip(requests, together):
        (alone,), _ = service.run(model, [{**request, "delay_ms": 0}], slots=1, context=192, cache=0, options=EXACT)
        assert alone["choices"] == result["choices"]
        assert alone["usage"]["exposure"] == result["usage"]["exposure"]


@pytest.mark.parametrize("policy", POLICIES)
def test_finished_turns_are_found_under_their_policy(model, policy):
    first = {"prompt": prompt(40, 1), "max_tokens": 50, "ignore_eos": True, **policy}
    (one,), _ = service.run(model, [first], slots=1, context=192, cache=2, options=EXACT)
    turn = first["prompt"] + service.ids(one)
    second = {"prompt": turn + prompt(5, 2), "max_tokens": 8, "ignore_eos": True, **policy, "delay_ms": 1500}
    other = {**second, "policy": "quest" if policy["policy"] == "dense" else "dense", "delay_ms": 2500}
    # 89 tokens were fed: five full blocks, two of them of the prompt alone.
    results, _ = service.run(model, [first, second, other], slots=1, context=192, cache=2, options=EXACT)
    assert [r["usage"]["cached"] for r in results] == [0, 80, 32]
    results, _ = service.run(model, [first, second, other], slots=1, context=192, cache=1, options=EXACT)
    assert [r["usage"]["cached"] for r in results] == [0, 32, 80]  # the second's prompt, computed densely


@pytest.mark.parametrize("ranks", [1, 2])
def test_random_arrivals_and_cancellations(model, ranks):
    requests = mixed(40, seed=3)
    random = np.random.default_rng(4)
    for i, request in enumerate(requests):
        request["delay_ms"] = int(random.integers(0, 800))
        if i % 4 == 1:
            request["cancel_after"] = 3
        if i % 4 == 3:
            request["cancel_ms"] = int(random.integers(1, 60))
        request["n"] = 1 + int(i % 10 == 5)
        request["priority"] = int(i % 7) - 3
    results, stats = service.run(model, requests, ranks=ranks, slots=4, context=192, blocks=20, growth=8, swap=1 << 21,
                                 options=EXACT)
    for i, (request, result) in enumerate(zip(requests, results)):
        for choice in result["choices"]:
            if choice["reason"] == "length":
                assert len(choice["ids"]) == request["max_tokens"]
            else:
                assert choice["reason"] == "cancelled" and i % 2
    for i in (0, 2, 4, 8):
        (alone,), _ = service.run(model, [{**requests[i], "delay_ms": 0}], ranks=ranks, slots=4, context=192, options=EXACT)
        assert alone["choices"] == results[i]["choices"]


def test_refusals_say_why(model):
    bad = [
        ({"prompt": []}, "empty"),
        ({"prompt": [320]}, "vocabulary has 320"),
        ({"prompt": prompt(192, 1)}, "192 tokens, the context limit is 192"),
        ({"prompt": [1], "policy": "retro", "window": 5}, "policy.window"),
        ({"prompt": [1], "kv_budget": 0, "policy": "quest"}, "policy.kv_budget"),
        ({"prompt": prompt(50, 1), "max_tokens": 100}, "KV blocks"),
        ({"prompt": [1], "n": 129}, "choices"),
        ({"prompt": [1], "stop": [""]}, "empty"),
        ({"prompt": [1], "priority": 101}, "priority"),
    ]
    results, _ = service.run(model, [request for request, _ in bad], slots=2, context=192, blocks=9, options=EXACT)
    for (request, words), result in zip(bad, results):
        assert words in result["why"], (request, result)
    many = [{"prompt": [1, 2, 3], "max_tokens": 40, "ignore_eos": True} for _ in range(9)]
    results, stats = service.run(model, many, slots=2, context=192, queue=5, options=EXACT)
    assert [r.get("refused") for r in results] == [None] * 5 + ["too many requests wait"] * 4
    assert stats["requests"] == 5


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_drain_ends_everything_and_accepts_nothing(model, ranks):
    long = [{"prompt": prompt(60, i), "max_tokens": 8000, "ignore_eos": True, **POLICIES[i % 4]} for i in range(6)]
    late = {"prompt": prompt(5, 1), "max_tokens": 2, "delay_ms": 1200}
    results, stats = service.run(model, [*long, late], ranks=ranks, slots=4, context=8192, blocks=1400, drain_after_ms=500,
                                 drain_ms=300, options=EXACT)
    assert results[-1]["refused"] == "shutting down"
    for result in results[:-1]:
        assert result["choices"][0]["reason"] == "shutdown" and len(service.ids(result)) < 8000
    assert any(service.ids(r) for r in results[:-1])
    short = [{"prompt": prompt(60, i), "max_tokens": 60, "ignore_eos": True} for i in range(6)]
    results, stats = service.run(model, [*short, late], ranks=ranks, slots=1, context=192, drain_after_ms=1, drain_ms=60000,
                                 options=EXACT)
    assert [len(service.ids(r)) for r in results] == [60] * 6 + [0]  # there was time to finish
