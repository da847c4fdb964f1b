"""KV pages of one layer, their exact bounds, and the choice of pages (docs/algorithm.md, steps 1 and 2).

Page j holds positions j*P .. j*P+P-1.  Nothing is ever evicted.  Slots that were never written hold NaN,
so that an unmasked read shows.  Invariant: low and high are the element-wise min and max of the keys that
are in the page now, in the storage type; they are recomputed at every write, never widened.
"""

import math

import numpy as np

from .rounding import CODE_TOPS, store, to_codes


class LayerPages:
    """K, V, bounds and last_loaded of one layer: n_kv_heads first, so that [g] is one kv head's state."""

    def __init__(self, n_kv_heads, capacity, page_size, head_dim, kv_dtype, dtype, summary="keys"):
        self.summary = summary
        self.page_size, self.kv_dtype = page_size, kv_dtype
        n_pages = -(-capacity // page_size)
        shape = (n_kv_heads, n_pages, page_size, head_dim)
        self.k = np.full(shape, np.nan, dtype)
        self.v = np.full(shape, np.nan, dtype)
        self.low = np.full((n_kv_heads, n_pages, head_dim), np.nan, dtype)
        self.high = np.full((n_kv_heads, n_pages, head_dim), np.nan, dtype)
        self.last_loaded = np.full((n_kv_heads, n_pages), -1, np.int32)
        self.n_tokens = 0

    def write(self, positions, k, v):
        """Append or overwrite.  positions (n,) ascending; k, v (n, K, E) after rope."""
        positions = np.asarray(positions)
        page, slot = positions // self.page_size, positions % self.page_size
        self.k[:, page, slot] = store(k, self.kv_dtype).transpose(1, 0, 2)
        self.v[:, page, slot] = store(v, self.kv_dtype).transpose(1, 0, 2)
        self.n_tokens = max(self.n_tokens, int(positions[-1]) + 1)
        for j in range(page[0], page[-1] + 1):
            keys = self.k[:, j, : min(self.page_size, self.n_tokens - j * self.page_size)]
            self.low[:, j] = store(keys.min(axis=1), self.kv_dtype)
            self.high[:, j] = store(keys.max(axis=1), self.kv_dtype)

    def scores(self, g, q, pages, alpha):
        """Scores (G, n) of pages of kv head g for the group's queries q (G, E)."""
        low, high = self.low[g, pages], self.high[g, pages]
        if self.summary == "keys":
            return page_scores(q, low, high, alpha)
        return code_scores(q, low, high, alpha, *CODE_TOPS[self.summary])

    def positions(self, pages):
        """Positions of every slot of the given pages, (n * P,)."""
        return (np.asarray(pages)[:, None] * self.page_size + np.arange(self.page_size)).reshape(-1)

    def keys_values(self, g, pages):
        """k, v (n * P, E) of kv head g in the given pages."""
        e = self.k.shape[-1]
        return self.k[g, pages].reshape(-1, e), self.v[g, pages].reshape(-1, e)


def visible(positions, r, window):
    """Which key positions the query at r may see: none after r, and none that a sliding window has left."""
    seen = positions <= r
    return seen if window is None else seen & (positions > r - window)


def candidates(p, page_size, window):
    """Pages with at least one key visible to the query at p, ascending."""
    first = 0 if window is None else max(0, p - window + 1)
    return np.arange(first // page_size, p // page_size + 1)


def budget_pages(n_pages, page_size, budget, budget_tokens):
    """k, the number of pages to read: a share of n_pages, or a fixed number of tokens; never under 3."""
    wanted = budget * n_pages if budget_tokens is None else budget_tokens / page_size
    return max(3, math.ceil(wanted))


def page_scores(q, low, high, alpha):
    """q (G, E), low and high (n, E) -> (G, n); alpha = 1 is Quest's upper bound of q.k / sqrt(E)."""
    mid, half = (high + low) / 2, (high - low) / 2
    return (q @ mid.T + q.dtype.type(alpha) * (np.abs(q) @ half.T)) / np.sqrt(np.asarray(q.shape[1], q.dtype))


def code_scores(q, low, high, alpha, top_mid, top_half):
    """The same from codes: middle and half-width in few bits, the query in eight; products of integers."""
    single = np.float32
    low, high = single(low), single(high)
    mid, mid_scale = to_codes((high + low) * single(0.5), top_mid)
    half, half_scale = to_codes((high - low) * single(0.5), top_half, low=0)
    step = np.abs(single(q)).max(axis=1, keepdims=True) / single(127)
    code = np.rint(np.divide(single(q), step, out=np.zeros(q.shape, single), where=step > 0)).astype(np.int64)
    score = (code @ mid.T) * np.float64(mid_scale) + alpha * (np.abs(code) @ half.T) * np.float64(half_scale)
    return (score * step / np.sqrt(q.shape[1])).astype(q.dtype)


def group_scores(scores, how):
    """(G, n) scores of a group -> (n,).  Softmax runs over all candidate pages, the forced ones included."""
    if how == "max":
        return scores.max(axis=0)
    if how == "mean":
        return scores.mean(axis=0)
    if how == "softmax":
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)
    raise ValueError(f"score group {how!r}: use max, mean or softmax")


def choose(pages, scores, k, sink_pages):
    """S: the newest page, the sink pages among `pages`, then the highest others, k in all; ascending.

    pages (n,) ascending page numbers, scores (n,).  Equal scores: the lower page first.  More forced pages
    than k are all taken.
    """
    forced = pages < sink_pages
    forced[-1] = True
    others = np.flatnonzero(~forced)
    ranked = others[np.argsort(-scores[others], kind="stable")]
    n_free = max(0, k - int(forced.sum()))
    chosen = forced.copy()
    chosen[ranked[:n_free]] = True
    return pages[chosen]


def margin_of(pages, scores, chosen, sink_pages):
    """How clearly `chosen` won: (lowest chosen score - highest score left out) / the latter's magnitude.

    Forced pages do not count; inf where nothing was there to choose.  Near 0 is a near tie that rounding may
    turn; negative means that other pages score higher, which only a replayed selection can show.
    """
    taken = np.isin(pages, chosen)
    free = taken & (pages >= sink_pages) & (pages < pages[-1])
    if not free.any() or taken.all():
        return math.inf
    best_left = float(scores[~taken].max())
    return (float(scores[free].min()) - best_left) / max(abs(best_left), 1e-30)
