"""The long-answer task of the fidelity study: many short questions answered in one long output.

Like LongGenBench (arXiv 2410.04199), scaled to what a 135M model can do. The prompt tells where 48 people live and what
each does; then come hundreds of questions, each about one of them, with their answers: one output of thousands of
tokens. Questions and right answers are fed, and an answer counts when every token of it was the likeliest at its place,
so a run is scored at all questions and policies see the same text. Names come in random order and come back, so the
evidence is spread over prompt and output and grows stale. Everything follows from a seed.
"""

import argparse
import hashlib
import random
import tempfile
from pathlib import Path

import numpy as np
import study_texts

NAMES = """Alice Bruno Carla David Elena Frank Grace Henry Irene Jacob Karen Louis Maria Nathan Olivia Peter Quentin Rosa
Simon Teresa Ulrich Vera Walter Xavier Yvonne Zachary Amanda Boris Claire Daniel Esther Felix Gloria Hugo Isabel Julian
Kevin Laura Martin Nora Oscar Paula Robert Sarah Thomas Ursula Victor Wendy""".split()
PLACES = """Paris London Berlin Madrid Rome Vienna Tokyo Moscow Cairo Athens Dublin Oslo Lisbon Prague Warsaw Toronto
Chicago Boston Seattle Denver Sydney Delhi Beijing Lima""".split()
TRADES = """teacher doctor farmer lawyer baker painter singer pilot nurse writer driver carpenter dentist engineer chef
tailor plumber actor""".split()
QUESTIONS = 220


def make(seed):
    """(prompt, rest, [(first, last) characters of each answer in the rest])."""
    rng = random.Random(seed)
    place, trade = ({n: rng.choice(options) for n in NAMES} for options in (PLACES, TRADES))
    facts = rng.sample([f"{n} lives in {place[n]} and is a {trade[n]}." for n in NAMES], len(NAMES))
    prompt = "Some facts about people:\n" + "\n".join(facts) + "\n\nQuestions and answers about these people:\n"
    rest, answers = "", []
    for _ in range(QUESTIONS):
        name = rng.choice(NAMES)
        question, answer = rng.choice([("In which city does {} live?", place[name]), ("What is the job of {}?", trade[name])])
        rest += f"Question: {question.format(name)} Answer:"
        answers.append((len(rest), len(rest) + 1 + len(answer)))
        rest += f" {answer}\n"
    return prompt, rest, answers


def tokens_of(model, seed):
    """(ids, tokens of the prompt, [(first, last) steps of each answer], hash of the text)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    prompt, rest, answers = make(seed)
    before, after = tokenizer.encode(prompt), tokenizer.encode(rest)
    spans = []
    for first, last in answers:
        inside = [i for i, (a, b) in enumerate(after.offsets) if a < last and b > first]
        spans.append((inside[0], inside[-1] + 1))
    return before.ids + after.ids, len(before.ids), spans, hashlib.sha256((prompt + rest).encode()).hexdigest()[:16]


def measure(o, facts, text, path, settings, policies, spans):
    import study

    print(f"{text['text']}: {settings}: {len(policies)} policies", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = study.evaluate(o, path, settings, policies, Path(folder) / "steps.npy")
        right = np.load(Path(folder) / "steps.npy")[:, 3 :: study.COLUMNS]
    answered = [np.array([right[a:b, i].all() for a, b in spans]) for i in range(len(found))]
    for i, policy in enumerate(policies):
        study.append(o, {
            **facts, **text, "run": settings, "policy_spec": policy, "nll_dense": found[0]["nll"],
            **{k: found[i + 1][k] for k in study.KEPT if k in found[i + 1]},
            "answers": len(spans), "answers_right": float(answered[i + 1].mean()),
            "answers_right_dense": float(answered[0].mean()),
            "answers_as_dense": float((answered[i + 1] == answered[0]).mean()),
        })


def run(o):
    import study

    work = []
    done = {study.key_of(r) for r in study.read_results(o.results)}
    facts = dict(model_sha=study.model_hash(o.model), machine=study.machine(), commit=o.commit or study.commit())
    for seed in range(o.seeds):
        ids, n_prompt, spans, sha = tokens_of(o.model, seed)
        sized = argparse.Namespace(**{**vars(o), "prompt": n_prompt, "steps": len(ids) - n_prompt})
        text = dict(text=f"people-{seed}", kind="task", text_sha=sha, prompt=sized.prompt, steps=sized.steps)
        path = study_texts.CACHE / f"people-{seed}.ids"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(" ".join(map(str, ids)))
        for settings, policies in study.groups_of(o):
            missing = [p for p in policies if study.key_of({**facts, **text, "run": settings, "policy_spec": p}) not in done]
            for at in range(0, len(missing), study.GROUP_MAX):
                some = missing[at : at + study.GROUP_MAX]
                work.append((measure, sized, facts, text, path, settings, some, spans))
    study.side_by_side(o, work)
