"""/metrics: the names that dashboards expect, no side effect, right numbers; a real Prometheus scrapes it, and every
expression of the Grafana dashboard gives a value there.

Prometheus is Debian's package; where it is missing its test is skipped and counted as such.
"""
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request

import pytest
from server import cli

DASHBOARD = cli.ROOT / "configs/grafana-retro.json"
NAMES = """num_requests_running num_requests_waiting kv_cache_usage_perc prefix_cache_queries prefix_cache_hits
    prompt_tokens_total generation_tokens_total request_success_total time_to_first_token_seconds
    inter_token_latency_seconds e2e_request_latency_seconds request_queue_time_seconds request_prefill_time_seconds
    request_decode_time_seconds num_preemptions_total exposure pages_revised_total rows_total step_seconds replicas
    replica_requests_running replica_requests_waiting replica_generation_tokens_total replica_steps_total
    replica_kv_cache_usage_perc""".split()


def test_names_and_form(start):
    s = start(name='a "model"\\x')
    assert s.chat("x", max_tokens=5, ignore_eos=True)[0] == 200
    s.idle()
    status, headers, text = s.request("/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    text = text.decode()
    typed = dict(re.findall(r"^# TYPE retro:(\S+) (\w+)$", text, re.M))
    for name in NAMES:
        assert name in typed, name
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        m = re.fullmatch(r'retro:(\w+)\{model_name="a \\"model\\"\\\\x"(?:,(\w+)="[^"]*")?\} (\S+)', line)
        assert m, line
        assert re.sub("_(bucket|sum|count)$", "", m[1]) in typed or m[1] in typed
        float(m[3])
    for name, kind in typed.items():
        assert kind in ("counter", "gauge", "histogram")
        if kind == "histogram":
            buckets = [float(v) for v in re.findall(rf"^retro:{name}_bucket\{{.*\}} (\S+)$", text, re.M)]
            assert buckets == sorted(buckets)
            assert buckets[-1] == float(re.search(rf"^retro:{name}_count\{{.*\}} (\S+)$", text, re.M)[1])
    again = s.request("/metrics")[2].decode()
    changing = ("uptime_seconds", "http_responses_total", "resident_memory", "step_age")
    def steady(t):
        return [line for line in t.splitlines() if not any(c in line for c in changing)]
    assert steady(text) == steady(again)


def test_numbers(start):
    s = start("--dense-layers", 0)
    before = s.idle()
    usage = []
    for i in range(5):
        usage.append(s.chat("hello " * (20 * i + 20), max_tokens=30, ignore_eos=True, attention={"kv_budget": 0.3})[1]["usage"])
    m = s.idle()
    tokens = sum(u["completion_tokens"] for u in usage)
    assert m["generation_tokens_total"] - before["generation_tokens_total"] == tokens == 150
    prompts = sum(u["prompt_tokens"] - u["prompt_tokens_details"]["cached_tokens"] for u in usage)
    assert m["prompt_tokens_total"] == prompts
    assert m['request_success_total{finished_reason="length"}'] == 5
    assert m["time_to_first_token_seconds_count"] == m["e2e_request_latency_seconds_count"] == 5
    assert m["inter_token_latency_seconds_count"] == tokens - 5
    assert m['rows_total{kind="new"}'] == tokens - 5 and m['rows_total{kind="revised"}'] > 0
    assert m["pages_loaded_total"] == sum(u["retro"]["pages_loaded"] for u in usage) > 0
    assert m["pages_revised_total"] == sum(u["retro"]["pages_met"] for u in usage)
    assert m["exposure"] == pytest.approx(1 + m["pages_revised_total"] / m["pages_loaded_total"])
    assert m["step_seconds_count"] > 0 and m["kv_cache_usage_perc"] == m["kv_blocks_cached"] / m["kv_blocks"]


def test_cached_tokens(start):
    """The same long prompt again: its whole blocks come from the prefix cache, the answer is the same."""
    s = start()
    ask = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
    first, second = (s.chat("word " * 60, **ask)[1] for _ in range(2))
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < second["usage"]["prompt_tokens"] and cached % 64 == 0
    assert first["choices"][0]["message"]["content"] == second["choices"][0]["message"]["content"]
    m = s.idle()
    assert m["prefix_cache_hits"] == cached and m["prefix_cache_queries"] >= cached
    assert m["kv_blocks_cached"] > 0 and m["kv_cache_usage_perc"] > 0


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def expressions():
    board = json.loads(DASHBOARD.read_text())
    panels = [p for row in board["panels"] for p in [row, *row.get("panels", [])]]
    assert len({p["id"] for p in panels}) == len(panels)
    return [(p["title"], t["expr"]) for p in panels for t in p.get("targets", [])]


def test_dashboard_names_exist(tiny):
    """Every metric that the dashboard names is there (per-rank ones where ranks report)."""
    text = tiny.request("/metrics")[2].decode()
    for title, expr in expressions():
        for name in re.findall(r"retro:(\w+)", expr):
            assert f"retro:{name}{{" in text or name.startswith("rank_"), (title, name)


def prometheus(folder):
    """(process, port): once it listens. Somebody else may take a free port before it does."""
    for _ in range(5):
        port = free_port()
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                [*cli.DIES_WITH_US, "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                 f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        end = time.monotonic() + 120
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=10).close()
                return process, port
            except OSError:
                time.sleep(0.05)
            if time.monotonic() > end:
                process.kill()
    raise AssertionError((folder / "log").read_text())


@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")
def test_prometheus_and_the_dashboard(start, tmp_path):
    s = start("--dense-layers", 0)
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: retro\n  static_configs:\n"
        f"  - targets: ['127.0.0.1:{s.port}']\n")
    process, port = prometheus(tmp_path)
    try:
        def query(what):
            ask = urllib.parse.urlencode({"query": what})
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{ask}", timeout=60) as a:
                return json.load(a)

        end = time.monotonic() + 180
        scraped = 0
        while scraped < 4:  # several scrapes with traffic in between, so that rates have a value
            s.chat("x y z " * 40, max_tokens=20, ignore_eos=True, attention={"kv_budget": 0.3})
            time.sleep(0.5)
            try:
                found = query("count_over_time(retro:num_requests_running[5m])")["data"]["result"]
                scraped = int(found[0]["value"][1]) if found else 0
            except OSError:
                pass
            assert time.monotonic() < end, (tmp_path / "log").read_text()
        assert query("up")["data"]["result"][0]["value"][1] == "1"
        for title, expr in expressions():
            filled = expr.replace("$__rate_interval", "30s").replace("$model", ".*")
            answer = query(filled)
            assert answer["status"] == "success", (title, answer)
            values = [r["value"][1] for r in answer["data"]["result"]]
            assert (values and "NaN" not in values) or "rank_" in expr, (title, filled, values)
    finally:
        process.kill()
        process.wait()
