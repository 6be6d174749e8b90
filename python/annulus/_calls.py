"""What a context's calls ask the module for: arguments as it takes them, checked first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from annulus import _core
from annulus._arrays import check_out_dtype, numbers_of, scale_of, shape_of, weights_of
from annulus._core import Answer
from annulus._threads import Left
from annulus.errors import InvalidArgument, of_wrong_kind
from annulus.lists import Index, KeyList, cores_of

if TYPE_CHECKING:
    from annulus.context import Context


def layer_number(context: Context, layer: int, track: str | None = None) -> int:
    """Of a layer, or of a track's rows in it, as the service counts them."""
    layers: int = context.spec["layers"]
    if not 0 <= layer < layers:
        raise InvalidArgument(f"layer: {layer}; expected 0 to {layers - 1}")
    if track is None:
        return layer
    names = [one["name"] for one in context.spec["tracks"]]
    if track not in names:
        known = ", ".join(names) or "none: the context has no tracks"
        raise InvalidArgument(f"track: {track}; expected {known}")
    return layers * (1 + names.index(track)) + layer


def positions(
    context: Context,
    number: int,
    q: Any,
    q_start: int | None,
    kv_len: int | None,
    left: Left,
    cancel: _core.CancelToken,
) -> tuple[int, int]:
    """Where the queries stand and how many keys there are: the layer's last, unless told."""
    if kv_len is None:
        layers: int = context.spec["layers"]
        tracks = context.spec.get("tracks", [])
        counts_rows = number >= layers and tracks[number // layers - 1].get("ratio", 1) > 1
        counted = number % layers if counts_rows else number
        kv_len = context._at(counted, left, cancel)
    if q_start is None:
        count = shape_of(q, "q")[0]
        q_start = kv_len - count
        if q_start < 0:
            raise InvalidArgument(
                f"q: {count} tokens; expected at most the {kv_len} keys (kv_len, or the layer's), "
                "whose last they are without q_start"
            )
    return q_start, kv_len


def check_rows(context: Context, number: int, k: Any, v: Any) -> None:
    """Whether an append has v where the layer does."""
    if k is None:
        raise InvalidArgument("k: None; expected an array [tokens, heads, dim]")
    spec = context.spec
    if number >= spec["layers"]:
        if v is not None:
            raise InvalidArgument("v: given; expected none: a track's rows are k alone")
    elif v is None and not spec["v_is_k_prefix"]:
        raise InvalidArgument(
            f"v: None; expected an array [tokens, {spec['kv_heads']}, {spec['v_head_dim']}], or a "
            "context with v_is_k_prefix"
        )


def append_call(
    context: Context,
    layer: int,
    k: Any,
    v: Any,
    start: int | None,
    key: tuple[int, int] | None,
    progress: Callable[[int, int], object] | None,
) -> Callable[[float | None, _core.CancelToken], tuple[int, int]]:
    """Of a layer by the service's count."""
    check_rows(context, layer, k, v)
    if progress is not None and not callable(progress):
        raise of_wrong_kind("progress", progress, "a function of bytes done and in all")

    def call(timeout: float | None, cancel: _core.CancelToken) -> tuple[int, int]:
        left = Left(timeout)
        at = context._at(layer, left, cancel) if start is None else start
        return context._core.append(
            context.id, layer, at, k, v, key or (0, 0), progress, left(), cancel
        )

    return call


def attend_call(
    context: Context,
    layer: int,
    q: Any,
    pattern: str | None,
    q_start: int | None,
    kv_len: int | None,
    keys: tuple[int, int] | None,
    plan: str | None,
    scale: float | None,
    request_id: str,
    trace: bool,
    lists: Mapping[str, Any] | None,
    sinks: Any,
    index: Index | None,
    out_dtype: str | None,
) -> Callable[[float | None, _core.CancelToken], Answer]:
    """As Context.attend."""
    check_out_dtype(out_dtype, [q])
    number = layer_number(context, layer)
    factor = scale_of(scale)
    begin, end = (0, None) if keys is None else keys
    cores = cores_of(lists)
    logits = numbers_of(sinks)
    chosen_by = index_of(context, layer, index)

    def call(timeout: float | None, cancel: _core.CancelToken) -> Answer:
        left = Left(timeout)
        at, length = positions(context, number, q, q_start, kv_len, left, cancel)
        return context._core.attend(
            context.id,
            layer,
            at,
            length,
            q,
            pattern or "",
            plan,
            factor,
            begin,
            end,
            request_id,
            trace,
            cores,
            logits,
            chosen_by,
            out_dtype,
            left(),
            cancel,
        )

    return call


def select_call(
    context: Context,
    layer: int,
    q: Any,
    pattern: str | None,
    track: str | None,
    weights: Any,
    q_start: int | None,
    kv_len: int | None,
    scale: float | None,
) -> Callable[[float | None, _core.CancelToken], dict[str, KeyList]]:
    """As Context.select."""
    factor = scale_of(scale)
    number = layer_number(context, layer, track)
    per_head = weights_of(weights, q, "weights")

    def call(timeout: float | None, cancel: _core.CancelToken) -> dict[str, KeyList]:
        left = Left(timeout)
        at, length = positions(context, number, q, q_start, kv_len, left, cancel)
        lists, _ = context._core.select(
            context.id, number, at, length, q, pattern or "", per_head, factor, left(), cancel
        )
        return {word: KeyList._of(core) for word, core in lists.items()}

    return call


def index_of(
    context: Context, layer: int, index: Index | None
) -> tuple[int, Any, list[float]] | None:
    """The index of a call on a layer, as the module takes it."""
    if index is None:
        return None
    if not isinstance(index, Index):
        raise of_wrong_kind("index", index, "an annulus.Index")
    number = layer_number(context, layer if index.layer is None else index.layer, index.track)
    return number, index.q, weights_of(index.weights, index.q, "index.weights")
