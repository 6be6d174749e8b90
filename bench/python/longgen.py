#!/usr/bin/env python3
"""LongGen's layer table (2410.01485 §3) beside full attention, in one run: a third of the layers in
the middle sees everything, the others sinks and a window, in a KV-efficient context.

Prints CSV: seconds of the attention of a prefill and of a decode step over all layers, and bytes of
KV after it, best of --rounds in turn. In process, one worker.

    longgen.py [--tokens N] [--layers N] [--window N] [--rounds N]
"""

import argparse
import sys
import time

import numpy as np

import annulus

SHAPE = {"heads": 8, "kv_heads": 4, "head_dim": 64, "dtype": "bf16"}
CHUNK = 1024
STEPS = 16


def rows(rng, tokens, heads):
    return rng.standard_normal((tokens, heads, SHAPE["head_dim"]), dtype=np.float32)


def measure(client, rng, patterns, tokens):
    """Seconds of prefill and of a decode step, and bytes of KV."""
    layers = len(patterns)
    with client.create_context(
        layers=layers, patterns=patterns, kv_efficient=True, **SHAPE
    ) as context:
        prefill = 0.0
        for _ in range(0, tokens, CHUNK):
            kv = rows(rng, CHUNK, SHAPE["kv_heads"])
            q = rows(rng, CHUNK, SHAPE["heads"])
            for layer in range(layers):
                context.append(layer, kv, kv)
                begin = time.perf_counter()
                context.attend(layer, q)
                prefill += time.perf_counter() - begin
        kv, q = rows(rng, 1, SHAPE["kv_heads"]), rows(rng, 1, SHAPE["heads"])
        begin = time.perf_counter()
        for _ in range(STEPS):
            for layer in range(layers):
                client.step([annulus.Step(context, layer=layer, q=q, k=kv, v=kv)])
        step = (time.perf_counter() - begin) / STEPS
        kv_bytes = sum(worker["kv_bytes"] for worker in client.status()["workers"])
        return prefill, step, kv_bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tokens", type=int, default=16 << 10)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sparse = f"causal & (sink(64) | window({options.window}))"
    third = options.layers // 3
    tables = {
        "full": ["causal"] * options.layers,
        "LongGen": [sparse] * third + ["causal"] * (options.layers - 2 * third) + [sparse] * third,
    }
    best = {}
    rng = np.random.default_rng(1)
    with annulus.in_process(workers=1, kv_bytes_limit=8 << 30) as client:
        for turn in range(options.rounds):
            for name, patterns in tables.items():
                print(f"round {turn + 1} of {options.rounds}: {name}", file=sys.stderr)
                figures = measure(client, rng, patterns, options.tokens)
                best[name] = [
                    min(pair) for pair in zip(figures, best.get(name, figures), strict=True)
                ]
    print("layers,tokens,prefill_s,decode_step_s,kv_bytes,prefill_speed,decode_speed,kv_share")
    full = best["full"]
    for name, (prefill, step, kv_bytes) in best.items():
        print(
            f"{name},{options.tokens},{prefill:.3f},{step:.5f},{kv_bytes},"
            f"{full[0] / prefill:.2f},{full[1] / step:.2f},{kv_bytes / full[2]:.3f}"
        )


if __name__ == "__main__":
    main()
