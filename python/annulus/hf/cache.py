"""A cache of transformers whose rows are contexts."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from annulus._arrays import to_host
from annulus._threads import RELEASE_SECONDS, Left
from annulus.client import Client
from annulus.context import Context
from annulus.errors import AnnulusError, InvalidArgument
from annulus.steps import Step

STEP_TOKENS_MAX = 64  # more of one row are streamed, rather than sent as a step


@dataclass(slots=True, eq=False)
class Holder:
    """Where a model's contexts are made, and how."""

    client: Client
    layers: int
    options: dict[str, Any]
    chunk_tokens: int
    timeout: float | None


class _Layer(CacheLayerMixin):
    """What transformers asks a layer; all that changes one goes to the cache as a whole."""

    is_sliding = False  # contexts keep what windows have passed, or the service says so
    is_croppable = True
    is_compileable = False
    supports_early_init = False

    def __init__(self, cache: ContextCache, index: int) -> None:
        super().__init__()
        self._cache = weakref.ref(cache)
        self._index = index

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        pass

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        return self._owner.update(key_states, value_states, self._index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self._owner.length(self._index)

    def get_max_length(self) -> int:
        return -1

    @property
    def _owner(self) -> ContextCache:
        owner = self._cache()
        assert owner is not None
        return owner


class ContextCache(Cache):
    """One context for each row of a batch. Released when it is collected, or by ``release()``.

    A deep copy is a fork of every row, which shares the KV: so a prompt is computed once.
    """

    def __init__(self, holder: Holder) -> None:
        super().__init__(layers=[_Layer(self, index) for index in range(holder.layers)])
        self.holder = holder
        self.passing = True
        self.rows: list[Context] = []
        self._starts: list[int] = []  # of each row, how many of its slots are padding
        # Before a forward that has not ended well: _starts, and each row's tokens.
        self._before: tuple[list[int], list[int]] | None = None
        self._handed: dict[int, tuple[Any, Any]] = {}  # by layer, between update() and attend()
        weakref.finalize(self, _release, self.rows)

    def __repr__(self) -> str:
        return f"<annulus.hf.ContextCache: {len(self.rows)} rows, {self.get_seq_length()} tokens>"

    def __deepcopy__(self, memo: dict[int, Any]) -> ContextCache:
        self.roll_back()
        copy = ContextCache(self.holder)
        memo[id(self)] = copy
        for row in self.rows:
            copy.rows.append(row.fork())
        copy._starts = list(self._starts)
        return copy

    def begin(self, passing: bool) -> None:
        """Before a forward, whether its layers will call ``update()``."""
        self.roll_back()
        left = Left(self.holder.timeout)
        self.passing = passing
        self._handed = {}
        self._before = list(self._starts), [row._at(0, left, None) for row in self.rows]

    def end(self) -> None:
        """After a forward that went well."""
        self._before = None

    def roll_back(self) -> None:
        """Forgets what a forward that did not end well has appended to some of the layers."""
        if self._before is None:
            return
        starts, tokens = self._before
        self._handed = {}
        if tokens:
            for row, count in zip(self.rows, tokens, strict=True):
                row.truncate(count, timeout=self.holder.timeout)
        else:
            _release(self.rows)
        self._starts = starts
        self._before = None

    def length(self, layer: int) -> int:
        """Tokens of a layer with the padding before them, alike in all rows.

        Those before a forward, until that has ended well.
        """
        if self._before is not None:
            return max(map(sum, zip(*self._before, strict=True)), default=0)
        pairs = zip(self._starts, self.rows, strict=True)
        return max((start + row.tokens[layer] for start, row in pairs), default=0)

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Hands over the new k and v alone; attention appends them."""
        if self._handed:
            raise InvalidArgument(
                f"layer: {next(iter(self._handed))} did not attend to its k and v; expected "
                "attention right after the cache's update"
            )
        self._handed[layer_idx] = key_states, value_states
        return key_states, value_states

    def attend(
        self,
        layer: int,
        q: Any,
        k: Any,
        v: Any,
        *,
        past: int,
        starts: Sequence[int],
        pattern: str,
        scale: float | None,
    ) -> tuple[Any, Any]:
        """Appends k and v and attends q: each [rows, heads, n, dim], padding included.

        Args:
            past: slots before these, in every row.
            starts: of each row, how many of all slots are padding, which comes first.

        Returns:
            out, float32 [rows, n, heads, dim], and lse [rows, n, heads], on the host; 0 and -inf
            for padding.
        """
        if self.passing:
            handed = self._handed.pop(layer, (None, None))
            if k is not handed[0] or v is not handed[1]:
                raise InvalidArgument(
                    f"key: not what layer {layer} gave to the cache; expected it unchanged"
                )
        batch, heads, n, _ = q.shape
        self._make_rows(q, k, v)
        if len(self.rows) != batch:
            raise InvalidArgument(f"query: {batch} rows; expected the cache's {len(self.rows)}")
        skips = []  # of each row, how many of the n are padding
        for index, (row, start) in enumerate(zip(self.rows, starts, strict=True)):
            if row.tokens[layer] != past - min(start, past):
                raise InvalidArgument(
                    f"attention_mask: {start} padded slots in row {index}, where {past} slots "
                    f"hold {row.tokens[layer]} tokens; expected the mask that they came with"
                )
            skips.append(min(max(start - past, 0), n))
        self._starts = list(starts)
        # One copy of all rows where they lie on a GPU.
        q, k, v = (to_host(tensor, "query")[0].transpose(1, 2) for tensor in (q, k, v))
        out = torch.zeros((batch, n, heads, v.shape[-1]))
        lse = torch.full((batch, n, heads), -torch.inf)
        for pieces in self._pieces(n, skips):
            steps = [
                Step(self.rows[i], layer, q[i, a:b], k[i, a:b], v[i, a:b], pattern, scale)
                for i, a, b in pieces
            ]
            for (i, a, b), answer in zip(pieces, self._run(steps), strict=True):
                out[i, a:b], lse[i, a:b] = answer[0], answer[1]
        return out, lse

    def _pieces(self, n: int, skips: list[int]) -> list[list[tuple[int, int, int]]]:
        """What is asked at once: all rows where they are short, else a piece of one row."""
        if n <= STEP_TOKENS_MAX:
            some = [(i, skip, n) for i, skip in enumerate(skips) if skip < n]
            return [some] if some else []
        size = self.holder.chunk_tokens
        return [
            [(i, at, min(at + size, n))]
            for i, skip in enumerate(skips)
            for at in range(skip, n, size)
        ]

    def _run(self, steps: list[Step]) -> list[Any]:
        timeout = self.holder.timeout
        if len(steps[0].q) > STEP_TOKENS_MAX:
            (step,) = steps
            step.context.append(step.layer, step.k, step.v, timeout=timeout)
            return [
                step.context.attend(
                    step.layer, step.q, step.pattern, scale=step.scale, timeout=timeout
                )
            ]
        answers = self.holder.client.step(steps, timeout=timeout)
        for answer in answers:
            if isinstance(answer, AnnulusError):
                raise answer
        return answers

    def _make_rows(self, q: Any, k: Any, v: Any) -> None:
        if self.rows:
            return
        for _ in range(len(q)):
            row = self.holder.client.create_context(
                heads=q.shape[1],
                kv_heads=k.shape[1],
                head_dim=q.shape[3],
                v_head_dim=v.shape[3],
                layers=self.holder.layers,
                timeout=self.holder.timeout,
                **self.holder.options,
            )
            self.rows.append(row)
        self._starts = [0] * len(self.rows)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last ``-tokens_to_remove`` tokens.

        A positive number says how many to keep, as older versions call it.
        """
        self.roll_back()
        if tokens_to_remove == 0:
            return
        length = self.length(0)
        tokens = tokens_to_remove + (length if tokens_to_remove < 0 else 0)
        if tokens >= length:
            return
        for row, start in zip(self.rows, self._starts, strict=True):
            row.truncate(max(tokens - start, 0))
        self._starts = [min(start, max(tokens, 0)) for start in self._starts]

    def reorder_cache(self, beam_idx: Any) -> None:
        """Row i becomes row ``beam_idx[i]``: the first use takes it, each other one is a fork."""
        self.roll_back()
        wanted = beam_idx.tolist()
        if not self.rows:
            return
        taken: set[int] = set()
        rows: list[Context] = []
        forks: list[Context] = []
        try:
            for index in wanted:
                row = self.rows[index]
                if index in taken:
                    row = row.fork()
                    forks.append(row)
                taken.add(index)
                rows.append(row)
        except AnnulusError:
            _release(forks)
            raise
        starts = [self._starts[index] for index in wanted]
        _release([row for index, row in enumerate(self.rows) if index not in taken])
        self.rows[:] = rows  # in place: the finalizer holds this list
        self._starts = starts

    def batch_select_indices(self, indices: Any) -> None:
        """Keeps the rows of these indices."""
        every = torch.arange(len(self.rows), device=indices.device)
        self.reorder_cache(every[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row becomes ``repeats`` of them."""
        self.reorder_cache(torch.arange(len(self.rows)).repeat_interleave(repeats))

    def reset(self) -> None:
        """Empties it; the next call begins anew, with any number of rows."""
        self.release()

    def release(self) -> None:
        """Frees the KV of all rows."""
        _release(self.rows)
        self._starts = []
        self._handed = {}
        self._before = None


def _release(rows: list[Context]) -> None:
    left = Left(RELEASE_SECONDS)
    while rows:
        with contextlib.suppress(AnnulusError):  # gone already, or with its service
            rows.pop().release(timeout=left())
