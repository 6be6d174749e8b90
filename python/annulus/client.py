"""A client of a service, over the network or inside this process."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, TypedDict, Unpack

from annulus import _core
from annulus._arrays import check_out_dtype, numbers_of, scale_of
from annulus._calls import check_rows, index_of, layer_number
from annulus._checked import checked, wrong_argument
from annulus._core import Answer
from annulus._threads import Left, in_thread
from annulus.context import Context
from annulus.errors import AnnulusError, InvalidArgument, of_wrong_kind
from annulus.lists import Index, cores_of

ENDING_SECONDS = 5.0  # that the calls of other threads have, once cancelled, when Python ends

_open: weakref.WeakSet[Client] = weakref.WeakSet()


class ContextOptions(TypedDict, total=False):
    """Keywords of :meth:`Client.create_context` beside heads and dims."""

    layers: int  # 1 to 1024 (1)
    v_is_k_prefix: bool  # MLA: V is K's first v_head_dim dims and is not stored again
    dtype: str  # "bf16", "f16" or "f32": what K and V are rounded to and stored in ("bf16")
    placement: str  # "tokens", "heads" or "mesh": what is cut over the workers ("tokens")
    partition: str  # "block-cyclic:N", "zigzag", "contiguous", "striped" ("block-cyclic:64")
    tokens_expected: int  # 0: grows without a known end (0)
    patterns: str | Sequence[str]  # of all layers, or one for each; none: causal
    # Keep only the blocks that the patterns can still need. Append and attend piece by piece then:
    # after the next piece what only this one's queries would read may be gone.
    kv_efficient: bool
    replicas: int  # workers that hold each page, 1 or 2 (1)
    lease: float  # seconds without a call after which it is released, 0: never (300)
    evictable: bool  # may go, unused, when KV is full and the service is told to evict
    # Rows beside K and V, of each layer: {"name": …, "dim": …, "dtype": "bf16", "heads": 1,
    # "ratio": 1}, a row of each head for every `ratio` tokens.
    tracks: Sequence[dict[str, Any]]


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


class Client:
    """A service that holds contexts; made by :func:`annulus.connect` or :func:`annulus.in_process`.

    Calls may come from any threads at once. They release the GIL. On the main thread Ctrl-C cancels
    an append or attend. A call's time counts from when it is made, also where an ``*_async`` one
    waits for a thread. A client renews the leases of the contexts that it made.
    """

    def __init__(self, core: _core.Client, async_calls_max: int) -> None:
        self._core = core
        self._async_calls_max = async_calls_max
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        _open.add(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, or the service inside this process with all that it holds."""
        self._core.close()
        with self._lock:
            if self._threads is not None:
                self._threads.shutdown(wait=False)
            self._threads = None

    def _pool(self) -> ThreadPoolExecutor:
        """The threads of asynchronous calls. Raises where the client has ended."""
        _ = self._core.connection
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._async_calls_max, "annulus")
            return self._threads

    @property
    def connection(self) -> str:
        """``"ready"``, ``"connecting"`` or ``"down"``; does not wait."""
        return self._core.connection

    @checked
    def create_context(
        self,
        *,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int,
        v_head_dim: int | None = None,
        timeout: float | None = None,
        **options: Unpack[ContextOptions],
    ) -> Context:
        """An empty context: one sequence's KV over all layers.

        Args:
            heads: query heads, a multiple of kv_heads.
            kv_heads: KV heads (as many as heads).
            head_dim: width of q and k, a multiple of 8 up to 576.
            v_head_dim: width of v (that of k).
            timeout: seconds.
            options: see :class:`ContextOptions`.

        Raises:
            InvalidArgument: names the keyword.
            ResourceExhausted: ``contexts_max``, or a tenant's quota.
            Unavailable: no worker is there, or fewer than ``replicas`` are so far.
        """
        spec: dict[str, Any] = dict(options)
        spec["heads"] = heads
        spec["kv_heads"] = heads if kv_heads is None else kv_heads
        spec["head_dim"] = head_dim
        spec["v_head_dim"] = head_dim if v_head_dim is None else v_head_dim
        for name in ("tracks", "patterns"):
            given = spec.get(name, [])
            if not isinstance(given, Iterable):
                raise of_wrong_kind(name, given, "a list of them")
        if "tracks" in spec:
            spec["tracks"] = list(spec["tracks"])
        if "patterns" in spec:
            patterns = spec["patterns"]
            spec["patterns"] = [patterns] if isinstance(patterns, str) else list(patterns)
        return Context(self, self._core.create(spec, timeout))

    @checked
    def context(self, id: int, *, timeout: float | None = None) -> Context:
        """A context that is there already, by its id.

        Raises:
            NotFound: none of this caller's has it.
        """
        return Context(self, self._core.describe(id, timeout, None))

    def step(
        self, steps: Iterable[Step], *, timeout: float | None = None, out_dtype: str | None = None
    ) -> list[Answer | AnnulusError]:
        """A decode step of many contexts: one message each way, and one to each worker.

        Each (context, layer) may be there once. Returns one for each step, in order: its answer, or
        the error that it ended with, which leaves the others alone. Where the append went well and
        the attend did not, the tokens are committed.
        """
        try:
            steps = list(steps)
            return _run_steps(self._core, steps, out_dtype, timeout, None)
        except (TypeError, AttributeError, RuntimeError) as error:
            raise _error_of_step(steps, timeout, error) from None

    async def step_async(
        self, steps: Iterable[Step], *, timeout: float | None = None, out_dtype: str | None = None
    ) -> list[Answer | AnnulusError]:
        """As :meth:`step`; cancelling the task cancels the call."""
        try:
            given = steps = list(steps)
            return await in_thread(
                self._pool(),
                timeout,
                lambda timeout, cancel: _run_steps(self._core, given, out_dtype, timeout, cancel),
            )
        except (TypeError, AttributeError, RuntimeError) as error:
            raise _error_of_step(steps, timeout, error) from None

    @checked
    def keep_alive(
        self, contexts: Iterable[Context], *, timeout: float | None = None
    ) -> list[AnnulusError | None]:
        """Renews the leases of contexts, as any call on one does: None for each, or its error."""
        if not isinstance(contexts, Iterable):
            raise of_wrong_kind("contexts", contexts, "a list of annulus.Context")
        kept = list(contexts)
        for i, context in enumerate(kept):
            if not isinstance(context, Context):
                raise of_wrong_kind(f"contexts[{i}]", context, "an annulus.Context")
        return self._core.keep_alive([context.id for context in kept], timeout)

    @checked
    def contexts(
        self, *, after: int = 0, limit: int = 1000, timeout: float | None = None
    ) -> list[dict[str, Any]]:
        """Contexts with ids above ``after``, ascending; as :meth:`Context.describe`.

        At most ``limit``, and fewer where one message has no room for more: ask again after the
        last one's id until none comes.
        """
        contexts: list[dict[str, Any]] = self._core.list(after, limit, timeout)
        return contexts

    @checked
    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The cluster: epoch, contexts, workers, calls in flight.

        Contexts are told of without their patterns, which :meth:`Context.describe` has.
        """
        return self._core.status(timeout)


@checked
def connect(
    endpoint: str,
    *,
    connect_timeout: float = 10.0,
    chunk_bytes: int = 1 << 20,
    async_calls_max: int = 64,
    upload: str = "direct",
    retry_attempts_max: int = 4,
    retry_backoff_min: float = 0.02,
    retry_backoff_max: float = 2.0,
    retry_budget: int = 10,
    tls_ca: str = "",
    tls_cert: str = "",
    tls_key: str = "",
    token_file: str = "",
) -> Client:
    """A client of the service at ``endpoint``, "HOST:PORT". Waits until it answers.

    Args:
        endpoint: where the coordinator listens.
        connect_timeout: seconds to wait for it.
        chunk_bytes: of a streamed tensor's messages, below 4 MiB.
        async_calls_max: ``*_async`` calls at once; others wait for one to end.
        upload: "direct" to the workers, or "relay" through the service where they are out of reach.
        retry_attempts_max: of one call, the first included; 1: never again.
        retry_backoff_min: seconds before the first retry; doubled for each that follows.
        retry_backoff_max: seconds, at most.
        retry_budget: retries of all calls in a row; each success gives a tenth of one back.
        tls_ca: PEM file of the authorities whose certificates servers must show; "": plain text.
        tls_cert: PEM file with the certificate to show.
        tls_key: PEM file with its key.
        token_file: file with the bearer token; read again when it changes.

    Raises:
        Unavailable: nobody answered; names the endpoint.
        InvalidArgument: names the option or the file.
    """
    return Client(
        _core.connect(
            endpoint,
            connect_timeout,
            chunk_bytes,
            async_calls_max,
            upload,
            retry_attempts_max,
            retry_backoff_min,
            retry_backoff_max,
            retry_budget,
            tls_ca,
            tls_cert,
            tls_key,
            token_file,
        ),
        async_calls_max,
    )


@checked
def in_process(
    workers: int = 1,
    *,
    backend: str = "auto",
    threads: int = 0,
    kv_bytes_limit: int = 1 << 30,
    async_calls_max: int = 64,
    retry_attempts_max: int = 4,
    retry_backoff_min: float = 0.02,
    retry_backoff_max: float = 2.0,
    retry_budget: int = 10,
) -> Client:
    """A whole service inside this process, without any port; it ends with the client.

    Args:
        workers: up to 256.
        backend: of every worker: "auto", "cpu" or "reference".
        threads: for computing, per worker; 0: one per core.
        kv_bytes_limit: bytes of KV per worker.
        async_calls_max: ``*_async`` calls at once; others wait for one to end.
        retry_attempts_max: as :func:`connect`, as are the others of retries.
        retry_backoff_min: seconds.
        retry_backoff_max: seconds.
        retry_budget: retries in a row.
    """
    return Client(
        _core.in_process(
            workers,
            backend,
            threads,
            kv_bytes_limit,
            async_calls_max,
            retry_attempts_max,
            retry_backoff_min,
            retry_backoff_max,
            retry_budget,
        ),
        async_calls_max,
    )


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


def _run_steps(
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


def _error_of_step(steps: Any, timeout: Any, error: Exception) -> Exception:
    """What names the argument at fault where one is; what the service said stays as it is."""
    if isinstance(error, AnnulusError) and not isinstance(error, InvalidArgument):
        return error
    return _wrong_step(steps, timeout) or error


@atexit.register
def _close_all() -> None:
    _core.end_calls(ENDING_SECONDS, threading.active_count() > 1)
    for client in list(_open):
        client.close()
