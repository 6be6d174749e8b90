"""Arrays that the module cannot borrow as they are, and answers in the caller's kind of array."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from annulus import _core
from annulus.errors import InvalidArgument, of_wrong_kind

DTYPES = ("f32", "f16", "bf16")


def to_host(tensor: Any, field: str) -> tuple[Any, bool]:
    """A form of ``tensor`` that lies in host memory and exports how.

    Returns it, and whether it is 16-bit integers that hold bfloat16 (NumPy has no such type of its
    own, and exports ml_dtypes' by no protocol).
    """
    kind = kind_of(tensor)
    if isinstance(tensor, np.ndarray):
        if tensor.dtype.name == "bfloat16":
            return tensor.view(np.uint16), True
        return tensor, False
    if kind == "torch":
        check_torch(tensor, field)
        tensor = tensor.detach().resolve_neg()  # a view's sign is not in its memory
        if tensor.device.type != "cpu":
            import torch

            staged = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            tensor = staged.copy_(tensor)
        return (tensor if tensor.stride(-1) == 1 else tensor.contiguous()), False
    if kind == "jax":
        host = np.asarray(tensor)
        return (host.view(np.uint16), True) if host.dtype.name == "bfloat16" else (host, False)
    raise of_wrong_kind(field, tensor, "an array with __dlpack__ or the buffer protocol")


def kind_of(tensor: Any) -> str:
    """The library whose kind of array it is: "torch", "jax" or another's."""
    roots = [base.__module__.partition(".")[0] for base in type(tensor).__mro__]
    if "torch" in roots:
        return "torch"
    return "jax" if "jax" in roots or "jaxlib" in roots else roots[0]


def check_torch(tensor: Any, field: str) -> None:
    """InvalidArgument for a tensor of torch that has no rows to read, or wants a gradient."""
    import torch

    refused = None
    if tensor.requires_grad and torch.is_grad_enabled():
        refused = "that requires a gradient; expected none, as within torch.no_grad()"
    elif tensor.device.type == "meta":
        refused = "on the device meta; expected one that has values"
    elif tensor.layout != torch.strided:
        refused = f"of {tensor.layout}; expected a dense one"
    elif tensor.is_quantized:
        refused = f"of {tensor.dtype}; expected float32, float16 or bfloat16"
    if refused is not None:
        raise InvalidArgument(f"{field}: a tensor {refused}")


def packed(host: Any) -> Any:
    """What :func:`to_host` has made, row behind row."""
    return np.ascontiguousarray(host) if isinstance(host, np.ndarray) else host.contiguous()


def shape_of(tensor: Any, field: str) -> tuple[int, ...]:
    """What an array says, or what it is found to have."""
    shape = getattr(tensor, "shape", None)
    if isinstance(shape, tuple) and len(shape) > 0:
        return shape
    if not hasattr(tensor, "__dlpack__") and not hasattr(tensor, "__len__"):
        raise of_wrong_kind(field, tensor, "an array [tokens, heads, dim]")
    return _core.shape_of(tensor, field)


def check_out_dtype(dtype: str | None, likes: Iterable[Any]) -> None:
    """Before anything is asked for: whether answers can be made in ``dtype``, as ``likes`` are."""
    if dtype is None:
        return
    if dtype not in DTYPES:
        raise InvalidArgument(f"out_dtype: {dtype!r}; expected f32, f16 or bf16")
    if dtype == "bf16" and not all(kind_of(like) == "torch" for like in likes):
        try:
            import ml_dtypes  # noqa: F401
        except ImportError:
            raise InvalidArgument(
                "out_dtype: 'bf16'; expected the package ml_dtypes with it, pip install "
                "'annulus[bf16]'"
            ) from None


def as_kind_of(like: Any, out: np.ndarray, lse: np.ndarray, dtype: str | None) -> tuple[Any, Any]:
    """``out`` in ``dtype`` and ``lse``, as the kind of array that ``like`` is."""
    kind = kind_of(like)
    if kind == "torch":
        import torch

        names = {"f16": torch.float16, "bf16": torch.bfloat16}
        made = torch.from_numpy(out), torch.from_numpy(lse)
        if like.device.type != "cpu":
            made = made[0].to(like.device), made[1].to(like.device)
        return (made[0].to(names[dtype]) if dtype in names else made[0]), made[1]
    if dtype == "f16":
        out = out.astype(np.float16)
    elif dtype == "bf16":
        import ml_dtypes

        out = out.astype(ml_dtypes.bfloat16)
    if kind == "jax":
        import jax.numpy as jnp

        return jnp.asarray(out), jnp.asarray(lse)
    return out, lse


def scale_of(scale: float | None) -> float:
    """As the module takes what scores are multiplied by; 0: 1/√head_dim."""
    if scale is None:
        return 0.0
    if np.float32(scale) == 0:
        raise InvalidArgument(f"scale: {scale!r}; expected None, or a number that is not 0 in f32")
    return scale


def numbers_of(values: Any, field: str = "sinks") -> list[float]:
    """As the module takes a number for each head; None: none."""
    if kind_of(values) == "torch":
        check_torch(values, field)
    try:
        return [] if values is None else [float(value) for value in values]
    except (TypeError, ValueError):
        raise of_wrong_kind(field, values, "a number for each head") from None


def weights_of(values: Any, q: Any, field: str) -> list[float]:
    """As the module takes a number for each head of each row of ``q``; None: none."""
    if values is None:
        return []
    if kind_of(values) == "torch":
        check_torch(values, field)
    expected = tuple(shape_of(q, "q"))[:2]
    try:
        weights = np.asarray([[float(one) for one in row] for row in values], dtype=np.float32)
    except (TypeError, ValueError):
        raise of_wrong_kind(field, values, f"numbers of shape {expected}") from None
    if weights.shape != expected:
        raise InvalidArgument(
            f"{field}: of shape {weights.shape}; expected {expected}, one for each index query"
        )
    return weights.ravel().tolist()
