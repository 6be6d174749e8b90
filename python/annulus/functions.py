"""What needs no service: attention over arrays, what it would cost, and answers put together."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from annulus import _core
from annulus._arrays import as_kind_of, check_out_dtype, numbers_of, scale_of
from annulus._checked import checked
from annulus._core import Answer
from annulus.errors import InvalidArgument, of_wrong_kind
from annulus.lists import cores_of


@checked
def attention(
    q: Any,
    k: Any,
    v: Any = None,
    *,
    pattern: str = "causal",
    plan: str | None = None,
    workers: int = 1,
    scale: float | None = None,
    q_start: int | None = None,
    keys: tuple[int, int] | None = None,
    v_head_dim: int | None = None,
    dtype: str | None = None,
    out_dtype: str | None = None,
    backend: str = "auto",
    threads: int = 0,
    lists: Mapping[str, Any] | None = None,
    sinks: Any = None,
) -> Answer:
    """Attention over arrays, in one call and without a service.

    Args:
        q: [n, heads, head_dim], the queries of the last n tokens unless ``q_start`` says otherwise.
        k: [m, kv_heads, head_dim]; heads is a multiple of kv_heads.
        v: [m, kv_heads, v_head_dim]; None: V is K's first ``v_head_dim`` dims (MLA).
        pattern: which keys each query sees.
        plan: how it is cut over the workers (None: the cheapest).
        workers: ranks in threads of this process.
        scale: what scores are multiplied by (None: 1/√head_dim).
        q_start: position of the first query.
        keys: only tokens [a, b) are seen (None: all).
        v_head_dim: where v is None.
        dtype: what q, k and v are rounded to (None: k's).
        out_dtype: "f32", "bf16" or "f16" for ``out`` (None: f32).
        backend: "auto", "cpu" or "reference".
        threads: for computing, of all ranks; 0: one per core.
        lists: what ``list(name)`` in the pattern stands for: :class:`annulus.KeyList`, or a bool
            mask [1 | kv_heads | heads, blocks, blocks] of blocks of 64 tokens.
        sinks: [heads], a score for each head that takes a share of its weight and brings no value
            (gpt-oss), -inf for none.

    Returns:
        ``(out [n, heads, v_head_dim], lse [n, heads])``, see :class:`annulus.Answer`; the kind of
        array that q is.
    """
    check_out_dtype(out_dtype, [q])
    if v is None and v_head_dim is None:
        raise InvalidArgument("v: None; expected an array, or v_head_dim where V is K's first dims")
    if v is not None and v_head_dim is not None and tuple(v.shape)[-1:] != (v_head_dim,):
        raise InvalidArgument(f"v_head_dim: {v_head_dim}; expected none, or v's own")
    out, lse = _core.attention(
        q,
        k,
        v,
        pattern,
        plan,
        workers,
        scale_of(scale),
        q_start,
        keys,
        v_head_dim,
        dtype,
        backend,
        threads,
        cores_of(lists),
    )
    if sinks is not None:
        out, lse = _core.with_sinks(out, lse, numbers_of(sinks))
    return Answer(as_kind_of(q, out, lse, out_dtype))


class Explanation(dict[str, Any]):
    """What a pattern costs, as ``annulus explain --json`` has it; in a notebook a picture too."""

    text: str
    svg: str

    def __repr__(self) -> str:
        return self.text

    def _repr_svg_(self) -> str:
        return self.svg


@checked
def explain(
    *,
    tokens: int,
    heads: int,
    kv_heads: int | None = None,
    head_dim: int,
    pattern: str,
    q_tokens: int | None = None,
    q_start: int | None = None,
    keys: tuple[int, int] | None = None,
    v_head_dim: int | None = None,
    v_is_k_prefix: bool = False,
    workers: int = 1,
    dtype: str = "bf16",
    placement: str | None = None,
    plan: str | None = None,
    cluster: str | None = None,
) -> Explanation:
    """Density, work and bytes per worker, the plan that would run and those rejected; without data.

    Args are those of ``annulus explain``; ``cluster`` is a JSON file or a known name ("h100x8").
    """
    if keys is not None and len(keys) != 2:
        raise InvalidArgument(f"keys: {len(keys)} numbers; expected a pair of integers")
    arguments = [f"--tokens={tokens}", f"--heads={heads}", f"--head-dim={head_dim}"]
    arguments += [f"--kv-heads={heads if kv_heads is None else kv_heads}", f"--pattern={pattern}"]
    arguments += [f"--workers={workers}", f"--dtype={dtype}"]
    given = {
        "q-tokens": q_tokens,
        "q-start": q_start,
        "v-head-dim": v_head_dim,
        "placement": placement,
        "plan": plan,
        "cluster": cluster,
        "keys": None if keys is None else f"{keys[0]}:{keys[1]}",
    }
    arguments += [f"--{name}={value}" for name, value in given.items() if value is not None]
    if v_is_k_prefix:
        arguments.append("--v-is-k-prefix")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "block-map.svg"
        made = Explanation(json.loads(_core.explain([*arguments, f"--svg={picture}", "--json"])))
        made.svg = picture.read_text()
    made.text = _core.explain(arguments)
    return made


@checked
def merge(parts: Iterable[tuple[Any, Any]]) -> Answer:
    """The answer over the keys of all parts, which must have none in common.

    Args:
        parts: pairs of out, float32 [n, heads, v_head_dim], and lse, float32 [n, heads].
    """
    try:
        pairs = [(out, lse) for out, lse in parts]
    except (TypeError, ValueError):
        raise of_wrong_kind("parts", parts, "pairs of out and lse") from None
    out, lse = _core.merge(pairs)
    return Answer(as_kind_of(pairs[0][0], out, lse, None))


@checked
def with_sinks(out: Any, lse: Any, logits: Any) -> Answer:
    """Lets each head's softmax share its weight with one more score that brings no value (gpt-oss).

    Args:
        out: float32 [n, heads, v_head_dim].
        lse: float32 [n, heads].
        logits: one number for each head; -inf leaves a head as it is.
    """
    made = _core.with_sinks(out, lse, numbers_of(logits, "logits"))
    return Answer(as_kind_of(out, *made, None))


@checked
def blend(parts: Iterable[Any], weights: Iterable[Any]) -> Any:
    """The sum of outs that do not share a softmax, each with a weight of its own (gated branches).

    Args:
        parts: float32 [n, heads, v_head_dim] each, outs after their last merge.
        weights: for each part [n, heads, v_head_dim], or 1 in place of n or of v_head_dim.
    """
    for name, given in (("parts", parts), ("weights", weights)):
        if not isinstance(given, Iterable):
            raise of_wrong_kind(name, given, "an array for each part")
    outs = list(parts)
    made = _core.blend(outs, list(weights))
    return as_kind_of(outs[0], made, made, None)[0]


@checked
def gate(out: Any, gates: Any) -> Any:
    """out * sigmoid(gates).

    Args:
        out: float32 [n, heads, v_head_dim].
        gates: [n, heads, v_head_dim], or [n, heads, 1] for one gate a head.
    """
    made = _core.gate(out, gates)
    return as_kind_of(out, made, made, None)[0]
