"""Keys, sizes, slow and vanished clients, the queue, and how the server ends."""

import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from server import cli, wait_until
from tools import tiny_model

# Longer than any test takes to have seen what it wants to see, on whatever machine.
LONG = {"max_tokens": 8000, "ignore_eos": True, "temperature": 0}
ROOM = ("--threads", 2, "--max-context", 8192, "--kv-tokens", 16384)


def test_keys(start, tmp_path):
    (tmp_path / "keys").write_text("# ours\nfile-key\n\n")
    s = start("--api-key", "one", "--api-key", "two", "--api-key-file", tmp_path / "keys", key="two")
    assert s.chat("x", max_tokens=1)[0] == 200
    assert s.client().models.list().data[0].id == "m"
    for key in ("one", "file-key"):
        s.key = key
        assert s.chat("x", max_tokens=1)[0] == 200
    for bad in ("on", "onee", "", "# ours", "One"):
        status, headers, body = s.request("/v1/models", headers={"Authorization": "Bearer " + bad})
        assert status == 401 and headers["WWW-Authenticate"] == "Bearer", bad
        assert json.loads(body)["error"]["code"] == "invalid_api_key"
    assert s.request("/v1/models", headers={"Authorization": "Basic one"})[0] == 401
    s.key = None
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        assert s.request(path, {})[0] == 401
    for path in ("/health", "/ready", "/metrics", "/"):
        assert s.request(path)[0] == 200


def test_bodies_and_headers(start):
    s = start("--max-body-mib", 1)
    big = b'{"model": "m", "prompt": "' + b"x" * (1 << 20) + b'"}'
    try:
        assert s.request("/v1/completions", big)[0] == 413
    except (ConnectionError, OSError):
        pass  # refused before it was read: closing a connection with unread bytes resets it
    c = s.connect("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n")
    assert b" 413 " in c.recv(1000)
    chunked = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    c = s.connect(chunked)
    try:
        for _ in range(20):
            c.sendall(b"10000\r\n" + b"y" * 0x10000 + b"\r\n")
        c.sendall(b"0\r\n\r\n")
        assert b" 413 " in c.recv(1000)
    except (ConnectionError, BrokenPipeError):
        pass
    for code, request in ((b"431", "GET /health HTTP/1.1\r\nHost: x\r\nX-Long: "), (b"414", "GET /")):
        c = s.connect(request + "y" * 100000 + "\r\n\r\n")
        try:
            assert c.recv(100).split()[1] == code
        except ConnectionError:
            pass
    packed = gzip.compress(b'{"model": "m", "prompt": "x"}')
    for coding, code in (("gzip", 415), ("br", 415), ("identity", 400)):
        status, answer = s.post("/v1/completions", packed, headers={"Content-Encoding": coding})
        assert status == code and (coding in answer["error"]["message"] or code == 400), answer
    assert s.chat("x", max_tokens=1)[0] == 200
    s.idle()


def test_slow_requests_and_idle_connections_are_closed(start):
    s = start("--receive-timeout", 1, "--idle-timeout", 2)
    began = time.monotonic()
    dripping = s.connect("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
    idle = s.connect("GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 200 " in idle.recv(1000)
    closed = None
    while closed is None and time.monotonic() < began + 60:
        try:
            dripping.sendall(b"x")
            dripping.settimeout(0.2)
            if dripping.recv(100) == b"":
                closed = time.monotonic() - began
        except (BrokenPipeError, ConnectionError):
            closed = time.monotonic() - began
        except TimeoutError:
            pass
    assert closed is not None
    idle.settimeout(60)
    assert idle.recv(10) == b""
    assert s.chat("x", max_tokens=1)[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels(start, stream, real_model):
    s = start(*ROOM, model=real_model)
    c = s.connect(s.raw_chat(stream=stream, **LONG))
    wait_until(lambda: s.metrics()["generation_tokens_total"] >= 3)
    c.close()
    m = s.idle()
    assert m['request_success_total{finished_reason="cancelled"}'] == 1
    assert m["generation_tokens_total"] < 4000  # of 8000
    assert m['http_responses_total{code="499"}'] == 1
    assert s.chat("x", max_tokens=2)[0] == 200


def test_queue_is_bounded(start, real_model):
    s = start("--max-seqs", 1, "--max-queue", 2, *ROOM, model=real_model)
    busy = [s.connect(s.raw_chat(stream=True, **LONG)) for _ in range(1)]
    wait_until(lambda: s.metrics()["num_requests_running"] == 1)
    busy += [s.connect(s.raw_chat(stream=True, **LONG)) for _ in range(2)]
    wait_until(lambda: s.metrics()["num_requests_waiting"] == 2)
    status, headers, body = s.request("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}]})
    assert status == 429 and 1 <= int(headers["Retry-After"]) <= 60
    assert json.loads(body)["error"]["type"] == "rate_limit_error"
    assert s.request("/health")[0] == 200 and s.request("/ready")[0] == 200
    # Several prompts are taken together or not at all.
    busy.pop().close()
    wait_until(lambda: s.metrics()["num_requests_waiting"] == 1)
    status, answer = s.post("/v1/completions", {"model": "m", "prompt": ["a", "b"]})
    assert status == 429, answer
    # More than the whole queue can never be taken: not to be tried again.
    status, answer = s.post("/v1/completions", {"model": "m", "prompt": ["a", "b", "c"]})
    assert status == 400 and answer["error"]["param"] == "prompt", answer
    for c in busy:
        c.close()
    s.idle()
    assert s.chat("x", max_tokens=1)[0] == 200


def test_slow_reader_holds_nobody_up(start):
    """A client that reads nothing is dropped when its buffer is full; others go on meanwhile."""
    s = start("--max-seqs", 4)
    c = socket.socket()
    c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    c.connect(("127.0.0.1", s.port))
    c.sendall(s.raw_chat(stream=True, max_tokens=480, ignore_eos=True, n=3, logprobs=True, top_logprobs=20).encode())
    for _ in range(10):
        assert s.chat("y", max_tokens=20)[0] == 200
    m = s.idle()
    assert m['request_success_total{finished_reason="cancelled"}'] == 3  # while it was still connected
    c.close()
    assert s.request("/ready")[0] == 200


def read_all(c):
    text = b""
    while part := c.recv(65536):
        text += part
        if text.endswith(b"0\r\n\r\n"):
            break
    return text.decode()


def test_a_stream_keeps_only_what_waits(start):
    """A client that is always behind, but never by 1 MiB: what it has read is not kept for it."""
    s = start("--max-context", 4000, "--max-seqs", 1)
    ask = {"model": "m", "prompt": "x", "stream": True, "max_tokens": 3900, "n": 6, "ignore_eos": True, "logprobs": 20}
    body = json.dumps(ask)
    c = socket.socket()
    c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    c.connect(("127.0.0.1", s.port))
    c.settimeout(60)
    before = most = s.metrics()["resident_memory_bytes"]
    c.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    n_read, n_drawn, text = 0, 0, b"x"
    while n_drawn < 6 * 3900 and text:  # no text: a machine so busy that it was 1 MiB once, and dropped
        m = s.metrics()
        n_drawn, most = m["generation_tokens_total"], max(most, m["resident_memory_bytes"])
        while text and n_read < n_drawn - 1300:  # events of about 650 bytes; some of them are in the kernel
            try:
                text = c.recv(1 << 16)
            except ConnectionError:
                text = b""
            n_read += text.count(b"data: {")
    c.close()
    assert most - before < 8 << 20  # of 15


def test_sigterm_finishes_what_runs(start, real_model):
    s = start("--threads", 2, "--max-context", 1024, "--drain", 600, model=real_model)
    c = s.connect(s.raw_chat(stream=True, max_tokens=500, ignore_eos=True, temperature=0))
    c.settimeout(600)
    wait_until(lambda: s.metrics()["generation_tokens_total"] >= 2)
    os.kill(s.rank0(), signal.SIGTERM)
    wait_until(lambda: s.request("/ready")[0] != 200)
    status, answer = s.chat("x")
    assert status == 503 and answer["error"]["code"] == "shutting_down"
    assert s.request("/health")[0] == 200
    text = read_all(c)
    assert text.count('"content"') >= 350 and '"finish_reason": "length"' in text and "[DONE]" in text
    assert s.process.wait(60) == 0
    assert not s.port_file.exists()


def test_drain_has_an_end(start, real_model):
    s = start(*ROOM, "--drain", 0.5, model=real_model)
    c = s.connect(s.raw_chat(stream=True, **LONG))
    whole = {}
    t = threading.Thread(target=lambda: whole.update(a=s.chat("x", **LONG)))
    t.start()
    wait_until(lambda: s.metrics()["num_requests_running"] == 2)
    assert s.stop() == 0
    text = read_all(c)
    assert "shutting_down" in text and "[DONE]" not in text
    t.join()
    assert whole["a"][0] == 503 and whole["a"][1]["error"]["code"] == "shutting_down"


def test_a_half_sent_request_holds_no_shutdown_up(start):
    s = start()
    half = s.connect("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert s.request("/health")[0] == 200  # one thread reads both
    began = time.monotonic()
    assert s.stop() == 0
    assert time.monotonic() - began < 4  # clients that read slowly have 5 s
    assert half.recv(10) == b""


def test_second_signal_ends_at_once(start, real_model):
    s = start(*ROOM, "--drain", 600, model=real_model)
    c = s.connect(s.raw_chat(stream=True, **LONG))
    wait_until(lambda: s.metrics()["num_requests_running"] == 1)
    os.kill(s.rank0(), signal.SIGTERM)
    wait_until(lambda: s.request("/ready")[0] != 200)
    time.sleep(0.3)  # two that come at once are one
    assert s.stop(signal.SIGTERM) in (-signal.SIGTERM, 128 + signal.SIGTERM)  # in order it would be 0
    c.close()


@pytest.mark.parametrize("options, words", [
    (("--host", "no.such.host.invalid"), ["--host no.such.host.invalid"]),
    (("--api-key", ""), ["--api-key"]),
    (("--api-key-file", "/nowhere"), ["/nowhere"]),
    (("--max-context", 10**6), ["--max-context"]),
    (("--port-file", "/nowhere/port"), ["--port-file"]),
    (("--port", 70000), ["--port"]),
    (("--dp", 2), ["--dp 2"]),
])
def test_refused_at_start(tiny_folder, options, words):
    done = cli.run("serve", "--model", tiny_folder, "--threads", 1, "--port", 0, *options, timeout=300)
    cli.one_line(done, 2, *words)


def test_a_start_that_fails_leaves_the_others_port_file(tiny, tiny_folder):
    done = cli.run("serve", "--model", tiny_folder, "--threads", 1, "--port", tiny.port, "--port-file", tiny.port_file)
    cli.one_line(done, 2, "another server listens there")
    assert int(tiny.port_file.read_text()) == tiny.port


def test_ipv6_address(start):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    s = start("--host", "::1")
    wait_until(lambda: f"on http://[::1]:{s.port}/" in s.log())


def test_logits_that_are_no_numbers_are_an_error(start, tiny_folder, tmp_path):
    folder = tmp_path / "spoilt"
    shutil.copytree(tiny_folder, folder)
    tiny_model.spoil(folder)
    s = start(model=folder)
    for fields in ({}, {"temperature": 1}, {"temperature": 1, "top_k": 5}, {"logprobs": True}):
        status, answer = s.chat("a", max_tokens=4, **fields)
        assert (status, answer["error"]["code"]) == (500, "not_finite")
    _, _, text = s.request("/v1/chat/completions", {"model": s.name, "messages": [{"role": "user", "content": "a"}],
                                                    "max_tokens": 4, "stream": True})
    assert b'"not_finite"' in text and b"[DONE]" not in text
    assert s.metrics()['request_success_total{finished_reason="failed"}'] == 5
    assert s.log().count("not finite") == 1


def test_port_in_use(tiny, tiny_folder):
    done = cli.run("serve", "--model", tiny_folder, "--threads", 1, "--port", tiny.port, timeout=300)
    cli.one_line(done, 2, "another server listens there")


def test_two_ranks(start, real_model):
    """The same greedy text as one rank (f32), a drain through mpirun's SIGUSR1, exit code 0."""
    options = ("--kv-dtype", "f32", "--max-tokens", 12, "--temperature", 0)
    expected = cli.run_ok("generate", "--model", real_model, "--chat", "--prompt", "Say a few words.", *options).stdout.decode()
    s = start("--kv-dtype", "f32", model=real_model, ranks=2)
    status, answer = s.chat("Say a few words.", max_tokens=12, temperature=0)
    assert answer["choices"][0]["message"]["content"] == expected
    m = s.metrics()
    assert m["ranks"] == 2
    for rank in range(2):
        assert 0 <= m[f'rank_heartbeat_age_seconds{{rank="{rank}"}}'] < 5
    # A rank tells it with its next beat.
    wait_until(lambda: all(s.metrics()[f'rank_allreduce_seconds_total{{rank="{r}"}}'] > 0 for r in range(2)))
    os.kill(s.process.pid, signal.SIGUSR1)
    assert s.process.wait(60) == 0, s.log()


def test_ready_hears_every_rank(start):
    """A rank that is stopped is seen before the heartbeat ends the job; when it goes on all is well again."""
    s = start("--ready-timeout", 1, "--peer-timeout", 300, "--watchdog", 300, ranks=2)
    assert s.chat("x", max_tokens=2)[0] == 200
    other = max(int(c) for c in Path(f"/proc/{s.process.pid}/task/{s.process.pid}/children").read_text().split())
    os.kill(other, signal.SIGSTOP)
    try:
        wait_until(lambda: s.request("/ready")[0] != 200)
        answer = s.request("/ready")
        assert json.loads(answer[2])["error"]["code"] == "not_ready" and b"rank 1" in answer[2]
        assert s.request("/health")[0] == 200
    finally:
        os.kill(other, signal.SIGCONT)
    wait_until(lambda: s.request("/ready")[0] == 200)
    assert s.chat("x", max_tokens=2)[0] == 200


def running(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_test_leaves_no_server(tiny_folder, ranks):
    """What a time limit does to pytest: its servers end with it, every rank of them."""
    script = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from server import Server\n"
              f"s = Server({str(tiny_folder)!r}, '--threads', 1, '--max-context', 64, ranks={ranks})\n"
              "print(s.process.pid, flush=True); sys.stdin.read()")
    tester = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    launched = int(tester.stdout.readline())
    pids = [launched, *map(int, Path(f"/proc/{launched}/task/{launched}/children").read_text().split())]
    assert len(pids) == (1 if ranks == 1 else 1 + ranks)
    tester.kill()
    tester.wait()
    wait_until(lambda: not any(running(pid) for pid in pids))
