"""A Llama in NumPy that leaves attention to whoever it is given, read from a GGUF file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import tokenizers

# attend(layer, q [n, heads, d], k [n, kv_heads, d], v) → [n, heads, d]: keeps k and v behind those
# that it has; row i of q is at the position of row i of k and sees all up to there.
Attend = Callable[[int, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def normed(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    return x * weight / np.sqrt(np.square(x).mean(-1, keepdims=True) + epsilon)


def times(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[n, in] by [out, in]: one row as a matrix by a vector, which reads the matrix once."""
    return (weight @ x[0])[None] if len(x) == 1 else x @ weight.T


LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
LAYER += ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


class Model:
    """A Llama of a GGUF file: embeddings are the head too, and pairs of RoPE lie side by side."""

    def __init__(self, path: Path) -> None:
        file = gguf.GGUFReader(path)
        value = {name: field.contents() for name, field in file.fields.items()}
        if value["general.architecture"] != "llama":
            raise ValueError(f"{path}: a {value['general.architecture']}; expected a llama")
        weight = {
            tensor.name.removesuffix(".weight"): gguf.dequantize(tensor.data, tensor.tensor_type)
            for tensor in file.tensors
        }
        self.epsilon = value["llama.attention.layer_norm_rms_epsilon"]
        self.heads = value["llama.attention.head_count"]
        self.kv_heads = value["llama.attention.head_count_kv"]
        self.head_dim = value["llama.embedding_length"] // self.heads
        # Pair i of a head turns by the position times base^(-2i/d).
        pairs = np.arange(0, self.head_dim, 2) / self.head_dim
        self.frequencies = value["llama.rope.freq_base"] ** -pairs
        self.embedding, self.norm = weight["token_embd"], weight["output_norm"]
        self.layers = []
        for i in range(value["llama.block_count"]):
            of = {name: weight.pop(f"blk.{i}.{name}") for name in LAYER}
            self.layers.append(
                SimpleNamespace(
                    attention_norm=of["attn_norm"],
                    qkv=np.concatenate([of["attn_q"], of["attn_k"], of["attn_v"]]),
                    output=of["attn_output"],
                    ffn_norm=of["ffn_norm"],
                    gate_up=np.concatenate([of["ffn_gate"], of["ffn_up"]]),
                    down=of["ffn_down"],
                )
            )
        self.end = value["tokenizer.ggml.eos_token_id"]
        self.tokenizer = tokenizer_of(value)
        self.attention_s = 0.0  # spent in attention so far

    def forward(
        self, tokens: Sequence[int], positions: Sequence[int], attend: Attend, last: int = 1
    ) -> np.ndarray:
        """Logits [last, vocabulary] of what follows the last ``last`` of the tokens."""
        x = self.embedding[tokens]
        turns = np.exp(1j * np.outer(positions, self.frequencies)).astype(np.complex64)[:, None]
        rotated = self.heads + self.kv_heads
        for i, layer in enumerate(self.layers):
            qkv = times(normed(x, layer.attention_norm, self.epsilon), layer.qkv)
            qkv = qkv.reshape(len(x), -1, self.head_dim)
            qk = (qkv[:, :rotated].view(np.complex64) * turns).view(np.float32)
            begin = time.perf_counter()
            out = attend(i, qk[:, : self.heads], qk[:, self.heads :], qkv[:, rotated:])
            self.attention_s += time.perf_counter() - begin
            x = x + times(out.reshape(len(x), -1), layer.output)
            both = times(normed(x, layer.ffn_norm, self.epsilon), layer.gate_up)
            gate, up = np.split(both, 2, -1)
            x = x + times(gate * (0.5 + 0.5 * np.tanh(0.5 * gate)) * up, layer.down)  # SwiGLU
        return times(normed(x[-last:], self.norm, self.epsilon), self.embedding)


def tokenizer_of(value: dict[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of a GGUF file's fields: BPE over bytes, digits one by one."""
    pieces = value["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in value["tokenizer.ggml.merges"]]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    before = tokenizers.pre_tokenizers
    made.pre_tokenizer = before.Sequence(
        [before.Digits(individual_digits=True), before.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    kinds, control = value["tokenizer.ggml.token_type"], 3
    made.add_special_tokens(
        [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == control]
    )
    return made
