"""What transformers calls in place of its own masks and attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function

from annulus.errors import InvalidArgument
from annulus.functions import with_sinks
from annulus.hf.cache import ContextCache

# Keywords of a layer that say nothing about the scores, or that its caller has used already.
_HARMLESS = {
    "cache_position",
    "logits_to_keep",
    "num_items_in_batch",
    "output_hidden_states",
    "output_router_logits",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
}


@dataclass(frozen=True, slots=True)
class Mask:
    """Causal, behind left padding and perhaps within a window: all that is ever kept of a mask."""

    starts: list[int]  # of each row, how many slots are padding
    window: int | None  # how many tokens each sees, itself included
    kv_length: int


def mask_of(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Any = None,
    *,
    allow_is_causal_skip: bool = True,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: Any = "cpu",
    **_: Any,
) -> Mask:
    """In place of a mask of n²; refuses what is not causal behind left padding."""
    if use_vmap or not allow_is_causal_skip:
        raise InvalidArgument(
            "attention_mask: packed sequences, blocks or a function of the model's own; expected "
            "causal, within a window at most"
        )
    window = None if mask_function is causal_mask_function else local_size
    if mask_function is not causal_mask_function and not _is_window(
        mask_function, local_size, q_offset, q_length, device
    ):
        raise InvalidArgument(
            f"attention_mask: the mask function {getattr(mask_function, '__qualname__', '')}; "
            "expected causal, within a window at most"
        )
    if kv_offset != 0 or q_offset + q_length != kv_length:
        raise InvalidArgument(
            f"attention_mask: {q_length} queries at {q_offset} over slots {kv_offset} to "
            f"{kv_offset + kv_length}; expected the last slots of all"
        )
    if attention_mask is None:
        return Mask([0] * batch_size, window, kv_length)
    if tuple(attention_mask.shape) != (batch_size, kv_length):
        raise InvalidArgument(
            f"attention_mask: shape {tuple(attention_mask.shape)}; expected "
            f"{(batch_size, kv_length)}, a column for each slot so far"
        )
    seen = attention_mask.bool()
    if not bool((seen[:, 1:] >= seen[:, :-1]).all()):
        raise InvalidArgument("attention_mask: 0 behind 1; expected padding on the left alone")
    return Mask((~seen).sum(1).tolist(), window, kv_length)


def attend(
    cache: ContextCache,
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: Any = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """A layer's attention, [rows, heads, n, dim] to [rows, n, heads, dim], through its contexts."""
    _refuse(module, {"query": query, "key": key, "value": value, "s_aux": s_aux}, dropout, kwargs)
    if not isinstance(attention_mask, Mask):
        shape = getattr(attention_mask, "shape", None)
        found = "none" if attention_mask is None else f"shape {tuple(shape or ())}"
        raise InvalidArgument(
            f"attention_mask: {found} made elsewhere; expected zeros and ones, [rows, slots]"
        )
    if attention_mask.window != sliding_window:
        raise InvalidArgument(
            f"sliding_window: {sliding_window} where the mask has {attention_mask.window}; "
            "expected both alike"
        )
    if key.shape[2] != query.shape[2]:
        raise InvalidArgument(
            f"key: {key.shape[2]} tokens for {query.shape[2]} queries; expected theirs alone, "
            "neither cross attention nor another cache"
        )
    window = "" if sliding_window is None else f" & window({sliding_window})"
    out, lse = cache.attend(
        module.layer_idx,
        query,
        key,
        value,
        past=attention_mask.kv_length - query.shape[2],
        starts=attention_mask.starts,
        pattern=f"causal{window}",
        scale=scaling,
    )
    if s_aux is not None:
        made, _ = with_sinks(out.flatten(0, 1), lse.flatten(0, 1), s_aux.detach().tolist())
        out = made.view_as(out)
    return out.to(device=query.device, dtype=query.dtype), None


def _refuse(module: Any, tensors: dict[str, Any], dropout: float, kwargs: dict[str, Any]) -> None:
    if dropout:
        raise InvalidArgument(f"dropout: {dropout}; expected 0, as model.eval() has it")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise InvalidArgument(
                f"requires_grad: True of {name}; expected a call within torch.no_grad()"
            )
    if not getattr(module, "is_causal", True):
        raise InvalidArgument("is_causal: False; expected a causal layer")
    for name, given in kwargs.items():
        if name == "is_causal" and given is not False:
            continue
        if given is None or name in _HARMLESS or (name == "output_attentions" and not given):
            continue
        raise InvalidArgument(f"{name}: {given!r:.60}; expected none: it is not implemented")


def _is_window(function: Any, size: int | None, offset: int, length: int, device: Any) -> bool:
    """Whether a mask function is causal within a window, told at the edges of a few rows."""
    if size is None:
        return False
    last = offset + length - 1
    rows = sorted({offset, min(offset + 1, last), (offset + last) // 2, max(last - 1, 0), last})
    q = torch.tensor(rows, device=device)[:, None]
    edges = torch.tensor([-size - 1, -size, -size + 1, -1, 0, 1], device=device)
    kv = torch.clamp(q + edges, min=0)
    zero = torch.zeros((), dtype=torch.long, device=device)
    return bool(torch.equal(function(zero, zero, q, kv), (kv <= q) & (kv > q - size)))
