"""The client against float64: contexts, calls, threads and asyncio."""

import asyncio
import math
import threading

import numpy as np
import pytest

import annulus
from oracle import attention


def tensors(rng, n, *, kv_heads=2, dim=64):
    return [rng.standard_normal((n, kv_heads, dim), dtype=np.float32) for _ in range(2)]


def queries(rng, n, *, heads=4, dim=64):
    return rng.standard_normal((n, heads, dim), dtype=np.float32)


@pytest.fixture
def context(client):
    with client.create_context(heads=4, kv_heads=2, head_dim=64, dtype="f32", layers=2) as made:
        yield made


def pairs(a, b):
    return zip(a, b, strict=True)


def check(answer, expected, tolerance=2e-6):
    out, lse = answer
    assert out.dtype == np.float32 and lse.dtype == np.float32
    np.testing.assert_allclose(out, expected[0], atol=tolerance, rtol=0)
    np.testing.assert_allclose(lse, expected[1], atol=tolerance, rtol=1e-6)


def test_a_context_answers_as_float64_does(client, context, rng):
    k, v = tensors(rng, 300)
    assert context.append(0, k[:200], v[:200]).tokens == 200
    assert context.append(0, k[200:], v[200:]).tokens == 300
    assert context.tokens == [300, 0]
    q = queries(rng, 7)
    answer = context.attend(0, q)
    check(answer, attention(q, k, v))
    assert answer.stats["visited_pairs"] == 4 * sum(range(294, 301))
    assert answer.epoch == context.describe()["epoch"]
    check(context.attend(0, q, "causal & window(64)"), attention(q, k, v, window=64))
    check(context.attend(0, q, scale=0.3), attention(q, k, v, scale=0.3))
    check(
        context.attend(0, q, q_start=100, kv_len=200),
        attention(q, k[:200], v[:200], q_start=100),
    )
    parts = [context.attend(0, q, keys=keys) for keys in ((0, 100), (100, 290), (290, 300))]
    check(annulus.merge(parts), attention(q, k, v))
    assert context.attend(0, q, trace=True).trace


def test_steps_append_and_attend_many_contexts(client, rng):
    contexts, kept = [], []
    for n in (3, 70, 200):
        context = client.create_context(heads=4, kv_heads=2, head_dim=64, dtype="f32")
        k, v = tensors(rng, n)
        context.append(0, k, v)
        contexts.append(context)
        kept.append((k, v))
    k, v = tensors(rng, 3)
    q = queries(rng, 3)
    answers = client.step(
        [
            annulus.Step(context, q=q[i : i + 1], k=k[i : i + 1], v=v[i : i + 1])
            for i, context in enumerate(contexts)
        ]
    )
    for i, answer in enumerate(answers):
        whole = [np.concatenate([old, new[i : i + 1]]) for old, new in pairs(kept[i], (k, v))]
        check(answer, attention(q[i : i + 1], *whole))
        assert answer.tokens == len(whole[0]) == contexts[i].tokens[0]
    again = client.step([annulus.Step(contexts[0], q=q[:1])])
    check(again[0], answers[0])
    (only_append,) = client.step([annulus.Step(contexts[0], k=k[:1], v=v[:1])])
    assert only_append.out is None and only_append.tokens == contexts[0].tokens[0] == 5
    (refused,) = client.step([annulus.Step(contexts[0], q=q[:1], pattern="casual")])
    assert isinstance(refused, annulus.InvalidArgument) and contexts[0].tokens == [5]
    for context in contexts:
        context.release()
    failed = client.step([annulus.Step(contexts[0], q=q[:1])])[0]
    assert isinstance(failed, annulus.NotFound)


def test_forks_share_and_truncate_forgets(context, rng):
    k, v = tensors(rng, 100)
    for layer in range(2):
        context.append(layer, k, v)
    with context.fork(60) as fork:
        assert fork.tokens == [60, 60]
        fork.append(0, k[60:61], v[60:61])
        q = queries(rng, 1)
        check(fork.attend(0, q), attention(q, k[:61], v[:61]))
    context.truncate(10)
    assert context.tokens == [10, 10]
    check(context.attend(1, q), attention(q, k[:10], v[:10]))


def test_strided_arrays_are_read_where_they_lie(context, rng):
    k, v = tensors(rng, 64)
    heads_first = [np.ascontiguousarray(a.transpose(1, 0, 2)).transpose(1, 0, 2) for a in (k, v)]
    assert not heads_first[0].flags.c_contiguous
    context.append(0, *heads_first)
    every_other = np.repeat(queries(rng, 4), 2, axis=1)[:, ::2]
    every_other.flags.writeable = False
    check(context.attend(0, every_other), attention(every_other, k, v))
    reversed_rows = every_other[::-1]
    check(context.attend(0, reversed_rows), attention(reversed_rows, k, v))
    packed = np.zeros(k.nbytes // 4, dtype=[("byte", "i1"), ("k", "f4")])
    with pytest.raises(annulus.InvalidArgument, match="aligned"):
        context.append(0, packed["k"].reshape(k.shape), v)


def test_answers_are_numpy_s_to_write(context, rng):
    context.append(0, *tensors(rng, 64))
    answer = context.attend(0, queries(rng, 4))
    out, lse = answer
    assert isinstance(answer, tuple) and answer.out is out and answer.lse is lse
    assert (out.shape, lse.shape) == ((4, 4, 64), (4, 4)) and out.flags.writeable
    out += 1


@pytest.mark.parametrize("fixed", [dict(tokens_expected=260, partition="zigzag"), {}])
def test_documents_may_come_in_chunks(client, rng, fixed):
    k, v = tensors(rng, 260)
    q = queries(rng, 260)
    context = client.create_context(
        heads=4, kv_heads=2, head_dim=64, dtype="f32", patterns="causal & docs(100,90,70)", **fixed
    )
    for begin, end in ((0, 50), (50, 100), (100, 130), (130, 255), (255, 260)):
        context.append(0, k[begin:end], v[begin:end])
        out, lse = context.attend(0, q[begin:end])
        for first, last in ((0, 100), (100, 190), (190, 260)):
            a, b = max(begin, first), min(end, last)
            if a < b:
                expected = attention(q[a:b], k[:end], v[:end], q_start=a, keys=(first, b))
                check((out[a - begin : b - begin], lse[a - begin : b - begin]), expected)
    if fixed:
        with pytest.raises(annulus.InvalidArgument, match="expected 260 tokens"):
            context.attend(0, q[-1:], pattern="causal & docs(100,90)")


def test_latent_heads_need_no_v(client, rng):
    with client.create_context(
        heads=4, kv_heads=1, head_dim=64, v_head_dim=48, v_is_k_prefix=True, dtype="f32"
    ) as context:
        k = rng.standard_normal((50, 1, 64), dtype=np.float32)
        context.append(0, k)
        q = queries(rng, 2)
        check(context.attend(0, q), attention(q, k, k[..., :48]))
        check(annulus.attention(q, k, v_head_dim=48), attention(q, k, k[..., :48]))


def test_fields_of_a_context_are_keywords(client):
    named = set(annulus.ContextOptions.__annotations__) | {
        "heads",
        "kv_heads",
        "head_dim",
        "v_head_dim",
    }
    assert named <= set(annulus._core.spec_names())
    options = {
        "layers": 3,
        "dtype": "f16",
        "placement": "heads",
        "partition": "contiguous",
        "tokens_expected": 512,
        "patterns": ("causal", "causal & window(64)", "full"),
        "replicas": 1,
        "lease": 60,
        "evictable": True,
        "kv_efficient": False,
        "v_is_k_prefix": False,
    }
    with client.create_context(heads=4, head_dim=64, v_head_dim=32, **options) as context:
        spec = context.describe()["spec"]
        expected = {**options, "patterns": list(options["patterns"])}
        expected |= {"heads": 4, "kv_heads": 4, "head_dim": 64, "v_head_dim": 32}
        assert expected.items() <= spec.items()
        assert client.context(context.id).spec == spec
        assert context.id in [info["context"] for info in client.contexts(limit=1000)]
        assert client.keep_alive([context]) == [None]
    status = client.status()
    assert [worker["state"] for worker in status["workers"]] == ["ready", "ready"]


def test_calls_of_many_threads(client, rng):
    k, v = tensors(rng, 128)
    q = queries(rng, 2)
    expected = attention(q, k, v)
    failures = []

    def work():
        try:
            with client.create_context(heads=4, kv_heads=2, head_dim=64, dtype="f32") as context:
                context.append(0, k, v)
                for _ in range(10):
                    check(context.attend(0, q), expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_asyncio(client, rng):
    k, v = tensors(rng, 200)
    q = queries(rng, 2)

    async def one():
        context = client.create_context(heads=4, kv_heads=2, head_dim=64, dtype="f32")
        await context.append_async(0, k[:-1], v[:-1])
        (step,) = await client.step_async([annulus.Step(context, q=q[:1], k=k[-1:], v=v[-1:])])
        check(step, attention(q[:1], k, v))
        answer = await context.attend_async(0, q)
        context.release()
        return answer

    async def many():
        return await asyncio.gather(*(one() for _ in range(8)))

    for answer in asyncio.run(many()):
        check(answer, attention(q, k, v))


def test_a_cancelled_task_cancels_its_call(rng):
    with annulus.in_process(workers=1, threads=1) as client:
        context = client.create_context(heads=32, kv_heads=32, head_dim=128, dtype="f32")
        k = rng.standard_normal((8192, 32, 128), dtype=np.float32)
        context.append(0, k, k)

        async def cancelled():
            task = asyncio.create_task(context.attend_async(0, k))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        assert client.status()["in_flight"] == 0
        with pytest.raises(annulus.DeadlineExceeded):
            context.attend(0, k, timeout=0.2)


def test_a_closed_client_says_so():
    client = annulus.in_process()
    client.close()
    client.close()
    with pytest.raises(annulus.FailedPrecondition):
        client.status()


def test_an_append_tells_its_progress_and_knows_a_repetition(context, rng):
    k, v = tensors(rng, 500)
    told = []
    context.append(0, k, v, key=(77, 1), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (k.nbytes + v.nbytes, k.nbytes + v.nbytes)
    again = context.append(0, k, v, start=0, key=(77, 1))
    assert again.tokens == 500 == context.describe()["tokens"][0]


@pytest.mark.parametrize(
    "call",
    [
        lambda client, context, k: client.status(timeout=math.nan),
        lambda client, context, k: client.contexts(timeout=math.nan),
        lambda client, context, k: client.context(context.id, timeout=math.nan),
        lambda client, context, k: client.create_context(heads=4, head_dim=64, timeout=math.nan),
        lambda client, context, k: client.keep_alive([context], timeout=math.nan),
        lambda client, context, k: client.step([annulus.Step(context, q=k)], timeout=math.nan),
        lambda client, context, k: asyncio.run(
            client.step_async([annulus.Step(context, q=k)], timeout=math.nan)
        ),
        lambda client, context, k: context.append(0, k, k, timeout=math.nan),
        lambda client, context, k: context.attend(0, k, timeout=math.nan),
        lambda client, context, k: asyncio.run(context.attend_async(0, k, timeout=math.nan)),
        lambda client, context, k: context.select(0, k, "quest(64)", timeout=math.nan),
        lambda client, context, k: context.compress([k], 1, timeout=math.nan),
        lambda client, context, k: context.fork(timeout=math.nan),
        lambda client, context, k: context.truncate(0, timeout=math.nan),
        lambda client, context, k: context.describe(timeout=math.nan),
        lambda client, context, k: context.release(timeout=math.nan),
        lambda client, context, k: annulus.connect("127.0.0.1:1", connect_timeout=math.nan),
        lambda client, context, k: annulus.in_process(retry_backoff_min=math.nan),
        lambda client, context, k: annulus.in_process(retry_backoff_max=math.nan),
    ],
)
def test_no_time_is_nan(client, rng, call):
    k, _ = tensors(rng, 4)
    context = client.create_context(heads=2, head_dim=64)
    context.append(0, k, k)
    with pytest.raises(annulus.InvalidArgument, match=r"^[a-z_]+: nan; expected seconds$"):
        call(client, context, k)


class Lent:
    """An array of which nothing is known but that it can be lent."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_any_layout_is_taken_by_every_call(client, rng):
    k, v = tensors(rng, 40)
    q = queries(rng, 1)
    expected = attention(q, k, v)
    for form in (
        np.asfortranarray,
        Lent,
        lambda a: np.repeat(a, 2, axis=2)[..., ::2],
        lambda a: a[::-1].copy()[::-1],
    ):
        context = client.create_context(heads=4, kv_heads=2, head_dim=64, dtype="f32")
        context.append(0, form(k[:-2]), form(v[:-2]))
        for i in (38, 39):
            # A row of a Fortran-ordered array is one whose last dimension has strides.
            last = (form(k), form(v)) if form is np.asfortranarray else (k, v)
            rows = (a[i : i + 1] for a in last)
            (end,) = client.step([annulus.Step(context, 0, None, *rows)])
            assert end.tokens == i + 1
        check(context.attend(0, form(q)), expected)
        (step,) = client.step([annulus.Step(context, q=form(q))])
        check(step, expected)
        context.select(0, form(queries(rng, 1, heads=4)), "quest(64)")
        if form is not Lent:
            check(annulus.attention(form(q), form(k), form(v)), expected)
