"""echo with logprobs: what the model gives every token of a prompt, as log-likelihood tasks of evaluation harnesses ask for
it, against the NumPy reference; and max_tokens 0."""

import json
import threading

import numpy as np
import pytest
from reference.decoder import Decoder, Settings
from reference.model import Model
from tools import tiny_model

NO_TOKENS = {"model": "m", "max_tokens": 0, "echo": True, "logprobs": 3}
F32 = ("--kv-dtype", "f32", "--threads", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("f32")
    tiny_model.make(folder, family="smollm", dtype="f32")
    return folder


def some_ids(n, seed):
    return np.random.default_rng(seed).integers(20, 500, n).tolist()


def reference(folder, ids):
    """(n - 1, vocabulary) log-probabilities after each token but the last."""
    decoder = Decoder(Model.load(folder), Settings(policy="dense"), len(ids))
    logits = np.stack([decoder.prefill([i]) for i in ids[:-1]]).astype(np.float64)
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


def check(lists, ids, expected):
    """Of the first len(ids) tokens."""
    n = len(ids)
    assert lists["token_logprobs"][0] is None and lists["top_logprobs"][0] is None
    got = np.array(lists["token_logprobs"][1:n])
    assert np.abs(got - expected[np.arange(n - 1), ids[1:]]).max() < 2e-4
    for row, top in zip(expected, lists["top_logprobs"][1:n]):
        assert np.allclose(sorted(top.values()), np.sort(row)[-3:], atol=2e-4)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_prompt_token_against_the_reference(start, folder, ranks):
    """Longer than one step's rows and the rows that give logits in one, with a cache that knows the prompt, beside others."""
    s = start("--max-seqs", 3, "--max-context", 400, "--prefill-chunk", 150, *F32, model=folder, ranks=ranks)
    prompts = [some_ids(n, n) for n in (1, 2, 64, 65, 130, 333)]
    expected = [reference(folder, ids) if len(ids) > 1 else None for ids in prompts]
    for _ in range(2):
        busy = [threading.Thread(target=s.chat, args=("Tell me more",), kwargs={"max_tokens": 60}) for _ in range(2)]
        for t in busy:
            t.start()
        status, answer = s.post("/v1/completions", {**NO_TOKENS, "prompt": prompts})
        for t in busy:
            t.join()
        assert status == 200, answer
        assert answer["usage"]["completion_tokens"] == 0 and answer["usage"]["prompt_tokens"] == sum(map(len, prompts))
        for choice, ids, rows in zip(answer["choices"], prompts, expected):
            lists = choice["logprobs"]
            assert choice["finish_reason"] == "length"
            assert [len(v) for v in lists.values()] == [len(ids)] * 4
            if len(ids) > 1:
                check(lists, ids, rows)
            else:
                assert lists["token_logprobs"] == lists["top_logprobs"] == [None]


def test_interrupted_prompts(start, folder):
    """A prompt that is interrupted by a higher priority starts again and tells each token once."""
    s = start("--max-seqs", 2, "--max-context", 256, "--prefill-chunk", 4, *F32, model=folder)
    prompts = [some_ids(200 + 7 * i, i) for i in range(6)]
    expected = [reference(folder, ids) for ids in prompts]
    for _ in range(20):
        found = []
        low = threading.Thread(target=lambda: found.append(s.post("/v1/completions", {**NO_TOKENS, "prompt": prompts,
                                                                                      "priority": -9})))
        low.start()
        while low.is_alive():
            assert s.chat("Now", max_tokens=2, priority=9)[0] == 200
        low.join()
        status, answer = found[0]
        assert status == 200, answer
        for choice, ids, rows in zip(answer["choices"], prompts, expected):
            assert len(choice["logprobs"]["tokens"]) == len(ids)
            check(choice["logprobs"], ids, rows)
        if answer["usage"]["retro"]["preempted"] > 0:
            return
    pytest.fail("nothing was interrupted")


def test_with_an_answer_in_choices_and_in_a_stream(start, folder):
    """The prompt's lists are followed by the answer's, in every choice; a stream says the same."""
    s = start(*F32, model=folder)
    ids = some_ids(90, 5)
    fields = {**NO_TOKENS, "prompt": ids, "max_tokens": 8, "n": 3, "seed": 2, "attention": {"policy": "dense"}}
    whole = s.post("/v1/completions", fields)[1]["choices"]
    without = s.post("/v1/completions", {**fields, "echo": False})[1]["choices"]
    rows = reference(folder, ids)
    for choice, plain in zip(whole, without):
        check(choice["logprobs"], ids, rows)
        for name, values in plain["logprobs"].items():
            if name == "text_offset":
                values = [v + len(choice["text"]) - len(plain["text"]) for v in values]
            answer = choice["logprobs"][name][len(ids):]
            if name == "token_logprobs":
                assert answer == pytest.approx(values, abs=1e-5)
            elif name != "top_logprobs":
                assert answer == values
    _, _, text = s.request("/v1/completions", {**fields, "stream": True})
    events = [json.loads(e[6:]) for e in text.decode().split("\n\n") if e.startswith("data: {")]
    for i, choice in enumerate(whole):
        mine = [e["choices"][0] for e in events if e["choices"] and e["choices"][0]["index"] == i]
        assert "".join(e["text"] for e in mine) == choice["text"]
        for name, values in choice["logprobs"].items():
            streamed = [v for e in mine if e["logprobs"] for v in e["logprobs"][name]]
            if name in ("tokens", "text_offset"):
                assert streamed == values
            else:
                assert len(streamed) == len(values)


def test_a_sum_is_that_of_a_decode(start, folder):
    """A text's log-likelihood after a context: what decoding gave its tokens one by one."""
    s = start(*F32, model=folder)
    ids = some_ids(50, 9)
    fields = {"model": "m", "prompt": ids, "max_tokens": 30, "temperature": 0, "ignore_eos": True, "logprobs": 0,
              "attention": {"policy": "dense"}}
    drawn = s.post("/v1/completions", fields)[1]["choices"][0]
    known = s.post("/tokenize", {"prompt": drawn["text"], "add_special_tokens": False})[1]["tokens"]
    if len(known) != 30:
        pytest.skip("the text has another tokenization")
    again = s.post("/v1/completions", {**NO_TOKENS, "prompt": ids + known})[1]["choices"][0]["logprobs"]
    assert again["token_logprobs"][50:] == pytest.approx(drawn["logprobs"]["token_logprobs"], abs=2e-4)


@pytest.mark.parametrize("family", ["llama2", "mistral", "llama3", "qwen2"])
def test_offsets_are_of_the_text_that_is_echoed(start, tmp_path, family):
    tiny_model.make(tmp_path, family=family)
    s = start(model=tmp_path)
    for prompt in ("Hello there, you", " x", "x  y ", "naïve \u20ac\n", "<s>x</s>" if family != "qwen2" else "<|im_end|>x"):
        choice = s.post("/v1/completions", {**NO_TOKENS, "prompt": prompt})[1]["choices"][0]
        at = choice["logprobs"]["text_offset"]
        assert choice["text"] == prompt and at == sorted(at) and at[0] == 0 and at[-1] < len(prompt)
        for token, begin, end in zip(choice["logprobs"]["tokens"], at, at[1:] + [len(prompt)]):
            if not token.startswith("bytes:") and 0 < begin < end:
                # A character of byte tokens is told with the token behind it; Llama 2 puts a space behind <s>.
                assert prompt[begin:end].endswith(token.lstrip(" "))
