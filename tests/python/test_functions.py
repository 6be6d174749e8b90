"""Attention without a service, partial answers, and what a pattern costs."""

import asyncio
import subprocess
import sys

import numpy as np
import pytest

import annulus
from oracle import attention


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("plan", [None, "ring", "heads", "pass-q", "group-cast"])
def test_attention(problem, workers, plan):
    out, lse = annulus.attention(*problem, workers=workers, plan=plan, threads=1)
    expected = attention(*problem)
    np.testing.assert_allclose(out, expected[0], atol=2e-6, rtol=0)
    np.testing.assert_allclose(lse, expected[1], atol=2e-6, rtol=1e-6)


def test_attention_at_other_positions(problem):
    answer = annulus.attention(*problem, q_start=10, keys=(5, 90))
    expected = attention(*problem, q_start=10, keys=(5, 90))
    np.testing.assert_allclose(answer.out, expected[0], atol=2e-6, rtol=0)
    np.testing.assert_allclose(answer.lse, expected[1], atol=2e-6, rtol=1e-6)
    before = annulus.attention(*problem, q_start=0, keys=(100, 200))
    assert np.all(before.out == 0) and np.all(np.isneginf(before.lse))


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda q, k, v: (q, k, v[:-1]), "v"),
        (lambda q, k, v: (q[..., :16], k, v), "k"),
        (lambda q, k, v: (q[:, :3], k, v), "heads"),
    ],
)
def test_attention_names_what_does_not_fit(problem, spoil, field):
    with pytest.raises(annulus.InvalidArgument) as raised:
        annulus.attention(*spoil(*problem))
    assert field in str(raised.value)


def test_bfloat16_and_float16(problem):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype, name in ((ml_dtypes.bfloat16, "bf16"), (np.float16, "f16")):
        rounded = [a.astype(dtype) for a in problem]
        expected = attention(*(a.astype(np.float64) for a in rounded))
        answer = annulus.attention(*rounded)
        assert answer.out.dtype == np.float32
        np.testing.assert_allclose(answer.out, expected[0], atol=2e-2 if name == "bf16" else 3e-3)
        short = annulus.attention(*rounded, out_dtype=name)
        assert short.out.dtype == np.dtype(dtype) and short.lse.dtype == np.float32
        # What is rounded on the way in is the same as what came rounded.
        same = annulus.attention(*(a.astype(np.float32) for a in rounded), dtype=name)
        np.testing.assert_array_equal(same.out, answer.out)


def test_sinks_and_gates(problem, rng):
    out, lse = annulus.attention(*problem)
    sinks = rng.standard_normal(8).astype(np.float32)
    with_sinks = annulus.with_sinks(out, lse, sinks)
    kept = 1 / (1 + np.exp(sinks - lse.astype(np.float64)))
    np.testing.assert_allclose(with_sinks.out, out * kept[..., None], atol=1e-6)
    np.testing.assert_allclose(with_sinks.lse, np.logaddexp(lse, sinks), atol=1e-6)
    gates = rng.standard_normal((40, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(annulus.gate(out, gates), out / (1 + np.exp(-gates)), atol=1e-6)
    with pytest.raises(annulus.InvalidArgument, match="sinks"):
        annulus.with_sinks(out, lse, sinks[:3])
    weights = rng.standard_normal((40, 8, 1)).astype(np.float32)
    mixed = annulus.blend([out, with_sinks.out], [weights, 1 - weights])
    np.testing.assert_allclose(mixed, weights * out + (1 - weights) * with_sinks.out, atol=1e-6)
    with pytest.raises(annulus.InvalidArgument, match="weights"):
        annulus.blend([out], [weights[:7]])
    with pytest.raises(annulus.InvalidArgument, match="parts"):
        annulus.merge([])


def test_sinks_of_calls(problem, rng):
    q, k, v = problem
    sinks = rng.standard_normal(q.shape[1]).astype(np.float32)
    expected = annulus.with_sinks(*annulus.attention(q, k, v), sinks)
    alone = annulus.attention(q, k, v, sinks=sinks, workers=2)
    with annulus.in_process(workers=2) as client:
        context = client.create_context(
            heads=8, kv_heads=2, head_dim=32, v_head_dim=16, dtype="f32"
        )
        context.append(0, k, v)
        attended = context.attend(0, q, sinks=sinks)
        (stepped,) = client.step([annulus.Step(context, q=q, sinks=sinks)])
        for answer in (alone, attended, stepped):
            np.testing.assert_allclose(answer.out, expected.out, atol=1e-6)
            np.testing.assert_allclose(answer.lse, expected.lse, atol=1e-5)
        with pytest.raises(annulus.InvalidArgument, match="number of sinks: 3; expected"):
            context.attend(0, q, sinks=sinks[:3])
        (refused,) = client.step([annulus.Step(context, q=q, sinks=np.full(8, np.nan))])
        assert isinstance(refused, annulus.InvalidArgument)
        assert "sink of head 0: nan" in str(refused)


def test_explain():
    made = annulus.explain(
        tokens=100_000, heads=8, kv_heads=4, head_dim=64, pattern="s2(64,2,4)", workers=4
    )
    assert made["tokens"] == 100_000 and made["plan"] in repr(made)
    assert made._repr_svg_().startswith("<svg")
    with pytest.raises(annulus.InvalidArgument, match="pattern"):
        annulus.explain(tokens=10, heads=8, head_dim=64, pattern="s2(")


def test_the_program_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "annulus", "version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("annulus ")
    bad = subprocess.run([sys.executable, "-m", "annulus", "nonsense"], capture_output=True)
    assert bad.returncode == 2


CALLS = [
    "context.attend(0, k)",
    "context.select(0, k, 'quest(64)')",
    "context.compress([k], 64)",
    "annulus.attention(k, k, k, threads=1)",
]


@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_ends_a_call(call):
    program = f"""
import os, signal, threading, time, numpy as np, annulus
with annulus.in_process(threads=1) as client:
    context = client.create_context(heads=32, head_dim=128, dtype="f32")
    k = np.ones((8192, 32, 128), np.float32)
    context.append(0, k, k)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        {call}
    except KeyboardInterrupt:
        print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "interrupted\n", done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("in_child", ["pass", "ask()"])
def test_a_forked_child_has_no_client(in_child):
    program = f"""
import os, numpy as np, annulus
client = annulus.in_process(workers=2)
context = client.create_context(heads=2, head_dim=16)
k = np.ones((8, 2, 16), np.float32)
context.append(0, k, k)

def ask():
    annulus.attention(k, k, k)
    try:
        context.attend(0, k)
    except annulus.FailedPrecondition as error:
        print(error, flush=True)

if os.fork() == 0:
    {in_child}
    raise SystemExit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
context.attend(0, k)
"""
    # Python 3.12 and newer warn of threads at a fork.
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    refused = (
        "client: opened before this process was forked; expected one of its own\n"
        if in_child == "ask()"
        else ""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, refused + "7\n", "")


def test_arguments_are_refused_by_name():
    k = np.ones((10, 2, 16), np.float32)
    for field, call in {
        "threads": lambda: annulus.attention(k, k, k, threads=40_000),
        "lse": lambda: annulus.merge([(k, np.zeros((10, 3), np.float32))]),
        "lists": lambda: annulus.attention(
            k, k, k, pattern="list(x)", lists={3: np.ones((1, 1, 1), bool)}
        ),
        "keys": lambda: annulus.KeyList([0, 1], [-(2**40)]),
    }.items():
        with pytest.raises(annulus.InvalidArgument) as refused:
            call()
        assert refused.value.field == field
    for name in ("q", "k", "v"):
        tensors = {"q": k, "k": k, "v": k, name: k.copy()}
        tensors[name][3, 1, 5] = np.nan
        with pytest.raises(annulus.InvalidArgument, match=": not finite; expected") as refused:
            annulus.attention(**tensors, keys=(5, None))
        assert refused.value.field == f"{name}[3, 1, 5]"


def test_arguments_of_a_wrong_type_are_refused_by_name(client):
    k = np.ones((10, 2, 16), np.float32)
    context = client.create_context(heads=2, head_dim=16)
    context.append(0, k, k)

    def step(**arguments):
        return client.step([annulus.Step(**({"context": context, "q": k} | arguments))])

    for told, call in {
        "pattern: 5; expected a string": lambda: annulus.attention(k, k, k, pattern=5),
        "workers: 1.5; expected an integer": lambda: annulus.attention(k, k, k, workers=1.5),
        "keys: 3; expected a pair": lambda: annulus.attention(k, k, k, keys=3),
        "sinks: a str; expected a number": lambda: annulus.attention(k, k, k, sinks="no"),
        "endpoint: 5; expected a string": lambda: annulus.connect(5),
        "workers: 1099511627776; expected": lambda: annulus.in_process(workers=1 << 40),
        "layer: '0'; expected an integer": lambda: context.append("0", k, k),
        "timeout: 'x'; expected a number or None": lambda: context.attend(0, k, timeout="x"),
        "kv_len: 1180591620717411303424; expec": lambda: context.attend(0, k, kv_len=1 << 70),
        "lists: a int; expected a dict": lambda: context.attend(0, k, lists=3),
        "tokens: 1.5; expected an integer or None": lambda: context.fork(1.5),
        "id: -1; expected integers in their range": lambda: client.context(-1),
        "key: a tuple; expected integers in": lambda: context.append(0, k, k, key=(-1, 2)),
        "keys: a tuple; expected a pair": lambda: context.attend(0, k, keys=(None, 3)),
        "scale: 0.0; expected None, or a": lambda: context.attend(0, k, scale=0.0),
        "scale: 1e-50; expected None": lambda: annulus.attention(k, k, k, scale=1e-50),
        "q: a NoneType; expected an array": lambda: context.attend(0, None),
        "index: a int; expected an annulus.Index": lambda: context.attend(0, k, index=3),
        "progress: a int; expected a function": lambda: context.append(0, k, k, progress=3),
        "queries: a NoneType; expected an array": lambda: context.compress(None, 5),
        "v: None; expected an array, or v_head": lambda: annulus.attention(k, k),
        "v_head_dim: 8; expected none": lambda: annulus.attention(k, k, k, v_head_dim=8),
        "weights: a NoneType; expected an array": lambda: annulus.blend([k], None),
        "patterns: a int; expected a list": lambda: client.create_context(
            heads=2, head_dim=16, patterns=3
        ),
        r"steps\[0\].layer: 9; expected 0": lambda: step(layer=9),
        r"steps\[0\].q: of float64; expected": lambda: step(q=k.astype(np.float64)),
        r"steps\[0\].scale: 0; expected None": lambda: step(scale=0),
        "steps: a Step; expected a list": lambda: client.step(annulus.Step(context, q=k)),
        r"steps\[0\]: a int; expected an annulus.Step": lambda: client.step([3]),
        r"steps\[0\].pattern: 4; expected a string": lambda: step(pattern=4),
        r"steps\[0\].context: a str; expected": lambda: step(context="c"),
        r"contexts\[0\]: a int; expected": lambda: client.keep_alive([3]),
        "unit: 3; expected a string": lambda: annulus.KeyList([0, 1], [0], unit=3),
        "parts: a list; expected pairs": lambda: annulus.merge([k]),
    }.items():
        with pytest.raises(annulus.InvalidArgument, match=f"^{told}") as refused:
            call()
        assert "\n" not in str(refused.value)
    with pytest.raises(annulus.InvalidArgument, match=r"^timeout: 'x'; expected a number"):
        asyncio.run(context.attend_async(0, k, timeout="x"))
    with pytest.raises(TypeError, match="unexpected keyword argument 'patern'"):
        context.attend(0, k, patern="causal")
    (refused,) = step(k=k, v=k[:5])
    assert str(refused).startswith("steps[0]."), refused
    assert context.describe()["tokens"] == [10]


def test_what_the_service_says_of_a_step_is_not_hidden_by_its_arguments():
    k = np.ones((1, 2, 16), np.float32)
    with annulus.in_process() as other:
        context = other.create_context(heads=2, head_dim=16)
        step = annulus.Step(context, q=k, k=k, v=k)
    with pytest.raises(annulus.FailedPrecondition, match="the client is closed"):
        other.step(iter([step]))


def test_an_answer_that_cannot_be_made_is_not_asked_for(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    k = np.ones((3, 2, 16), np.float32)
    context = client.create_context(heads=2, head_dim=16)
    for call in (
        lambda: annulus.attention(k, k, k, out_dtype="bf16"),
        lambda: context.attend(0, k, out_dtype="bf16"),
        lambda: client.step([annulus.Step(context, q=k, k=k, v=k)], out_dtype="bf16"),
    ):
        with pytest.raises(annulus.InvalidArgument, match=r"^out_dtype: 'bf16'; expected the pack"):
            call()
    assert context.describe()["tokens"] == [0]


def test_arrays_whose_rows_overlap_are_copied(client, rng):
    k = rng.standard_normal((20, 2, 16), dtype=np.float32)
    context = client.create_context(heads=2, head_dim=16, dtype="f32")
    context.append(0, k[::-1], np.broadcast_to(k[:, :1], k.shape))
    out, _ = context.attend(0, k[::-1])
    expected, _ = attention(k[::-1], k[::-1], np.broadcast_to(k[:, :1], k.shape))
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_the_environment_is_no_argument_of_explain(monkeypatch):
    shape = {"tokens": 4096, "heads": 8, "kv_heads": 4, "head_dim": 64, "pattern": "causal"}
    plain = annulus.explain(**shape)
    monkeypatch.setenv("ANNULUS_Q_TOKENS", "3")
    monkeypatch.setenv("ANNULUS_PLAN", "nonsense")
    assert annulus.explain(**shape)["tokens"] == plain["tokens"] == 4096


def test_a_forked_child_cannot_connect_after_its_parent():
    program = """
import os, annulus
for _ in range(2):
    try:
        annulus.connect("127.0.0.1:1", connect_timeout=0.2)
    except annulus.AnnulusError as error:
        print(error.code, error, flush=True)
    if os.fork() != 0:
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
        break
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    told = done.stdout.splitlines()
    assert told[0].startswith("UNAVAILABLE "), done.stderr
    assert told[1].startswith("FAILED_PRECONDITION endpoint: this process was forked from one that")


def test_a_program_that_leaves_its_client_open_ends_well():
    program = "import annulus\nclient = annulus.in_process(workers=2)\nprint(client.connection)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sums_that_are_no_numbers_are_refused(problem, value):
    out, lse = annulus.attention(*problem)
    wrong = lse.copy()
    wrong[1, 2] = value
    for call in (
        lambda: annulus.merge([(out, wrong)]),
        lambda: annulus.merge([(out, lse), (out, wrong)]),
        lambda: annulus.merge([(out, wrong), (out, lse)]),
        lambda: annulus.with_sinks(out, wrong, np.zeros(lse.shape[1])),
    ):
        with pytest.raises(annulus.InvalidArgument, match="expected a finite number") as refused:
            call()
        assert refused.value.field == "lse[1, 2]"
