"""A client of a service, over the network or inside this process."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict, Unpack

from annulus import _core
from annulus._checked import checked
from annulus._core import Answer
from annulus._threads import in_thread
from annulus.context import Context
from annulus.errors import AnnulusError, of_wrong_kind
from annulus.steps import Step, error_of_step, run_steps

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
            return run_steps(self._core, steps, out_dtype, timeout, None)
        except (TypeError, AttributeError, RuntimeError) as error:
            raise error_of_step(steps, timeout, error) from None

    async def step_async(
        self, steps: Iterable[Step], *, timeout: float | None = None, out_dtype: str | None = None
    ) -> list[Answer | AnnulusError]:
        """As :meth:`step`; cancelling the task cancels the call."""
        try:
            given = steps = list(steps)
            return await in_thread(
                self._pool(),
                timeout,
                lambda timeout, cancel: run_steps(self._core, given, out_dtype, timeout, cancel),
            )
        except (TypeError, AttributeError, RuntimeError) as error:
            raise error_of_step(steps, timeout, error) from None

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


@atexit.register
def _close_all() -> None:
    _core.end_calls(ENDING_SECONDS, threading.active_count() > 1)
    for client in list(_open):
        client.close()
