"""The `openai` package against the server, and its answers against `retro generate`: the same model, seed and policy
give the same text, alone or among sixteen others."""

import json
import threading

import openai
import pytest
from server import cli

PROMPT = "Name three rivers of Europe and say where each one ends."


def generate(model, *options, chat=True):
    done = cli.run_ok("generate", "--model", model, "--threads", 2, *(["--chat"] if chat else []), *options)
    return done.stdout.decode()


@pytest.fixture(scope="session")
def client(real):
    return real.client()


def user(text):
    return [{"role": "user", "content": text}]


def test_models(client, real):
    assert [m.id for m in client.models.list()] == [real.name]


def test_chat_whole_and_streamed_and_generate(client, real, real_model):
    expected = generate(real_model, "--prompt", PROMPT, "--max-tokens", 40)
    whole = client.chat.completions.create(model=real.name, messages=user(PROMPT), temperature=0, max_tokens=40)
    assert whole.choices[0].message.content == expected
    assert whole.object == "chat.completion" and whole.choices[0].message.role == "assistant"
    assert whole.usage.completion_tokens == 40 and whole.choices[0].finish_reason == "length"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 40
    assert whole.usage.prompt_tokens_details.cached_tokens >= 0
    assert whole.usage.retro["exposure"] >= 1 and 0 < whole.usage.retro["kv_read_share"] <= 1.1
    events = list(client.chat.completions.create(
        model=real.name, messages=user(PROMPT), temperature=0, max_tokens=40, stream=True,
        stream_options={"include_usage": True}))
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(e.choices[0].delta.content or "" for e in events if e.choices) == expected
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] == "length"
    assert events[-1].choices == [] and events[-1].usage.completion_tokens == 40
    assert len({e.id for e in events}) == 1


@pytest.mark.parametrize("fields, options", [
    ({"temperature": 0.8, "seed": 5}, ["--temperature", 0.8, "--seed", 5]),
    ({"temperature": 1.2, "seed": 77, "top_p": 0.9, "extra_body": {"top_k": 40, "min_p": 0.02, "repetition_penalty": 1.1}},
     ["--temperature", 1.2, "--seed", 77, "--top-p", 0.9, "--top-k", 40, "--min-p", 0.02, "--repetition-penalty", 1.1]),
    ({"temperature": 0, "extra_body": {"attention": {"policy": "dense"}}}, ["--policy", "dense"]),
    ({"temperature": 0, "extra_body": {"attention": {"policy": "quest", "kv_budget": 0.3}}},
     ["--policy", "quest", "--kv-budget", 0.3]),
    ({"temperature": 0, "extra_body": {"attention": {"policy": "retro", "window": 4, "kv_budget_tokens": 64}}},
     ["--policy", "retro", "--window", 4, "--kv-budget-tokens", 64]),
    ({"temperature": 0, "stop": ["and", "\n\n"]}, ["--stop", "and", "--stop", "\n\n"]),
])
def test_equals_generate(client, real, real_model, fields, options):
    text = " ".join(f"Line {i}: the river number {i} ends in sea {i % 7}." for i in range(16)) + " " + PROMPT
    answer = client.chat.completions.create(model=real.name, messages=user(text), max_tokens=24, **fields)
    expected = generate(real_model, "--prompt", text, "--max-tokens", 24, *options)
    assert answer.choices[0].message.content == expected


def test_completions_equal_generate(client, real, real_model):
    expected = generate(real_model, "--prompt", PROMPT, "--max-tokens", 20, chat=False)
    ids = real.post("/tokenize", {"prompt": PROMPT})[1]["tokens"]
    for prompt in (PROMPT, ids):
        one = client.completions.create(model=real.name, prompt=prompt, temperature=0, max_tokens=20)
        assert one.choices[0].text == expected and one.object == "text_completion"
    many = client.completions.create(model=real.name, prompt=[PROMPT, "One two three"], temperature=0, max_tokens=20, n=2)
    assert [c.index for c in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == many.choices[1].text == expected != many.choices[2].text
    lists = client.completions.create(model=real.name, prompt=[ids, ids[:5]], temperature=0, max_tokens=20)
    assert lists.choices[0].text == expected
    echo = client.completions.create(model=real.name, prompt=PROMPT, temperature=0, max_tokens=20, echo=True)
    assert echo.choices[0].text == PROMPT + expected
    streamed = client.completions.create(model=real.name, prompt=[PROMPT, "One two three"], temperature=0, max_tokens=20,
                                         stream=True)
    texts = {}
    for e in streamed:
        for c in e.choices:
            texts[c.index] = texts.get(c.index, "") + c.text
    assert texts == {0: expected, 1: many.choices[2].text}


def test_same_tokens_among_sixteen_others(client, real):
    """Greedy and drawn answers do not depend on what else is in the batch."""
    def ask(n, seed):
        e = client.chat.completions.create(model=real.name, messages=user(f"{PROMPT} ({n})"), max_tokens=24, seed=seed,
                                           temperature=0 if seed == 0 else 0.9)
        return e.choices[0].message.content

    alone = [ask(0, 0), ask(1, 3)]
    among, threads = [None, None], []

    def keep(i, n, seed):
        among[i] = ask(n, seed)

    for i in range(16):
        threads.append(threading.Thread(target=ask, args=(100 + i, i % 4)))
    threads.insert(5, threading.Thread(target=keep, args=(0, 0, 0)))
    threads.insert(9, threading.Thread(target=keep, args=(1, 1, 3)))
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert among == alone


def test_choices_and_seeds(client, real):
    ask = dict(model=real.name, messages=user("Write a word."), temperature=1, max_tokens=8)
    a = client.chat.completions.create(**ask, seed=1, n=3)
    b = client.chat.completions.create(**ask, seed=1, n=3)
    c = client.chat.completions.create(**ask, seed=1)
    texts = [x.message.content for x in a.choices]
    assert texts == [x.message.content for x in b.choices] and texts[0] == c.choices[0].message.content
    assert len(set(texts)) > 1  # the choices are drawn apart
    drawn = {client.chat.completions.create(**ask).choices[0].message.content for _ in range(4)}
    assert len(drawn) > 1  # without a seed every answer is another one


def test_logprobs(client, real):
    a = client.chat.completions.create(model=real.name, messages=user(PROMPT), temperature=0, max_tokens=6, logprobs=True,
                                       top_logprobs=3)
    content = a.choices[0].logprobs.content
    assert len(content) == 6
    assert b"".join(bytes(c.bytes) for c in content).decode() == a.choices[0].message.content
    for c in content:
        assert c.logprob <= 0 and len(c.top_logprobs) == 3
        assert c.top_logprobs[0].token == c.token and c.top_logprobs[0].logprob == pytest.approx(c.logprob)
        assert c.top_logprobs[0].logprob >= c.top_logprobs[1].logprob >= c.top_logprobs[2].logprob
        assert sum(2.718281828 ** t.logprob for t in c.top_logprobs) <= 1.0001
    s = client.chat.completions.create(model=real.name, messages=user(PROMPT), temperature=0, max_tokens=6, logprobs=True,
                                       top_logprobs=3, stream=True)
    streamed = [c for e in s for x in e.choices if x.logprobs for c in x.logprobs.content]
    assert [(c.token, c.logprob) for c in streamed] == [(c.token, c.logprob) for c in content]
    old = client.completions.create(model=real.name, prompt="One two three", temperature=0, max_tokens=4, logprobs=2)
    lp = old.choices[0].logprobs
    assert "".join(lp.tokens) == old.choices[0].text and len(lp.top_logprobs) == 4 and lp.text_offset[0] == 0
    assert lp.token_logprobs[0] == pytest.approx(max(lp.top_logprobs[0].values()))
    held = client.completions.create(model=real.name, prompt="One two three", temperature=0, max_tokens=4, logprobs=2,
                                     stop=[token[-1] + "zz" for token in lp.tokens])
    assert held.choices[0].text == old.choices[0].text
    assert held.choices[0].logprobs.text_offset == lp.text_offset == [len("".join(lp.tokens[:i])) for i in range(4)]


def test_bias_and_penalties(client, real):
    ids = real.post("/tokenize", {"prompt": " yes", "add_special_tokens": False})[1]["tokens"]
    a = client.chat.completions.create(model=real.name, messages=user("Say no."), temperature=0, max_tokens=5,
                                       logit_bias={str(ids[0]): 100})
    assert a.choices[0].message.content.count(" yes") == 5
    b = client.chat.completions.create(model=real.name, messages=user("Say no."), temperature=0, max_tokens=14,
                                       logit_bias={str(ids[0]): 20}, frequency_penalty=2, presence_penalty=2)
    c = client.chat.completions.create(model=real.name, messages=user("Say no."), temperature=0, max_tokens=14,
                                       logit_bias={str(ids[0]): 20})
    assert c.choices[0].message.content.count(" yes") == 14 > b.choices[0].message.content.count(" yes")


def test_stop_and_stop_tokens(client, real):
    full = client.completions.create(model=real.name, prompt="1 2 3 4 5 6", temperature=0, max_tokens=20).choices[0].text
    stop = full[8:11]
    cut = client.completions.create(model=real.name, prompt="1 2 3 4 5 6", temperature=0, max_tokens=20, stop=stop)
    assert cut.choices[0].text == full[:full.index(stop)] and cut.choices[0].finish_reason == "stop"
    ids = real.post("/tokenize", {"prompt": full, "add_special_tokens": False})[1]["tokens"]
    by_id = client.completions.create(model=real.name, prompt="1 2 3 4 5 6", temperature=0, max_tokens=20,
                                      extra_body={"stop_token_ids": [ids[3]]})
    assert by_id.choices[0].finish_reason == "stop" and full.startswith(by_id.choices[0].text)


def test_json_object_and_schema(client, real):
    import jsonschema

    schema = {"type": "object", "additionalProperties": False, "required": ["name", "length", "ends"], "properties": {
        "name": {"type": "string", "maxLength": 20}, "length": {"type": "integer", "minimum": 1, "maximum": 7000},
        "ends": {"enum": ["sea", "lake", "river"]}, "notes": {"type": "array", "items": {"type": "string", "maxLength": 8},
                                                             "maxItems": 2}}}
    for seed in range(4):
        a = client.chat.completions.create(
            model=real.name, messages=user("Describe the Rhine as JSON."), temperature=1, seed=seed, max_tokens=200,
            response_format={"type": "json_schema", "json_schema": {"name": "river", "strict": True, "schema": schema}})
        assert a.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(a.choices[0].message.content), schema)
    a = client.chat.completions.create(model=real.name, messages=user("A JSON object with one number."), temperature=0,
                                       max_tokens=120, response_format={"type": "json_object"})
    if a.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(a.choices[0].message.content), dict)
    else:
        assert a.choices[0].message.content.startswith("{")
    n = client.chat.completions.create(
        model=real.name, messages=user("x"), temperature=1, seed=1, max_tokens=60, n=3,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1, "two", [3]]}}})
    assert all(json.loads(c.message.content) in (1, "two", [3]) for c in n.choices)


def test_schemas_of_pydantic(client, real):
    from typing import Annotated, Literal, Union

    from pydantic import BaseModel, Field

    class River(BaseModel):
        kind: Literal["river"]
        length: Annotated[int, Field(ge=1, le=7000)]

    class Lake(BaseModel):
        kind: Literal["lake"]
        ends: Annotated[list[Literal["north", "south"]], Field(max_length=2)]

    class Water(BaseModel):
        what: Annotated[Union[River, Lake], Field(discriminator="kind")]

    for seed in range(4):
        a = client.chat.completions.parse(model=real.name, messages=user("A water as JSON."), temperature=1, seed=seed,
                                          max_tokens=200, response_format=Water)
        assert isinstance(a.choices[0].message.parsed, Water)


def test_tokens_there_and_back(real):
    for text in ("Hello, world", "größe 日本 😀", ""):
        status, a = real.post("/tokenize", {"prompt": text, "add_special_tokens": False})
        assert status == 200 and a["count"] == len(a["tokens"])
        assert real.post("/detokenize", {"tokens": a["tokens"]})[1]["prompt"] == text
    status, a = real.post("/tokenize", {"messages": user("Hi")})
    assert status == 200 and "Hi" in real.post("/detokenize", {"tokens": a["tokens"]})[1]["prompt"]
    assert real.post("/detokenize", {"tokens": [10**9]})[0] == 400
    assert real.post("/tokenize", {"prompt": "a", "extra": 1})[0] == 400


def test_parts_and_roles(client, real):
    one = client.chat.completions.create(model=real.name, temperature=0, max_tokens=8, messages=[
        {"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}])
    two = client.chat.completions.create(model=real.name, temperature=0, max_tokens=8, messages=[
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert one.choices[0].message.content == two.choices[0].message.content


def test_errors_are_openais(client, real):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=user("x"))
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model=real.name, messages=user("x"), tools=[{"type": "function"}])
    assert e.value.param == "tools" and e.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model=real.name, messages=user("x " * 4000))
    assert e.value.code == "context_length_exceeded"
