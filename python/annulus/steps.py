"""Decode steps of many contexts at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from annulus import _core
from annulus._arrays import check_out_dtype, numbers_of, scale_of
from annulus._calls import check_rows, index_of, layer_number
from annulus._checked import wrong_argument
from annulus._core import Answer
from annulus._threads import Left
from annulus.context import Context
from annulus.errors import AnnulusError, InvalidArgument, of_wrong_kind
from annulus.lists import Index, cores_of


@dataclass(slots=True)
class Step:
    """One context's part of a decode step: append k and v, then attend q.

    Without k the queries are the last of the tokens that are there; without q nothing is attended.

    Attributes:
        context: a :class:`Context` of the client.
        layer: which of its layers.
        q: [n, heads, head_dim], the queries of the last n tokens, or None.
        k: [n, kv_heads, head_dim], positions already applied, or None.
        v: [n, kv_heads, v_head_dim], or None.
        pattern: None: the context's for this layer.
        scale: None: 1/√head_dim.
        lists: what ``list(name)`` in the pattern stands for, as in :meth:`Context.attend`.
        sinks: as in :meth:`Context.attend`.
        track: k has rows of this track, as in :meth:`Context.append`, and there are no v and q.
        index: as in :meth:`Context.attend`; another step of the call may append the track's rows.
    """

    context: Context
    layer: int = 0
    q: Any = None
    k: Any = None
    v: Any = None
    pattern: str | None = None
    scale: float | None = None
    lists: Mapping[str, Any] | None = None
    sinks: Any = None
    track: str | None = None
    index: Index | None = None


def run_steps(
    core: _core.Client,
    steps: Sequence[Step],
    out_dtype: str | None,
    timeout: float | None,
    cancel: _core.CancelToken | None,
) -> list[Answer | AnnulusError]:
    if out_dtype is not None:
        check_out_dtype(out_dtype, [step.q for step in steps])
    left = Left(timeout)
    lost: dict[int, AnnulusError] = {}  # the steps whose contexts' tokens nobody told
    for i, step in enumerate(steps):
        if step.context._tokens:
            continue
        try:
            step.context._learn(left(), cancel)
        except InvalidArgument:
            raise
        except AnnulusError as error:
            lost[i] = error
    requests = [_request_of(step, left, cancel) for i, step in enumerate(steps) if i not in lost]
    if lost and not requests:
        return list(lost.values())
    answers = iter(core.step(requests, out_dtype, left(), cancel))
    return [lost[i] if i in lost else next(answers) for i in range(len(steps))]


def error_of_step(steps: Any, timeout: Any, error: Exception) -> Exception:
    """What names the argument at fault where one is; what the service said stays as it is."""
    if isinstance(error, AnnulusError) and not isinstance(error, InvalidArgument):
        return error
    return _wrong_step(steps, timeout) or error


def _request_of(step: Step, left: Left | None, cancel: _core.CancelToken | None) -> tuple[Any, ...]:
    """As the module takes it (python/src/client.cc, StepOf); without ``left`` asks no service."""
    context, layer = step.context, step.layer
    layer = layer_number(context, layer, step.track)
    if step.k is not None or step.v is not None:
        check_rows(context, layer, step.k, step.v)
    return (
        context.id,
        layer,
        0 if left is None else context._at(layer, left, cancel),
        step.k,
        step.v,
        step.q,
        step.pattern,
        scale_of(step.scale),
        step.lists and cores_of(step.lists),
        None if step.sinks is None else numbers_of(step.sinks),
        context._tokens,
        index_of(context, step.layer, step.index),
    )


def _wrong_step(steps: Any, timeout: Any) -> InvalidArgument | None:
    """Of a call: what is no step, or an argument of a wrong type."""
    if not isinstance(steps, Iterable):
        return of_wrong_kind("steps", steps, "a list of annulus.Step")
    for i, step in enumerate(steps):
        if not isinstance(step, Step):
            return of_wrong_kind(f"steps[{i}]", step, "an annulus.Step")
        arguments = {field.name: getattr(step, field.name) for field in fields(Step)}
        wrong = wrong_argument(Step.__annotations__, arguments, f"steps[{i}].")
        if wrong is not None:
            return wrong
        if not isinstance(step.context, Context):
            return of_wrong_kind(f"steps[{i}].context", step.context, "an annulus.Context")
        try:
            _request_of(step, None, None)
        except InvalidArgument as error:
            return InvalidArgument(f"steps[{i}].{error}")
    return wrong_argument({"timeout": "float | None"}, {"timeout": timeout})
