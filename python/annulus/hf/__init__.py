"""Hugging Face transformers models whose attention and KV are a service's.

>>> import annulus, annulus.hf
>>> from transformers import AutoModelForCausalLM, AutoTokenizer
>>> model = AutoModelForCausalLM.from_pretrained(name)
>>> tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
>>> inputs = tokenizer(prompts, padding=True, return_tensors="pt")
>>> with annulus.in_process(workers=2) as client, annulus.hf.enable(model, client=client):
...     ids = model.generate(**inputs, max_new_tokens=64)
>>> tokenizer.batch_decode(ids)

Each row of a batch is a context, whose padding is never appended; no mask of n² is made. Greedy,
sampling, beams (forks), assisted decoding (truncates) and chunked prefill work as they are, with
sliding windows and attention sinks. What would change the result and is not implemented is refused
by name: gradients, dropout, softcaps, attention weights, other masks than causal ones behind left
padding, packed sequences, other caches, encoders. Needs ``pip install annulus[hf]``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import threading
import weakref
from typing import Any, Unpack

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from annulus.client import Client, ContextOptions
from annulus.errors import AnnulusError, InvalidArgument
from annulus.hf.attention import attend, mask_of
from annulus.hf.cache import ContextCache, Holder

__all__ = ["ContextCache", "Enabled", "enable"]

NAME = "annulus"  # of the attention implementation
_DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_MADE_BY_THE_MODEL = ("layers", "patterns", "v_is_k_prefix")
_enabled: weakref.WeakKeyDictionary[Any, Enabled] = weakref.WeakKeyDictionary()  # by module


def enable(
    model: Any,
    *,
    client: Client,
    chunk_tokens: int = 8192,
    timeout: float | None = None,
    **options: Unpack[ContextOptions],
) -> Enabled:
    """Lets ``model`` attend through ``client`` until the end of a ``with``, or ``disable()``.

    ``model.generate()`` and ``model()`` then make a :class:`ContextCache` by themselves where none
    is passed; pass ``enabled.cache()`` to keep one over several calls.

    Args:
        model: a decoder of transformers, on any device, called without gradients.
        client: of the service that holds the KV.
        chunk_tokens: a longer prompt is appended and attended piece by piece.
        timeout: seconds, of each call.
        options: of the contexts, as ``client.create_context`` takes them; dtype is the model's
            unless it is given.

    Raises:
        InvalidArgument: names what the model needs and is not implemented.
        TypeError: an unknown keyword.
    """
    for name in options:
        if name not in ContextOptions.__annotations__ or name in _MADE_BY_THE_MODEL:
            raise TypeError(f"enable() got an unexpected keyword argument {name!r}")
    if chunk_tokens < 1:
        raise InvalidArgument(f"chunk_tokens: {chunk_tokens}; expected at least 1")
    _check_model(model)
    return Enabled(model, client, chunk_tokens, timeout, dict(options))


class Enabled:
    """A model that attends through a client; made by :func:`enable`."""

    def __init__(
        self,
        model: Any,
        client: Client,
        chunk_tokens: int,
        timeout: float | None,
        options: dict[str, Any],
    ) -> None:
        config = model.config
        options.setdefault("dtype", _DTYPES[model.dtype])
        options["patterns"] = _patterns_of(config)
        self.client = client
        self._holder = Holder(client, config.num_hidden_layers, options, chunk_tokens, timeout)
        self._config = config
        self._model = weakref.ref(model)
        self._forward = threading.local()
        base = model.get_decoder()  # which some models call past their base_model
        parameters = inspect.signature(base.forward).parameters
        self._names = list(parameters)
        # What transformers calls the argument depends on its version.
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._previous = config._attn_implementation
        model.set_attn_implementation(NAME)
        if config._attn_implementation != NAME:
            raise InvalidArgument(
                f"model: a {type(model).__name__}, whose attention cannot be set; expected one "
                "that calls it by AttentionInterface"
            )
        for module in model.modules():
            _enabled[module] = self
        self._hooks = [
            base.register_forward_pre_hook(self._before, with_kwargs=True),
            base.register_forward_hook(self._after, always_call=True),
        ]
        if hasattr(model, "generate"):
            generate = type(model).generate
            # Holds the model weakly, since the model holds it.
            model.generate = functools.wraps(generate)(functools.partial(self._generate, generate))

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *_: object) -> None:
        self.disable()

    def disable(self) -> None:
        """Gives the model its own attention back; again: does nothing."""
        model = self._model()
        if not self._hooks or model is None:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for module in model.modules():
            _enabled.pop(module, None)
        vars(model).pop("generate", None)
        model.set_attn_implementation(self._previous)

    def cache(self) -> ContextCache:
        """An empty cache, to pass to several calls; its contexts are released with it."""
        return ContextCache(self._holder)

    def _generate(self, generate: Any, *args: Any, **kwargs: Any) -> Any:
        model: Any = self._model()
        given = kwargs.get("generation_config") or model.generation_config
        setting = {
            name: kwargs[name] if name in kwargs else getattr(given, name, None)
            for name in ("use_cache", "cache_implementation")
        }
        kind = setting["cache_implementation"]
        if kind not in (None, "dynamic", "dynamic_full"):
            raise InvalidArgument(
                f"cache_implementation: {kind!r}; expected none, since contexts hold the KV"
            )
        names = {"cache", "past_key_values", self._cache_name} & {*kwargs}
        passed = [kwargs[name] for name in names if kwargs[name] is not None]
        if passed or setting["use_cache"] is False:
            for cache in passed:
                self._check_cache(cache)
            return generate(model, *args, **kwargs)
        for name in names:
            del kwargs[name]
        if kind is not None:  # transformers refuses any beside a cache
            kwargs.pop("cache_implementation", None)
            kwargs["generation_config"] = copy.deepcopy(given)
            kwargs["generation_config"].cache_implementation = None
        made = self.cache()
        kept = False
        try:
            result = generate(model, *args, **{self._cache_name: made}, **kwargs)
            kept = getattr(result, self._cache_name, None) is made
            return result
        finally:
            if not kept:
                made.release()

    def _before(self, _: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before each forward: its cache is one of ours, made here if there is none."""
        kwargs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        wanted = kwargs.get("output_attentions")
        if wanted or (wanted is None and getattr(self._config, "output_attentions", False)):
            raise InvalidArgument("output_attentions: True; expected False: no weights are made")
        cache = kwargs.get(self._cache_name)
        keeps = kwargs.get("use_cache")
        if keeps is None:
            keeps = getattr(self._config, "use_cache", True)
        passing = cache is not None or keeps
        if cache is None:
            cache = self.cache()
        self._check_cache(cache)
        if passing:
            kwargs[self._cache_name] = cache
        cache.begin(passing)
        self._forward.cache = cache
        return (), kwargs

    def _after(self, _: Any, __: Any, output: Any) -> None:
        """After each forward; without an output it has failed."""
        cache = getattr(self._forward, "cache", None)
        self._forward.cache = None
        if cache is None:
            return
        if not cache.passing:
            cache.release()
        elif output is not None:
            cache.end()
        else:
            with contextlib.suppress(AnnulusError):  # the next forward tries again, and tells
                cache.roll_back()

    def _check_cache(self, cache: Any) -> None:
        if not isinstance(cache, ContextCache):
            raise InvalidArgument(
                f"{self._cache_name}: a {type(cache).__name__}; expected none, or a ContextCache"
            )
        if cache.holder is not self._holder:
            raise InvalidArgument(
                f"{self._cache_name}: made for another model; expected enabled.cache()"
            )


def _attend(module: Any, *args: Any, **kwargs: Any) -> Any:
    enabled = _enabled.get(module)
    cache = None if enabled is None else getattr(enabled._forward, "cache", None)
    if cache is None:
        raise InvalidArgument(
            f"attn_implementation: {NAME!r} without annulus.hf.enable(); expected a call of the "
            "model that was enabled"
        )
    return attend(cache, module, *args, **kwargs)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, mask_of)


def _check_model(model: Any) -> None:
    if not isinstance(model, PreTrainedModel):
        raise InvalidArgument(
            f"model: a {type(model).__name__}; expected a PreTrainedModel of transformers"
        )
    if model in _enabled:
        raise InvalidArgument("model: enabled already; expected disable() first")
    config = model.config
    kind = f"model: {config.model_type}"
    if config.is_encoder_decoder:
        raise InvalidArgument(f"{kind} has an encoder; expected a decoder alone")
    if config.get_text_config() is not config:
        raise InvalidArgument(f"{kind} is more than text; expected its text model alone")
    if model.dtype not in _DTYPES:
        raise InvalidArgument(f"model: {model.dtype}; expected float32, float16 or bfloat16")
    for layer_type in getattr(config, "layer_types", None) or ():
        if layer_type not in ("full_attention", "sliding_attention"):
            raise InvalidArgument(
                f"layer_types: {layer_type!r}; expected full_attention or sliding_attention"
            )


def _patterns_of(config: Any) -> list[str]:
    window = getattr(config, "sliding_window", None)
    slides = f"causal & window({window})" if window else "causal"
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [slides]
    return [slides if kind == "sliding_attention" else "causal" for kind in kinds]
