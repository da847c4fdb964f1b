"""`python -m reference.evaluate`, run from tests/: the counterpart of `retro eval`, with its options.

The first --prompt ids of --tokens are prefilled densely, the next --steps are fed one by one (or, with
--greedy, the most probable token is fed). The last line of standard output is one JSON object. Row i of
--dump-logits, float32 (steps + 1, vocabulary), predicts the token of step i; nll is the mean over rows 0 ..
steps-1 for the tokens that were fed. Beyond `retro eval`: --float64, --dump-selection for the pages of
every step, layer and kv head (see `SelectionDump`), and --replay-selection to read the pages that such a
dump names.
"""

import argparse
import json
import os
import sys
import time


def share(text):
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("a share above 0 and up to 1")
    return value


def at_least(low):
    def parse(text):
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"a whole number from {low}")
        return value

    return parse


def parser():
    p = argparse.ArgumentParser(prog="reference.evaluate", description="Retro's NumPy reference")
    p.add_argument("--model", required=True, help="Hugging Face folder")
    p.add_argument("--tokens", required=True, help="file of token ids, separated by blanks or commas")
    p.add_argument("--prompt", type=at_least(1), required=True, help="ids to prefill")
    p.add_argument("--steps", type=at_least(1), required=True, help="decode steps after the prompt")
    p.add_argument("--policy", choices=("dense", "quest", "retro", "streaming"), default="retro")
    p.add_argument("--window", type=at_least(1), default=2)
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--kv-budget", type=share)
    budget.add_argument("--kv-budget-tokens", type=at_least(1))
    p.add_argument("--page-size", type=at_least(1))
    p.add_argument("--summary", choices=("auto", "keys", "q8", "q4"), default="auto")
    p.add_argument("--dense-layers", type=at_least(0))
    p.add_argument("--score-alpha", type=float)
    p.add_argument("--score-group", choices=("max", "mean", "softmax"))
    p.add_argument("--sink-pages", type=at_least(0))
    p.add_argument(
        "--preset", choices=("paper",), help="the paper's setting; options given beside it win"
    )
    p.add_argument("--kv-dtype", choices=("f32", "f16", "bf16"), default="bf16")
    p.add_argument("--prefill-chunk", type=at_least(1), default=512)
    p.add_argument("--threads", type=at_least(1), help="threads of NumPy's BLAS")
    p.add_argument("--greedy", action="store_true")
    p.add_argument("--float64", action="store_true", help="compute in float64; K and V keep --kv-dtype")
    p.add_argument("--dump-logits", metavar="F.npy")
    p.add_argument("--dump-selection", metavar="F.npz")
    p.add_argument("--replay-selection", metavar="F.npz", help="read the pages that another run's dump chose")
    p.add_argument("--json", action="store_true", help="nothing but the JSON line on standard output")
    return p


def read_tokens(path, n_needed, vocab):
    with open(path, encoding="utf-8") as file:
        ids = [int(word) for word in file.read().replace(",", " ").split()]
    if len(ids) < n_needed:
        raise ValueError(f"{path}: {len(ids)} token ids, {n_needed} needed: lower --prompt or --steps")
    for n, token in enumerate(ids[:n_needed]):
        if not 0 <= token < vocab:
            raise ValueError(f"{path}: token {n} is {token}, the vocabulary has {vocab}")
    return ids[:n_needed]


class SelectionDump:
    """Arrays (steps, layers, kv heads, pages): chosen (bool), met (bool, any revised row), scores (float32,
    NaN where a page was no candidate or nothing was scored); margin (steps, layers, kv heads) float32 is
    the relative lead of the chosen pages (pages.margin_of)."""

    def __init__(self, n_steps, n_layers, n_kv_heads, n_pages):
        import numpy as np

        shape = (n_steps, n_layers, n_kv_heads, n_pages)
        self.chosen, self.met = np.zeros(shape, bool), np.zeros(shape, bool)
        self.scores = np.full(shape, np.nan, np.float32)
        self.margin = np.full(shape[:3], np.inf, np.float32)

    def __call__(self, step, layer, g, record):
        at = (step, layer, g)
        self.chosen[at][record["chosen"]] = True
        for unmet in record["met"].values():
            self.met[at][unmet] = True
        if record["scores"] is not None:
            self.scores[at][record["pages"]] = record["scores"]
        self.margin[at] = record["margin"]

    def save(self, path):
        import numpy as np

        np.savez_compressed(path, chosen=self.chosen, met=self.met, scores=self.scores, margin=self.margin)


def evaluate(model, tokens, n_prompt, n_steps, settings, greedy=False, chunk=512, observer=None, replay=None):
    """Returns (result dict of the JSON line, logits (n_steps + 1, vocabulary) float32)."""
    import numpy as np
    from .decoder import Decoder

    decoder = Decoder(model, settings, n_prompt + n_steps, observer, replay)
    logits = np.empty((n_steps + 1, model.config.vocab), np.float32)
    logits[0] = decoder.prefill(tokens[:n_prompt], chunk)
    fed, loss, start = [], 0.0, time.perf_counter()
    for n in range(n_steps):
        token = int(logits[n].argmax()) if greedy else tokens[n_prompt + n]
        row = logits[n].astype(np.float64)
        loss += row.max() + np.log(np.exp(row - row.max()).sum()) - row[token]
        logits[n + 1] = decoder.step(token)
        fed.append(token)
    seconds = time.perf_counter() - start
    nll = float(loss / n_steps)
    result = dict(
        nll=nll,
        ppl=float(np.exp(nll)),
        exposure=decoder.counters.exposure,
        pages_loaded=decoder.counters.pages_loaded,
        kv_read_share=decoder.counters.kv_read_share,
        tokens_per_s=n_steps / seconds,
    )
    if greedy:
        result["tokens"] = fed
    return result, logits


def run(options):
    import numpy as np
    from .decoder import PAPER, Settings
    from .model import Model

    chosen = dict(PAPER) if options.preset == "paper" else {}
    for name in (
        "kv_budget",
        "kv_budget_tokens",
        "page_size",
        "dense_layers",
        "score_alpha",
        "score_group",
        "sink_pages",
    ):
        if getattr(options, name) is not None:
            chosen[name] = getattr(options, name)
    settings = Settings(
        policy=options.policy,
        window=options.window,
        kv_dtype=options.kv_dtype,
        summary=options.summary,
        **chosen,
    )
    model = Model.load(options.model, np.float64 if options.float64 else np.float32)
    n_fed = options.prompt + (0 if options.greedy else options.steps)
    tokens = read_tokens(options.tokens, n_fed, model.config.vocab)
    observer = None
    if options.dump_selection:
        n_pages = -(-(options.prompt + options.steps) // settings.page_size)
        observer = SelectionDump(options.steps, model.config.n_layers, model.config.n_kv_heads, n_pages)
    replay = None
    if options.replay_selection:
        replayed = np.load(options.replay_selection)["chosen"]
        replay = lambda *at: np.flatnonzero(replayed[at])  # noqa: E731
    result, logits = evaluate(
        model,
        tokens,
        options.prompt,
        options.steps,
        settings,
        options.greedy,
        options.prefill_chunk,
        observer,
        replay,
    )
    if options.dump_logits:
        np.save(options.dump_logits, logits)
    if observer is not None:
        observer.save(options.dump_selection)
    if not options.json:
        print(settings)
    print(json.dumps(result))


def main(arguments=None):
    options = parser().parse_args(arguments)
    if options.threads:
        # Read by OpenBLAS when NumPy is first imported, which is why nothing above imports it.
        os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)
    try:
        run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"reference.evaluate: {error}")


if __name__ == "__main__":
    main()
