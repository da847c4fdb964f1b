"""`retro bench serve` against a real server, and against ones that refuse, break off or are not there."""

import http.server
import json
import socket
import statistics
import threading
import time

import cli
import pytest

METRICS = ("ttft", "tpot", "itl", "e2el")


def bench(url, *words):
    return cli.run("bench", "serve", "--url", url, "--json", *words)


def lines(done):
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def test_counts_are_the_servers(tiny):
    before = tiny.idle()
    one, two = lines(bench(tiny.url, "--requests", 6, "--concurrency", "1,3", "--input-tokens", "5..40",
                           "--output-tokens", 9, "--ignore-eos", "--seed", 5, "--goodput", "ttft:60000 e2el:0.001"))
    after = tiny.idle()
    for r, streams in ((one, 1), (two, 3)):
        assert (r["completed"], r["failed"], r["max_concurrency"], r["errors"]) == (6, 0, streams, {})
        assert r["seed"] == 5
        assert r["total_output_tokens"] == 54 and 30 <= r["total_input_tokens"] <= 240
        assert (r["model_id"], r["request_rate"], r["request_goodput"]) == ("m", "inf", 0)
        assert r["request_throughput"] == pytest.approx(6 / r["duration"], rel=1e-6)
        assert r["output_throughput"] == pytest.approx(54 / r["duration"], rel=1e-6)
        assert r["total_token_throughput"] == pytest.approx((54 + r["total_input_tokens"]) / r["duration"], rel=1e-6)
        for m in METRICS:
            # Events of so small a model may arrive together: the gaps between them are nothing then.
            assert 0 <= r[f"median_{m}_ms"] <= r[f"p99_{m}_ms"] and r[f"mean_{m}_ms"] >= 0 and r[f"std_{m}_ms"] >= 0
        assert 0 < r["mean_ttft_ms"] <= r["mean_e2el_ms"] <= r["duration"] * 1e3
        assert r["mean_e2el_ms"] == pytest.approx(r["mean_ttft_ms"] + 8 * r["mean_tpot_ms"], rel=1e-6)
    for ours, theirs in (("total_output_tokens", "generation_tokens_total"), ("total_input_tokens", "prompt_tokens_total")):
        assert after[theirs] - before[theirs] == one[ours] + two[ours]


def test_table(tiny):
    done = cli.run("bench", "serve", "--url", tiny.url, "--requests", 2, "--input-tokens", 4, "--output-tokens", 3)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.decode().splitlines()
            if line.startswith("|")]
    assert rows[0][:3] == ["concurrency", "completed", "failed"] and rows[0][4] == "good/s"
    assert [r[7] for r in rows[2:]] == ["TTFT", "TPOT", "ITL", "E2EL"]
    assert rows[2][:3] == ["8", "2", "0"] and rows[2][4] == ""  # no limits: no goodput


def test_key(start):
    s = start("--api-key", "secret", key="secret")
    for words, said in (((), "refuses requests without one (401)"), (("--api-key", "other"), "refuses this one (401)")):
        done = bench(s.url, *words)
        assert done.returncode == 2 and said in done.stderr.decode() and not done.stdout
    r, = lines(bench(s.url, "--api-key", "secret", "--requests", 1, "--input-tokens", 3, "--output-tokens", 2))
    assert r["completed"] == 1


def test_full_queue_is_counted(start):
    s = start("--max-seqs", 1, "--max-queue", 1)
    r, = lines(bench(s.url, "--requests", 12, "--concurrency", 12, "--input-tokens", 100, "--output-tokens", 400,
                     "--ignore-eos"))
    assert r["failed"] > 0 and r["completed"] + r["failed"] == 12
    assert sum(r["errors"].values()) == r["failed"] and all(e.startswith("429: ") for e in r["errors"])
    assert r["total_output_tokens"] == 400 * r["completed"]


def test_too_long_fails_all(tiny):
    done = bench(tiny.url, "--requests", 2, "--input-tokens", 5000)
    assert done.returncode == 5 and "no request was completed" in done.stderr.decode()
    assert all(e.startswith("400: ") for e in json.loads(done.stdout)["errors"])


def test_nobody_there():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        done = bench(f"http://127.0.0.1:{s.getsockname()[1]}")
    assert done.returncode == 5 and "is the server running?" in done.stderr.decode() and not done.stdout


@pytest.mark.parametrize("words, said", [
    (("--goodput", "ttft"), "--goodput ttft"), (("--concurrency", "0"), "--concurrency 0"),
    (("--input-tokens", "9..3"), "--input-tokens 9..3"), (("--output-tokens", "0"), "--output-tokens 0"),
    (("--request-rate", "-1"), "--request-rate"), (("--api-key", "a", "--api-key", "b"), "--api-key"),
])
def test_refused(words, said):
    done = bench("http://127.0.0.1:1", *words)
    assert done.returncode == 2 and said in done.stderr.decode() and len(done.stderr.decode().splitlines()) == 1


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1", "http://", "ftp://x"])
def test_url_refused(url):
    done = bench(url)
    assert done.returncode == 2 and f"--url {url}: expected http://host:port" in done.stderr.decode()


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers the n-th completion by the n-th of `how`, with pauses of known length."""

    protocol_version = "HTTP/1.1"
    how, bodies, begun = [], [], []

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.reply(200, {"data": [{"id": "scripted"}]})

    def reply(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def event(self, body):
        text = b"data: " + (body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\n\n"
        half = len(text) // 2  # an event that arrives in two pieces is one event
        for piece in (text[:half], text[half:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self.reply(200, {"tokens": [5, 6, 7, 8]})
        self.begun.append(time.monotonic())
        self.bodies.append(body)
        how = self.how[len(self.bodies) - 1]
        if isinstance(how, int):
            return self.reply(how, {"error": {"message": "no"}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for pause in how["pauses"]:
            time.sleep(pause)
            self.event({"choices": [{"text": "x\0"}]})  # a token may be any byte
        self.event(how.get("last", {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 3}}))
        if not how.get("breaks"):
            self.event(b"[DONE]")
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True


@pytest.fixture
def scripted():
    Scripted.bodies, Scripted.begun = [], []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_times_of_a_known_stream(scripted):
    Scripted.how = [{"pauses": [0.1, 0.05, 0.2]}]
    r, = lines(bench(scripted, "--requests", 1, "--concurrency", 1, "--input-tokens", 3, "--output-tokens", 3,
                     "--goodput", "tpot:100000"))
    for name, low in (("ttft", 100), ("itl", 125), ("tpot", 125), ("e2el", 350)):
        assert low <= r[f"mean_{name}_ms"] + 0.5 and r[f"mean_{name}_ms"] < low + 20000, name
    assert r["std_itl_ms"] > 20 and r["request_goodput"] == r["request_throughput"]
    body, = Scripted.bodies
    assert set(body["prompt"]) <= {5, 6, 7, 8} and len(body["prompt"]) == 3 and body["max_tokens"] == 3
    assert body["stream"] and body["stream_options"] == {"include_usage": True} and "ignore_eos" not in body


def test_failures_by_name(scripted):
    Scripted.how = [429, 503, {"pauses": [0]}, {"pauses": [0], "breaks": True},
                    {"pauses": [0], "last": {"error": {"message": "lost"}}}, {"pauses": []},
                    {"pauses": [0], "last": b"{"}, 429]
    r, = lines(bench(scripted, "--requests", 8, "--concurrency", 1, "--input-tokens", 3, "--output-tokens", 3))
    errors = r["errors"]
    assert (r["completed"], r["failed"]) == (1, 7) and errors["429: no"] == 2 and errors["503: no"] == 1
    assert errors["error event: lost"] == errors["an answer without a token"] == errors["an event is no JSON"] == 1
    assert len(errors) == 6 and sum(errors.values()) == 7


def test_poisson_arrivals_and_seed(scripted):
    Scripted.how = [{"pauses": [0]}] * 200
    words = ("--requests", 100, "--concurrency", 100, "--request-rate", 200, "--input-tokens", "1..50",
             "--output-tokens", "1..9", "--seed", 3)
    first, = lines(bench(scripted, *words))
    gaps = [b - a for a, b in zip(Scripted.begun, Scripted.begun[1:])]
    assert first["request_rate"] == 200 and first["duration"] > 0.3  # 0.5 in the mean, 0.05 its deviation
    assert statistics.pstdev(gaps) > 0.3 * statistics.mean(gaps)  # not evenly spaced
    lines(bench(scripted, *words))
    asked = [sorted(json.dumps(b, sort_keys=True) for b in part) for part in (Scripted.bodies[:100],
                                                                             Scripted.bodies[100:])]
    assert asked[0] == asked[1] and len({json.dumps(b["prompt"]) for b in Scripted.bodies}) > 90
    assert len({len(b["prompt"]) for b in Scripted.bodies}) > 25 and {b["max_tokens"] for b in Scripted.bodies} == set(
        range(1, 10))
