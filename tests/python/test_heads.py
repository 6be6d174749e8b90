"""Query heads by a table, and K heads that are not as many as V heads, against the definition."""

import numpy as np
import pytest

import annulus
from oracle import attention


def definition(q, k, v, k_of_query, v_of_query):
    """One K and one V head for each query head."""
    return attention(q, k[:, k_of_query], v[:, v_of_query])


CASES = [
    ([h // 8 for h in range(32)], 4, [h // 2 for h in range(32)], 16),  # DiffQKV
    ([0, 1, 2, 3, 3, 0], 4, [0, 0, 1, 1, 1, 0], 2),
    ([2, 0, 0, 0, 2, 0], 4, [2, 0, 0, 0, 2, 0], 4),  # KDGQA
]


@pytest.mark.parametrize("k_of_query,k_heads,v_of_query,v_heads", CASES)
def test_a_context_answers_as_the_table_says(rng, k_of_query, k_heads, v_of_query, v_heads):
    q, k, v = (
        rng.standard_normal((n, heads, 16), dtype=np.float32)
        for n, heads in ((5, len(k_of_query)), (200, k_heads), (200, v_heads))
    )
    table = annulus.HeadTable(k_of_query, k_heads=k_heads, v_heads=v_heads, v_of_query=v_of_query)
    expected = definition(q, k, v, k_of_query, v_of_query)
    with annulus.in_process(workers=2) as client:
        context = client.create_context(
            heads=table.heads,
            kv_heads=table.kv_heads,
            head_dim=16 * table.k_parts,
            v_head_dim=16 * table.v_parts,
            dtype="f32",
        )
        context.append(0, table.keys(k), table.values(v))
        out, lse = table.answers(*context.attend(0, table.queries(q), scale=0.25))
    np.testing.assert_allclose(out, expected[0], atol=5e-6, rtol=0)
    np.testing.assert_allclose(lse, expected[1], atol=5e-6, rtol=1e-6)
    local = annulus.attention(table.queries(q), table.keys(k), table.values(v), scale=0.25)
    np.testing.assert_allclose(table.answers(*local).out, expected[0], atol=5e-6, rtol=0)


def test_value_heads_are_shared_evenly_unless_given():
    table = annulus.HeadTable([h // 8 for h in range(32)], k_heads=4, v_heads=16)
    assert (table.heads, table.kv_heads, table.k_parts, table.v_parts) == (32, 4, 1, 4)
    uneven = annulus.HeadTable([0, 0, 0, 1], k_heads=2)
    assert (uneven.heads, uneven.kv_heads) == (6, 2)


@pytest.mark.parametrize(
    "arguments,options,message",
    [
        ([[0, 1]], {"k_heads": 1}, "k_of_query[1]: 1; expected 0 to 0"),
        ([[0, -1]], {"k_heads": 1}, "k_of_query[1]: -1; expected 0 to 1023"),
        ([5], {"k_heads": 1}, "k_of_query: a int; expected a K or V head for each query head"),
        (
            [[0, 0, 0]],
            {"k_heads": 1, "v_heads": 2},
            "v_of_query: None; expected one V head for each of 3 query heads, "
            "which 2 V heads do not share evenly",
        ),
        ([[0]], {"k_heads": "1"}, "k_heads: '1'; expected an integer"),
    ],
)
def test_tables_that_are_none_are_refused(arguments, options, message):
    with pytest.raises(annulus.InvalidArgument) as refused:
        annulus.HeadTable(*arguments, **options)
    assert str(refused.value).endswith(message)


def test_tensors_of_other_shapes_are_refused():
    table = annulus.HeadTable([0, 0, 1], k_heads=2, v_heads=4, v_of_query=[0, 1, 2])
    for call in (table.queries, table.keys, table.values):
        with pytest.raises(annulus.InvalidArgument):
            call(np.zeros((3, 5, 8), np.float32))
    with pytest.raises(annulus.InvalidArgument, match="k: no array"):
        table.keys([1, 2])
