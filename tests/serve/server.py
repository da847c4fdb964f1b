"""A `retro serve` process of a test: started on a port of the kernel's choice, stopped by signals, its log kept."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "e2e")]

import cli  # noqa: E402


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value


class Server:
    def __init__(self, model, *options, ranks=1, name="m", key=None, retro=None, wait=300, env=None):
        self.folder = tempfile.TemporaryDirectory(prefix="retro-serve-")
        self.name, self.key, self.ranks = name, key, ranks
        self.port_file = Path(self.folder.name) / "port"
        self.log_file = Path(self.folder.name) / "log"
        launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
        command = [*cli.DIES_WITH_US, *launcher, str(retro or cli.RETRO), "serve", "--model", str(model), "--port", "0", "--port-file",
                   str(self.port_file), "--served-model-name", name, *map(str, options)]
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env={**os.environ, **cli.MPI_ENV, **(env or {})}, start_new_session=True)
        end = time.monotonic() + wait
        while not self.port_file.exists():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log()}"
            assert time.monotonic() < end, f"no port after {wait} s:\n{self.log()}"
            time.sleep(0.02)
        self.port = int(self.port_file.read_text())
        self.url = f"http://127.0.0.1:{self.port}"

    def log(self):
        return self.log_file.read_text(errors="replace")

    def client(self, **options):
        import openai

        options = {"max_retries": 0, "timeout": 300, **options}
        return openai.OpenAI(base_url=self.url + "/v1", api_key=self.key or "none", **options)

    def request(self, path, body=None, headers=None, timeout=120, method=None):
        """(status, headers, bytes); body: an object, or bytes as they are."""
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **({"Authorization": "Bearer " + self.key} if self.key else {}),
                   **(headers or {})}
        ask = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(ask, timeout=timeout) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as e:
            return e.code, e.headers, e.read()

    def post(self, path, body, **options):
        status, _, text = self.request(path, body, **options)
        return status, json.loads(text)

    def chat(self, text, **fields):
        return self.post("/v1/chat/completions", {"model": self.name, "messages": [{"role": "user", "content": text}],
                                                  **fields})

    def metrics(self):
        """{name or name{label="value"}: number} without the prefix and the model's label."""
        status, _, text = self.request("/metrics")
        assert status == 200
        found, label = {}, self.name.replace("\\", "\\\\").replace('"', '\\"')
        for line in text.decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.removeprefix("retro:").replace(f'model_name="{label}"', "").replace("{,", "{")
                found[name.replace("{}", "")] = float(value)
        return found

    def idle(self, seconds=120):
        """Waits until nothing runs and every block is free but for the prefix cache; the metrics then."""
        end = time.monotonic() + seconds
        while True:
            m = self.metrics()
            busy = m["num_requests_running"] + m["num_requests_waiting"] + m["http_streams"]
            if busy == 0 and m["kv_blocks_free"] + m["kv_blocks_cached"] == m["kv_blocks"]:
                return m
            assert time.monotonic() < end, {k: v for k, v in m.items() if "bucket" not in k}
            time.sleep(0.05)

    def connect(self, text):
        """A raw connection on which `text` was sent."""
        s = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        s.sendall(text.encode() if isinstance(text, str) else text)
        return s

    def raw_chat(self, **fields):
        body = json.dumps({"model": self.name, "messages": [{"role": "user", "content": "Tell me a story."}], **fields})
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        return (f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{key}Content-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}")

    def rank0(self):
        """The process id of rank 0: the program itself, or mpirun's first child."""
        if self.ranks == 1:
            return self.process.pid
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ours = [int(c) for c in children if "serve" in Path(f"/proc/{c}/cmdline").read_text()]
        return min(ours)

    def stop(self, sig=signal.SIGTERM, timeout=60):
        """Sends the signal to rank 0 and returns the exit code."""
        if self.process.poll() is None:
            os.kill(self.rank0(), sig)
        return self.process.wait(timeout)

    def close(self):
        if self.process.poll() is None:
            try:
                self.stop(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.folder.cleanup()
