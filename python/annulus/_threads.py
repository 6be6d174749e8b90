"""What is left of a call's time, and calls of the module from asyncio."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from annulus import _core
from annulus.errors import DeadlineExceeded

Result = TypeVar("Result")

RELEASE_SECONDS = 10.0  # that a release waits for which nobody gave a time


class Left:
    """What is left of ``timeout``, counted from here: a call of several asks for each."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout

    def __call__(self) -> float | None:
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)


async def in_thread(
    pool: Executor,
    timeout: float | None,
    call: Callable[[float | None, _core.CancelToken], Result],
) -> Result:
    """Runs ``call(timeout, cancel)`` on a thread of the pool, within what is left by then.

    The task's cancellation cancels the token and waits until the call has ended, since what it
    reads must stay; a call that has no thread yet ends at once, as it does at its deadline.
    """
    left = Left(timeout)
    cancel = _core.CancelToken.new()
    torch = sys.modules.get("torch")
    with_grad = torch is not None and torch.is_grad_enabled()

    def run() -> Result:
        if torch is not None:
            torch.set_grad_enabled(with_grad)  # a setting of each thread
        return call(left(), cancel)

    job = pool.submit(run)
    ended = asyncio.wrap_future(job)
    wait = left() if timeout is not None and math.isfinite(timeout) else None
    cancelled = False
    while not ended.done():
        try:
            await asyncio.wait([ended], timeout=wait)
        except asyncio.CancelledError:
            if job.cancel():
                raise
            cancelled = True
            cancel.cancel()
        else:
            if not ended.done() and job.cancel():
                raise DeadlineExceeded("the deadline passed before one of async_calls_max ended")
        wait = None  # a call under way knows its deadline
    if cancelled:
        ended.exception()  # so that asyncio does not report it
        raise asyncio.CancelledError
    return ended.result()
