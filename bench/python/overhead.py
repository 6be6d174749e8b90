#!/usr/bin/env python3
"""What the Python package costs beyond the C++ client, in process, call by call in one run.

A step's time in Python beside the time that the same call spends in the C++ client; an upload's
bandwidth by append beside that of the C++ client's own blocking call. Prints CSV.
"""

import statistics
import sys
import threading
import time

import numpy as np

import annulus
from annulus import _core

STEPS = 3000
UPLOADS = 20


def steps(client, tokens):
    """Microseconds of a decode step of one context: in all, and those of the C++ client."""
    shape = {"heads": 32, "kv_heads": 8, "head_dim": 128}
    with client.create_context(layers=1, **shape) as context:
        kv = np.zeros((tokens, 8, 128), np.float32)
        context.append(0, kv, kv)
        q, k = np.zeros((1, 32, 128), np.float32), np.zeros((1, 8, 128), np.float32)
        total, inner = [], []
        for _ in range(STEPS):
            step = [annulus.Step(context, q=q, k=k, v=k)]
            begin = time.perf_counter()
            client.step(step)
            total.append(time.perf_counter() - begin)
            inner.append(_core.last_seconds())
        beyond = [a - b for a, b in zip(total, inner, strict=True)]
        return [1e6 * statistics.median(kind) for kind in (total, inner, beyond)]


def uploads(client):
    """GB/s of an append of 64 MB from the main thread, and of the C++ client's blocking call."""
    kv = np.zeros((4096, 8, 256), np.float32)
    kv.fill(1)
    rates = {"python": [], "c++": []}
    for _ in range(UPLOADS):
        for kind, measured in rates.items():
            with client.create_context(heads=8, head_dim=256, dtype="f32") as context:
                seconds = []

                def append(context=context, seconds=seconds):
                    begin = time.perf_counter()
                    context.append(0, kv, kv)
                    seconds.append((time.perf_counter() - begin, _core.last_seconds()))

                if kind == "python":
                    append()
                    measured.append(2 * kv.nbytes / seconds[0][0] / 1e9)
                else:
                    thread = threading.Thread(target=append)
                    thread.start()
                    thread.join()
                    measured.append(2 * kv.nbytes / seconds[0][1] / 1e9)
    return [statistics.median(measured) for measured in rates.values()]


def main():
    print("case,python,c++,beyond_or_ratio")
    with annulus.in_process(workers=2, threads=1, kv_bytes_limit=1 << 30) as client:
        for tokens in (64, 4096):
            total, inner, beyond = steps(client, tokens)
            print(f"step over {tokens} tokens us,{total:.1f},{inner:.1f},{beyond:.1f}")
            sys.stdout.flush()
        ours, bare = uploads(client)
        print(f"append of 64 MB GB/s,{ours:.2f},{bare:.2f},{ours / bare:.3f}")


if __name__ == "__main__":
    main()
