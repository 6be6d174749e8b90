"""Lists of keys: masks and choices as data, in one call and in a service."""

import re

import numpy as np
import pytest

import annulus


def by_definition(q, k, v, seen):
    """out of float64 attention over ``seen`` [heads, n, m]."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1).astype(np.float64), np.repeat(v, group, 1).astype(np.float64)
    scores = np.einsum("qhd,khd->hqk", q.astype(np.float64), k) * q.shape[2] ** -0.5
    weights = np.where(seen, np.exp(scores), 0)
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return np.einsum("hqk,khd->qhd", weights, v)


def seen_of(mask, heads, q_start, n, tokens, block=64):
    """The pairs of a mask of blocks, causal."""
    bits = np.repeat(np.asarray(mask), heads // len(mask), 0)
    bits = bits.repeat(block, 1).repeat(block, 2)[:, q_start : q_start + n, :tokens]
    at = q_start + np.arange(n)[:, None]
    return bits & (np.arange(tokens)[None, :] <= at)


@pytest.fixture
def problem(rng):
    shapes = ((40, 4, 16), (200, 2, 16), (200, 2, 8))
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_masks(problem, rng, heads):
    q, k, v = problem
    mask = rng.random((heads, 4, 4)) < 0.6
    expected = by_definition(q, k, v, seen_of(mask, 4, 160, 40, 200))
    pattern = "list(x) & causal"
    out, _ = annulus.attention(q, k, v, pattern=pattern, lists={"x": mask}, workers=3, threads=1)
    np.testing.assert_allclose(out, expected, atol=2e-6, rtol=0)
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 16, "v_head_dim": 8, "dtype": "f32"}
    with (
        annulus.in_process(workers=2, threads=1) as client,
        client.create_context(**shape) as context,
    ):
        context.append(0, k, v)
        listed = annulus.KeyList.from_mask(mask)
        for _ in range(4):
            out, _ = context.attend(0, q, pattern, lists={"x": listed})
            np.testing.assert_allclose(out, expected, atol=2e-6, rtol=0)
            listed = listed.keep()


def test_steps(problem, rng):
    q, k, v = problem
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 16, "v_head_dim": 8, "dtype": "f32"}
    with (
        annulus.in_process(workers=2, threads=1) as client,
        client.create_context(**shape) as context,
    ):
        context.append(0, k[:190], v[:190])
        for at in range(190, 193):
            keys = np.sort(rng.choice(at + 1, 20, replace=False))
            listed = annulus.KeyList([0, 20], keys, unit="tokens", rows="token", q_begin=at)
            row = slice(at, at + 1)
            step = annulus.Step(context, 0, q[:1], k[row], v[row], "list(x)", lists={"x": listed})
            (answer,) = client.step([step])
            seen = np.zeros((4, 1, at + 1), bool)
            seen[:, :, keys] = True
            expected = by_definition(q[:1], k[: at + 1], v[: at + 1], seen)
            np.testing.assert_allclose(answer.out, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: annulus.KeyList([0, 2], [3, 1]), "keys[1]"),
        (lambda: annulus.KeyList([0, 2], [3.5, 1]), "keys"),
        (lambda: annulus.KeyList([0, 1], [3], unit="pages"), "unit"),
        (lambda: annulus.KeyList([0, 1], [2**40]), "keys"),
        (lambda: annulus.KeyList.from_mask(np.ones((2, 3))), "mask"),
    ],
)
def test_what_is_no_list_is_refused_by_name(make, field):
    with pytest.raises(annulus.InvalidArgument) as raised:
        make()
    assert field in str(raised.value)


def test_a_list_that_is_missing_or_does_not_fit(problem):
    with pytest.raises(annulus.InvalidArgument, match="no list x"):
        annulus.attention(*problem, pattern="list(x)")
    with pytest.raises(annulus.InvalidArgument, match=r"list x: keys\[0\]: 4; expected less"):
        annulus.attention(*problem, pattern="list(x)", lists={"x": annulus.KeyList([0, 1], [4])})


def test_keys_chosen_by_data(problem):
    q, k, v = problem
    pattern = "causal & (window(2) | quest(48, page=16)) | moba(64,2)"
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 16, "v_head_dim": 8, "dtype": "f32"}
    alone, _ = annulus.attention(q, k, v, pattern=pattern, workers=3, threads=1)
    with (
        annulus.in_process(workers=2, threads=1) as client,
        client.create_context(**shape) as context,
    ):
        context.append(0, k, v)
        lists = context.select(0, q, pattern)
        assert sorted(lists) == ["moba(64,2)", "quest(48,16)"]
        for given in (None, lists):
            out, _ = context.attend(0, q, pattern, lists=given)
            np.testing.assert_allclose(out, alone, atol=2e-6, rtol=0)
        with pytest.raises(annulus.InvalidArgument, match="no word chooses keys by data"):
            context.select(0, q, "causal")
        with pytest.raises(annulus.InvalidArgument, match="divisor of 64"):
            context.attend(0, q, "moba(100,2)")


def test_keys_chosen_by_an_index(problem):
    q, k, v = problem
    n = len(k)
    rng = np.random.default_rng(12)
    rows = rng.standard_normal((n, 1, 16), dtype=np.float32)
    queries = rng.standard_normal((5, 3, 16), dtype=np.float32)
    weights = rng.standard_normal((5, 3), dtype=np.float32)
    scores = np.einsum("tj,tjs->ts", weights, np.maximum(queries @ rows[:, 0].T, 0))
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 16, "v_head_dim": 8, "dtype": "f32"}
    tracks = [{"name": "index", "dim": 16, "dtype": "f32"}]
    with (
        annulus.in_process(workers=2, threads=1) as client,
        client.create_context(**shape, layers=2, tracks=tracks) as context,
    ):
        assert context.spec["tracks"] == [{**tracks[0], "heads": 1, "ratio": 1}]
        context.append(1, k, v)
        context.append(1, rows[:-1], track="index")
        step = annulus.Step(context, 1, k=rows[-1:], track="index")
        assert client.step([step])[0].tokens == n
        assert context.tokens == [0, n, 0, n]
        lists = context.select(1, queries, "dsa(20)", track="index", weights=weights)
        mask = np.zeros((5, n), dtype=bool)
        for row in range(5):
            order = np.argsort(-scores[row, : n - 4 + row], kind="stable")
            mask[row, order[:20]] = True
        begin = np.concatenate([[0], np.cumsum(mask.sum(1))])
        same = annulus.KeyList(
            begin, np.nonzero(mask)[1], unit="tokens", rows="token", q_begin=n - 5
        )
        out, _ = context.attend(1, q[-5:], "dsa(20)", lists=lists)
        expected, _ = context.attend(1, q[-5:], "list(x)", lists={"x": same})
        np.testing.assert_allclose(out, expected, atol=2e-6, rtol=0)
        index = annulus.Index("index", queries, weights)
        out, _ = context.attend(1, q[-5:], "dsa(20)", index=index)
        np.testing.assert_allclose(out, expected, atol=2e-6, rtol=0)
        step = annulus.Step(context, 1, q[-5:], pattern="dsa(20)", index=index)
        np.testing.assert_allclose(client.step([step])[0].out, expected, atol=2e-6, rtol=0)
        with pytest.raises(annulus.InvalidArgument, match="weights: 0; expected 15"):
            context.attend(1, q[-5:], "dsa(20)", index=annulus.Index("index", queries))
        for bad in (weights.T, weights[0], weights[..., None], 1.0, "none"):
            with pytest.raises(annulus.InvalidArgument, match=r"^weights: "):
                context.select(1, queries, "dsa(20)", track="index", weights=bad)
        with pytest.raises(annulus.InvalidArgument, match=r"^scale: 0\.5; expected 0 in"):
            context.select(1, queries, "dsa(20)", track="index", weights=weights, scale=0.5)
        with pytest.raises(annulus.InvalidArgument, match="track: other; expected index"):
            context.append(1, rows, track="other")
        with pytest.raises(annulus.InvalidArgument, match="weights: 0; expected 15"):
            context.select(1, queries, "dsa(20)", track="index")
    with (
        annulus.in_process(workers=1, threads=1) as client,
        pytest.raises(annulus.InvalidArgument, match=r"^tracks\[0\]: 'index'; expected a dict"),
    ):
        client.create_context(**shape, tracks=["index"])


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"dim": "x"}, "tracks[1].dim: 'x'; expected an integer"),
        ({"dim": 12}, "tracks[1].dim: 12; expected a multiple of 8"),
        ({"dtype": "f33"}, "tracks[1].dtype: 'f33'; expected f32"),
        ({"width": 8}, "tracks[1].width: no such keyword; expected one of"),
        ({7: 8}, "tracks[1].7: no such keyword; expected one of"),
    ],
)
def test_what_is_wrong_with_a_track_is_named_with_its_place(wrong, why):
    good = {"name": "a", "dim": 16}
    with (
        annulus.in_process(workers=1, threads=1) as client,
        pytest.raises(annulus.InvalidArgument, match="^" + re.escape(why)),
    ):
        client.create_context(heads=4, head_dim=16, tracks=[good, {**good, "name": "b", **wrong}])


def test_seer(problem, rng):
    q, k, v = problem
    n, block = len(k), 16
    gates = rng.standard_normal((n // block, 2, 24), dtype=np.float32)
    gate_q = rng.standard_normal((5, 2, 24), dtype=np.float32)
    mask = np.zeros((2, 5, n // block + 1), dtype=bool)
    for head in range(2):
        for row in range(5):
            own = (n - 5 + row) // block
            order = np.argsort(-(gates[:own, head] @ gate_q[row, head]), kind="stable")
            mask[head, row, [*order[:3], own]] = True
    begin = np.concatenate([[0], np.cumsum(mask.sum(2))])
    at = {"rows": "token", "block_tokens": block, "heads": 2, "q_begin": n - 5}
    same = annulus.KeyList(begin, np.nonzero(mask)[2], **at)
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 16, "v_head_dim": 8, "dtype": "f32"}
    tracks = [{"name": "gates", "dim": 24, "dtype": "f32", "heads": 2, "ratio": block}]
    with (
        annulus.in_process(workers=2, threads=1) as client,
        client.create_context(**shape, tracks=tracks) as context,
    ):
        context.append(0, k, v)
        context.append(0, gates, track="gates")
        assert context.tokens == [n, n // block]
        expected, _ = context.attend(0, q[-5:], "list(x) & causal", lists={"x": same})
        lists = context.select(0, gate_q, "seer(64,16)", track="gates")
        index = annulus.Index("gates", gate_q)
        for chosen in ({"lists": lists}, {"index": index}):
            out, _ = context.attend(0, q[-5:], "seer(64,16)", **chosen)
            np.testing.assert_allclose(out, expected, atol=2e-6, rtol=0)


def test_vertical_slash(problem):
    q, k, v = problem
    at = 160 + np.arange(40)[:, None]
    keys = np.arange(200)[None, :]
    seen = np.isin(keys, [0, 9]) | (keys >= at // 16 * 16 - 32) & (keys < at // 16 * 16 - 16)
    listed = annulus.KeyList(
        [0, 2, 3], [0, 9, 32], unit="tokens", rows="vertical-slash", block_tokens=16
    )
    expected = by_definition(q, k, v, np.broadcast_to(seen & (keys <= at), (4, 40, 200)))
    out, _ = annulus.attention(q, k, v, pattern="list(x) & causal", lists={"x": listed}, workers=2)
    np.testing.assert_allclose(out, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("pattern", ["minference(30,50)", "flexprefill(0.5,0.19,1)"])
def test_words_of_a_prompt(problem, pattern):
    q, k, v = problem
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 16, "v_head_dim": 8, "dtype": "f32"}
    expected, _ = annulus.attention(q, k, v, pattern=pattern)
    with (
        annulus.in_process(workers=3, threads=1) as client,
        client.create_context(**shape) as context,
    ):
        context.append(0, k, v)
        out, _ = context.attend(0, q, pattern)
        np.testing.assert_allclose(out, expected, atol=2e-6, rtol=0)
        lists = context.select(0, q, pattern)
        assert list(lists) == [pattern]
        step = annulus.Step(context, 0, q[:1], k[:1], v[:1], pattern)
        (end,) = client.step([step])
        assert isinstance(end, annulus.InvalidArgument)
        assert "last queries of a prompt" in str(end)
        step = annulus.Step(context, 0, q[:1], k[:1], v[:1], pattern, lists=lists)
        (end,) = client.step([step])
        assert end.tokens == 201


@pytest.mark.parametrize("pattern", ["nsa(3)", "xattention(0.7)"])
def test_words_that_weigh_scores_take_the_scale_of_the_call(pattern):
    rng = np.random.default_rng(4)
    k, v = rng.standard_normal((2, 1024, 1, 64), np.float32) * 1.5
    q = rng.standard_normal((1024, 4, 64), np.float32)
    usual = annulus.attention(q, k, v, pattern=pattern).out
    larger = annulus.attention(4 * q, k, v, pattern=pattern).out
    assert np.abs(usual - larger).max() > 1
    assert np.array_equal(annulus.attention(q, k, v, pattern=pattern, scale=4 / 8).out, larger)
    with annulus.in_process(workers=2) as client:
        context = client.create_context(heads=4, kv_heads=1, head_dim=64, dtype="f32")
        context.append(0, k, v)
        served = context.attend(0, q, pattern, scale=4 / 8).out
        lists = context.select(0, q, pattern, scale=4 / 8)
        word = next(iter(lists))
        by_list = context.attend(0, q, word, scale=4 / 8, lists=lists).out
    assert np.abs(served - larger).max() < 1e-5
    assert np.array_equal(by_list, served)
