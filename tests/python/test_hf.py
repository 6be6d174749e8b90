"""Models of transformers say with annulus.hf what they say by eager."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.14")

import annulus  # noqa: E402
import annulus.hf as hf  # noqa: E402
from hf_models import CONFIGS, NAME, check, made, prompt  # noqa: E402

every_config = pytest.mark.parametrize("model", CONFIGS, indirect=True)
one_config = pytest.mark.parametrize("model", ["gpt-oss"], indirect=True)


@pytest.fixture
def client():
    with annulus.in_process(workers=2, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def models():
    return {}


@pytest.fixture
def model(request, models):
    if request.param not in models:
        models[request.param] = made(request.param)
    return models[request.param]


@every_config
@pytest.mark.parametrize("rows", [1, 4])
def test_greedy(client, model, rows):
    ids = check(client, model, prompt(rows))
    assert len({*ids[0, -14:].tolist()}) > 3  # it says something


@every_config
@pytest.mark.parametrize("rows", [1, 4])
def test_beams(client, model, rows, monkeypatch):
    forks = []
    fork = annulus.Context.fork
    monkeypatch.setattr(annulus.Context, "fork", lambda row: forks.append(row) or fork(row))
    ends = dict(eos_token_id=[*range(3, 12)], pad_token_id=0)
    check(client, model, prompt(rows), num_beams=3, num_return_sequences=2, **ends)
    assert forks


@every_config
@pytest.mark.parametrize("assistant", ["another", "its own", "prompt lookup"])
def test_assisted(client, model, assistant, monkeypatch):
    inputs = prompt(1)
    cut = []
    truncate = annulus.Context.truncate
    monkeypatch.setattr(
        annulus.Context, "truncate", lambda row, n: cut.append(n) or truncate(row, n)
    )
    if assistant == "prompt lookup":
        inputs = {name: tensor.repeat(1, 3) for name, tensor in inputs.items()}
    expected = model.generate(**inputs, max_new_tokens=14)
    if assistant == "prompt lookup":
        check(client, model, inputs, expected=expected, prompt_lookup_num_tokens=4)
        assert cut
        return
    # One that guesses right at times: the model itself, a little off.
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    if assistant == "another":
        check(client, model, inputs, expected=expected, assistant_model=other)
    else:
        with hf.enable(other, client=client):
            with hf.enable(model, client=client):
                found = model.generate(**inputs, max_new_tokens=14, assistant_model=other)
        assert torch.equal(found, expected)
    assert cut


@every_config
def test_logits_of_a_plain_call(client, model):
    inputs = prompt(4)
    with torch.no_grad():
        expected = model(**inputs).logits
        with hf.enable(model, client=client):
            cached, uncached = model(**inputs), model(**inputs, use_cache=False)
            rows = cached[list(cached.keys())[1]].rows
            assert [row.tokens for row in rows] == [[n] * 3 for n in (13, 9, 5, 1)]
    real = inputs["attention_mask"].bool()
    for found in (cached.logits, uncached.logits):
        assert (found - expected)[real].abs().max() < 1e-3
    del cached, rows
    assert client.contexts() == []


@every_config
def test_long_prompts_go_in_chunks(client, model):
    check(client, model, prompt(3, 300), dict(chunk_tokens=70), max_new_tokens=5)


@one_config
def test_prefill_in_forwards_of_its_own(client, model):
    # A row's padding is longer than the first forward.
    check(client, model, prompt(4), prefill_chunk_size=5)


@one_config
def test_without_a_cache(client, model):
    check(client, model, prompt(2), use_cache=False, max_new_tokens=4)


@one_config
def test_a_dynamic_cache_by_name_is_ours_too(client, model):
    check(client, model, prompt(2), cache_implementation="dynamic", max_new_tokens=4)


@one_config
def test_sampling(client, model):
    inputs = prompt(2)
    kwargs = dict(max_new_tokens=10, do_sample=True, temperature=0.5)
    torch.manual_seed(5)
    expected = model.generate(**inputs, **kwargs)
    with hf.enable(model, client=client):
        torch.manual_seed(5)
        assert torch.equal(model.generate(**inputs, **kwargs), expected)


@one_config
def test_threads_share_a_model(client, model):
    inputs = [prompt(rows) for rows in (1, 2, 3, 4)]
    expected = [model.generate(**each, max_new_tokens=8) for each in inputs]
    with hf.enable(model, client=client), ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda each: model.generate(**each, max_new_tokens=8), inputs)
        assert all(map(torch.equal, found, expected))
    assert client.contexts() == []


@one_config
def test_contexts_that_keep_what_windows_need(client, model):
    check(client, model, prompt(2, 200), dict(kv_efficient=True, chunk_tokens=64))


@one_config
def test_a_cache_over_two_calls_and_its_copy(client, model):
    ids = prompt(1)["input_ids"]
    more = torch.cat([ids, torch.randint(3, 90, (1, 5))], 1)
    expected = model.generate(more, max_new_tokens=6)
    with hf.enable(model, client=client) as enabled:
        cache = enabled.cache()
        with torch.no_grad():
            model(ids, **{NAME: cache})
        assert cache.get_seq_length() == 13
        for other in (copy.deepcopy(cache), cache):
            found = model.generate(more, max_new_tokens=6, **{NAME: other})
            assert torch.equal(found, expected)
            assert other.get_seq_length() == 13 + 5 + 6 - 1
        cache.release()
        other = None
    assert client.contexts() == []


@one_config
def test_the_cache_comes_with_the_answer_if_asked(client, model):
    with hf.enable(model, client=client):
        result = model.generate(**prompt(2), max_new_tokens=3, return_dict_in_generate=True)
        cache = next(part for part in result.values() if isinstance(part, hf.ContextCache))
        assert len(client.contexts()) == 2
        assert [row.tokens[0] for row in cache.rows] == [15, 11]
        cache.batch_select_indices(torch.tensor([1]))
        cache.batch_repeat_interleave(3)
        assert [row.tokens[0] for row in cache.rows] == [11, 11, 11]
        del result, cache
    assert client.contexts() == []


def test_two_byte_floats(client):
    model = made("llama", num_hidden_layers=1).to(torch.bfloat16)
    inputs = prompt(2)
    with torch.no_grad():
        expected = model(**inputs).logits[:, -1].float()
        with hf.enable(model, client=client):
            answer = model(**inputs)
            cache = answer[list(answer.keys())[1]]
            assert cache.rows[0].spec["dtype"] == "bf16"
            assert answer.logits.dtype == torch.bfloat16
    found = answer.logits[:, -1].float()
    assert (found - expected).norm() < 0.02 * expected.norm()
