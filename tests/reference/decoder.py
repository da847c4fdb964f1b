"""One sequence: dense prefill, then decode steps with dense, Quest or Retro attention (docs/algorithm.md).

What is kept per layer: its pages, and for the last w-1 queries the output cache {position: (O, lse)}.
Layers below `dense_layers` are computed for the new row only: their rows of older tokens cannot change, so
what those rows bring to the first sparse layer (`entry`) is kept instead. Revised rows start there.

A record of what every step read can be had through `observer`, called as observer(step, layer, g, record)
with record: pages, chosen (S), scores (candidates, or None where all pages were read), margin, and met, a
dict {revised position: U_r}. Tests and the selection dump are written on it.

A near tie between two pages is settled by rounding, and from then on two correct programs differ: the keys
and values of the deeper layers are not the same any more. `replay`, called as replay(step, layer, g) ->
pages, takes the choices of another run, so that everything else can be compared to the end; the record's
margin then says whether each choice was a defensible one.
"""

import dataclasses

import numpy as np

from . import pages as paging
from .attention import attend, merge
from .pages import LayerPages
from .rounding import KV_BYTES, summary_bytes


@dataclasses.dataclass
class Settings:
    policy: str = "retro"  # dense, quest (window 1), retro, or streaming (sink pages and the most recent)
    window: int = 2  # w
    kv_budget: float = 0.197  # b, share of the pages
    kv_budget_tokens: int | None = None  # instead of kv_budget
    page_size: int = 4  # P
    dense_layers: int = 0
    score_alpha: float = 0.15
    score_group: str = "softmax"
    sink_pages: int = 1
    kv_dtype: str = "f32"
    summary: str = "auto"  # or keys, q8, q4

    @property
    def summary_type(self):
        """keys, q8 or q4: codes bound nothing, so alpha = 1 needs the keys' own min and max."""
        if self.summary != "auto":
            return self.summary
        return "keys" if self.score_alpha >= 1 else {4: "q4", 8: "q8"}.get(self.page_size, "keys")


# What `--preset paper` sets: Quest's bound, best head of the group, no forced first page.
PAPER = dict(kv_budget=0.15, page_size=16, dense_layers=2, score_alpha=1.0, score_group="max", sink_pages=0)


@dataclasses.dataclass
class Counters:
    """Sums over steps, layers >= dense_layers and kv heads; bytes over all layers."""

    pages_loaded: int = 0
    pages_met_later: int = 0
    bytes_read: int = 0
    bytes_dense: int = 0

    @property
    def exposure(self):
        return (
            1.0 if self.pages_loaded == 0 else (self.pages_loaded + self.pages_met_later) / self.pages_loaded
        )

    @property
    def kv_read_share(self):
        return 1.0 if self.bytes_dense == 0 else self.bytes_read / self.bytes_dense


class Decoder:
    def __init__(self, model, settings, capacity, observer=None, replay=None):
        c = model.config
        self.model, self.settings, self.observer, self.replay = model, settings, observer, replay
        self.window = settings.window if settings.policy == "retro" else 1
        # Under the dense policy every layer is a dense layer.
        self.n_dense = c.n_layers if settings.policy == "dense" else min(settings.dense_layers, c.n_layers)
        self.layers = [
            LayerPages(c.n_kv_heads, capacity, settings.page_size, c.head_dim, settings.kv_dtype, model.dtype,
                       settings.summary_type)
            for _ in range(c.n_layers)
        ]
        self.output_cache = [{} for _ in range(c.n_layers)]  # {position: (O (H, E), lse (H,))}
        self.entry = {}  # {position: hidden state (D,) entering the first sparse layer}
        self.n_tokens = 0
        self.first = None  # first position computed by decode
        self.n_steps = 0
        self.counters = Counters()

    def prefill(self, tokens, chunk=512):
        """Dense attention over the prompt, `chunk` rows at a time; returns the last logits."""
        if self.first is not None:
            raise ValueError("the prompt comes before the first step")
        for start in range(0, len(tokens), chunk):
            part = tokens[start : start + chunk]
            positions = np.arange(self.n_tokens, self.n_tokens + len(part))
            x = self.model.embed(part)
            for i in range(self.model.config.n_layers):
                q, k, v = self.model.qkv(i, x, positions)
                self.layers[i].write(positions, k, v)
                x = self.model.after_attention(i, x, self.prefill_attention(i, q, positions))
            self.n_tokens += len(part)
        return self.model.logits(x[-1])

    def prefill_attention(self, i, q, positions):
        """Causal attention of many rows at once.  q (n, H, E) -> (n, H, E)."""
        c, layer = self.model.config, self.layers[i]
        all_pages = np.arange(positions[-1] // layer.page_size + 1)
        at = layer.positions(all_pages)
        filled = at <= positions[-1]
        at = at[filled]
        masked = ~np.stack([paging.visible(at, r, c.windows[i]) for r in positions])
        o = np.empty_like(q)
        for g in range(c.n_kv_heads):
            k, v = layer.keys_values(g, all_pages)
            k, v = k[filled], v[filled]
            for h in range(g * c.group, (g + 1) * c.group):
                scores = q[:, h] @ k.T / np.sqrt(np.asarray(c.head_dim, q.dtype))
                scores[masked] = -np.inf
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                o[:, h] = weights @ v / weights.sum(axis=1, keepdims=True)
        return o

    def step(self, token):
        """Feed one token at the next position; returns the logits after it."""
        model, p = self.model, self.n_tokens
        if self.first is None:
            self.first = p
        rows = list(range(max(self.first, p - self.window + 1), p + 1))

        x = model.embed([token])
        for i in range(self.n_dense):
            q, k, v = model.qkv(i, x, [p])
            self.layers[i].write([p], k, v)
            x = model.after_attention(i, x, self.full_attention(i, q[0], p)[None])
        if self.n_dense < model.config.n_layers:
            self.entry[p] = x[0]
            x = np.stack([self.entry[r] for r in rows])
            for i in range(self.n_dense, model.config.n_layers):
                q, k, v = model.qkv(i, x, rows)
                self.layers[i].write(rows, k, v)
                x = model.after_attention(i, x, self.sparse_attention(i, q, rows))
            # At the next step the window holds positions p - w + 2 .. p + 1.
            self.entry.pop(p - self.window + 1, None)
        self.n_tokens += 1
        self.n_steps += 1
        return model.logits(x[-1])

    def full_attention(self, i, q, p):
        """A dense layer: the new row reads every page with a visible key.  q (H, E) -> (H, E)."""
        c, layer = self.model.config, self.layers[i]
        pages = paging.candidates(p, layer.page_size, c.windows[i])
        seen = paging.visible(layer.positions(pages), p, c.windows[i])
        o = np.empty_like(q)
        for g in range(c.n_kv_heads):
            heads = slice(g * c.group, (g + 1) * c.group)
            o[heads] = attend(q[heads], *layer.keys_values(g, pages), seen)[0]
            self.count(i, g, pages, dict(pages=pages, chosen=pages, scores=None, margin=np.inf, met={}))
        return o

    def sparse_attention(self, i, q, rows):
        """Steps 2 to 5 of docs/algorithm.md for one layer.  q (rows, H, E), newest row last -> O (rows, H, E)."""
        c, layer, p = self.model.config, self.layers[i], rows[-1]
        o = np.empty_like(q)
        lse = np.empty(q.shape[:2], q.dtype)
        for g in range(c.n_kv_heads):
            heads = slice(g * c.group, (g + 1) * c.group)
            pages, chosen, scores, margin = self.select(i, g, q[-1, heads])
            k, v = layer.keys_values(g, chosen)
            at = layer.positions(chosen)
            o[-1, heads], lse[-1, heads] = attend(q[-1, heads], k, v, paging.visible(at, p, c.windows[i]))

            met = {}
            page_of = at // layer.page_size
            for n, r in enumerate(rows[:-1]):
                unmet = chosen[layer.last_loaded[g, chosen] < r]
                seen = np.isin(page_of, unmet) & paging.visible(at, r, c.windows[i])
                cached_o, cached_lse = self.output_cache[i][r]
                o_sup, lse_sup = attend(q[n, heads], k, v, seen)
                o[n, heads], lse[n, heads] = merge(cached_o[heads], cached_lse[heads], o_sup, lse_sup)
                met[r] = np.unique(page_of[seen])
            layer.last_loaded[g, chosen] = p
            self.count(i, g, pages, dict(pages=pages, chosen=chosen, scores=scores, margin=margin, met=met))
        for n, r in enumerate(rows):
            self.output_cache[i][r] = (o[n], lse[n])
        self.output_cache[i].pop(p - self.window + 1, None)
        return o

    def select(self, i, g, q):
        """Pages for the new row's query group q (G, E): (candidates, chosen, scores or None, margin)."""
        s, layer = self.settings, self.layers[i]
        pages = paging.candidates(layer.n_tokens - 1, layer.page_size, self.model.config.windows[i])
        k = paging.budget_pages(len(pages), layer.page_size, s.kv_budget, s.kv_budget_tokens)
        if k >= len(pages) or s.sink_pages >= pages[-1]:
            return pages, pages, None, np.inf
        if s.policy == "streaming":
            return pages, paging.choose(pages, pages, k, s.sink_pages), None, np.inf
        per_head = layer.scores(g, q, pages, s.score_alpha)
        scores = paging.group_scores(per_head, s.score_group)
        chosen = paging.choose(pages, scores, k, s.sink_pages)
        if self.replay is not None:
            replayed = np.asarray(self.replay(self.n_steps, i, g))
            if (
                len(replayed) != len(chosen)
                or not np.isin(replayed, pages).all()
                or pages[-1] not in replayed
            ):
                raise ValueError(
                    f"replayed pages of step {self.n_steps}, layer {i}, kv head {g} are no choice"
                )
            chosen = replayed
        return pages, chosen, scores, paging.margin_of(pages, scores, chosen, s.sink_pages)

    def count(self, i, g, pages, record):
        """Book what one kv head read.  Only slots that the new row sees count; summaries only where pages were scored.

        Revised rows read nothing of their own: their pages are pages of S.
        """
        s, c, layer = self.settings, self.model.config, self.layers[i]
        slot_bytes = 2 * c.head_dim * KV_BYTES[s.kv_dtype]
        p, window = layer.n_tokens - 1, c.windows[i]
        n_dense, n_read = (paging.visible(layer.positions(x), p, window).sum() for x in (pages, record["chosen"]))
        self.counters.bytes_dense += int(n_dense) * slot_bytes
        self.counters.bytes_read += int(n_read) * slot_bytes
        if record["scores"] is not None:
            self.counters.bytes_read += len(pages) * summary_bytes(s.summary_type, s.kv_dtype, c.head_dim)
        if i >= s.dense_layers:
            self.counters.pages_loaded += len(record["chosen"])
            self.counters.pages_met_later += sum(len(unmet) for unmet in record["met"].values())
        if self.observer is not None:
            self.observer(self.n_steps, i, g, record)
