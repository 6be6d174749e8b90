"""Smaller contexts of the keys that queries attend to most."""

import numpy as np
import pytest

import annulus


def kept_by_definition(q, k, keep, recent, width):
    """SnapKV's keys [kv_heads, keep], in float64."""
    tokens, kv_heads, dim = k.shape
    group = q.shape[1] // kv_heads
    keys = np.repeat(k, group, 1).astype(np.float64)
    scores = np.einsum("qhd,khd->hqk", q.astype(np.float64), keys) * dim**-0.5
    at = tokens - len(q) + np.arange(len(q))
    scores = np.where(np.arange(tokens)[None, None] <= at[None, :, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    votes = weights.sum(1).reshape(kv_heads, group, tokens).sum(1).astype(np.float32)
    votes = votes[:, : tokens - recent]
    padded = np.pad(votes, ((0, 0), (width // 2, width // 2)), constant_values=-1)
    pooled = np.max([padded[:, i : i + votes.shape[1]] for i in range(width)], axis=0)
    best = np.argsort(-pooled, axis=1, kind="stable")[:, : keep - recent]
    last = np.tile(np.arange(tokens - recent, tokens), (kv_heads, 1))
    return np.sort(np.concatenate([best, last], 1), axis=1)


def test_compressed(rng):
    tokens, keep = 500, 90
    k, v = rng.standard_normal((2, 2, tokens, 2, 16), dtype=np.float32)  # by layer
    q = rng.standard_normal((2, 20, 6, 16), dtype=np.float32)
    new = rng.standard_normal((3, 1, 2, 16), dtype=np.float32)
    shape = {"layers": 2, "heads": 6, "kv_heads": 2, "head_dim": 16, "dtype": "f32"}
    with (
        annulus.in_process(workers=3, threads=1) as client,
        client.create_context(**shape) as context,
    ):
        for layer in (0, 1):
            context.append(layer, k[layer], v[layer])
        with context.compress(list(q), keep, recent=20, pool_width=5) as smaller:
            assert smaller.tokens == [keep, keep]
            assert context.tokens == [tokens, tokens]
            for layer in (0, 1):
                kept = kept_by_definition(q[layer], k[layer], keep, 20, 5)
                rows = [
                    np.concatenate([np.stack([x[layer][kept[h], h] for h in (0, 1)], 1), new[0]])
                    for x in (k, v)
                ]
                smaller.append(layer, new[0], new[0])
                out, lse = smaller.attend(layer, q[layer][-1:])
                expected = annulus.attention(q[layer][-1:], *rows, pattern="full", threads=1)
                np.testing.assert_allclose(out, expected.out, atol=2e-6, rtol=0)
                np.testing.assert_allclose(lse, expected.lse, atol=2e-6, rtol=0)
            # The same behind it, of one layer, as H2O has it; and what was kept, by list.
            at = smaller.tokens[1]
            listed = context.compress_layer(1, q[1], smaller, 40, recent=20, pool_width=1)
            assert smaller.tokens == [keep + 1, at + 40]
            whole, _ = context.attend(1, q[1][-1:], "list(kept)", lists={"kept": listed})
            part, _ = smaller.attend(1, q[1][-1:], "full", keys=(at, at + 40))
            np.testing.assert_allclose(part, whole, atol=2e-6, rtol=0)


def test_what_makes_no_sense(rng):
    q = rng.standard_normal((4, 2, 16), dtype=np.float32)
    with (
        annulus.in_process(threads=1) as client,
        client.create_context(heads=2, head_dim=16) as context,
    ):
        context.append(0, q, q)
        with pytest.raises(annulus.InvalidArgument, match="queries: 2; expected one for each"):
            context.compress([q, q], 3)
        with pytest.raises(annulus.InvalidArgument, match=r"^recent: 32; expected"):
            context.compress([q], 3, recent=32)
        with pytest.raises(annulus.InvalidArgument, match="pool: 'sum'; expected max or mean"):
            context.compress([q], 3, recent=1, pool="sum")
        with pytest.raises(annulus.InvalidArgument, match="keep: '3'; expected an integer"):
            context.compress([q], "3")
        with pytest.raises(annulus.InvalidArgument, match="keep: '3'; expected an integer"):
            context.compress_layer(0, q, context, "3")
        with pytest.raises(annulus.InvalidArgument, match=r"into: .*; expected an annulus.Context"):
            context.compress_layer(0, q, None, 3)
        assert len(client.contexts()) == 1  # what was begun is gone
