"""The C++ library (python/src); the package is what people use."""

from collections.abc import Sequence
from typing import Any

from annulus.errors import AnnulusError

class Answer(tuple[Any, Any]):
    """What queries are answered with: ``out, lse = answer``.

    Attributes:
        out: [n, heads, v_head_dim], float32 unless ``out_dtype`` said otherwise; 0 where a row sees
            no key. None for a step without q, as lse is.
        lse: float32 [n, heads], natural logarithm of the sum of exponentials of the scaled scores;
            -inf where a row sees no key.
        epoch: version of the shard map that answered, where a service did.
        stats: plan, pairs, bytes and seconds, for :meth:`Context.attend`.
        trace: spans, for :meth:`Context.attend`, if they were asked for.
        tokens: the layer's committed tokens, for steps.
    """

    def __new__(cls, parts: tuple[Any, Any], /) -> Answer: ...
    @property
    def out(self) -> Any: ...
    @property
    def lse(self) -> Any: ...
    @property
    def epoch(self) -> int | None: ...
    @property
    def stats(self) -> dict[str, Any] | None: ...
    @property
    def trace(self) -> list[dict[str, Any]] | None: ...
    @property
    def tokens(self) -> int | None: ...

class CancelToken:
    @staticmethod
    def new() -> CancelToken: ...
    def cancel(self) -> None: ...
    @property
    def cancelled(self) -> bool: ...

class HeadTable:
    @staticmethod
    def new(
        k_of_query: Sequence[int], k_heads: int, v_of_query: Sequence[int], v_heads: int, /
    ) -> HeadTable: ...
    def queries(self, q: Any, /) -> Any: ...
    def answers(self, out: Any, lse: Any, /) -> tuple[Any, Any]: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def k_parts(self) -> int: ...
    @property
    def v_parts(self) -> int: ...

class KeyList:
    @staticmethod
    def new(
        unit: str,
        rows: str,
        block_tokens: int,
        heads: int,
        q_begin: int,
        begin: Any,
        keys: Any,
        /,
    ) -> KeyList: ...
    def keep(self) -> None: ...

class Client:
    def close(self) -> None: ...
    def create(self, spec: dict[str, Any], timeout: float | None, /) -> dict[str, Any]: ...
    def append(
        self,
        context: int,
        layer: int,
        start: int,
        k: Any,
        v: Any,
        key: tuple[int, int],
        progress: Any,
        timeout: float | None,
        cancel: CancelToken,
        /,
    ) -> tuple[int, int]: ...
    def attend(
        self,
        context: int,
        layer: int,
        q_start: int,
        kv_len: int,
        q: Any,
        pattern: str,
        plan: str | None,
        scale: float,
        keys_begin: int,
        keys_end: int | None,
        request_id: str,
        trace: bool,
        lists: dict[str, KeyList],
        sinks: list[float],
        index: tuple[int, Any, list[float]] | None,
        out_dtype: str | None,
        timeout: float | None,
        cancel: CancelToken,
        /,
    ) -> Answer: ...
    def select(
        self,
        context: int,
        layer: int,
        q_start: int,
        kv_len: int,
        q: Any,
        pattern: str,
        weights: list[float],
        scale: float,
        timeout: float | None,
        cancel: CancelToken,
        /,
    ) -> tuple[dict[str, KeyList], int]: ...
    def compress(
        self,
        context: int,
        layer: int,
        q_start: int,
        kv_len: int,
        q: Any,
        scale: float,
        rule: dict[str, Any],
        into: int,
        start: int,
        timeout: float | None,
        cancel: CancelToken,
        /,
    ) -> tuple[dict[str, KeyList], int]: ...
    def step(
        self,
        steps: list[Any],
        out_dtype: str | None,
        timeout: float | None,
        cancel: CancelToken | None,
        /,
    ) -> list[Answer | AnnulusError]: ...
    def fork(
        self, context: int, tokens: int | None, timeout: float | None, /
    ) -> dict[str, Any]: ...
    def truncate(self, context: int, tokens: int, timeout: float | None, /) -> dict[str, Any]: ...
    def release(self, context: int, timeout: float | None, /) -> None: ...
    def keep_alive(self, contexts: Sequence[int], timeout: float | None, /) -> list[Any]: ...
    def describe(
        self, context: int, timeout: float | None, cancel: CancelToken | None, /
    ) -> dict[str, Any]: ...
    def list(self, after: int, limit: int, timeout: float | None, /) -> Any: ...
    def status(self, timeout: float | None, /) -> dict[str, Any]: ...
    @property
    def connection(self) -> str: ...

def connect(
    endpoint: str,
    connect_timeout: float,
    chunk_bytes: int,
    async_calls_max: int,
    upload: str,
    attempts_max: int,
    backoff_min: float,
    backoff_max: float,
    budget: int,
    tls_ca: str,
    tls_cert: str,
    tls_key: str,
    token_file: str,
    /,
) -> Client: ...
def in_process(
    workers: int,
    backend: str,
    threads: int,
    kv_bytes_limit: int,
    async_calls_max: int,
    attempts_max: int,
    backoff_min: float,
    backoff_max: float,
    budget: int,
    /,
) -> Client: ...
def spec_names() -> list[str]: ...
def last_seconds() -> float: ...
def end_calls(seconds: float, has_other_threads: bool, /) -> None: ...
def attention(
    q: Any,
    k: Any,
    v: Any,
    pattern: str,
    plan: str | None,
    workers: int,
    scale: float,
    q_start: int | None,
    keys: tuple[int, int] | None,
    v_head_dim: int | None,
    dtype: str | None,
    backend: str,
    threads: int,
    lists: dict[str, KeyList],
    /,
) -> tuple[Any, Any]: ...
def shape_of(tensor: Any, field: str, /) -> tuple[int, int, int]: ...
def explain(arguments: Sequence[str], /) -> str: ...
def merge(parts: Sequence[tuple[Any, Any]], /) -> tuple[Any, Any]: ...
def with_sinks(out: Any, lse: Any, logits: Sequence[float], /) -> tuple[Any, Any]: ...
def gate(out: Any, gates: Any, /) -> Any: ...
def blend(parts: Sequence[Any], weights: Sequence[Any], /) -> Any: ...
