"""Query heads that share K and V heads by a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from annulus import _core
from annulus._arrays import as_kind_of
from annulus._checked import checked
from annulus._core import Answer
from annulus.errors import InvalidArgument, of_wrong_kind

HEADS_MAX = 1024  # K or V heads


class HeadTable:
    """Attention whose query heads share K heads by a table, evenly or not (KDGQA, 2408.08454), or
    that has more V heads than K heads or fewer (DiffQKV, 2501.13629).

    A context has one V head for each K head and as many query heads for each. The table says what
    context to make (``heads``, ``kv_heads``; its head_dim is ``k_parts`` times that of one head,
    its v_head_dim ``v_parts`` times), and how q, k, v and answers are laid out for it. KV takes
    the bytes that its heads have::

        table = annulus.HeadTable([h // 8 for h in range(32)], k_heads=4, v_heads=16)
        context = client.create_context(heads=table.heads, kv_heads=table.kv_heads,
                                        head_dim=64 * table.k_parts, v_head_dim=64 * table.v_parts)
        context.append(0, table.keys(k), table.values(v))
        out, lse = table.answers(*context.attend(0, table.queries(q), scale=64**-0.5))

    ``scale`` is to be given: a context's default is that of its own head_dim.
    """

    @checked
    def __init__(
        self,
        k_of_query: Sequence[int],
        *,
        k_heads: int,
        v_heads: int | None = None,
        v_of_query: Sequence[int] | None = None,
    ) -> None:
        """Query head h reads K head ``k_of_query[h]`` and V head ``v_of_query[h]``.

        Args:
            k_of_query: for each query head a K head; some K heads may serve none.
            k_heads: K heads, up to 1024.
            v_heads: V heads, a multiple of k_heads or one that divides it; as many unless given.
            v_of_query: for each query head a V head; unless given, the query heads share the V
                heads evenly, or, where there are as many as K heads, each reads its K head's.
        """
        k = _heads_of(k_of_query, "k_of_query")
        values = k_heads if v_heads is None else v_heads
        if v_of_query is not None:
            v = _heads_of(v_of_query, "v_of_query")
        elif values == k_heads:
            v = k
        else:
            if len(k) == 0 or len(k) % values != 0:
                raise InvalidArgument(
                    f"v_of_query: None; expected one V head for each of {len(k)} query heads, "
                    f"which {values} V heads do not share evenly",
                )
            v = [h * values // len(k) for h in range(len(k))]
        self._core = _core.HeadTable.new(k, k_heads, v, values)

    @property
    def heads(self) -> int:
        """Query heads of the context."""
        return self._core.heads

    @property
    def kv_heads(self) -> int:
        """KV heads of the context."""
        return self._core.kv_heads

    @property
    def k_parts(self) -> int:
        """K heads that lie side by side in one head of the context."""
        return self._core.k_parts

    @property
    def v_parts(self) -> int:
        """V heads that lie side by side in one head of the context."""
        return self._core.v_parts

    @checked
    def queries(self, q: Any) -> Any:
        """q [n, query heads, head_dim] as the context's, float32."""
        made = self._core.queries(q)
        return as_kind_of(q, made, made, None)[0]

    @checked
    def keys(self, k: Any) -> Any:
        """k [n, k_heads, head_dim] as the context's: the array's own ``reshape``."""
        return _side_by_side(k, "k", self.kv_heads * self.k_parts, self.k_parts)

    @checked
    def values(self, v: Any) -> Any:
        """v [n, v_heads, v_head_dim] as the context's."""
        return _side_by_side(v, "v", self.kv_heads * self.v_parts, self.v_parts)

    @checked
    def answers(self, out: Any, lse: Any) -> Answer:
        """The context's out and lse as the table's, [n, query heads, v_head_dim] and [n, heads]."""
        return Answer(as_kind_of(out, *self._core.answers(out, lse), None))


def _heads_of(heads: Any, field: str) -> list[int]:
    try:
        given = [int(head) for head in heads]
    except (TypeError, ValueError):
        raise of_wrong_kind(field, heads, "a K or V head for each query head") from None
    for i, head in enumerate(given):
        if not 0 <= head < HEADS_MAX:
            raise InvalidArgument(f"{field}[{i}]: {head}; expected 0 to {HEADS_MAX - 1}")
    return given


def _side_by_side(tensor: Any, field: str, heads: int, parts: int) -> Any:
    shape = getattr(tensor, "shape", None)
    if shape is None or len(shape) != 3 or shape[1] != heads:
        raise InvalidArgument(
            f"{field}: {'no array' if shape is None else list(shape)}; expected [n, {heads}, dim]"
        )
    return tensor.reshape(shape[0], heads // parts, shape[2] * parts)
