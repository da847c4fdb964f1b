"""retro batch on a tiny model: every line's fate, the same texts as retro generate, interruptions, refusals."""

import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import time

import cli
import pytest
from jobs import POLICY, Batch, children, ended, gone, line, write_requests
from tools import tiny_model


def read(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


def make(tmp_path, model, lines, errors=True, name="in.jsonl"):
    source = tmp_path / name
    source.write_bytes(lines if isinstance(lines, bytes) else "\n".join(lines).encode())
    return Batch(tmp_path / "results", model, source, errors)


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    """A file of 90 requests."""
    path = tmp_path_factory.mktemp("requests") / "in.jsonl"
    write_requests(path, 90)
    return path


@pytest.fixture(scope="module")
def undisturbed(requests, model, tmp_path_factory):
    """What a run without incidents leaves of it."""
    batch = Batch(tmp_path_factory.mktemp("undisturbed"), model, requests)
    done = batch.run()
    assert done.returncode == 0, done.stderr.decode()
    batch.no_leftovers()
    return batch.results()


MANY = 1500


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """So many that a run is in the middle of them whenever a test gets to it: 90 take a tenth of a second here."""
    path = tmp_path_factory.mktemp("many") / "in.jsonl"
    write_requests(path, MANY, seed=4, tokens=60)
    return path


@pytest.fixture(scope="module")
def many_undisturbed(many, model, tmp_path_factory):
    batch = Batch(tmp_path_factory.mktemp("undisturbed"), model, many, sequences=16)
    assert batch.run().returncode == 0
    return batch.results()


def test_every_line_has_its_place(tmp_path, model):
    good = line("a", prompt="one two", max_tokens=3)
    lines = [
        b"\xef\xbb\xbf" + good.encode(),
        b"",
        b"not json",
        line("a", prompt="again").encode(),
        b' {"custom_id": "b"} \r',
        b'{"custom_id": "\xff"}',
        b"a\0b",
        line("c", "/v1/embeddings", input="x").encode(),
        line("d", prompt="x", stream=True).encode(),
        line("e", prompt="x", nonsense=1).encode(),
        line("f", prompt="x", max_tokens=-1).encode(),
        line("g", "/v1/chat/completions", messages=[{"role": "user", "content": "x"}], max_tokens=2).encode(),
        json.dumps({"custom_id": "h", "method": "POST", "url": "/v1/completions", "body": {"model": "gpt-4"}}).encode(),
        line("i", prompt="x " * 2000).encode(),
        b"x" * (16 * 2**20 + 1),
        line("j", prompt=["x", "x " * 2000, "x"], max_tokens=50).encode(),
        line("\u00e4 \U0001f600", prompt="x", max_tokens=1).encode(),
    ]
    batch = make(tmp_path, model, b"\n".join(lines))
    done = batch.run()
    assert done.returncode == 0, done.stderr.decode()
    assert b"3 results" in done.stderr and b"13 bad in" in done.stderr
    batch.no_leftovers()
    results, errors = read(batch.output), read(batch.errors)
    assert [r["custom_id"] for r in results] == ["a", "g", "\u00e4 \U0001f600"]
    for r in results:
        assert r["error"] is None and r["response"]["status_code"] == 200
        assert r["response"]["body"]["model"] == "tiny"
        assert r["response"]["body"]["created"] == int(batch.source.stat().st_mtime)
        assert r["id"].startswith("batch_req_") and r["response"]["request_id"].startswith("req_")
    assert results[0]["response"]["body"]["object"] == "text_completion"
    assert results[1]["response"]["body"]["object"] == "chat.completion"
    assert [(e["error"]["line"], e["custom_id"], e["error"]["code"], e["error"]["param"]) for e in errors] == [
        (3, None, "invalid_json", None),
        (4, "a", "duplicate_custom_id", "custom_id"),
        (5, "b", "missing_field", "method"),
        (6, None, "invalid_json", None),
        (7, None, "invalid_json", None),
        (8, "c", "invalid_value", "url"),
        (9, "d", "invalid_value", "stream"),
        (10, "e", "invalid_request_error", "nonsense"),
        (11, "f", "invalid_request_error", "max_tokens"),
        (13, "h", "model_not_found", "model"),
        (14, "i", "context_length_exceeded", None),
        (15, None, "line_too_long", None),
        (16, "j", "context_length_exceeded", None),
    ]
    assert all(e["response"] is None and e["error"]["message"] for e in errors)
    ids = [r["id"] for r in results + errors]
    assert len(set(ids)) == len(ids)


def test_without_errors_bad_lines_keep_their_place(tmp_path, model):
    batch = make(tmp_path, model, [line("a", prompt="x", max_tokens=1), "bad", line("b", prompt="y", max_tokens=1)], False)
    assert batch.run().returncode == 0
    assert [(r["custom_id"], r["error"] is None) for r in read(batch.output)] == [("a", True), (None, False), ("b", True)]
    batch.no_leftovers()


def test_empty_inputs(tmp_path, model):
    for i, content in enumerate([b"", b"\n \n", b"bad\n"]):
        (tmp_path / str(i)).mkdir()
        batch = make(tmp_path / str(i), model, content)
        assert batch.run().returncode == 0
        assert batch.results()[0] == b""
        assert len(read(batch.errors)) == (i == 2)


def test_logits_that_are_no_numbers_are_errors(tmp_path, model):
    """A damaged model gives no text, and running again would give none either."""
    shutil.copytree(model, tmp_path / "spoilt")
    tiny_model.spoil(tmp_path / "spoilt")
    lines = [line("a", prompt="x", max_tokens=3), line("b", prompt=["y", "z"], n=2, temperature=1, max_tokens=3)]
    batch = make(tmp_path, tmp_path / "spoilt", [text.replace('"tiny"', '"spoilt"') for text in lines])
    assert batch.run().returncode == 0
    assert [(r["custom_id"], r["error"]["code"]) for r in read(batch.errors)] == [("a", "not_finite"), ("b", "not_finite")]
    assert batch.results()[0] == b""


def generate(model, *words):
    return cli.run_ok("generate", "--model", model, "--max-context", "512", *POLICY, *words).stdout.decode()


def test_texts_are_those_of_generate(tmp_path, model):
    """Whatever else is in the batch, and with the seeds that the lines name."""
    cases, lines = [], []
    for i in range(6):
        prompt = " ".join(str(k * (i + 3) % 97) for k in range(5 + 11 * i))
        temperature = 0 if i % 3 == 0 else 1.3
        words = ["--seed", i, "--max-tokens", 24, "--temperature", temperature, "--prompt", prompt]
        asked = {"seed": i, "max_tokens": 24, "temperature": temperature}
        cases += [("text", words), ("message", ["--chat", *words])]
        lines.append(line(f"c{i}", prompt=prompt, **asked))
        lines.append(line(f"m{i}", "/v1/chat/completions", messages=[{"role": "user", "content": prompt}], **asked))
    batch = make(tmp_path, model, lines)
    assert batch.run().returncode == 0
    results = read(batch.output)
    assert len(results) == len(cases)
    for (kind, words), r in zip(cases, results):
        choice = r["response"]["body"]["choices"][0]
        text = choice["text"] if kind == "text" else choice["message"]["content"]
        assert text == generate(model, *words), r["custom_id"]


def test_seed_comes_from_the_custom_id(tmp_path, model):
    """The same request under two names gives two texts, and the same ones in another file and order."""
    a, b = (line(name, prompt=["one two three"] * 2, max_tokens=30, temperature=1.5) for name in ("a", "b"))
    texts = {}
    for name, lines in {"1": [a, b], "2": [b, line("z", prompt="x"), a]}.items():
        (tmp_path / name).mkdir()
        batch = make(tmp_path / name, model, lines)
        assert batch.run().returncode == 0
        texts[name] = {r["custom_id"]: r["response"]["body"]["choices"] for r in read(batch.output)}
    assert texts["1"]["a"] == texts["2"]["a"] and texts["1"]["b"] == texts["2"]["b"]
    assert len({c["text"] for name in ("a", "b") for c in texts["1"][name]}) == 4


def test_two_ranks_and_other_widths_give_the_same_files(tmp_path, model, requests, undisturbed):
    for sequences in (1, 16):
        batch = Batch(tmp_path / str(sequences), model, requests, sequences=sequences)
        assert batch.run().returncode == 0
        assert batch.results() == undisturbed
    for i, words in enumerate([["--kv-tokens", "640"], ["--kv-tokens", "640", "--swap-space", "0", "--prefix-cache", "off"]]):
        batch = Batch(tmp_path / f"tight{i}", model, requests)
        assert batch.run(*words).returncode == 0
        assert batch.results() == undisturbed
    batch = Batch(tmp_path / "ranks", model, requests)
    done = batch.run(ranks=2)
    assert done.returncode == 0, done.stderr.decode()
    assert [r["custom_id"] for r in read(batch.output)] == [json.loads(r)["custom_id"] for r in undisturbed[0].splitlines()]
    assert batch.results()[1] == undisturbed[1]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_with_75_and_the_run_continues(tmp_path, model, many, many_undisturbed, sign):
    batch = Batch(tmp_path, model, many)
    process = batch.start("--drain", "0")
    batch.wait_for_records(8, process)
    process.send_signal(sign)
    code, text = ended(process)
    assert code == 75, text
    assert "run the same command again to go on" in text
    n = batch.n_records()
    assert f"{n} of {MANY} done" in text and not batch.output.exists()
    done = batch.run()
    assert done.returncode == 0 and f"{n} are done" in done.stderr.decode()
    assert batch.results() == many_undisturbed
    batch.no_leftovers()


def test_drain_finishes_what_was_begun(tmp_path, model):
    """With time to drain, the requests in flight at the signal are finished: there are at most 8 of them."""
    source = tmp_path / "in.jsonl"
    source.write_text("".join(line(f"{i}", prompt="x", max_tokens=100, ignore_eos=True) + "\n" for i in range(400)))
    batch = Batch(tmp_path / "results", model, source)
    process = batch.start("--drain", "600")
    batch.wait_for_records(1, process)
    process.send_signal(signal.SIGSTOP)  # nothing ends between the signal and the count
    process.send_signal(signal.SIGTERM)
    before = batch.n_records()
    process.send_signal(signal.SIGCONT)
    code, text = ended(process)
    assert code == 75, text
    assert before + 1 <= batch.n_records() <= before + 100, (before, batch.n_records())


def test_one_signal_that_comes_twice_is_one(tmp_path, model, many):
    """timeout(1) signals the process and then its group."""
    batch = Batch(tmp_path / "results", model, many)
    process = batch.start("--drain", "0")
    batch.wait_for_records(2, process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75


def test_a_second_signal_ends_at_once(tmp_path, model):
    lines = [line(f"{i}", prompt="x", max_tokens=2 if i == 0 else 500, ignore_eos=True) for i in range(2000)]
    batch = Batch(tmp_path / "results", model, tmp_path / "in.jsonl", sequences=64)
    batch.source.write_text("\n".join(lines))
    process = batch.start("--drain", "600")
    batch.wait_for_records(1, process)
    process.send_signal(signal.SIGTERM)
    for said in process.stderr:
        if b"a second signal ends at once" in said:
            break
    time.sleep(0.3)  # two that come at once are one
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 128 + signal.SIGTERM
    assert batch.n_records() < 2000


def test_mpirun_passes_usr1_on(tmp_path, model):
    requests = tmp_path / "in.jsonl"
    write_requests(requests, 250, seed=5, tokens=60)
    batch = Batch(tmp_path / "results", model, requests)
    process = batch.start("--drain", "0", ranks=2)
    batch.wait_for_records(4, process)
    ranks = children(process.pid)
    process.send_signal(signal.SIGUSR1)
    code, text = ended(process)
    assert code == 75, text
    gone(ranks)
    assert batch.run(ranks=2).returncode == 0
    whole = Batch(tmp_path / "whole", model, requests)
    assert whole.run(ranks=2).returncode == 0
    assert batch.results() == whole.results()


@pytest.mark.parametrize("tp, dp", [(1, 2), (1, 3), (2, 2)])
def test_replicas_give_the_same_files(tmp_path, model, requests, undisturbed, tp, dp):
    """Those of one replica of as many ranks; every rank computed (its trace says so)."""
    expected = undisturbed
    if tp > 1:
        one = Batch(tmp_path / "one", model, requests)
        assert one.run(ranks=tp).returncode == 0
        expected = one.results()
    batch = Batch(tmp_path / "results", model, requests)
    trace = tmp_path / "trace"
    done = batch.run("--tp", str(tp), "--dp", str(dp), "--trace", str(trace), ranks=tp * dp)
    assert done.returncode == 0, done.stderr.decode()
    assert batch.results() == expected
    batch.no_leftovers()
    for rank in range(tp * dp):
        text = (trace if rank == 0 else trace.with_name(f"trace.{rank}")).read_text()
        assert text.count('"attend') > 10, rank


def test_replicas_stop_and_go_on_as_any_number(tmp_path, model):
    """An interruption reaches every replica; another number of replicas continues."""
    requests = tmp_path / "in.jsonl"
    write_requests(requests, MANY, seed=3, tokens=60)
    undisturbed = Batch(tmp_path / "undisturbed", model, requests)
    assert undisturbed.run().returncode == 0
    batch = Batch(tmp_path / "results", model, requests)
    process = batch.start("--drain", "0", "--dp", "2", ranks=2)
    batch.wait_for_records(4, process)
    ranks = children(process.pid)
    process.send_signal(signal.SIGUSR1)
    code, text = ended(process)
    assert code == 75, text
    gone(ranks)
    n = batch.n_records()
    assert 4 <= n < MANY
    process = batch.start("--drain", "0", ranks=1)
    batch.wait_for_records(n + 4, process)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75
    assert batch.run("--dp", "3", ranks=3).returncode == 0
    assert batch.results() == undisturbed.results()
    again = batch.run("--dp", "2", ranks=2)
    assert again.returncode == 0 and b"complete" in again.stderr


def test_progress_on_a_terminal(tmp_path, model):
    """One line that renews itself and is gone at the end; none of it where there is no terminal."""
    lines = [line(f"{i}", prompt="x", max_tokens=60, ignore_eos=True) for i in range(300)]
    batch = make(tmp_path, model, lines)
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [*cli.DIES_WITH_US, str(cli.RETRO), *batch.words()], env={**os.environ, **cli.MPI_ENV}, stdin=subprocess.DEVNULL, stderr=side
    )
    os.close(side)
    text = b""
    while True:
        try:
            text += os.read(terminal, 65536)
        except OSError:  # the other side is closed
            break
    os.close(terminal)
    assert process.wait(300) == 0
    seen = re.findall(rb"\rretro: (\d+) of 300 done(?:, [\d.]+ tokens/s)?(?:, \d+:\d\d:\d\d left)?\x1b\[K", text)
    assert seen and sorted(map(int, seen)) == list(map(int, seen))
    assert re.search(rb"\r\x1b\[Kretro: done: 300 results", text)
    (tmp_path / "pipe").mkdir()
    assert b"\r" not in make(tmp_path / "pipe", model, lines[:20]).run().stderr


def test_running_again_does_nothing(tmp_path, model):
    batch = make(tmp_path, model, [line("a", prompt="x", max_tokens=2)])
    assert batch.run().returncode == 0
    before = batch.results(), batch.output.stat().st_mtime_ns
    done = batch.run()
    assert done.returncode == 0 and b"complete" in done.stderr
    assert (batch.results(), batch.output.stat().st_mtime_ns) == before
    assert batch.run(ranks=2).returncode == 0


def others_like(model, tmp_path):
    """Model folders of the same name, shapes and sizes: with other weights, another end of texts, other chat marks."""
    tiny_model.make(tmp_path / "weights" / "tiny", family="llama3", dtype="f32", seed=1)
    assert (tmp_path / "weights/tiny/model.safetensors").stat().st_size == (model / "model.safetensors").stat().st_size
    yield tmp_path / "weights" / "tiny"
    for name in ("generation_config.json", "tokenizer_config.json"):
        folder = tmp_path / name / "tiny"
        shutil.copytree(model, folder)
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "note": 1}))
        yield folder


def test_what_does_not_belong_together_is_refused(tmp_path, model, many):
    batch = Batch(tmp_path / "results", model, many)
    process = batch.start("--drain", "0")
    batch.wait_for_records(2, process)
    process.send_signal(signal.SIGSTOP)  # or it is done before the other one has looked
    cli.one_line(batch.run(), 2, "another retro batch is writing it")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    assert ended(process)[0] == 75
    other = Batch(tmp_path / "results", model, tmp_path / "other.jsonl")
    write_requests(other.source, 10)
    cli.one_line(other.run(), 2, "belongs to another --input", "remove it to begin anew")
    cli.one_line(batch.run("--policy", "dense"), 2, "begun with --policy \"retro\", this run has \"dense\"")
    cli.one_line(batch.run("--served-model-name", "x"), 2, "--served-model-name")
    for folder in others_like(model, tmp_path):
        cli.one_line(Batch(tmp_path / "results", folder, many).run(), 2, "begun with --model")
    cli.one_line(Batch(tmp_path / "results", model, many, False).run(), 2, "--errors")
    cli.one_line(batch.run("--policy", "dense", ranks=2), 2, "--policy")
    cli.one_line(batch.run("--act-dtype", "bf16"), 2, "begun with --act-dtype \"f32\"")
    cli.one_line(batch.run("--all-reduce-dtype", "bf16", ranks=2), 2, "begun with --all-reduce-dtype \"f32\"")
    assert batch.run("--act-dtype", "f32").returncode == 0  # what auto was


def test_foreign_files_stay(tmp_path, model):
    batch = make(tmp_path, model, [line("a", prompt="x", max_tokens=2)])
    batch.output.write_text("mine\n")
    cli.one_line(batch.run(), 2, "--output .*exists", "move it away")
    assert batch.output.read_text() == "mine\n" and not batch.journal.exists()


def test_files_must_differ(tmp_path, model):
    """Nothing that is read, and nothing of another kind, is overwritten under another name."""
    batch = make(tmp_path, model, [line("a", prompt="x", max_tokens=2), "bad"])
    text, folder = batch.source.read_bytes(), batch.output.parent
    for errors in (f"{folder}/./out.jsonl", f"{folder}/../results/out.jsonl", batch.journal, f"{batch.output}.tmp",
                   f"{batch.journal}.tmp", batch.source):
        batch.errors = errors
        cli.one_line(batch.run(), 2, "--errors")
    batch.errors = None
    for name in ("out.jsonl.tmp", "out.jsonl.journal", "out.jsonl.journal.tmp"):
        os.link(batch.source, folder / name)
        cli.one_line(batch.run(), 2, "--input .*the run writes")
        (folder / name).unlink()
    batch.errors = tmp_path / "no" / "folder" / "err.jsonl"
    cli.one_line(batch.run(), 2, "no/folder/err.jsonl: No such file")
    assert batch.source.read_bytes() == text and not list(folder.iterdir())


def test_foreign_errors_stay_when_a_run_continues(tmp_path, model, many):
    batch = Batch(tmp_path / "results", model, many)
    process = batch.start("--drain", "0")
    batch.wait_for_records(2, process)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75
    batch.errors = tmp_path / "mine"
    batch.errors.write_text("mine\n")
    cli.one_line(batch.run(), 2, "--errors .*mine: exists")
    assert batch.errors.read_text() == "mine\n"
    batch.errors.unlink()
    assert batch.run().returncode == 0


def test_bad_options(tmp_path, model):
    batch = make(tmp_path, model, [line("a", prompt="x")])
    assert cli.run("batch", "--model", model).returncode == 2
    words = batch.words()
    cli.one_line(batch.run("--prefix-cache", "turns"), 2, "--prefix-cache turns")
    cli.one_line(batch.run("--kv-tokens", "511"), 2, "--kv-tokens 511: a line may have --max-context 512 tokens")
    cli.one_line(batch.run("--kv-tokens", "511", ranks=2), 2, "--kv-tokens 511")
    cli.one_line(cli.run(*[w for w in words if w not in ("--input", str(batch.source))]), 2, "--input")
    cli.one_line(cli.run(*[w for w in words if w not in ("--output", str(batch.output))]), 2, "--output")
    cli.one_line(Batch(tmp_path / "r", model, tmp_path / "nowhere.jsonl").run(), 2, "--input .*nowhere")
    cli.one_line(Batch(tmp_path / "r", model, tmp_path).run(), 2, "not a regular file")
    cli.one_line(Batch(tmp_path / "r", tmp_path / "nowhere", batch.source).run(), 3, "nowhere")
    missing = Batch(tmp_path / "r", model, batch.source)
    missing.output = tmp_path / "no" / "folder" / "out.jsonl"
    cli.one_line(missing.run(), 2, "--output .*no/folder/out.jsonl: No such file")


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, model, requests, undisturbed):
    batch = Batch(tmp_path, model, requests)
    limits = [6000, 12000, 20000, len(undisturbed[0]) - 100]
    done = 0
    for limit in limits:
        process = batch.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        code, text = ended(process)
        refused = subprocess.CompletedProcess([], code, b"", text.encode())
        cli.one_line(refused, 2, "File too large: make room and run the same command again")
        assert not batch.output.exists() and done <= batch.n_records()
        assert not list(tmp_path.glob("*.tmp"))
        done = batch.n_records()
    assert batch.run().returncode == 0
    assert batch.results() == undisturbed
    batch.no_leftovers()


def test_a_full_file_system(tmp_path, model, requests, undisturbed):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "retro-test", small], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small file system")
    try:
        batch = Batch(small, model, requests)
        cli.one_line(batch.run(), 2, "No space left on device: make room and run the same command again")
        n = batch.n_records()
        assert n > 0
        subprocess.run(["mount", "-o", "remount,size=16m", small], check=True)
        done = batch.run()
        assert done.returncode == 0 and f"{n} are done" in done.stderr.decode()
        assert batch.results() == undisturbed
    finally:
        subprocess.run(["umount", small], check=True)
