"""Attention of one kv head's query group over a set of keys, and the merge of two such results."""

import numpy as np


def attend(q, k, v, visible):
    """Softmax attention.  q (G, E); k, v (n, E); visible (n,) bool -> O (G, E), lse (G,).

    Keys that are not visible are left out before any arithmetic, so what lies in an unfilled slot never
    matters.  With no visible key O is 0 and lse is -inf: the neutral element of `merge`.
    """
    k, v = k[visible], v[visible]
    if len(k) == 0:
        return np.zeros_like(q), np.full(len(q), -np.inf, q.dtype)
    scores = q @ k.T / np.sqrt(np.asarray(q.shape[1], q.dtype))
    top = scores.max(axis=1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(axis=1, keepdims=True)
    return weights @ v / total, (top + np.log(total))[:, 0]


def merge(o, lse, o_sup, lse_sup):
    """Two attention results over disjoint key sets -> the result over their union (docs/algorithm.md, step 4)."""
    m = np.maximum(lse, lse_sup)
    a, c = np.exp(lse - m), np.exp(lse_sup - m)
    return (a[:, None] * o + c[:, None] * o_sup) / (a + c)[:, None], m + np.log(a + c)
