"""Attention for the model of smollm.py that asks no service: in NumPy and in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np


class NumpyAttention:
    """The reference: attention here, over KV kept here."""

    def __init__(self, model: Any) -> None:
        self.shape = (model.kv_heads, 256, model.head_dim)
        self.kv = [(np.empty(self.shape, "f4"), np.empty(self.shape, "f4")) for _ in model.layers]
        self.tokens = [0] * len(model.layers)

    def keep(self, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """K and V [kv_heads, tokens, d] of the layer, with these at the end."""
        begin, end = self.tokens[layer], self.tokens[layer] + len(k)
        kv = self.kv[layer]
        if end > kv[0].shape[1]:
            room = ((0, 0), (0, 2 * end - kv[0].shape[1]), (0, 0))
            kv = self.kv[layer] = (np.pad(kv[0], room), np.pad(kv[1], room))
        for held, new in zip(kv, (k, v), strict=True):
            held[:, begin:end] = new.swapaxes(0, 1)
        self.tokens[layer] = end
        return kv[0][:, :end], kv[1][:, :end]

    def __call__(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        k, v = self.keep(layer, k, v)
        start, out = k.shape[1] - len(q), np.empty(q.shape, "f4")
        for first in range(0, len(q), 256):  # scores of all rows at once would fill memory
            rows = q[first : first + 256] / np.float32(np.sqrt(q.shape[-1]))
            seen = start + first + len(rows)
            groups = rows.reshape(len(rows), len(k), -1, q.shape[-1]).transpose(1, 2, 0, 3)
            groups = groups.reshape(len(k), -1, q.shape[-1])
            scores = groups @ k[:, :seen].swapaxes(1, 2)
            if len(rows) > 1:
                later = np.arange(seen) > start + first + np.arange(len(rows))[:, None]
                scores.reshape(len(k), -1, len(rows), seen)[..., later] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            part = (weights @ v[:, :seen]) / weights.sum(-1, keepdims=True)
            part = part.reshape(len(k), -1, len(rows), q.shape[-1]).transpose(2, 0, 1, 3)
            out[first : first + len(rows)] = part.reshape(len(rows), *q.shape[1:])
        return out

    def truncate(self, tokens: int) -> None:
        self.tokens = [tokens] * len(self.tokens)


class TorchAttention(NumpyAttention):
    """PyTorch's scaled_dot_product_attention over KV kept here, to compare with."""

    def __call__(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        if self.tokens[layer] and len(q) > 1:  # is_causal is for queries from the first token on
            return super().__call__(layer, q, k, v)
        import torch

        kept = [torch.from_numpy(held)[None] for held in self.keep(layer, k, v)]
        rows = torch.from_numpy(q).transpose(0, 1)[None]
        out = torch.nn.functional.scaled_dot_product_attention(
            rows, *kept, is_causal=len(q) > 1, enable_gqa=True
        )
        return out[0].transpose(0, 1).numpy()
