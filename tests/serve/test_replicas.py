"""--dp: several replicas behind one front. The same answers as one gives, work on all of them, a conversation that stays
where its beginning is, one queue, one shutdown, and a job that ends as one when a replica is lost."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from server import cli, wait_until
from tools import tiny_model

LONG = {"max_tokens": 3900, "ignore_eos": True, "temperature": 0, "stream": True}


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A model whose steps take some milliseconds: a long request runs until it is cancelled."""
    folder = tmp_path_factory.mktemp("slow")
    tiny_model.make(folder, family="smollm", hidden=512, heads=8, kv_heads=4, head_dim=64, layers=8, ffn=2048)
    return folder


def of_replicas(metrics, name):
    return [metrics[f'replica_{name}{{replica="{r}"}}'] for r in range(int(metrics["replicas"]))]


def at_once(functions):
    """What they return, each called on a thread of its own."""
    results = [None] * len(functions)

    def call(i):
        results[i] = functions[i]()

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(functions))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=300)
    assert None not in results
    return results


def rank_pids(server):
    """Process ids of the ranks, in their order: mpirun starts them one after another."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return sorted(int(c) for c in children if "serve" in Path(f"/proc/{c}/cmdline").read_text())


def questions():
    """Requests of every kind that a step can want something else for."""
    asked = []
    for i in range(24):
        more = [{"temperature": 0}, {"temperature": 0.8, "seed": i}, {"temperature": 0, "logprobs": True, "top_logprobs": 3},
                {"temperature": 1, "seed": i, "top_k": 8, "n": 2}, {"temperature": 0, "frequency_penalty": 0.5},
                {"temperature": 0, "attention": {"policy": "retro", "window": 4, "kv_budget": 0.1}}][i % 6]
        text = f"Question {i}: " + "word " * (13 * i % 70)
        asked.append({"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 5 + 11 * i % 60,
                      "ignore_eos": True, **more})
    return asked


def ask_all(server):
    """The choices of all answers."""
    answers = at_once([lambda q=q: server.post("/v1/chat/completions", q) for q in questions()])
    assert all(status == 200 for status, _ in answers), answers
    for question, (_, answer) in zip(questions(), answers):
        usage = answer["usage"]
        assert usage["completion_tokens"] == question["max_tokens"] * question.get("n", 1)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    prompts = {"model": "m", "prompt": ["word " * n for n in (2, 70, 90, 100)], "max_tokens": 0, "echo": True, "logprobs": 2}
    status, echoed = server.post("/v1/completions", prompts)
    assert status == 200 and all(len(c["logprobs"]["tokens"]) > 1 for c in echoed["choices"]), echoed
    return [answer["choices"] for _, answer in answers] + [echoed["choices"]]


@pytest.mark.parametrize("tp, dp", [(1, 2), (2, 2)])
def test_the_same_answers_from_replicas_that_all_work(start, tp, dp):
    """Few KV blocks, so that sequences are interrupted and their records go to host memory and back."""
    options = ("--dense-layers", 0, "--max-seqs", 3, "--kv-tokens", 512, "--block-size", 16)
    one = start(*options, ranks=tp)
    expected = ask_all(one)
    alone = one.idle()
    one.close()
    s = start(*options, "--tp", tp, "--dp", dp, ranks=tp * dp)
    assert ask_all(s) == expected
    m = s.idle()
    assert m["replicas"] == dp and m["ranks"] == tp * dp
    assert m["generation_tokens_total"] == alone["generation_tokens_total"] == sum(of_replicas(m, "generation_tokens_total"))
    assert m['request_success_total{finished_reason="length"}'] == alone['request_success_total{finished_reason="length"}']
    assert m["kv_blocks"] == dp * alone["kv_blocks"] and m["step_seconds_count"] == sum(of_replicas(m, "steps_total"))
    assert all(n > 0 for n in of_replicas(m, "steps_total"))
    for rank in range(tp * dp):  # every rank took part in the steps of its replica; it tells so with its next beat
        name, steps = f'rank_steps_total{{rank="{rank}"}}', of_replicas(m, "steps_total")[rank // tp]
        wait_until(lambda: s.metrics()[name] == steps)
    assert s.stop() == 0, s.log()


def test_requests_that_run_at_once_are_spread(start, slow):
    """Whether they come one by one or in one request; every replica holds its own prefix cache."""
    s = start("--dp", 2, "--max-context", 4096, "--max-seqs", 4, ranks=2, model=slow)
    clients = []
    for n in range(1, 9):
        clients.append(s.connect(s.raw_chat(**LONG)))
        wait_until(lambda: s.metrics()["num_requests_running"] == n)
    assert of_replicas(s.metrics(), "requests_running") == [4, 4]
    for c in clients:
        c.close()
    s.idle()
    before = of_replicas(s.metrics(), "generation_tokens_total")
    prompts = [list(range(1 + i, 150 + i)) for i in range(6)]
    status, whole = s.post("/v1/completions", {"model": "m", "prompt": prompts, "max_tokens": 30, "ignore_eos": True, "temperature": 0})
    assert status == 200 and [c["index"] for c in whole["choices"]] == list(range(6))
    assert whole["usage"]["prompt_tokens"] == 6 * 149 and whole["usage"]["completion_tokens"] == 180
    now = of_replicas(s.idle(), "generation_tokens_total")
    assert [b - a for a, b in zip(before, now)] == [90, 90]
    for prompt, choice in zip(prompts, whole["choices"]):
        _, single = s.post("/v1/completions", {"model": "m", "prompt": prompt, "max_tokens": 30, "ignore_eos": True, "temperature": 0})
        assert single["choices"][0]["text"] == choice["text"]
    assert s.stop() == 0, s.log()


def test_a_conversation_stays_with_its_replica(start, slow):
    """The second replica is chosen because the first is busy, and from then on because the beginning is there."""
    s = start("--dp", 2, "--max-context", 4096, "--max-seqs", 4, ranks=2, model=slow)
    first = s.connect(s.raw_chat(**LONG))
    wait_until(lambda: of_replicas(s.metrics(), "requests_running") == [1, 0])
    messages = [{"role": "user", "content": "word " * 120}]
    for turn in range(3):
        status, answer = s.post("/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": 30, "temperature": 0})
        assert status == 200
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert (cached > 64) == (turn > 0), (turn, cached)
        messages += [{"role": "assistant", "content": "so"}, {"role": "user", "content": "go on"}]
        if turn == 0:
            first.close()
            s.idle()
    assert of_replicas(s.idle(), "requests_running") == [0, 0]
    assert of_replicas(s.metrics(), "generation_tokens_total")[1] > 30
    assert s.stop() == 0, s.log()


def test_a_schema_on_all_replicas_at_once(start):
    s = start("--dp", 2, "--max-seqs", 4, ranks=2)
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x", "yy"]}},
              "required": ["a", "b"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    answers = at_once([lambda i=i: s.chat(f"Number {i}", max_tokens=200, temperature=1, seed=i, response_format=form) for i in range(16)])
    for status, answer in answers:
        choice = answer["choices"][0]
        assert status == 200 and choice["finish_reason"] == "stop", answer
        value = json.loads(choice["message"]["content"])
        assert set(value) == {"a", "b"} and value["b"] in ("x", "yy") and 0 <= value["a"] <= 99
    assert s.stop() == 0, s.log()


def test_one_queue_and_one_shutdown(start, slow):
    """--max-queue counts what waits in all replicas; SIGTERM lets all of them finish."""
    s = start("--dp", 2, "--max-context", 4096, "--max-seqs", 1, "--max-queue", 2, "--drain", 120, ranks=2, model=slow)
    clients = []
    for n in range(1, 5):
        clients.append(s.connect(s.raw_chat(**{**LONG, "max_tokens": 1200})))
        wait_until(lambda: s.metrics()["num_requests_running"] + s.metrics()["num_requests_waiting"] == n)
    m = s.metrics()
    assert of_replicas(m, "requests_running") == of_replicas(m, "requests_waiting") == [1, 1]
    status, answer = s.chat("x")
    assert status == 429 and "2 requests wait already" in answer["error"]["message"], answer
    assert s.request("/ready")[0] == 200
    os.kill(s.rank0(), signal.SIGTERM)
    wait_until(lambda: s.request("/ready")[0] == 503)
    status, answer = s.chat("x")
    assert status == 503 and answer["error"]["code"] == "shutting_down"

    def read(c):
        text = b""
        while part := c.recv(65536):
            text += part
            if text.endswith(b"0\r\n\r\n"):
                break
        return text.decode()

    for text in at_once([lambda c=c: read(c) for c in clients]):
        assert '"finish_reason": "length"' in text and "[DONE]" in text
    assert s.process.wait(300) == 0, s.log()


def test_drain_has_an_end_on_all_replicas(start, slow):
    s = start("--dp", 2, "--max-context", 4096, "--max-seqs", 4, "--drain", 0.05, ranks=2, model=slow)
    clients = [s.connect(s.raw_chat(**LONG)) for _ in range(6)]
    wait_until(lambda: all(n == 3 for n in of_replicas(s.metrics(), "requests_running")))
    os.kill(s.process.pid, signal.SIGUSR1)  # which mpirun passes on
    assert s.process.wait(300) == 0, s.log()
    for c in clients:
        c.close()


@pytest.mark.parametrize("victim, how", [(3, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGSTOP), (0, signal.SIGKILL)])
def test_a_lost_replica_ends_the_job(start, slow, tmp_path, victim, how):
    """Killed or stopped while every replica works: all ranks end within the bound, and the rank is named."""
    record = tmp_path / "failure.json"
    s = start("--tp", 2, "--dp", 2, "--max-context", 4096, "--max-seqs", 4, "--failure-file", record, ranks=4,
              model=slow)
    clients = [s.connect(s.raw_chat(**LONG)) for _ in range(8)]
    wait_until(lambda: all(s.metrics().get(f'rank_steps_total{{rank="{r}"}}', 0) > 0 for r in range(4)))
    pids = rank_pids(s)
    assert len(pids) == 4
    os.kill(pids[victim], how)
    began = time.monotonic()
    try:
        assert s.process.wait(60) != 0
        assert time.monotonic() - began < 10 + 10  # the bound, and room for a slow machine
    finally:
        if how == signal.SIGSTOP and Path(f"/proc/{pids[victim]}").exists():
            os.kill(pids[victim], signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{p}").exists() for p in pids), 30)
    cause = json.loads(record.read_text())
    assert cause["rank"] == victim and cause["kind"] == ("died" if how == signal.SIGKILL else "stopped"), cause
    for c in clients:
        c.close()


@pytest.mark.parametrize("options, ranks, words", [
    (("--dp", 2), 1, ["--dp 2", "1 rank was started", "mpirun -n 2"]),
    (("--dp", 3), 2, ["--dp 3", "2 ranks were started", "mpirun -n 3"]),
    (("--tp", 2, "--dp", 2), 2, ["--tp 2 and --dp 2", "mpirun -n 4"]),
    (("--tp", 2, "--dp", 2, "--max-context", 10**6), 4, ["--max-context"]),
])
def test_refused_at_start(tiny_folder, options, ranks, words):
    done = cli.run("serve", "--model", tiny_folder, "--threads", 1, "--port", 0, *options, ranks=ranks, timeout=300)
    said = [line for line in done.stderr.decode().splitlines() if "error:" in line]
    assert done.returncode == 2 and len(said) == 1 and all(w in said[0] for w in words), done.stderr


@pytest.mark.parametrize("which", [0, 1])
def test_a_replica_that_does_not_fit(slow, which):
    """Only one of them: its leader says why, and all end with its code."""
    words = [cli.RETRO, "serve", "--model", slow, "--threads", 1, "--port", 0, "--dp", 2, "--max-context", 4096]
    jobs = [[*words, "--kv-tokens", 10**8] if r == which else words for r in range(2)]
    command = ["mpirun", "-n", "1", *map(str, jobs[0]), ":", "-n", "1", *map(str, jobs[1])]
    done = subprocess.run(command, env={**os.environ, **cli.MPI_ENV}, capture_output=True, timeout=300)
    said = [line for line in done.stderr.decode().splitlines() if "error:" in line]
    assert done.returncode == 4 and any(f"[{which}@" in line and "GiB free" in line for line in said), done.stderr
    assert which == 0 or any("[0@" in line and "another replica could not be loaded" in line for line in said), said


def test_too_many_heads_are_counted_for_a_replica(tiny_folder):
    """Its ranks, not those of the job, share the heads."""
    heads = json.loads((Path(tiny_folder) / "config.json").read_text())["num_attention_heads"]
    done = cli.run("serve", "--model", tiny_folder, "--threads", 1, "--port", 0, "--dp", 2, ranks=2 * (heads + 1), timeout=300)
    assert done.returncode == 2 and f"{heads + 1} ranks a replica: the model has {heads} query heads".encode() in done.stderr
