"""Every field is honoured or refused with 400 that names it; bodies that are no JSON, keys, sizes, methods."""

import json
import time

import pytest
from tools import tiny_model

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
TEXT = {"model": "m", "prompt": "x", "max_tokens": 2}

BAD = [  # endpoint, fields, the field that the error must name
    ("chat", {"foo": 1}, "foo"),
    ("chat", {"Temperature": 1}, "Temperature"),
    ("chat", {"prompt": "x"}, "prompt"),
    ("text", {"messages": []}, "messages"),
    ("text", {"top_logprobs": 2}, "top_logprobs"),
    ("text", {"max_completion_tokens": 2}, "max_completion_tokens"),
    ("chat", {"model": 5}, "model"),
    ("chat", {"messages": []}, "messages"),
    ("chat", {"messages": "hi"}, "messages"),
    ("chat", {"messages": [{"role": "user"}]}, "messages"),
    ("chat", {"messages": [{"role": "tool", "content": "x"}]}, "messages"),
    ("chat", {"messages": [{"role": "user", "content": "x", "name": "n"}]}, "messages"),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "more": 1}]}]}, "messages"),
    ("chat", {"messages": [{"role": "user", "content": 3}]}, "messages"),
    ("chat", {"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "messages"),
    ("chat", {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages"),
    ("chat", {"messages": [{"role": "assistant", "content": "x", "audio": []}]}, "messages"),
    ("chat", {"messages": None}, "messages"),
    ("text", {"prompt": None}, "prompt"),
    ("text", {"prompt": []}, "prompt"),
    ("text", {"prompt": [[]]}, "prompt"),
    ("text", {"prompt": [1, "a"]}, "prompt"),
    ("text", {"prompt": [-1]}, "prompt"),
    ("text", {"prompt": [10**9]}, "prompt"),
    ("text", {"prompt": [1.5]}, "prompt"),
    ("text", {"prompt": {"a": 1}}, "prompt"),
    ("text", {"prompt": ["a"] * 200}, "prompt"),
    ("text", {"prompt": ["a"] * 100, "n": 2}, "n"),
    ("chat", {"n": 0}, "n"),
    ("chat", {"n": 129}, "n"),
    ("chat", {"n": 1.0}, "n"),
    ("chat", {"n": "2"}, "n"),
    ("chat", {"max_tokens": 0}, "max_tokens"),
    ("chat", {"max_tokens": -5}, "max_tokens"),
    ("chat", {"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens"),
    ("chat", {"temperature": -0.1}, "temperature"),
    ("chat", {"temperature": 2.1}, "temperature"),
    ("chat", {"temperature": "1"}, "temperature"),
    ("chat", {"temperature": True}, "temperature"),
    ("chat", {"top_p": 1.1}, "top_p"),
    ("chat", {"min_p": -1}, "min_p"),
    ("chat", {"top_k": -1}, "top_k"),
    ("chat", {"top_k": 1.5}, "top_k"),
    ("chat", {"presence_penalty": 3}, "presence_penalty"),
    ("chat", {"frequency_penalty": -3}, "frequency_penalty"),
    ("chat", {"repetition_penalty": 0}, "repetition_penalty"),
    ("chat", {"seed": 1.5}, "seed"),
    ("chat", {"seed": "a"}, "seed"),
    ("chat", {"stop": ""}, "stop"),
    ("chat", {"stop": ["a"] * 17}, "stop"),
    ("chat", {"stop": [1]}, "stop"),
    ("chat", {"stop_token_ids": [10**7]}, "stop_token_ids"),
    ("chat", {"stop_token_ids": 5}, "stop_token_ids"),
    ("chat", {"logit_bias": {"x": 1}}, "logit_bias"),
    ("chat", {"logit_bias": {"99999999": 1}}, "logit_bias"),
    ("chat", {"logit_bias": {"5": 101}}, "logit_bias"),
    *(("chat", {"logit_bias": {bad: 1}}, "logit_bias")
      for bad in ("05", "00", "-0", "+5", " 5", "5 ", "0x5", "5.0", "", "9" * 30)),
    ("chat", {"logit_bias": [1]}, "logit_bias"),
    ("chat", {"logprobs": 1}, "logprobs"),
    ("chat", {"top_logprobs": 2}, "top_logprobs"),
    ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("text", {"logprobs": True}, "logprobs"),
    ("text", {"logprobs": 21}, "logprobs"),
    ("text", {"max_tokens": 0}, "max_tokens"),
    ("text", {"max_tokens": 0, "logprobs": 1}, "max_tokens"),
    ("text", {"suffix": "end"}, "suffix"),
    ("text", {"best_of": 3}, "best_of"),
    ("chat", {"stream": 1}, "stream"),
    ("chat", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("chat", {"stream": True, "stream_options": {"other": 1}}, "stream_options"),
    ("chat", {"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options"),
    ("chat", {"response_format": {"type": "xml"}}, "response_format"),
    ("chat", {"response_format": {"type": "json_schema"}}, "response_format"),
    ("chat", {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
    ("chat", {"response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"type": "string", "contentEncoding": "base64"}}}}, "response_format"),
    ("chat", {"response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {}, "strict": "yes"}}}, "response_format"),
    ("chat", {"response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {}, "description": 7}}}, "response_format"),
    ("chat", {"response_format": "json"}, "response_format"),
    ("chat", {"tools": [{"type": "function"}]}, "tools"),
    ("chat", {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [{"type": "function"}]}, "tools"),
    ("chat", {"tool_choice": "required"}, "tool_choice"),
    ("chat", {"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ("chat", {"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
    ("chat", {"functions": [{}]}, "functions"),
    ("chat", {"function_call": {"name": "f"}}, "function_call"),
    ("chat", {"modalities": ["audio"]}, "modalities"),
    ("chat", {"audio": {}}, "audio"),
    ("chat", {"prediction": {}}, "prediction"),
    ("chat", {"reasoning_effort": "low"}, "reasoning_effort"),
    ("chat", {"store": True}, "store"),
    ("chat", {"metadata": {"a": "b"}}, "metadata"),
    ("chat", {"service_tier": "flex"}, "service_tier"),
    ("chat", {"web_search_options": {}}, "web_search_options"),
    ("chat", {"verbosity": "low"}, "verbosity"),
    ("chat", {"moderation": {}}, "moderation"),
    ("chat", {"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
    ("chat", {"user": 5}, "user"),
    ("chat", {"safety_identifier": 5}, "safety_identifier"),
    ("chat", {"prompt_cache_key": "k" * 257}, "prompt_cache_key"),
    ("chat", {"priority": 101}, "priority"),
    ("chat", {"ignore_eos": "yes"}, "ignore_eos"),
    ("chat", {"ignore_eos": True, "response_format": {"type": "json_object"}}, "ignore_eos"),
    ("chat", {"attention": "dense"}, "attention"),
    ("chat", {"attention": {"policy": "full"}}, "attention"),
    ("chat", {"attention": {"windows": 2}}, "attention"),
    ("chat", {"attention": {"window": 0}}, "attention.window"),
    ("chat", {"attention": {"window": 99}}, "attention.window"),
    ("chat", {"attention": {"policy": "dense", "window": 2}}, "attention"),
    ("chat", {"attention": {"policy": "dense", "kv_budget": 0.5}}, "attention"),
    ("chat", {"attention": {"policy": "dense", "kv_budget_tokens": 64}}, "attention"),
    ("chat", {"attention": {"kv_budget": 0}}, "attention.kv_budget"),
    ("chat", {"attention": {"kv_budget": 1.5}}, "attention.kv_budget"),
    ("chat", {"attention": {"kv_budget": 0.5, "kv_budget_tokens": 64}}, "attention"),
]


@pytest.mark.parametrize("endpoint, fields, name", BAD, ids=[f"{n}-{i}" for i, (_, _, n) in enumerate(BAD)])
def test_refused_by_name(tiny, endpoint, fields, name):
    path, base = ("/v1/chat/completions", CHAT) if endpoint == "chat" else ("/v1/completions", TEXT)
    status, answer = tiny.post(path, {**base, **fields})
    assert status == 400, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == name, answer
    assert name.split(".")[0] in answer["error"]["message"]


@pytest.mark.parametrize("name, param", [("x" * 80, "x" * 63), ("é" * 40, "é" * 31), ("a" + "世" * 30, "a" + "世" * 20),
                                         ("😀" * 16, "😀" * 15)])
def test_a_long_unknown_name_is_cut_between_characters(tiny, name, param):
    for path, base in (("/v1/completions", TEXT), ("/tokenize", {"prompt": "x"})):
        status, answer = tiny.post(path, {**base, name: 1})
        assert status == 400 and answer["error"]["param"] == param
        assert answer["error"]["message"] == name.encode()[:60].decode(errors="ignore") + ": no such field"


def test_a_refused_policy_names_those_that_are_taken(tiny):
    ask = lambda policy: tiny.post("/v1/chat/completions", {**CHAT, "attention": {"policy": policy}})  # noqa: E731
    message = ask("full")[1]["error"]["message"]
    for policy in ("dense", "quest", "retro", "streaming"):
        assert policy in message and ask(policy)[0] == 200


HONOURED = [
    ("chat", {k: None for k in ("n", "stop", "tools", "seed", "response_format", "attention", "logprobs", "store")}),
    ("chat", {"tools": [], "tool_choice": "none", "store": False, "metadata": {}, "service_tier": "auto",
              "modalities": ["text"], "user": "u"}),
    ("chat", {"tool_choice": "auto", "function_call": "auto", "parallel_tool_calls": True, "service_tier": "default",
              "verbosity": "medium", "prompt_cache_retention": "in_memory", "safety_identifier": "s", "prompt_cache_key": "k",
              "top_logprobs": 0}),
    ("chat", {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "refusal": None,
                                                              "annotations": [], "tool_calls": []}]}),
    ("chat", {"max_completion_tokens": 2, "stop": ["a", "b"], "seed": -9, "logit_bias": {}, "priority": -3}),
    ("chat", {"logit_bias": {"0": 1, "5": -1, "10": 0}}),
    ("chat", {"response_format": {"type": "text"}, "attention": {}, "logprobs": False}),
    ("chat", {"attention": {"policy": "retro", "window": 8, "kv_budget_tokens": 32}}),
    ("chat", {"attention": {"policy": "dense", "window": 1}, "ignore_eos": True, "skip_special_tokens": False}),
    ("text", {"suffix": "", "best_of": 1, "echo": False, "logprobs": 0, "stop_token_ids": [3]}),
    ("text", {"prompt": [[1, 2], [3]], "n": 2, "best_of": 2}),
    ("text", {"echo": True, "max_tokens": 0}),
    ("text", {"echo": True, "max_tokens": 0, "n": 2, "stream": False, "stop": ["x"]}),
    ("chat", {"attention": {"kv_budget": None, "kv_budget_tokens": 32, "window": None}}),
    ("chat", {"response_format": {"type": "json_object", "json_schema": None}}),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "annotations": None}]}]}),
]


@pytest.mark.parametrize("endpoint, fields", HONOURED)
def test_taken(tiny, endpoint, fields):
    path, base = ("/v1/chat/completions", CHAT) if endpoint == "chat" else ("/v1/completions", TEXT)
    status, answer = tiny.post(path, {**base, **fields})
    assert status == 200, answer


@pytest.mark.parametrize("family", ["llama2", "mistral", "llama3"])
def test_echo_is_the_prompt(start, tmp_path, family):
    tiny_model.make(tmp_path, family=family)
    s = start(model=tmp_path)
    prompts = [" x", "x  y ", "<s>x</s>", "é\n"]
    fields = {**TEXT, "prompt": prompts, "seed": 4}
    answers = [c["text"] for c in s.post("/v1/completions", fields)[1]["choices"]]
    echoed = [c["text"] for c in s.post("/v1/completions", {**fields, "echo": True})[1]["choices"]]
    assert echoed == [p + a for p, a in zip(prompts, answers)]
    begin = s.post("/tokenize", {"prompt": ""})[1]["tokens"]
    named = s.post("/v1/completions", {**fields, "prompt": begin, "echo": True, "skip_special_tokens": False})[1]
    assert named["choices"][0]["text"].startswith("<s>" if family != "llama3" else "<|begin_of_text|>")


@pytest.mark.parametrize("family", ["smollm", "llama2"])
def test_every_alternative_has_its_name(start, tmp_path, family):
    """Tokens that are pieces of characters, of which these models have many, are told apart, and a letter of Llama 2 from
    the byte that it is."""
    tiny_model.make(tmp_path, family=family)
    s = start(model=tmp_path)
    body = {**TEXT, "max_tokens": 60, "logprobs": 20, "temperature": 0, "ignore_eos": True}
    status, _, text = s.request("/v1/completions", body)
    twice = []

    def pairs(found):
        names = [name for name, _ in found]
        twice.extend({name for name in names if names.count(name) > 1})
        return dict(found)

    logprobs = json.loads(text, object_pairs_hook=pairs)["choices"][0]["logprobs"]
    assert status == 200 and not twice and all(len(top) == 20 for top in logprobs["top_logprobs"])
    assert any(name.startswith("bytes:\\x") for top in logprobs["top_logprobs"] for name in top)
    assert all(token in top for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"]))


def test_no_chat_says_what_to_do_over_http(start, tmp_path):
    tiny_model.make(tmp_path, family="llama2")
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "chat_template": "{{ messages }}"}))
    s = start(model=tmp_path)
    status, answer = s.post("/v1/chat/completions", CHAT)
    assert status == 400 and answer["error"]["param"] == "messages" and "/v1/completions" in answer["error"]["message"]
    assert s.post("/v1/completions", TEXT)[0] == 200


def test_tokenize_fields(tiny):
    talk = CHAT["messages"]
    plain = tiny.post("/tokenize", {"prompt": "x"})
    assert plain[0] == 200
    assert tiny.post("/tokenize", {"prompt": "x", "messages": None, "add_special_tokens": None, "model": None}) == plain
    assert tiny.post("/tokenize", {"messages": talk, "add_special_tokens": False}) == tiny.post("/tokenize", {"messages": talk})
    status, answer = tiny.post("/tokenize", {"messages": talk, "add_special_tokens": True})
    assert status == 400 and answer["error"]["param"] == "add_special_tokens"


def test_equal_prompts_differ_without_a_seed(tiny):
    ask = {"model": "m", "prompt": ["x", "x"], "max_tokens": 12, "ignore_eos": True, "n": 2}
    free = [c["text"] for c in tiny.post("/v1/completions", ask)[1]["choices"]]
    assert len(set(free)) == 4, free
    seeded = [c["text"] for c in tiny.post("/v1/completions", {**ask, "seed": 3})[1]["choices"]]
    assert seeded[:2] == seeded[2:] and len(set(seeded)) == 2, seeded


@pytest.mark.parametrize("stream", [False, True])
def test_created_is_now(tiny, stream):
    status, _, body = tiny.request("/v1/completions", {**TEXT, "stream": stream})
    first = body.split(b"\n\n")[0].removeprefix(b"data: ")
    assert status == 200 and abs(json.loads(first)["created"] - time.time()) < 60


@pytest.mark.parametrize("path, base", [("/v1/chat/completions", CHAT), ("/v1/completions", {**TEXT, "prompt": ["x", "x y z"]})])
def test_usage_with_every_event(tiny, path, base):
    ask = {**base, "max_tokens": 9, "ignore_eos": True, "n": 2, "seed": 1, "stream": True,
           "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    status, _, body = tiny.request(path, ask)
    *events, last = [json.loads(e.removeprefix(b"data: ")) for e in body.split(b"\n\n") if e and e != b"data: [DONE]"]
    assert status == 200 and last["choices"] == [] and "retro" in last["usage"]
    so_far = {}
    for e in events:
        u = e["usage"]
        assert u["total_tokens"] == u["prompt_tokens"] + u["completion_tokens"]
        so_far.setdefault(e["choices"][0]["index"], []).append(u)
    for counted in so_far.values():
        n = [u["completion_tokens"] for u in counted]
        assert n == sorted(n) and n[-1] == 9
    assert sum(u[-1]["completion_tokens"] for u in so_far.values()) == last["usage"]["completion_tokens"]
    assert sum(u[-1]["prompt_tokens"] for u in list(so_far.values())) == 2 * last["usage"]["prompt_tokens"]


def test_whatever_was_refused_left_nothing(tiny):
    tiny.idle()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model":"m","model":"m"}', b'{"a":\xff}', b'{"a":"\\ud800"}',
                                  b'{"model":"m"} x', b'{"model":01}', b'{"model":"m","prompt":"\\u0000"}',
                                  b"[" * 3000, b'{"n":1e999}', b"\xef\xbb\xbf{}"])
def test_not_json(tiny, body):
    status, answer = tiny.post("/v1/completions", body)
    assert status == 400 and answer["error"]["code"] == "invalid_json", answer


@pytest.mark.parametrize("body, words", [
    (b'{"seed":9223372036854775808}', "number out of range"),
    (b'{"temperature":-1e999}', "number out of range"),
    (b'{"prompt":"a\\u0000"}', "text with a NUL"),
    (b"[" * 3000, "nested too deeply"),
    (b'{"n":1,"n":1}', "name twice"),
    (b'{"n":NaN}', "not JSON"),
    (b"", "not JSON: '[' or '{' expected near end of file (line 1, column 0)"),
])
def test_what_is_not_taken_is_told_from_what_is_no_json(tiny, body, words):
    assert words in tiny.post("/v1/completions", body)[1]["error"]["message"]


def test_unknown_places(tiny):
    assert tiny.request("/v1/embeddings", {})[0] == 404
    for path, body, allowed in (("/v1/completions", None, "POST"), ("/health", {}, "GET, HEAD"),
                                ("/v1/models/m", {}, "GET, HEAD")):
        status, headers, _ = tiny.request(path, body)
        assert status == 405 and headers["Allow"] == allowed
    assert tiny.request("/health", method="HEAD")[0] == 200
    status, answer = tiny.post("/v1/completions", {**TEXT, "model": "other"})
    assert status == 404 and answer["error"]["code"] == "model_not_found"
    assert tiny.post("/v1/completions", {"prompt": "x"})[1]["error"]["param"] == "model"


def test_one_model_by_its_name(tiny):
    (listed,) = json.loads(tiny.request("/v1/models")[2])["data"]
    status, headers, body = tiny.request("/v1/models/m")
    assert status == 200 and json.loads(body) == listed and "Allow" not in headers
    assert tiny.client().models.retrieve("m").id == "m"
    for other in ("n", "mm", "m/", "M", "a/b", "m%20"):
        status, _, body = tiny.request("/v1/models/" + other)
        error = json.loads(body)["error"]
        assert status == 404 and (error["code"], error["param"]) == ("model_not_found", "model"), other
        assert error["type"] == "invalid_request_error"
    assert json.loads(tiny.request("/v1/models/")[2])["error"]["code"] == "not_found"


def test_page_and_json_are_what_they_say(tiny):
    status, headers, body = tiny.request("/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert b"http://" not in body and b"https://" not in body  # nothing from elsewhere
    assert json.loads(tiny.request("/v1/models")[2])["data"][0]["id"] == "m"
