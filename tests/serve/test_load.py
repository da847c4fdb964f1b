"""Many clients at once on two ranks, one replica of both or one each: mixed lengths, policies and schemas,
cancellations, bad requests, slow readers and ones that never read. Afterwards: nothing runs, every page is free, memory
has not grown, the answer to a fixed question was the same every time, and the server ends with 0.

RETRO_LOAD_RANKS is the number of ranks (2; two replicas have at least two), RETRO_LOAD_SECONDS how long (15; the suite
`load` runs minutes, with and without sanitizers), RETRO_LOAD_CLIENTS how many (24). The inter-token latency's
percentiles are printed as the clients saw them.
"""
import http.client
import json
import os
import random
import socket
import threading
import time
from pathlib import Path

import pytest
from server import Server

SECONDS = float(os.environ.get("RETRO_LOAD_SECONDS", 15))
CLIENTS = int(os.environ.get("RETRO_LOAD_CLIENTS", 24))
RANKS = int(os.environ.get("RETRO_LOAD_RANKS", 2))
FIXED = {"max_tokens": 24, "temperature": 0.7, "seed": 11, "ignore_eos": True}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x", "yy"]}},
          "required": ["a", "b"], "additionalProperties": False}


class Load:
    def __init__(self, server):
        self.server, self.expected = server, None
        self.lock, self.gaps, self.counts, self.errors = threading.Lock(), [], {}, []
        self.end = float("inf")

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def random_request(self, r):
        fields = {"max_tokens": r.choice([1, 3, 10, 40, 90]), "ignore_eos": True, "temperature": r.choice([0, 1]),
                  "n": r.choice([1, 1, 1, 3]), "stream": r.random() < 0.6}
        if r.random() < 0.5:
            fields["attention"] = r.choice([{"policy": "dense"}, {"policy": "quest", "kv_budget": 0.2},
                                            {"policy": "retro", "window": r.choice([1, 2, 4, 8]), "kv_budget_tokens": 16}])
        if r.random() < 0.2:
            fields.update(logprobs=True, top_logprobs=3)
        fields["messages"] = [{"role": "user", "content": "word " * r.choice([1, 5, 30, 60, 100])}]
        return {"model": "m", **fields}

    def stream(self, body, delay=0.0, leave_after=None):
        """Reads a stream's events; None when it left early, else how many tokens came of choice 0."""
        c = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        c.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": True}))
        answer = c.getresponse()
        assert answer.status == 200, (answer.status, answer.read())
        last, n, done = None, 0, False
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                done = True
                continue
            assert b'"error"' not in line, line
            n += 1
            now = time.monotonic()
            if last is not None and delay == 0 and body["n"] == 1:
                with self.lock:
                    self.gaps.append(now - last)
            last = now
            if leave_after is not None and n >= leave_after:
                c.sock.close() if c.sock else None
                answer.close()
                c.close()
                return None
            if delay:
                time.sleep(delay)
        c.close()
        assert done, "a stream ended without [DONE]"
        return n

    def whole(self, r):
        body = self.random_request(r)
        if body["stream"]:
            self.stream(body)
            return
        status, answer = self.server.post("/v1/chat/completions", body)
        assert status == 200, answer
        assert len(answer["choices"]) == body["n"]
        assert answer["usage"]["completion_tokens"] == body["n"] * body["max_tokens"], answer["usage"]

    def fixed(self, r):
        status, answer = self.server.chat("Always the same question.", **FIXED)
        assert status == 200 and answer["choices"][0]["message"]["content"] == self.expected, answer

    def cancelled(self, r):
        self.stream({**self.random_request(r), "max_tokens": 300, "n": 1}, leave_after=r.randrange(1, 10))

    def slow(self, r):
        self.stream({**self.random_request(r), "max_tokens": 20}, delay=0.02)

    def never_reads(self, r):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        s.connect(("127.0.0.1", self.server.port))
        s.sendall(self.server.raw_chat(stream=True, max_tokens=300, ignore_eos=True, n=2, logprobs=True,
                                       top_logprobs=20).encode())
        time.sleep(r.random())
        s.close()

    def half_sent(self, r):
        text = self.server.raw_chat(stream=True).encode()
        s = self.server.connect(text[:r.randrange(1, len(text))])
        time.sleep(0.05 * r.random())
        s.close()

    def gone_at_once(self, r):
        self.server.connect(self.server.raw_chat(max_tokens=200, ignore_eos=True, stream=r.random() < 0.5)).close()

    def bad(self, r):
        field = r.choice([{"n": 0}, {"foo": 1}, {"temperature": 9}, {"tools": [{}]}, {"stop": ""}])
        status, answer = self.server.chat("x", **field)
        assert status == 400 and answer["error"]["param"] in field, answer

    def schema(self, r):
        status, answer = self.server.chat("x", max_tokens=150, response_format={
            "type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}})
        assert status == 200, answer
        if answer["choices"][0]["finish_reason"] == "stop":
            value = json.loads(answer["choices"][0]["message"]["content"])
            assert set(value) == {"a", "b"} and value["b"] in ("x", "yy") and 0 <= value["a"] <= 99

    def client(self, number):
        """Its first action is one of all in turn, so that each is tried whatever the machine's speed."""
        r = random.Random(number)
        actions = [self.whole] * 6 + [self.fixed] * 2 + [self.cancelled] * 2 + [
            self.slow, self.never_reads, self.half_sent, self.gone_at_once, self.bad, self.schema]
        first = list(dict.fromkeys(actions))[number % len(set(actions))]
        while time.monotonic() < self.end:
            action, first = first or r.choice(actions), None
            try:
                action(r)
                self.count(action.__name__)
            except Exception as e:  # noqa: BLE001
                with self.lock:
                    self.errors.append(f"{action.__name__}: {type(e).__name__}: {e}"[:500])


def resident(server):
    pids = [server.process.pid]
    if server.ranks > 1:
        pids = Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split()
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total


@pytest.fixture(params=[1, 2], ids=["one replica", "two replicas"])
def server(tiny_folder, request):
    replicas = ("--dp", request.param) if request.param > 1 else ()
    s = Server(tiny_folder, "--threads", 1, "--max-context", 512, "--max-seqs", 12, "--kv-tokens", 4096, "--max-queue", 1000,
               "--idle-timeout", 10, "--drain", 60, *replicas, ranks=max(RANKS, request.param))
    yield s
    s.close()


def test_load(server):
    load = Load(server)
    load.expected = server.chat("Always the same question.", **FIXED)[1]["choices"][0]["message"]["content"]
    threads = [threading.Thread(target=load.client, args=(i,)) for i in range(CLIENTS)]
    for t in threads:
        t.start()
    time.sleep(SECONDS / 2)
    while sum(load.counts.values()) < 8 * CLIENTS and not load.errors:  # a slow machine: memory still grows to its size
        time.sleep(0.1)
    assert server.request("/ready")[0] == 200
    half = resident(server)
    load.end = time.monotonic() + SECONDS / 2
    for t in threads:
        t.join(timeout=SECONDS + 300)
        assert not t.is_alive(), "a request is stuck"
    assert not load.errors, load.errors[:5]
    m = server.idle()
    assert m["kv_blocks_free"] + m["kv_blocks_cached"] == m["kv_blocks"]
    grown = resident(server) - half
    gaps = sorted(load.gaps)
    print(f"\n{sum(load.counts.values())} requests of {CLIENTS} clients in {SECONDS:.0f} s on {server.ranks} ranks, "
          f"{m['replicas']:.0f} replicas: {load.counts}")
    print(f"{m['generation_tokens_total']:.0f} tokens; inter-token latency p50 {1e3 * gaps[len(gaps) // 2]:.2f} ms, "
          f"p99 {1e3 * gaps[len(gaps) * 99 // 100]:.2f} ms; resident {half / 2**20:.1f} MiB at half time, "
          f"{grown / 2**20:+.1f} at the end")
    for what in ("whole", "fixed", "cancelled", "slow", "never_reads", "half_sent", "gone_at_once", "bad", "schema"):
        assert load.counts.get(what), f"{what} was never tried"
    assert m['request_success_total{finished_reason="cancelled"}'] > 0
    for replica in range(int(m["replicas"])):
        assert m[f'replica_steps_total{{replica="{replica}"}}'] > 0
    assert grown < 24 * 2**20, f"{grown / 2**20:.1f} MiB more than at half time"
    assert server.stop() == 0, server.log()
