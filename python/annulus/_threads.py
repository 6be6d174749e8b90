"""Calls of the module from asyncio."""

from __future__ import annotations

import asyncio
from typing import Any

from annulus import _core


async def in_thread(call: Any) -> Any:
    """Runs ``call(cancel)`` on another thread; the token is cancelled with the task."""
    cancel = _core.CancelToken.new()
    thread = asyncio.get_running_loop().run_in_executor(None, call, cancel)
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        cancel.cancel()
        await asyncio.wait([thread])  # what it reads must stay until it has ended
        thread.exception()
        raise
