"""annulus.hf: what it refuses, what it leaves as it was, and what a service survives."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.14")

import annulus  # noqa: E402
import annulus.hf as hf  # noqa: E402
from hf_models import NAME, SMALL, made, prompt  # noqa: E402
from service import Service  # noqa: E402

WORDS = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}


@pytest.fixture
def client():
    with annulus.in_process(workers=2, threads=1) as made:
        yield made


def test_no_mask_of_n_squared_is_made(client):
    model = made("gpt-oss")
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


def test_disable_gives_back_the_model(client):
    model = made("llama")
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
        with refused(annulus.InvalidArgument, match="requires_grad"):
            model(**inputs)
        for name in ("q_proj", "k_proj", "v_proj"):
            model.requires_grad_(False)
            getattr(model.model.layers[0].self_attn, name).weight.requires_grad_()
            with refused(annulus.InvalidArgument, match=f"requires_grad.*of {WORDS[name]};"):
                model(**inputs)
        model.requires_grad_()
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
                f"{NAME}: a DynamicCache": {NAME: transformers.DynamicCache()},
            }.items():
                with refused(annulus.InvalidArgument, match=field):
                    model(**(inputs | kwargs))
            cache = enabled.cache()
            model(**inputs, **{NAME: cache})
            more = dict(input_ids=ids[:, :1], attention_mask=torch.ones(2, 14))
            with refused(annulus.InvalidArgument, match="attention_mask: 0 padded slots in row 1"):
                model(**more, **{NAME: cache})
            cache.crop(5)
            assert [row.tokens[0] for row in cache.rows] == [5, 1]
        with refused(annulus.InvalidArgument, match="cache_implementation"):
            model.generate(ids, cache_implementation="static", max_new_tokens=2)
        with refused(annulus.InvalidArgument, match=f"{NAME}: a DynamicCache"):
            model.generate(ids, max_new_tokens=2, **{NAME: transformers.DynamicCache()})
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


def test_a_truncate_behind_what_was_let_go_is_refused_by_name(client):
    model = made("mistral")
    with hf.enable(model, client=client, kv_efficient=True), torch.no_grad():
        answer = model(**prompt(1, 200))
        cache = next(part for part in answer.values() if isinstance(part, hf.ContextCache))
        for token in range(80):
            model(torch.tensor([[5 + token % 9]]), **{NAME: cache})
        with pytest.raises(annulus.AnnulusError, match="kv_efficient"):
            cache.crop(-150)


def test_a_worker_killed_in_mid_sentence_changes_no_token():
    model = made("gpt-oss")
    inputs = prompt(3)
    expected = model.generate(**inputs, max_new_tokens=30)
    calls = []

    def kill_at_12(ids, scores):
        calls.append(len(ids))
        if len(calls) == 12:
            service.kill_worker()
        return scores

    with Service(workers=3) as service, annulus.connect(service.endpoint) as client:
        with hf.enable(model, client=client, replicas=2):
            found = model.generate(**inputs, max_new_tokens=30, logits_processor=[kill_at_12])
    assert len(calls) == 30
    assert torch.equal(found, expected)


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


@pytest.mark.parametrize("rows", [1, 2])
def test_a_forward_that_failed_is_taken_back(client, rows):
    model = made("llama")
    inputs = prompt(rows)
    with torch.no_grad():
        expected = model(**inputs).logits
        longer = {"attention_mask": torch.ones(rows, 14, dtype=torch.long)}
        longer["attention_mask"][:, :13] = inputs["attention_mask"]
        step = {"input_ids": inputs["input_ids"][:, -1:], **longer}
        whole = torch.cat([inputs["input_ids"], step["input_ids"]], 1)
        expected_step = model(input_ids=whole, **longer).logits[:, -1:]
    with hf.enable(model, client=client) as enabled, torch.no_grad():
        cache = enabled.cache()
        for kwargs, answer in ((inputs, expected), (step, expected_step)):
            before = cache.get_seq_length()
            mlp = model.model.layers[0].mlp
            forward, mlp.forward = mlp.forward, fail
            with pytest.raises(ZeroDivisionError):
                model(**kwargs, past_key_values=cache)
            mlp.forward = forward
            assert cache.get_seq_length() == before
            assert {count for row in cache.rows for count in row.describe()["tokens"]} <= {
                before - start for start in cache._starts
            }
            logits = model(**kwargs, past_key_values=cache).logits
            seen = kwargs["attention_mask"][:, -logits.shape[1] :].bool()
            torch.testing.assert_close(logits[seen], answer[seen], atol=2e-5, rtol=0)


def test_a_forward_that_could_not_be_taken_back_is_so_before_the_next(client):
    model = made("llama")
    inputs = prompt(1)
    with torch.no_grad():
        expected = model(**inputs).logits
    with hf.enable(model, client=client) as enabled, torch.no_grad():
        cache = enabled.cache()
        attend = cache.attend

        def interrupted(layer, *args, **kwargs):
            attend(layer, *args, **kwargs)
            raise KeyboardInterrupt  # of which torch tells no hook

        cache.attend = interrupted
        with pytest.raises(KeyboardInterrupt):
            model(**inputs, past_key_values=cache)
        cache.attend = attend
        assert cache.get_seq_length() == 0
        logits = model(**inputs, past_key_values=cache).logits
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


def fail(*_):
    raise ZeroDivisionError
