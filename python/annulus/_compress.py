"""What makes a smaller context: the bodies of Context.compress and Context.compress_layer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from annulus import _core
from annulus._arrays import scale_of
from annulus._calls import layer_number, positions
from annulus._threads import RELEASE_SECONDS, Left
from annulus.errors import AnnulusError, InvalidArgument, of_wrong_kind
from annulus.lists import KeyList

if TYPE_CHECKING:
    from annulus.context import Context


class Rule(NamedTuple):
    """Which keys stay."""

    keep: int
    recent: int | None
    pool: str
    pool_width: int

    def for_module(self) -> dict[str, Any]:
        recent = min(32, self.keep) if self.recent is None else self.recent
        return {**self._asdict(), "recent": recent}


def check_queries(queries: Sequence[Any], layers: int) -> None:
    """InvalidArgument unless there are some for each layer."""
    if not hasattr(queries, "__len__"):
        raise of_wrong_kind("queries", queries, f"an array for each of {layers}")
    if len(queries) != layers:
        raise InvalidArgument(f"queries: {len(queries)}; expected one for each of {layers}")


def fill(
    smaller: Context,
    context: Context,
    queries: Sequence[Any],
    rule: Rule,
    scale: float | None,
    timeout: float | None,
) -> None:
    """Fills each layer of ``smaller``, which is released if one fails."""
    try:
        for layer, q in enumerate(queries):
            fill_layer(smaller, context, layer, q, rule, None, None, scale, timeout)
    except BaseException:
        with contextlib.suppress(AnnulusError):
            smaller.release(timeout=RELEASE_SECONDS)
        raise


def fill_layer(
    smaller: Context,
    context: Context,
    layer: int,
    q: Any,
    rule: Rule,
    q_start: int | None,
    kv_len: int | None,
    scale: float | None,
    timeout: float | None,
) -> KeyList:
    """Appends what the rule keeps of the context's layer; the positions kept."""
    number = layer_number(context, layer)
    left, cancel = Left(timeout), _core.CancelToken.new()
    q_start, kv_len = positions(context, number, q, q_start, kv_len, left, cancel)
    with smaller._in_doubt():
        kept, tokens = context._core.compress(
            context.id,
            number,
            q_start,
            kv_len,
            q,
            scale_of(scale),
            rule.for_module(),
            smaller.id,
            smaller._at(number, left, cancel),
            left(),
            cancel,
        )
        smaller._commit(number, tokens)
    return KeyList._of(kept["kept"])
