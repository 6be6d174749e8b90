"""Models of transformers, made small at random: with annulus.hf they say what they say by eager."""

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.24")

import annulus  # noqa: E402
import annulus.hf as hf  # noqa: E402

SMALL = dict(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    initializer_range=0.25,  # logits far enough apart for float32
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
    tie_word_embeddings=False,
)
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen2-sliding": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=6, max_window_layers=1),
    ),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", dict(sliding_window=7)),
    "gemma3": ("Gemma3Text", dict(layer_types=MIXED, sliding_window=5, query_pre_attn_scalar=24)),
    "gpt-oss": (
        "GptOss",
        dict(layer_types=MIXED, sliding_window=8, num_local_experts=4, num_experts_per_tok=2),
    ),
}
every_config = pytest.mark.parametrize("model", CONFIGS, indirect=True)
one_config = pytest.mark.parametrize("model", ["gpt-oss"], indirect=True)


def made(name, seed=3, **changes):
    kind, own = CONFIGS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **own, **changes})
    model_kind = kind.removesuffix("Text") + "ForCausalLM"
    model = getattr(transformers, model_kind)._from_config(config, attn_implementation="eager")
    for parameter_name, parameter in model.named_parameters():
        if "sinks" in parameter_name:
            torch.nn.init.normal_(parameter)
    model.generation_config.do_sample = False
    model.generation_config.suppress_tokens = [0]  # none says padding
    return model.eval()


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


def prompt(rows, tokens=13):
    """Rows of different lengths, padded on the left."""
    torch.manual_seed(rows)
    ids = torch.randint(3, SMALL["vocab_size"], (rows, tokens))
    mask = torch.ones_like(ids)
    for row in range(rows):
        padding = (4 * row) % tokens
        ids[row, :padding], mask[row, :padding] = 0, 0
    return dict(input_ids=ids, attention_mask=mask)


def check(client, model, inputs, options=None, **kwargs):
    """generate() gives what eager gives, and leaves no context."""
    kwargs = dict(max_new_tokens=14) | kwargs
    expected = model.generate(**inputs, **kwargs)
    with hf.enable(model, client=client, **(options or {})):
        assert model.config._attn_implementation == "annulus"
        found = model.generate(**inputs, **kwargs)
    assert torch.equal(found, expected)
    assert client.contexts() == []
    return expected


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
        check(client, model, inputs, prompt_lookup_num_tokens=4)
        assert cut
        return
    # One that guesses right at times: the model itself, a little off.
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    expected = model.generate(**inputs, max_new_tokens=14)
    if assistant == "another":
        assert torch.equal(check(client, model, inputs, assistant_model=other), expected)
    else:
        with hf.enable(other, client=client):
            assert torch.equal(
                model.generate(**inputs, max_new_tokens=14, assistant_model=other), expected
            )
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
def test_sampling(client, model):
    inputs = prompt(2)
    kwargs = dict(max_new_tokens=10, do_sample=True, temperature=0.5)
    torch.manual_seed(5)
    expected = model.generate(**inputs, **kwargs)
    with hf.enable(model, client=client):
        torch.manual_seed(5)
        assert torch.equal(model.generate(**inputs, **kwargs), expected)


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
            model(ids, **{enabled._cache_name: cache})
        assert cache.get_seq_length() == 13
        for other in (copy.deepcopy(cache), cache):
            found = model.generate(more, max_new_tokens=6, **{enabled._cache_name: other})
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


@one_config
def test_no_mask_of_n_squared_is_made(client, model):
    seen = []
    with torch.no_grad(), hf.enable(model, client=client):
        layer = model.model.layers[0].self_attn
        hook = layer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
        )
        model(**prompt(2))
        hook.remove()
    assert seen[0].starts == [0, 4]
    assert not isinstance(seen[0], torch.Tensor)


@one_config
def test_disable_gives_back_the_model(client, model):
    before = {name for name in vars(model)}
    enabled = hf.enable(model, client=client)
    with pytest.raises(annulus.InvalidArgument, match="enabled already"):
        hf.enable(model, client=client)
    enabled.disable()
    enabled.disable()
    assert model.config._attn_implementation == "eager"
    assert {name for name in vars(model)} == before
    assert not model.model._forward_hooks and not model.model._forward_pre_hooks
    model.generate(**prompt(1), max_new_tokens=2)


def test_unknown_keywords_raise(client):
    model = made("llama")
    with pytest.raises(TypeError, match="windows"):
        hf.enable(model, client=client, windows=3)
    with pytest.raises(TypeError, match="layers"):
        hf.enable(model, client=client, layers=3)
    with pytest.raises(annulus.InvalidArgument, match="chunk_tokens"):
        hf.enable(model, client=client, chunk_tokens=0)
    with hf.enable(model, client=client), torch.no_grad():
        with pytest.raises(annulus.InvalidArgument, match="sharpness: 3"):
            model(**prompt(1), sharpness=3)
        with pytest.raises(annulus.InvalidArgument, match="softcap: 30"):
            model(**prompt(1), softcap=30.0)
        with pytest.raises(annulus.InvalidArgument, match="cu_seq_lens_q"):
            model(**prompt(1), cu_seq_lens_q=torch.tensor([0, 13]))


def test_what_is_not_implemented_is_refused_by_name(client):
    model = made("llama")
    inputs = prompt(2)
    ids = inputs["input_ids"]
    refused = pytest.raises
    with hf.enable(model, client=client) as enabled:
        name = enabled._cache_name
        with refused(annulus.InvalidArgument, match="requires_grad"):
            model(**inputs)
        with torch.no_grad():
            for field, kwargs in {
                "output_attentions": dict(output_attentions=True),
                "attention_mask: shape": dict(attention_mask=torch.ones(2, 1, 13, 13)),
                "attention_mask: 0 behind 1": dict(attention_mask=inputs["attention_mask"].flip(1)),
                "attention_mask: packed": dict(
                    attention_mask=None,
                    position_ids=torch.arange(13)[None] % 7,
                    use_cache=False,
                ),
                f"{name}: a DynamicCache": {name: transformers.DynamicCache()},
            }.items():
                with refused(annulus.InvalidArgument, match=field):
                    model(**(inputs | kwargs))
            cache = enabled.cache()
            model(**inputs, **{name: cache})
            more = dict(input_ids=ids[:, :1], attention_mask=torch.ones(2, 14))
            with refused(annulus.InvalidArgument, match="attention_mask: 0 padded slots in row 1"):
                model(**more, **{name: cache})
            with refused(annulus.InvalidArgument, match="tokens_to_remove"):
                cache.crop(5)
        with refused(annulus.InvalidArgument, match="cache_implementation"):
            model.generate(ids, cache_implementation="static", max_new_tokens=2)
        with refused(annulus.InvalidArgument, match=f"{name}: a DynamicCache"):
            model.generate(ids, max_new_tokens=2, **{name: transformers.DynamicCache()})
        del cache
    assert client.contexts() == []


def test_layers_that_are_not_implemented_are_refused_by_name(client):
    chunked = made("llama")
    chunked.config.layer_types = ["chunked_attention"] * 3
    with pytest.raises(annulus.InvalidArgument, match="layer_types: 'chunked_attention'"):
        hf.enable(chunked, client=client)
    with pytest.raises(annulus.InvalidArgument, match="model: a Linear"):
        hf.enable(torch.nn.Linear(2, 2), client=client)
    t5 = transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(annulus.InvalidArgument, match="encoder"):
        hf.enable(transformers.T5ForConditionalGeneration(t5), client=client)
    capped = transformers.Gemma2Config(**SMALL, attn_logit_softcapping=20.0)
    model = transformers.Gemma2ForCausalLM(capped).eval()
    with hf.enable(model, client=client):
        with pytest.raises(annulus.InvalidArgument, match="softcap: 20"):
            model.generate(**prompt(1), max_new_tokens=2)
    training = made("llama", attention_dropout=0.1).train()
    with hf.enable(training, client=client), torch.no_grad():
        with pytest.raises(annulus.InvalidArgument, match="dropout"):
            training(**prompt(1))
    both_ways = made("gemma3", use_bidirectional_attention=True)
    with hf.enable(both_ways, client=client), torch.no_grad():
        with pytest.raises(annulus.InvalidArgument, match="causal"):
            both_ways(**prompt(1))


def test_options_reach_the_contexts(client):
    model = made("llama")
    inputs = prompt(2)
    expected = model.generate(**inputs, max_new_tokens=8)
    options = dict(replicas=2, placement="tokens", partition="block-cyclic:16", dtype="f32")
    with hf.enable(model, client=client, timeout=60.0, **options):
        result = model.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True)
        spec = client.contexts()[0]["spec"]
    assert torch.equal(result.sequences, expected)
    assert {name: spec[name] for name in options} == options
    assert spec["layers"] == 3
