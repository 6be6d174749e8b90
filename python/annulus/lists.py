"""Which keys each query sees, as data: what ``list(name)`` in a pattern stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from annulus import _core
from annulus._checked import checked
from annulus.errors import InvalidArgument, of_wrong_kind


class KeyList:
    """Rows of keys: one for each query, one for each block of queries, or one for all.

    Checked and copied once; any number of calls may bring it, and :meth:`keep` has it travel once.
    """

    @checked
    def __init__(
        self,
        begin: Any,
        keys: Any,
        *,
        unit: str = "blocks",
        rows: str = "all",
        block_tokens: int = 64,
        heads: int = 1,
        q_begin: int = 0,
    ) -> None:
        """Row r of head h sees ``keys[begin[h * rows + r]:begin[h * rows + r + 1]]``, ascending.

        Args:
            begin: integers, one for each row of each head and one more.
            keys: integers, absolute numbers of blocks or tokens.
            unit: what keys number, "blocks" or "tokens".
            rows: "token" (one for each query), "block" (for each block of queries), "all", or
                "vertical-slash": two for each head, tokens that all queries see and distances, of
                which d gives a block of queries from b on the keys from b - d to before
                b - d + block_tokens.
            block_tokens: tokens of a block of keys, and of a block of queries.
            heads: that have lists of their own: 1 (for all), KV heads or query heads.
            q_begin: position of the first query that has a row.
        """
        self._core = _core.KeyList.new(
            unit,
            rows,
            block_tokens,
            heads,
            q_begin,
            _integers(begin, np.int64, "begin"),
            _integers(keys, np.int32, "keys"),
        )

    @classmethod
    def _of(cls, core: _core.KeyList) -> KeyList:
        made = cls.__new__(cls)
        made._core = core
        return made

    def keep(self) -> KeyList:
        """Has services keep the list, of which calls then bring a handle alone.

        For lists of many calls, such as a mask for all layers and steps. A service keeps as many as
        its ``--list-cache-bytes`` hold (256 MiB, of which a tenant has half), the least recently
        used go first; what it has forgotten is sent again.

        Returns:
            The list itself.
        """
        self._core.keep()
        return self

    @classmethod
    def from_mask(cls, mask: Any, block_tokens: int = 64) -> KeyList:
        """A bool mask [1 | kv_heads | heads, blocks, blocks] of absolute blocks of tokens."""
        bits = np.asarray(mask)
        if bits.dtype != np.bool_ or bits.ndim != 3 or bits.shape[1] != bits.shape[2]:
            raise InvalidArgument(
                f"mask: {bits.dtype} {bits.shape}; expected bool [heads, blocks, blocks]"
            )
        heads, blocks, _ = bits.shape
        counts = bits.reshape(heads * blocks, blocks).sum(axis=1)
        return cls(
            np.concatenate([[0], np.cumsum(counts)]),
            np.nonzero(bits)[2],
            rows="block",
            block_tokens=block_tokens,
            heads=heads,
        )


@dataclasses.dataclass
class Index:
    """Queries by which words as ``dsa``, ``msa`` and ``seer`` choose keys among a track's rows.

    Args:
        track: by name.
        q: [n, index heads, dim of the track], n as the call's queries; rounded to the
            track's dtype.
        weights: [n, index heads], for ``dsa``.
        layer: whose rows (None: the call's layer's).
    """

    track: str
    q: Any
    weights: Any = None
    layer: int | None = None


def cores_of(lists: Mapping[str, Any] | None) -> dict[str, Any]:
    """As the module takes them; a bool mask is one of blocks of 64 tokens."""
    cores = {}
    if lists is not None and not isinstance(lists, Mapping):
        raise of_wrong_kind("lists", lists, "a dict of names and lists")
    for name, keys in (lists or {}).items():
        if not isinstance(name, str):
            raise InvalidArgument(f"lists: {name!r}; expected the name of a list, a str")
        keys = keys if isinstance(keys, KeyList) else KeyList.from_mask(keys)
        cores[name] = keys._core
    return cores


def _integers(values: Any, dtype: Any, field: str) -> np.ndarray[Any, Any]:
    given = np.asarray(values)
    if given.size == 0:
        return np.zeros(0, dtype)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise InvalidArgument(f"{field}: {given.dtype} {given.shape}; expected integers [n]")
    limits = np.iinfo(dtype)
    for value in (given.min(), given.max()):
        if not limits.min <= value <= limits.max:
            raise InvalidArgument(f"{field}: {value}; expected {np.dtype(dtype).name}")
    return np.ascontiguousarray(given, dtype)
