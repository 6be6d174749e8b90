"""Attention in float64, row by row as it is defined."""

import numpy as np


def attention(q, k, v, *, q_start=None, keys=None, scale=None, window=None):
    """(out, lse) of causal attention; q are the last tokens unless q_start says otherwise."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    n, heads, dim = q.shape
    group = heads // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    q_start = len(k) - n if q_start is None else q_start
    scale = dim**-0.5 if scale is None else scale
    scores = np.einsum("qhd,khd->qhk", q, k) * scale
    at, key = q_start + np.arange(n)[:, None], np.arange(len(k))[None, :]
    seen = key <= at
    if window is not None:
        seen &= key > at - window
    if keys is not None:
        seen &= (keys[0] <= key) & (key < keys[1])
    scores[~np.broadcast_to(seen[:, None, :], scores.shape)] = -np.inf
    top = np.maximum(scores.max(-1, keepdims=True), -1e300)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    out = np.einsum("qhk,khd->qhd", weights / np.maximum(total, 1e-300), v)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[..., 0]
    return out, np.where(total[..., 0] == 0, -np.inf, lse)
