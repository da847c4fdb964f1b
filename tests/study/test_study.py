"""The fidelity study's scripts: what is measured once, what the report makes of it. The program is a stand-in."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import study  # noqa: E402
import study_report  # noqa: E402
import study_task  # noqa: E402
import study_texts  # noqa: E402

# Answers like `retro eval --compare --also ...`: dense first, nll 2; policy i has nll 2 + i / 10 at every step.
STAND_IN = """#!{python}
import json, sys
import numpy as np
words = sys.argv[1:]
value = lambda flag: words[words.index(flag) + 1]
n, steps = 2 + words.count("--also"), int(value("--steps"))
nll = [2 + i / 10 for i in range(n)]
np.save(value("--dump-steps"), np.tile(np.array([[x, x - 2, 1, 0] for x in nll], np.float32).ravel(), (steps, 1)))
for i, x in enumerate(nll):
    print(json.dumps(dict(policy="quest" if i else "dense", window=1, nll=x, kl=x - 2, top1=0.5, kv_read_share=0.25,
                          page_size=16, exposure=1)))
with open({log!r}, "a") as log:
    print(*words, file=log)
"""


@pytest.fixture
def options(tmp_path, monkeypatch):
    retro, log = tmp_path / "retro", tmp_path / "log"
    retro.write_text(STAND_IN.format(python=sys.executable, log=str(log)))
    retro.chmod(0o755)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for name in ("mark", "policy"):
        (tmp_path / f"{name}.ids").write_text("1 " * 2000)
        (tmp_path / f"{name}.txt").write_text(name)
    monkeypatch.setattr(study_texts, "CACHE", tmp_path)
    return Namespace(retro=retro, model=tmp_path, results=tmp_path / "r.jsonl", texts="mark,policy", threads="1",
                     device="cpu", jobs=2, commit="c", prompt=512, steps=1000, probe="25", sets="main", policy=None, settings=None, log=log)


@pytest.mark.parametrize("words, code, said", [
    (["run", "--jobs", "0"], 2, "--jobs: 0: expected a whole number from 1"),
    (["run", "--steps", "x"], 2, "--steps: x: expected a whole number from 1"),
    (["task", "--seeds", "0"], 2, "--seeds: 0"),
    (["run", "--sets", "nope"], 2, "--sets nope: there are main"),
    (["run", "--model", "/nowhere"], 2, "--model /nowhere: holds no model.safetensors: run scripts/fetch-model"),
    (["task", "--retro", "/nowhere"], 2, "--retro /nowhere: no such program: run scripts/build"),
    (["report", "--results", "/nowhere"], 1, "/nowhere: no results"),
    (["ideas", "--jobs", "0"], 2, "--jobs: 0"),
    (["ideas", "--model", "/nowhere"], 2, "--model /nowhere: holds no model.safetensors"),
    ([], 2, "texts,run,task"),
    (["--help"], 0, "in NumPy"),
])
def test_refusals(options, words, code, said):
    here = ["--model", options.model, "--retro", options.retro] if words[:1] in (["run"], ["task"]) else []
    done = subprocess.run(list(map(str, [ROOT / "scripts" / "fidelity", *words[:1], *here, *words[1:]])), capture_output=True, text=True)
    assert done.returncode == code and said in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_cell_is_measured_once(options):
    study.run(options)
    lines = study.read_results(options.results)
    cells = sum(len(policies) for _, policies in study.SETS["main"])
    assert len(lines) == 2 * cells and len({study.key_of(r) for r in lines}) == len(lines)
    runs = len(options.log.read_text().splitlines())
    study.run(options)
    assert len(options.log.read_text().splitlines()) == runs
    # A line lost, as by an interruption, is measured again, and only that.
    options.results.write_text("".join(json.dumps(r) + "\n" for r in lines[:-1]))
    study.run(options)
    again = study.read_results(options.results)[-1]
    assert study.key_of(again) == study.key_of(lines[-1]) and len(options.log.read_text().splitlines()) == runs + 1
    first = lines[0]
    assert len(first["bins"]) == 4 and first["bins"][0] == [2.1, 0.1, 1.0] and first["bins_dense"] == [2.0] * 4


def record(text, settings, spec, loss):
    return dict(text=text, kind="book", run=settings, policy_spec=spec, prompt=512, steps=500, nll=3 + loss, nll_dense=3,
                kv_read_share=0.26, kl=loss, top1=0.9, policy="retro", window=2, page_size=4)


def test_report_compares_over_the_same_texts(tmp_path, capsys):
    texts = ["a", "b", "c"]
    quest = [record(t, *study_report.QUEST, x) for t, x in zip(texts, (0.2, 0.4, 0.6))]
    ours = [record(t, "--page-size 4", "--window 2", x) for t, x in zip(texts[:2], (0.02, 0.04))]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in quest + ours))
    study_report.report(Namespace(results=path, steps=None, plots=tmp_path))
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "`page-size 4 window 2`" in line).split("|")
    assert row[2].strip() == "2" and row[4].strip() == "0.0300 (0.0200 to 0.0400)"
    assert row[5].strip() == "0.100 (0.100 to 0.100)"  # of Quest over a and b, not over c
    row = next(line for line in out.splitlines() if "preset paper" in line).split("|")
    low, high = (float(x) for x in row[4].split("(")[1].rstrip(") ").split(" to "))
    assert row[4].strip().startswith("0.4000") and 0.2 <= low < 0.3 and 0.5 < high <= 0.6
    plot = (tmp_path / "fidelity-500.svg").read_bytes()
    study_report.report(Namespace(results=path, steps=None, plots=tmp_path))
    assert len(plot) > 1000 and plot == (tmp_path / "fidelity-500.svg").read_bytes()


def test_task_asks_what_the_prompt_tells():
    prompt, rest, answers = study_task.make(3)
    assert (prompt, rest, answers) == study_task.make(3) != study_task.make(4)
    assert len(answers) == study_task.QUESTIONS
    for first, last in answers:
        question = rest[:first].rsplit("Question: ", 1)[1]
        name = next(n for n in study_task.NAMES if f" {n} " in question or f" {n}?" in question)
        fact = next(line for line in prompt.splitlines() if line.startswith(name + " "))
        assert rest[first:last].strip() in fact and rest[last] == "\n"
    assert np.mean([last - first for first, last in answers]) > 4
