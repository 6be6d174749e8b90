"""What a wrong argument is answered with: one line that names it, and nothing has changed."""

import numpy as np
import pytest

import annulus


@pytest.fixture
def context(client):
    with client.create_context(heads=4, kv_heads=2, head_dim=64, dtype="f32", layers=2) as made:
        yield made


def raised_by(client, context, q):
    (end,) = client.step([annulus.Step(context, q=q)])
    raise end


@pytest.mark.parametrize(
    ("call", "kind", "field", "words"),
    [
        (lambda c, x, k: x.append(0, k.astype(np.float64), k), "InvalidArgument", "k", "float64"),
        (lambda c, x, k: x.append(0, k.astype(">f4"), k), "InvalidArgument", "k", "byte order"),
        (lambda c, x, k: x.append(0, k[0], k[0]), "InvalidArgument", "k", "[tokens, heads, dim]"),
        (lambda c, x, k: x.append(0, k[:, :1], k), "InvalidArgument", "k", "[9, 1, 64]"),
        (lambda c, x, k: x.append(0, k, k, start=5), "InvalidArgument", "start", "expected"),
        (lambda c, x, k: x.append(2, k, k), "InvalidArgument", "layer", "0 to 1"),
        (lambda c, x, k: x.append(0, "k", k), "InvalidArgument", "k", "a str"),
        (lambda c, x, k: x.append(0, k), "InvalidArgument", "v", "expected an array"),
        (lambda c, x, k: x.append(0, None, k), "InvalidArgument", "k", "expected an array"),
        (lambda c, x, k: x.append(0, k[:0], k[:0]), "InvalidArgument", "k.tokens", "1 or more"),
        (lambda c, x, k: x.attend(0, k[:0]), "InvalidArgument", "q.tokens", "1 or more"),
        (lambda c, x, k: raised_by(c, x, k[:0]), "InvalidArgument", "q", "at least 1"),
        (
            lambda c, x, k: c.step([annulus.Step(x, k=k)]),
            "InvalidArgument",
            "steps[0].v",
            "expected an array",
        ),
        (
            lambda c, x, k: x.attend(0, k[:1], q_start=0, kv_len=1, sinks=[np.nan] * 2),
            "InvalidArgument",
            "sinks",
            "nan",
        ),
        (
            lambda c, x, k: annulus.attention(k, k, k, pattern="casual"),
            "InvalidArgument",
            "pattern",
            "casual",
        ),
        (lambda c, x, k: x.attend(0, k), "InvalidArgument", "q", "9 tokens"),
        (lambda c, x, k: x.append(0, k), "InvalidArgument", "v", "expected"),
        (lambda c, x, k: x.attend(0, k, q_start=0, plan="rong"), "InvalidArgument", "plan", "rong"),
        (lambda c, x, k: c.create_context(heads=4, head_dim=7), "InvalidArgument", "head_dim", "7"),
        (
            lambda c, x, k: c.create_context(heads=4, head_dim=64, dtype="f8"),
            "InvalidArgument",
            "dtype",
            "f32, f16 or bf16",
        ),
        (
            lambda c, x, k: c.create_context(heads=4, head_dim=64, layer=2),
            "InvalidArgument",
            "layer",
            "no such keyword",
        ),
        (
            lambda c, x, k: c.create_context(heads=4, head_dim=64, layers="2"),
            "InvalidArgument",
            "layers",
            "an integer",
        ),
        (lambda c, x, k: annulus.attention(None, k, k), "InvalidArgument", "q", "None"),
        (
            lambda c, x, k: c.create_context(heads=4, head_dim=64, patterns="casual"),
            "InvalidArgument",
            None,
            "casual",
        ),
        (lambda c, x, k: c.context(12345), "NotFound", None, "12345"),
        (
            lambda c, x, k: annulus.connect("127.0.0.1:1", connect_timeout=0.2),
            "Unavailable",
            None,
            "127.0.0.1:1",
        ),
        (lambda c, x, k: annulus.in_process(workers=0), "InvalidArgument", "workers", "0"),
        (
            lambda c, x, k: annulus.connect("127.0.0.1:1", upload="x"),
            "InvalidArgument",
            "upload",
            "direct or relay",
        ),
    ],
)
def test_errors_name_the_argument(client, context, call, kind, field, words):
    k = np.ones((9, 2, 64), np.float32)
    with pytest.raises(annulus.AnnulusError) as raised:
        call(client, context, k)
    error = raised.value
    assert type(error).__name__ == kind
    assert words in str(error)
    if field is not None:
        assert error.field == field
    # What failed has changed nothing.
    assert context.describe()["tokens"] == [0, 0]
