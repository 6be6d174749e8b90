"""Models of transformers, made small at random, and what they are asked."""

import inspect

import torch
import transformers

import annulus.hf as hf

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
    "opt": ("OPT", dict(ffn_dim=96, word_embed_proj_dim=64)),  # whose decoder is called directly
    "gpt-oss": (
        "GptOss",
        dict(layer_types=MIXED, sliding_window=8, num_local_experts=4, num_experts_per_tok=2),
    ),
}
FORWARD = inspect.signature(transformers.LlamaModel.forward).parameters
NAME = "cache" if "cache" in FORWARD else "past_key_values"


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


def prompt(rows, tokens=13):
    """Rows of different lengths, padded on the left."""
    torch.manual_seed(rows)
    ids = torch.randint(3, SMALL["vocab_size"], (rows, tokens))
    mask = torch.ones_like(ids)
    for row in range(rows):
        padding = (4 * row) % tokens
        ids[row, :padding], mask[row, :padding] = 0, 0
    return dict(input_ids=ids, attention_mask=mask)


def check(client, model, inputs, options=None, expected=None, **kwargs):
    """generate() gives what eager gives, or what is expected, and leaves no context."""
    kwargs = dict(max_new_tokens=14) | kwargs
    if expected is None:
        expected = model.generate(**inputs, **kwargs)
    with hf.enable(model, client=client, **(options or {})):
        assert model.config._attn_implementation == "annulus"
        found = model.generate(**inputs, **kwargs)
    assert torch.equal(found, expected)
    assert client.contexts() == []
    return expected
