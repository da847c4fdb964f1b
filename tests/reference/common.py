"""What several tests share: tiny models in memory, runs with a record of every step."""

import numpy as np

from . import config as configs
from . import tiny
from .decoder import Decoder, Settings
from .model import Model

N_PROMPT, N_STEPS = 75, 22


def model_of(family="llama", seed=0, dtype=np.float64, **overrides):
    raw, tensors = tiny.make(family, seed, **overrides)
    return Model(configs.parse(raw), tensors, dtype)


def settings_of(**changes):
    """Small pages with exact bounds and a budget under which most pages are left out; f32 K and V."""
    return Settings(**{**dict(page_size=4, kv_budget=0.2, dense_layers=1, window=3, summary="keys"), **changes})


def tokens_of(model, n=N_PROMPT + N_STEPS, seed=1):
    return np.random.default_rng(seed).integers(0, model.config.vocab, n)


class Run:
    """Prompt and steps through a Decoder; logits (steps + 1, V), records {(step, layer, g): record}."""

    def __init__(self, model, settings, tokens=None, n_prompt=N_PROMPT, chunk=512):
        tokens = tokens_of(model) if tokens is None else tokens
        self.records, self.n_prompt = {}, n_prompt

        def observe(step, layer, g, record):
            self.records[step, layer, g] = record

        self.decoder = Decoder(model, settings, len(tokens), observe)
        logits = [self.decoder.prefill(tokens[:n_prompt], chunk)]
        logits += [self.decoder.step(token) for token in tokens[n_prompt:]]
        self.logits = np.array(logits)
        self.counters = self.decoder.counters

    def position(self, step):
        return self.n_prompt + step
