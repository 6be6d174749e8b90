"""Tensors of torch: which are read, how, and what comes back; skipped where torch is missing."""

import asyncio

import numpy as np
import pytest

import annulus
from oracle import attention

torch = pytest.importorskip("torch")


def test_torch_tensors_come_back_as_torch(problem):
    expected = attention(*problem)

    class Tensor(torch.Tensor):
        pass

    tensors = [torch.from_numpy(a).as_subclass(Tensor) for a in problem]
    answer = annulus.attention(*tensors)
    assert isinstance(answer.out, torch.Tensor)
    np.testing.assert_allclose(answer.out.numpy(), expected[0], atol=2e-6, rtol=0)
    short = annulus.attention(
        *(torch.from_numpy(a).to(torch.bfloat16) for a in problem), out_dtype="bf16"
    )
    assert short.out.dtype == torch.bfloat16
    heads_first = [torch.from_numpy(a).transpose(0, 1).contiguous() for a in problem]
    strided = annulus.attention(*(a.transpose(0, 1) for a in heads_first))
    np.testing.assert_allclose(strided.out.numpy(), expected[0], atol=2e-6, rtol=0)


def test_the_sign_of_a_view_counts(problem):
    q, k, v = problem
    negated = torch.complex(*[torch.from_numpy(v)] * 2).conj().imag  # of the same memory as v
    assert negated.is_neg()
    answer = annulus.attention(*map(torch.from_numpy, (q, k)), negated)
    np.testing.assert_allclose(answer.out.numpy(), -attention(q, k, v)[0], atol=2e-6, rtol=0)


def test_torch_tensors_that_cannot_be_read_are_refused_by_name(client, problem):
    q, k, v = (torch.from_numpy(a) for a in problem)
    context = client.create_context(heads=4, kv_heads=2, head_dim=32, v_head_dim=48)
    graded = q.clone().requires_grad_()
    for words, tensor in {
        "that requires a gradient": graded,
        "on the device meta": q.to("meta"),
        "of torch.sparse_coo": q.to_sparse(),
        "of torch.quint8": torch.quantize_per_tensor(q, 0.1, 0, torch.quint8),
        "of torch.complex64": q.to(torch.complex64),
        "of torch.float64": q.double(),
    }.items():
        for name, call in {
            "q": lambda t: annulus.attention(t, k, v),
            "k": lambda t: context.append(0, t, v),
            "steps[0].k": lambda t: client.step([annulus.Step(context, k=t, v=v)]),
            "parts": lambda t: annulus.blend([t], [t]),
        }.items():
            with pytest.raises(annulus.InvalidArgument, match=words) as refused:
                call(tensor)
            assert refused.value.field == name
    with pytest.raises(annulus.InvalidArgument, match=r"^sinks: .*gradient"):
        annulus.attention(q, k, v, sinks=torch.zeros(8, requires_grad=True))
    with torch.no_grad():
        answer = annulus.attention(graded, k, v, sinks=torch.zeros(8, requires_grad=True))
        asked = asyncio.run(asked_async(client, graded, k, v))
    torch.testing.assert_close(asked.out, annulus.attention(q, k, v).out)
    assert answer.out.shape == asked.out.shape


async def asked_async(client, q, k, v):
    spec = dict(heads=q.shape[1], kv_heads=k.shape[1], head_dim=q.shape[2], v_head_dim=v.shape[2])
    context = client.create_context(**spec, dtype="f32")
    await context.append_async(0, k, v)
    return await context.attend_async(0, q)
