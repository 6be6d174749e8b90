"""Time and cancellation: what a call asks the service for first counts, and so does its wait."""

import asyncio
import gc
import time

import numpy as np
import pytest

import annulus
from service import Service


@pytest.fixture(scope="module")
def busy():
    """A client of one asynchronous call at once, and a call that takes long."""
    with annulus.in_process(workers=1, threads=1, async_calls_max=1) as client:
        context = client.create_context(heads=32, kv_heads=32, head_dim=128, dtype="f32")
        k = np.ones((8192, 32, 128), np.float32)
        context.append(0, k, k)
        yield context, k


def test_a_call_without_a_thread_ends_at_its_deadline(busy):
    context, k = busy

    async def run():
        first = asyncio.create_task(context.attend_async(0, k))
        await asyncio.sleep(0.2)
        begin = time.monotonic()
        with pytest.raises(annulus.DeadlineExceeded, match="async_calls_max"):
            await context.attend_async(0, k[:1], timeout=0.2)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(context.attend_async(0, k[:1]), 0.2)
        queued = asyncio.create_task(context.attend_async(0, k[:1]))
        await asyncio.sleep(0)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        assert time.monotonic() - begin < 2 and not first.done()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await context.attend_async(0, k[:1], timeout=60)).out.shape == (1, 32, 128)

    asyncio.run(run())


def test_a_task_may_be_cancelled_twice(busy, caplog):
    context, k = busy

    async def run():
        task = asyncio.create_task(context.attend_async(0, k))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        gc.collect()

    asyncio.run(run())
    assert not caplog.records


def test_a_closed_client_has_no_asynchronous_calls():
    client = annulus.in_process()
    context = client.create_context(heads=1, head_dim=8)
    client.close()
    with pytest.raises(annulus.FailedPrecondition, match="closed"):
        asyncio.run(context.attend_async(0, np.zeros((1, 1, 8), np.float32)))


def test_asking_for_tokens_is_within_the_call_s_time():
    k = np.ones((8, 2, 32), np.float32)
    with Service(workers=1) as service, annulus.connect(service.endpoint) as client:
        context = client.create_context(heads=2, head_dim=32)
        context.append(0, k, k)
        service.pause_coordinator()
        try:
            with pytest.raises(annulus.DeadlineExceeded):
                context.append(0, k, k, timeout=0.5)
            begin = time.monotonic()
            for call in (
                lambda: context.append(0, k, k, timeout=0.5),
                lambda: context.attend(0, k, timeout=0.5),
                lambda: context.select(0, k, "quest(64)", timeout=0.5),
                lambda: context.compress_layer(0, k, context, 4, timeout=0.5),
            ):
                with pytest.raises(annulus.DeadlineExceeded):
                    call()
            (end,) = client.step([annulus.Step(context, q=k)], timeout=0.5)
            assert isinstance(end, annulus.DeadlineExceeded)
            assert asyncio.run(beats(context, k)) > 5
            assert time.monotonic() - begin < 20
        finally:
            service.resume_coordinator()
        context.attend(0, k)


async def beats(context, k):
    """How often the loop comes by while a call waits."""
    count = 0

    async def beat():
        nonlocal count
        while True:
            await asyncio.sleep(0.05)
            count += 1

    beating = asyncio.create_task(beat())
    with pytest.raises(annulus.DeadlineExceeded):
        await context.append_async(0, k, k, timeout=1.0)
    beating.cancel()
    return count


def test_a_with_ends_where_the_service_is_away(monkeypatch):
    monkeypatch.setattr("annulus.context.RELEASE_SECONDS", 0.5)
    with Service(workers=1) as service, annulus.connect(service.endpoint) as client:
        begin = time.monotonic()
        try:
            with pytest.raises(annulus.DeadlineExceeded):
                with client.create_context(heads=2, head_dim=32):
                    service.pause_coordinator()
            assert time.monotonic() - begin < 20
        finally:
            service.resume_coordinator()


def test_a_lost_context_leaves_other_steps_alone(client):
    k = np.ones((8, 2, 64), np.float32)
    contexts = [client.create_context(heads=2, head_dim=64) for _ in range(3)]
    contexts[1].release()
    contexts[1]._tokens = []  # as after an append that failed
    steps = (annulus.Step(context, 0, None, k, k) for context in contexts)
    first, lost, last = client.step(steps, out_dtype="f32")
    assert (first.tokens, last.tokens) == (8, 8)
    assert isinstance(lost, annulus.NotFound)
    with pytest.raises(annulus.InvalidArgument, match=r"^steps: a int; expected a list"):
        client.step(5)
