"""Contexts, and what calls on them are answered with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from annulus import _core
from annulus._calls import append_call, attend_call, layer_number, select_call
from annulus._checked import checked
from annulus._compress import Rule, check_queries, fill, fill_layer
from annulus._core import Answer
from annulus._threads import RELEASE_SECONDS, Left, in_thread
from annulus.errors import AnnulusError, of_wrong_kind
from annulus.lists import Index, KeyList

if TYPE_CHECKING:
    from annulus.client import Client


class Appended(NamedTuple):
    """What an append is answered with."""

    epoch: int
    tokens: int  # the layer's committed tokens now


class Context:
    """One sequence's KV, over all layers, held by a service. Released at the end of a ``with``.

    The end of a ``with`` waits at most 10 s for a service that is away: the lease frees it then.

    Tensors are [tokens, heads, dim]: anything with ``__dlpack__`` or the buffer protocol, float32,
    float16 or bfloat16. They are read where they lie, strided too, as long as the last dimension
    is contiguous; others, reversed and broadcast ones too, from a copy, and a tensor on a GPU from
    one in pinned host memory. No gradients are made: a tensor of torch that requires one is refused
    unless torch makes none either. Positions (RoPE) are applied by the caller. Calls that change
    one layer are the caller's to order.
    """

    def __init__(self, client: Client, info: dict[str, Any]) -> None:
        self._client = client
        self._core = client._core
        self.id: int = info["context"]
        self.spec: dict[str, Any] = info["spec"]
        self._tokens: list[int] = info["tokens"]  # by layer; empty: not known

    def __enter__(self) -> Context:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.release(timeout=RELEASE_SECONDS)
        except AnnulusError:
            if kind is None:
                raise

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"<annulus.Context {self.id}: {spec['layers']} layers, "
            f"{spec['heads']}/{spec['kv_heads']} heads, d {spec['head_dim']}, {spec['dtype']}>"
        )

    @property
    def tokens(self) -> list[int]:
        """Committed tokens, by layer and then by tracks' layers, as this client knows them.

        It asks the service where it does not, after a call that failed.
        """
        return self._tokens or self._learn(None, None)

    def _learn(self, timeout: float | None, cancel: _core.CancelToken | None) -> list[int]:
        tokens: list[int] = self._core.describe(self.id, timeout, cancel)["tokens"]
        self._tokens = tokens
        return tokens

    def _at(self, layer: int, left: Left, cancel: _core.CancelToken | None) -> int:
        """A layer's committed tokens. Where they are not known, the call that asks pays for it."""
        while True:
            tokens = self._tokens or self._learn(left(), cancel)
            with contextlib.suppress(IndexError):  # another layer's call failed meanwhile
                return tokens[layer]

    def _commit(self, layer: int, tokens: int) -> None:
        with contextlib.suppress(IndexError):  # not known, or not any more
            self._tokens[layer] = tokens

    @checked
    def append(
        self,
        layer: int,
        k: Any,
        v: Any = None,
        *,
        track: str | None = None,
        start: int | None = None,
        key: tuple[int, int] | None = None,
        progress: Callable[[int, int], object] | None = None,
        timeout: float | None = None,
    ) -> Appended:
        """Stores n tokens of one layer behind those that are there.

        Args:
            layer: which.
            k: [n, kv_heads, head_dim].
            v: [n, kv_heads, v_head_dim]; None where the context has ``v_is_k_prefix``.
            track: k has rows of this track, [n, heads of the track, dim], and there is no v
                (None: K and V).
            start: must be the layer's committed tokens (as this client knows them).
            key: (client, sequence), by which the service knows a repetition (the library's own).
            progress: called with (bytes done, bytes in all) as they leave, on some thread.
            timeout: seconds.

        Raises:
            InvalidArgument: a shape, a dtype, or ``start``.
            ResourceExhausted: KV is full.
            DataLoss: the context lost KV.
        """
        number = layer_number(self, layer, track)
        call = append_call(self, number, k, v, start, key, progress)
        with self._in_doubt():
            return self._appended(number, call(timeout, _core.CancelToken.new()))

    @checked
    async def append_async(
        self,
        layer: int,
        k: Any,
        v: Any = None,
        *,
        track: str | None = None,
        start: int | None = None,
        key: tuple[int, int] | None = None,
        progress: Callable[[int, int], object] | None = None,
        timeout: float | None = None,
    ) -> Appended:
        """As :meth:`append`; cancelling the task cancels the call."""
        number = layer_number(self, layer, track)
        call = append_call(self, number, k, v, start, key, progress)
        with self._in_doubt():
            return self._appended(number, await in_thread(self._client._pool(), timeout, call))

    @contextlib.contextmanager
    def _in_doubt(self) -> Iterator[None]:
        """After an append that failed some of its pieces may be committed."""
        try:
            yield
        except BaseException:
            self._tokens = []
            raise

    def _appended(self, layer: int, result: tuple[int, int]) -> Appended:
        appended = Appended(*result)
        self._commit(layer, appended.tokens)
        return appended

    @checked
    def attend(
        self,
        layer: int,
        q: Any,
        pattern: str | None = None,
        *,
        q_start: int | None = None,
        kv_len: int | None = None,
        keys: tuple[int, int] | None = None,
        plan: str | None = None,
        scale: float | None = None,
        request_id: str = "",
        trace: bool = False,
        lists: Mapping[str, Any] | None = None,
        sinks: Any = None,
        index: Index | None = None,
        out_dtype: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Attends queries to one layer.

        Args:
            layer: which.
            q: [n, heads, head_dim].
            pattern: which keys each query sees (None: the context's for this layer, or causal).
            q_start: position of the first query, before, among or beyond the keys (None: the
                queries are the last n of kv_len tokens).
            kv_len: how many tokens of the context there are (None: all that are committed).
            keys: only tokens [a, b) are seen (None: all); positions in patterns stay absolute.
            plan: "ring", "heads", "mesh", "group-cast", "pass-q" … (None: the service chooses).
            scale: what scores are multiplied by (None: 1/√head_dim).
            request_id: appears in logs and traces.
            trace: whether the answer brings spans.
            lists: what ``list(name)`` in the pattern stands for: :class:`annulus.KeyList`, or a
                bool mask [1 | kv_heads | heads, blocks, blocks] of blocks of 64 tokens.
            sinks: [heads], a score for each head that takes a share of its weight and brings no
                value (gpt-oss), -inf for none. Not where the answer is merged with others: a row
                has its sink once (:func:`annulus.with_sinks`).
            index: queries of words that choose keys by a track's rows, as ``dsa(2048)``.
            out_dtype: "f32", "bf16" or "f16" for ``out`` (None: f32).
            timeout: seconds.

        Returns:
            ``(out, lse)`` with more as attributes, see :class:`Answer`; NumPy, or torch or JAX if q
            is.
        """
        call = attend_call(
            self,
            layer,
            q,
            pattern,
            q_start,
            kv_len,
            keys,
            plan,
            scale,
            request_id,
            trace,
            lists,
            sinks,
            index,
            out_dtype,
        )
        return call(timeout, _core.CancelToken.new())

    @checked
    async def attend_async(
        self,
        layer: int,
        q: Any,
        pattern: str | None = None,
        *,
        q_start: int | None = None,
        kv_len: int | None = None,
        keys: tuple[int, int] | None = None,
        plan: str | None = None,
        scale: float | None = None,
        request_id: str = "",
        trace: bool = False,
        lists: Mapping[str, Any] | None = None,
        sinks: Any = None,
        index: Index | None = None,
        out_dtype: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """As :meth:`attend`; cancelling the task cancels the call."""
        call = attend_call(
            self,
            layer,
            q,
            pattern,
            q_start,
            kv_len,
            keys,
            plan,
            scale,
            request_id,
            trace,
            lists,
            sinks,
            index,
            out_dtype,
        )
        return await in_thread(self._client._pool(), timeout, call)

    @checked
    def select(
        self,
        layer: int,
        q: Any,
        pattern: str | None = None,
        *,
        track: str | None = None,
        weights: Any = None,
        q_start: int | None = None,
        kv_len: int | None = None,
        scale: float | None = None,
        timeout: float | None = None,
    ) -> dict[str, KeyList]:
        """Has queries choose keys, for calls to come.

        Args:
            layer: which.
            q: [n, heads, head_dim]; of a track the index queries, [n, index heads, dim].
            pattern: with words that choose keys by data, as ``quest(4096)`` (None: the context's).
            track: choose by its rows, which the words of an index do, as ``dsa(2048)`` (None: by
                the context's keys).
            weights: [n, index heads], for ``dsa``.
            q_start: as in :meth:`attend`.
            kv_len: as in :meth:`attend`.
            scale: as in :meth:`attend`, of words that weigh scores, as ``nsa`` (not of a track).
            timeout: seconds.

        Returns:
            A list for each such word, by the word with all of its arguments: the ``lists`` of
            attends, and of steps, of queries at the same positions, in this layer or in others.
        """
        call = select_call(self, layer, q, pattern, track, weights, q_start, kv_len, scale)
        return call(timeout, _core.CancelToken.new())

    @checked
    async def select_async(
        self,
        layer: int,
        q: Any,
        pattern: str | None = None,
        *,
        track: str | None = None,
        weights: Any = None,
        q_start: int | None = None,
        kv_len: int | None = None,
        scale: float | None = None,
        timeout: float | None = None,
    ) -> dict[str, KeyList]:
        """As :meth:`select`; cancelling the task cancels the call."""
        call = select_call(self, layer, q, pattern, track, weights, q_start, kv_len, scale)
        return await in_thread(self._client._pool(), timeout, call)

    @checked
    def compress(
        self,
        queries: Sequence[Any],
        keep: int,
        *,
        recent: int | None = None,
        pool: str = "max",
        pool_width: int = 7,
        scale: float | None = None,
        timeout: float | None = None,
    ) -> Context:
        """A new, smaller context: of each layer the keys that its last queries attend to most.

        As it is, that is SnapKV, with the last 32 queries of a prompt: ``keep`` tokens of each KV
        head stay, the last ``recent`` and those before that most of the queries' weight falls on,
        pooled over ``pool_width`` keys around each. H2O is ``recent=keep // 2, pool_width=1``, with
        the queries of all steps so far.

        Tokens are numbered anew: the new context has ``keep`` of them (all, where there are not
        more), and the next one is appended at ``keep``. Positions (RoPE) that the caller applies
        go on as they would have. This context stays as it is; release it if it is needed no more.
        Tracks are not kept.

        Args:
            queries: of each layer [n, heads, head_dim], the layer's last.
            keep: tokens of each KV head.
            recent: the last ones, which are kept whatever their weight (None: 32, or ``keep`` where
                that is less).
            pool: ``"max"`` or ``"mean"``.
            pool_width: an odd number; 1: each key for itself.
            scale: as in :meth:`attend`.
            timeout: seconds, of each layer.
        """
        check_queries(queries, self.spec["layers"])
        info = self._core.create({**self.spec, "tracks": []}, timeout)
        smaller = Context(self._client, info)
        fill(smaller, self, queries, Rule(keep, recent, pool, pool_width), scale, timeout)
        return smaller

    @checked
    def compress_layer(
        self,
        layer: int,
        q: Any,
        into: Context,
        keep: int,
        *,
        recent: int | None = None,
        pool: str = "max",
        pool_width: int = 7,
        q_start: int | None = None,
        kv_len: int | None = None,
        scale: float | None = None,
        timeout: float | None = None,
    ) -> KeyList:
        """The same of one layer, appended to that layer of another context.

        ``into`` has the same KV heads, dims and dtype. Queries may stand anywhere: those at
        position p vote for the keys up to p, with the weights of their softmax over these.

        Returns:
            The positions kept, by KV head. Attending this context by ``list(kept)`` with
            ``lists={"kept": …}`` sees what attending ``into`` does.
        """
        if not isinstance(into, Context):
            raise of_wrong_kind("into", into, "an annulus.Context")
        rule = Rule(keep, recent, pool, pool_width)
        return fill_layer(into, self, layer, q, rule, q_start, kv_len, scale, timeout)

    @checked
    def fork(self, tokens: int | None = None, *, timeout: float | None = None) -> Context:
        """A new context that begins with this one's first ``tokens`` (all, layer by layer).

        Blocks are shared until one of the two writes.
        """
        return Context(self._client, self._core.fork(self.id, tokens, timeout))

    @checked
    def truncate(self, tokens: int, *, timeout: float | None = None) -> None:
        """Forgets each layer's tokens from ``tokens`` on."""
        self._tokens = []
        self._tokens = self._core.truncate(self.id, tokens, timeout)["tokens"]

    @checked
    def describe(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Its id, epoch, spec, committed tokens by layer, bytes and state."""
        return self._core.describe(self.id, timeout, None)

    @checked
    def release(self, *, timeout: float | None = None) -> None:
        """Frees its KV.

        Raises:
            NotFound: it was released already, by its lease for instance.
        """
        self._core.release(self.id, timeout)
