"""Ideas past the paper, measured against what the program does, at equal bytes read; see scripts/fidelity.

The program has none of these ideas: this is an evaluator of its own in NumPy. It decodes a text teacher-forced with many
variants at once, as sequences of one batch that share the dense prompt and every read of a weight. `ours` is the program's
small-page setting (pages of 4, q4 summaries, budget 0.197, no dense layers, alpha 0.15, softmax, one sink page); every
other variant differs from it in one thing and reads the same bytes of keys, values and summaries, step by step or, where a
variant's reading depends on what it sees, on the mean.

  d  rows of the window are carried through the layers only when it pays; the supplement is always folded into the cached
     output, with the row's last query. `ages`: carried at these ages only. `weight`: once the supplements since it was last
     carried weigh TAU of its outputs, on the mean over layers. `layer`: from the first layer on where they weigh TAU.
  e  selection adds MISS times what the older queries of the window would give a page that they have not met.
  f  the budget is shared by need, at least FLOOR of the equal share each. `pool`: between the kv heads of a layer.
     `mass`: between all heads and layers, each reads pages until its scores' softmax holds the mass T; T is steered so that
     the mean reading stays the budget.
  g  coarse summaries of BLOCK tokens for all, those of single pages only in the best FINE of the blocks; what that saves is
     read as keys and values.

One JSON line a result; running again measures what is missing. Loss against dense is nll - nll_dense.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported: the processes are the parallelism

import argparse
import dataclasses
import hashlib
import json
import math
import multiprocessing
import signal
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import study  # noqa: E402
import study_report  # noqa: E402
import study_texts  # noqa: E402
from reference.model import Model  # noqa: E402
from reference.rounding import CODE_TOPS, summary_bytes, to_bf16, to_codes  # noqa: E402

RESULTS = ROOT / "docs" / "data" / "ideas.jsonl"
BUDGET, ALPHA, BASE_PAGE, SINK_TOKENS = 0.197, np.float32(0.15), 4, 4
TINY = np.float32(1e-30)
GROUP_MAX = 14  # variants of one batch: memory, and rows that share a weight's read


@dataclasses.dataclass(frozen=True)
class Variant:
    idea: str  # ours, or the letter of the idea
    name: str
    window: int
    carry: str = "all"  # all, none, ages, weight, layer
    ages: tuple = ()
    tau: float = 0.0
    miss: float = 0.0
    share: str = "equal"  # equal, pool, mass
    floor: float = 0.0
    page: int = BASE_PAGE
    block: int = 0
    fine: float = 1.0
    coarse: str = "q4"


def ages(*wanted):
    return Variant("d", "w8 ages " + ",".join(map(str, wanted)), 8, carry="ages", ages=wanted)


def variants():
    found = [Variant("ours", "w1", 2, carry="none"), Variant("ours", "w2", 2)]
    found += [Variant("ours", "w4", 4), Variant("ours", "w8", 8)]
    found += [ages(7), ages(1, 7), ages(1, 3, 7)]
    found += [Variant("d", f"w8 weight {t}", 8, carry="weight", tau=t) for t in (0.01, 0.02, 0.05)]
    found += [Variant("d", f"w8 layer {t}", 8, carry="layer", tau=t) for t in (0.05, 0.1, 0.2)]
    found += [Variant("e", f"w{w} miss {m}", w, miss=m) for w, m in ((2, 0.1), (2, 0.3), (2, 1.0), (8, 0.3), (8, 1.0))]
    found += [Variant("f", f"w{w} {s} floor {f}", w, share=s, floor=f)
              for w, s, f in ((2, "pool", 0.0), (2, "pool", 0.5), (2, "mass", 0.0), (2, "mass", 0.5), (8, "mass", 0.5))]
    found += [Variant("g", f"w2 page 4 block 16 {c} fine {f}", 2, block=16, fine=f, coarse=c)
              for c, f in (("q4", 0.4), ("q4", 0.6), ("q8", 0.4))]
    found += [Variant("g", f"w2 page 2 block 16 q4 fine {f}", 2, page=2, block=16, fine=f) for f in (0.3, 0.4, 0.55)]
    return found + [Variant("g", "w2 page 2", 2, page=2)]


def slim(model):
    """Joins the matrices that read the same rows and lays all out as (in, out), faster here; their parts go."""
    for layer in model.layers:
        layer.qkv = np.concatenate([layer.q.T, layer.k.T, layer.v.T], axis=1)
        layer.gate_up = np.concatenate([layer.gate.T, layer.up.T], axis=1)
        layer.o, layer.down = np.ascontiguousarray(layer.o.T), np.ascontiguousarray(layer.down.T)
        for name in ("q", "k", "v", "gate", "up"):
            delattr(layer, name)
    return model


class Transformer:
    """Rows (n, D) through the parts around attention; cos and sin of every position are kept."""

    def __init__(self, model, capacity):
        c = self.config = model.config
        if c.biases or c.mlp_bias or c.qk_norm or any(c.windows):
            raise ValueError("study_ideas knows plain Llama shapes only: no biases, q/k norms or sliding windows")
        self.model = model
        angle = np.arange(capacity)[:, None] * c.inv_freq
        self.cos = (np.cos(angle) * c.rope_gain).astype(np.float32)[:, None]
        self.sin = (np.sin(angle) * c.rope_gain).astype(np.float32)[:, None]

    def turn(self, x, positions):
        cos, sin = self.cos[positions], self.sin[positions]
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def qkv(self, i, x, positions):
        c, layer = self.config, self.model.layers[i]
        joined = (self.model.norm(x, layer.norm_attn) @ layer.qkv).reshape(len(x), -1, c.head_dim)
        turned = self.turn(joined[:, : c.n_heads + c.n_kv_heads], positions)
        return turned[:, : c.n_heads], to_bf16(turned[:, c.n_heads :]), to_bf16(joined[:, c.n_heads + c.n_kv_heads :])

    def after_attention(self, i, x, o):
        layer = self.model.layers[i]
        x = x + o.reshape(len(x), -1) @ layer.o
        gate, up = np.split(self.model.norm(x, layer.norm_mlp) @ layer.gate_up, 2, axis=-1)
        return x + (gate / (1 + np.exp(-gate)) * up) @ layer.down

    def log_probabilities(self, x):
        logits = np.ascontiguousarray((self.model.head @ self.model.norm(x, self.model.final_norm).T).T)
        logits -= logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def dense(model, ids, n_prompt, n_steps):
    """One causal pass over the whole text: keys and values (L, K, prompt, E) and log-probabilities (steps, V)."""
    c, net = model.config, Transformer(model, len(ids))
    positions = np.arange(len(ids))
    hidden = positions[None, :] > positions[:, None]
    keys = np.empty((c.n_layers, c.n_kv_heads, n_prompt, c.head_dim), np.float32)
    values = np.empty_like(keys)
    x = model.embed(ids)
    for i in range(c.n_layers):
        q, k, v = net.qkv(i, x, positions)
        keys[i], values[i] = k[:n_prompt].swapaxes(0, 1), v[:n_prompt].swapaxes(0, 1)
        o = np.empty_like(q)
        for h in range(c.n_heads):
            scores = q[:, h] @ k[:, h // c.group].T / np.float32(math.sqrt(c.head_dim))
            scores[hidden] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            o[:, h] = weights @ v[:, h // c.group] / weights.sum(axis=1, keepdims=True)
        x = net.after_attention(i, x, o)
    return keys, values, net.log_probabilities(x[n_prompt - 1 : n_prompt + n_steps - 1])


class Summaries:
    """Codes of middle and half-width of the keys of every unit of `tokens` tokens, (L, S, K, units, E)."""

    def __init__(self, shape, tokens, kind, capacity):
        self.tokens, self.kind = tokens, kind
        units = -(-capacity // tokens)
        self.mid, self.half = (np.zeros((*shape[:3], units, shape[3]), np.float32) for _ in range(2))
        self.mid_scale, self.half_scale = (np.zeros((*shape[:3], units), np.float32) for _ in range(2))

    def update(self, i, keys, first, last):
        """keys (S, K, capacity, E) of layer i; positions first..last were written, last is the newest."""
        units = slice(first // self.tokens, last // self.tokens + 1)
        at = np.minimum(np.arange(units.start * self.tokens, units.stop * self.tokens), last)
        some = keys[:, :, at].reshape(*keys.shape[:2], -1, self.tokens, keys.shape[-1])
        low, high = some.min(axis=3), some.max(axis=3)
        tops = CODE_TOPS[self.kind]
        self.mid[i][:, :, units], self.mid_scale[i][:, :, units] = to_codes((high + low) * np.float32(0.5), tops[0])
        half = (high - low) * np.float32(0.5)
        self.half[i][:, :, units], self.half_scale[i][:, :, units] = to_codes(half, tops[1], low=0)

    def scores(self, i, q, n, some=slice(None)):
        """q (S, K, rows, E) -> (S, K, rows, n)."""
        step = np.abs(q).max(axis=-1, keepdims=True) / np.float32(127)
        code = np.rint(q / np.maximum(step, TINY))
        mid = (code @ self.mid[i][some, :, :n].swapaxes(-1, -2)) * self.mid_scale[i][some, :, None, :n]
        half = (np.abs(code) @ self.half[i][some, :, :n].swapaxes(-1, -2)) * self.half_scale[i][some, :, None, :n]
        return (mid + ALPHA * half) * (step / np.float32(math.sqrt(q.shape[-1])))


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


class Batch:
    """Sequences of one window and page, a variant each. S sequences, K kv heads, G query heads each, w rows: the row of
    position r has place r % w. Everything of the window is (L, S, K, w, ...)."""

    def __init__(self, model, variants, keys, values, n_steps):
        c = self.config = model.config
        self.variants, self.w, self.page = variants, variants[0].window, variants[0].page
        self.first, self.p = keys.shape[2], keys.shape[2]
        capacity = -(-(self.first + n_steps) // 16) * 16
        self.net = Transformer(model, capacity)
        n, shape = len(variants), (c.n_layers, len(variants), c.n_kv_heads)
        self.k, self.v = (np.zeros((*shape, capacity, c.head_dim), np.float32) for _ in range(2))
        self.k[:, :, :, : self.first], self.v[:, :, :, : self.first] = keys[:, None], values[:, None]
        rows = (*shape, self.w, c.group)
        self.q, self.o = np.zeros((*rows, c.head_dim), np.float32), np.zeros((*rows, c.head_dim), np.float32)
        self.lse = np.full(rows, -np.inf, np.float32)
        self.last_loaded = np.full((*shape, capacity // self.page + 1), -1, np.int32)  # the last one is nobody's page
        self.x_in = np.zeros((c.n_layers, n, self.w, c.dim), np.float32)
        self.weight = np.zeros((c.n_layers, n, self.w), np.float32)  # of supplements that were not carried
        self.embedded = np.zeros((self.w, c.dim), np.float32)
        self.fine = Summaries((*shape, c.head_dim), self.page, "q4", capacity)
        self.two = [s for s, v in enumerate(variants) if v.block]
        one = (c.n_layers, 1, c.n_kv_heads, c.head_dim)
        self.coarse = {s: Summaries(one, variants[s].block, variants[s].coarse, capacity) for s in self.two}
        for i in range(c.n_layers):
            self.summarise(i, 0, self.first - 1)
        self.missing = [s for s, v in enumerate(variants) if v.miss]
        self.mass_logit = np.full(n, np.nan)
        self.debt = np.zeros(n)  # bytes that the budget would have allowed and were not read
        self.read, self.read_dense, self.loaded, self.met, self.carried, self.old, self.fine_units = np.zeros((7, n))

    def of(self, field):
        return np.array([getattr(v, field) for v in self.variants])

    def summarise(self, i, first, last):
        self.fine.update(i, self.k[i], first, last)
        for s, coarse in self.coarse.items():
            coarse.update(i, self.k[i][s : s + 1], first, last)

    def plan(self):
        """This step's numbers: positions and ages of the window's places, and what each variant may read a head."""
        p, w, e = self.p, self.w, self.config.head_dim
        self.age = (p - np.arange(w)) % w
        self.position = p - self.age
        self.valid = self.position >= self.first
        self.n_pages = p // self.page + 1
        self.unfilled = self.n_pages * self.page - (p + 1)  # slots of the newest page
        base_pages = p // BASE_PAGE + 1
        k = max(3, math.ceil(BUDGET * base_pages))
        token = 2 * e * 2
        base_unfilled = base_pages * BASE_PAGE - (p + 1)
        self.target = (k * BASE_PAGE - base_unfilled) * token + base_pages * summary_bytes("q4", "bf16", e)
        self.summary, self.blocks = np.zeros(len(self.variants)), {}
        k_of = np.full(len(self.variants), k)
        for s, v in enumerate(self.variants):
            n_fine = self.n_pages
            if v.block:
                n_blocks = p // v.block + 1
                self.blocks[s] = max(2, math.ceil(v.fine * n_blocks))
                in_last = self.n_pages - (n_blocks - 1) * (v.block // self.page)
                n_fine = (self.blocks[s] - 1) * (v.block // self.page) + in_last
                self.summary[s] = n_blocks * summary_bytes(v.coarse, "bf16", e)
            self.fine_units[s] += n_fine / self.n_pages
            self.summary[s] += n_fine * summary_bytes("q4", "bf16", e)
            if v.block or v.page != BASE_PAGE:
                left = self.target + self.debt[s] - self.summary[s]
                k_of[s] = max(3, int((left / token + self.unfilled) // self.page))
        return k_of

    def page_weights(self, i, place):
        """What the newest row's group expects of every page, (S, K, n); with e, also what older rows miss."""
        n = self.n_pages
        scores = self.fine.scores(i, self.q[i][:, :, place], n)
        for s in self.two:
            v, coarse = self.variants[s], self.coarse[s]
            n_blocks = self.p // v.block + 1
            best = softmax(coarse.scores(i, self.q[i][s : s + 1, :, place], n_blocks)).mean(axis=2)[0]
            best[:, [0, -1]] = np.inf
            kept = np.zeros(best.shape, bool)
            np.put_along_axis(kept, np.argsort(-best, axis=-1)[:, : self.blocks[s]], True, axis=-1)
            kept = np.repeat(kept, v.block // self.page, axis=-1)[:, None, :n]
            scores[s] = np.where(kept, scores[s], -np.inf)
        found = softmax(scores).mean(axis=2)
        if self.missing and self.valid.sum() > 1:
            some = self.missing
            q = self.q[i][some]
            shape = q.shape[:4]
            scores = self.fine.scores(i, q.reshape(*shape[:2], -1, q.shape[-1]), n, some).reshape(*shape, n)
            old = self.valid & (self.age > 0)
            future = np.arange(n) * self.page > self.position[:, None]
            scores = np.where(future[None, None, :, None], -np.inf, scores)
            unmet = old[:, None] & (self.last_loaded[i][some][:, :, None, :n] < self.position[:, None])
            missed = np.where(unmet, softmax(scores).mean(axis=3), 0).sum(axis=2) / np.float32(old.sum())
            found[some] += self.of("miss")[some].astype(np.float32)[:, None, None] * missed
        return found

    def counts(self, found, forced, k_of):
        """Pages that each (sequence, kv head) reads, (S, K); `forced` is `found` with what must be read at infinity."""
        n = found.shape[-1]
        counts = np.repeat(np.minimum(k_of, n)[:, None], found.shape[1], axis=1)
        for s, v in enumerate(self.variants):
            low = max(3, int(v.floor * k_of[s]))
            if v.share == "pool":
                some = forced[s].copy()
                np.put_along_axis(some, np.argpartition(-some, low - 1, axis=-1)[:, :low], np.inf, axis=-1)
                total = int(counts[s].sum())
                best = np.argpartition(-some.reshape(-1), total - 1)[:total]
                counts[s] = np.bincount(best // n, minlength=len(some))
            elif v.share == "mass":
                order = np.argsort(-forced[s], axis=-1)
                held = np.cumsum(np.take_along_axis(found[s], order, axis=-1), axis=-1)
                if np.isnan(self.mass_logit[s]):
                    self.first_mass[s].append(float(held[:, k_of[s] - 1].mean()))
                else:
                    limit = 1 / (1 + math.exp(-self.mass_logit[s]))
                    counts[s] = np.clip(1 + (held < limit).sum(axis=-1), low, n)
        return counts

    def select(self, i, place, k_of):
        """(pages (S, K, m), which of them count (S, K, m)): the m is the largest count."""
        found = self.page_weights(i, place)
        forced = found.copy()
        forced[..., : max(1, SINK_TOKENS // self.page)] = np.inf
        forced[..., -1] = np.inf
        counts = self.counts(found, forced, k_of)
        m = int(counts.max())
        order = np.argsort(-forced, axis=-1, kind="stable")[..., :m]
        self.loaded += counts.sum(axis=1)
        bytes_read = (counts * self.page - self.unfilled) * (4 * self.config.head_dim) + self.summary[:, None]
        self.read_step += bytes_read.sum(axis=1)
        return order, np.arange(m) < counts[..., None]

    def attend(self, i, place, pages, counted):
        """Folds the chosen pages into every row of the window; returns the weight of what was folded, (S, w)."""
        n_seq, n_kv, capacity, e = self.k[i].shape
        at = (pages[..., None] * self.page + np.arange(self.page)).reshape(n_seq, n_kv, -1)
        flat = at + (np.arange(n_seq * n_kv) * capacity).reshape(n_seq, n_kv, 1)
        k = self.k[i].reshape(-1, e).take(flat, axis=0)
        v = self.v[i].reshape(-1, e).take(flat, axis=0)
        unmet = np.take_along_axis(self.last_loaded[i], pages, axis=-1)[:, :, None] < self.position[:, None]
        fold = np.array([v.carry != "none" for v in self.variants])
        unmet &= (self.valid & (self.age > 0))[:, None] & fold[:, None, None, None]
        unmet[:, :, place] = True
        unmet &= counted[:, :, None] & (pages[:, :, None] * self.page <= self.position[:, None])
        self.met += unmet.sum(axis=(1, 2, 3)) - counted.sum(axis=(1, 2))
        seen = np.repeat(unmet, self.page, axis=-1) & (at[:, :, None] <= self.position[:, None])

        scores = self.q[i].reshape(n_seq, n_kv, -1, e) @ k.swapaxes(-1, -2)
        scores = scores.reshape(n_seq, n_kv, self.w, -1, scores.shape[-1]) * np.float32(1 / math.sqrt(e))
        scores += np.where(seen, np.float32(0), np.float32(-np.inf))[:, :, :, None]
        top = scores.max(axis=-1, keepdims=True)
        top[~np.isfinite(top)] = 0
        scores -= top
        weights = np.exp(scores, out=scores)
        total = weights.sum(axis=-1)
        o = (weights.reshape(n_seq, n_kv, -1, weights.shape[-1]) @ v).reshape(self.o[i].shape)
        with np.errstate(divide="ignore"):
            added = top[..., 0] + np.log(total)
        cached = self.lse[i]
        cached[:, :, place] = -np.inf
        m = np.maximum(cached, added)
        m[~np.isfinite(m)] = 0
        a, b = np.exp(cached - m), np.exp(added - m)
        both = np.maximum(a + b, TINY)
        share = b / both
        self.o[i] = (a / both)[..., None] * self.o[i] + (share / np.maximum(total, TINY))[..., None] * o
        with np.errstate(divide="ignore"):
            self.lse[i] = m + np.log(a + b)
        nobody = self.last_loaded.shape[-1] - 1
        np.put_along_axis(self.last_loaded[i], np.where(counted, pages, nobody), self.p, axis=-1)
        return share.mean(axis=(1, 3))

    def carried_at_start(self):
        """(S, w): the rows that go through the layers from the first one on."""
        on = np.zeros((len(self.variants), self.w), bool)
        due = self.weight.mean(axis=0)
        for s, v in enumerate(self.variants):
            if v.carry == "all":
                on[s] = True
            elif v.carry == "ages":
                on[s] = np.isin(self.age, v.ages)
            elif v.carry == "weight":
                on[s] = due[s] >= v.tau
        on &= self.valid
        on[:, self.p % self.w] = True
        return on

    def step(self, token):
        """Feeds the next token; returns log-probabilities after it, (S, V)."""
        k_of, place = self.plan(), self.p % self.w
        self.weight[:, :, place] = 0
        self.embedded[place] = self.net.model.embedding[token]
        self.read_step, self.first_mass = np.zeros(len(self.variants)), [[] for _ in self.variants]
        x = np.repeat(self.embedded[None], len(self.variants), axis=0)
        on = self.carried_at_start()
        old = self.valid & (self.age > 0)
        by_layer = np.array([v.carry == "layer" for v in self.variants])
        tau = self.of("tau").astype(np.float32)[:, None]
        for i in range(self.config.n_layers):
            s, r = np.nonzero(on)
            rows = x[s, r]
            self.x_in[i][s, r] = rows
            q, k, v = self.net.qkv(i, rows, self.position[r])
            self.q[i][s, :, r] = q.reshape(len(s), self.config.n_kv_heads, -1, self.config.head_dim)
            self.k[i][s, :, self.position[r]], self.v[i][s, :, self.position[r]] = k, v
            self.summarise(i, int(self.position[r].min()), self.p)
            weight = self.attend(i, place, *self.select(i, place, k_of))
            self.weight[i] = 1 - (1 - self.weight[i]) * (1 - weight)
            if by_layer.any():
                woken = by_layer[:, None] & old & ~on & (self.weight[i] >= tau)
                x[woken] = self.x_in[i][woken]
                on |= woken
                s, r = np.nonzero(on)
            self.weight[i][on] = 0
            self.carried += on[:, old].sum(axis=1)
            self.old += old.sum()
            x[s, r] = self.net.after_attention(i, x[s, r], self.o[i][s, :, r])
        self.settle()
        self.p += 1
        return self.net.log_probabilities(x[:, place])

    def settle(self):
        """Books the step's bytes and steers the variants whose reading is not fixed."""
        heads = self.config.n_layers * self.config.n_kv_heads
        self.read += self.read_step
        self.read_dense += (self.p + 1) * 4 * self.config.head_dim * heads
        self.debt += self.target - self.read_step / heads
        for s, v in enumerate(self.variants):
            if v.share == "mass":
                if np.isnan(self.mass_logit[s]):
                    mass = np.mean(self.first_mass[s])
                    self.mass_logit[s] = math.log(mass / (1 - mass))
                else:
                    wanted = max(0.5 * self.target, self.target + 0.2 * self.debt[s])
                    self.mass_logit[s] += 0.5 * math.log(wanted / (self.read_step[s] / heads))


def shared_path(text, o):
    return o.cache / f"dense-{text}-{o.prompt}-{o.steps}.npz"


def ids_of(text, o):
    return np.array((study_texts.CACHE / f"{text}.ids").read_text().split()[: o.prompt + o.steps], int)


def sha_of(text):
    """The hash that lines of the fidelity study have; without the text itself, nothing."""
    path = study_texts.CACHE / f"{text}.txt"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""


def prepare(text, o, model):
    path = shared_path(text, o)
    if not path.exists():
        keys, values, logp = dense(model, ids_of(text, o), o.prompt, o.steps)
        part = path.with_suffix(".part.npz")
        np.savez(part, keys=keys, values=values, logp=logp)
        part.rename(path)


def measure(text, some, o, model):
    """The variants' results on one text, in their order."""
    start = time.perf_counter()
    with np.load(shared_path(text, o)) as shared:
        keys, values, logp = shared["keys"], shared["values"], shared["logp"]
    fed = ids_of(text, o)[o.prompt :]
    batch = Batch(model, some, keys, values, o.steps)
    nll, kl, same = np.zeros((3, len(some), o.steps))
    nll[:, 0], same[:, 0] = -logp[0, fed[0]], 1  # after the prompt nothing differs
    for n in range(o.steps):
        found = batch.step(fed[n])
        if n + 1 < o.steps:
            nll[:, n + 1] = -found[:, fed[n + 1]]
            kl[:, n + 1] = (np.exp(logp[n + 1]) * (logp[n + 1] - found)).sum(axis=1)
            same[:, n + 1] = found.argmax(axis=1) == logp[n + 1].argmax()
    seconds = time.perf_counter() - start
    nll_dense = -float(logp[np.arange(o.steps), fed].mean(dtype=float))
    return [dict(
        idea=v.idea, name=v.name, window=1 if v.carry == "none" else v.window, page_size=v.page,
        nll_dense=round(nll_dense, 6), nll=round(nll[s].mean(), 6), kl=round(kl[s].mean(), 6),
        top1=round(same[s].mean(), 4), exposure=round(1 + batch.met[s] / batch.loaded[s], 4),
        kv_read_share=round(batch.read[s] / batch.read_dense[s], 6),
        carried=round(batch.carried[s] / max(1, batch.old[s]), 4) if v.carry != "none" else 0.0,
        fine=round(batch.fine_units[s] / o.steps, 4), s_per_step=round(seconds / o.steps, 4), batch=len(some),
    ) for s, v in enumerate(some)]


STATE = {}  # what the processes inherit: options and weights


def work(task):
    kind, text, some = task
    if kind == "prepare":
        return text, prepare(text, **STATE)
    return text, measure(text, some, **STATE)


def missing_groups(o, facts):
    """[(text, variants)]: what has no line yet, batched by window and page, the costly ones first."""
    key = lambda r: tuple(r[f] for f in ("text", "model_sha", "prompt", "steps", "name"))  # noqa: E731
    done = {key(r) for r in study.read_results(o.results)}
    found = []
    for text in study_texts.names(o.texts):
        if not (study_texts.CACHE / f"{text}.ids").exists():
            raise study_texts.Missing(f"{text}: no token ids in {study_texts.CACHE}: run scripts/fidelity texts")
        groups = {}
        for v in variants():
            wanted = not o.only or any(v.name.startswith(w) or v.idea == w for w in o.only.split(","))
            if wanted and key({**facts, "text": text, "name": v.name}) not in done:
                groups.setdefault((v.window, v.page), []).append(v)
        for some in groups.values():
            n = -(-len(some) // GROUP_MAX)
            found += [(text, some[i::n]) for i in range(n)]
    return sorted(found, key=lambda g: -sum(v.window if v.carry in ("all", "layer") else 2 for v in g[1]))


def report(o):
    """The table of docs/benchmarks.md: losses, and the difference from ours with the same window over the same texts."""
    lines = study.read_results(o.results)
    for prompt, steps in sorted({(r["prompt"], r["steps"]) for r in lines}):
        table = study_report.table([r for r in lines if (r["prompt"], r["steps"]) == (prompt, steps)], lambda r: r["name"])
        print(f"### {steps} steps after a prompt of {prompt}\n")
        rows = []
        for name, by_text in table.items():
            some = list(by_text.values())
            base = table.get(f"w{some[0]['window']}", {})
            texts = sorted(set(by_text) & set(base))
            cells = [some[0]["idea"], name, str(len(some)), *(f"{np.mean([r[f] for r in some]):.{d}f}" for f, d in (
                ("kv_read_share", 4), ("exposure", 2), ("carried", 2), ("kl", 4)))]
            for value in (study_report.loss, lambda r: r["nll"] - base[r["text"]]["nll"],
                          lambda r: r["kl"] - base[r["text"]]["kl"]):
                x = np.array([value(by_text[t]) for t in texts])
                low, high = study_report.interval(x[study_report.draws(len(x))].mean(axis=1)) if texts else (0, 0)
                cells.append(f"{x.mean():.4f} ({low:.4f} to {high:.4f})" if texts else "")
            rows.append(cells)
        study_report.print_rows(["idea", "variant", "texts", "read", "exposure", "carried", "KL", "loss, nats",
                                 "nll - ours", "KL - ours"], sorted(rows, key=lambda r: (r[0] != "ours", r[0])))


def parser():
    p = argparse.ArgumentParser(prog="fidelity ideas", description="ideas past the paper at equal bytes read, in NumPy")
    p.add_argument("--model", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    p.add_argument("--results", type=Path, default=RESULTS, help="file of JSON lines")
    p.add_argument("--cache", type=Path, default=ROOT / "build" / "study" / "ideas", help="folder of the dense passes")
    p.add_argument("--texts", help="names, separated by commas; default: all")
    p.add_argument("--only", help="ideas or starts of names, separated by commas; default: all")
    p.add_argument("--prompt", type=study.count, default=512, help="prompt tokens")
    p.add_argument("--steps", type=study.count, default=300, help="decode steps")
    p.add_argument("--jobs", type=study.count, default=1, help="processes side by side, one thread each")
    p.add_argument("--report", action="store_true", help="print the table of the results instead of measuring")
    p.add_argument("--commit", help="what to record as the commit; default: this checkout's")
    return p


def main():
    o = parser().parse_args()
    if o.report:
        return report(o)
    study.need_model(o.model)
    try:
        facts = dict(model_sha=study.model_hash(o.model), prompt=o.prompt, steps=o.steps, machine=study.machine(),
                     commit=o.commit or study.commit())
        groups = missing_groups(o, facts)
        o.cache.mkdir(parents=True, exist_ok=True)
        o.results.parent.mkdir(parents=True, exist_ok=True)
        STATE.update(o=o, model=slim(Model.load(o.model)))
    except (study_texts.Missing, ValueError, OSError) as error:
        sys.exit(f"fidelity ideas: {error}")
    start = time.perf_counter()
    # Ctrl-C is for the parent: it ends the others.
    with multiprocessing.get_context("fork").Pool(o.jobs, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        list(pool.imap_unordered(work, [("prepare", t, None) for t in sorted({t for t, _ in groups})]))
        print(f"{time.perf_counter() - start:.0f} s: dense passes are there", flush=True)
        for text, results in pool.imap_unordered(work, [("measure", *g) for g in groups]):
            facts_of = dict(facts, text=text, kind=study_texts.TEXTS[text][0], text_sha=sha_of(text))
            with open(o.results, "a", encoding="utf-8") as file:
                file.writelines(json.dumps({**facts_of, **r}) + "\n" for r in results)
            print(f"{time.perf_counter() - start:.0f} s: {text}: {', '.join(r['name'] for r in results)}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(75)
