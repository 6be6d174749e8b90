"""PyTorch's scaled_dot_product_attention on the CPU as a peer: see bench/kernels/peer.h.

Usage: torch_sdpa.py [THREADS]
"""

import os
import sys
import time

import torch
import torch.nn.functional as F

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def random(dtype, heads, tokens, dim):
    """Normal values, drawn once for a few tokens and repeated: memory matters here, not values."""
    table = torch.randn(4099 * 8).to(dtype)
    flat = torch.empty(heads * tokens * dim, dtype=dtype)
    for at in range(0, flat.numel(), table.numel()):
        part = flat[at:at + table.numel()]
        part.copy_(table[:part.numel()])
    return flat.view(1, heads, tokens, dim)


def setup(kind, dtype, tokens, heads, kv_heads, dim):
    dtype = DTYPES[dtype]
    k = random(dtype, kv_heads, tokens, dim)
    v = random(dtype, kv_heads, tokens, dim)
    q = torch.randn(1, heads, tokens if kind == "causal" else 1, dim).to(dtype)
    grouped = {"enable_gqa": True} if heads != kv_heads else {}

    def call():
        return F.scaled_dot_product_attention(q, k, v, is_causal=kind == "causal", **grouped)

    return call


def main():
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else len(os.sched_getaffinity(0)))
    print(f"PyTorch {torch.__version__.split('+')[0]} SDPA", flush=True)
    call = None
    for line in sys.stdin:
        command, *args = line.split()
        if command == "setup":
            call = None  # frees the memory of the last workload
            kind, dtype, *numbers = args
            try:
                call = setup(kind, dtype, *map(int, numbers))
                with torch.inference_mode():
                    call()
                print("ok", flush=True)
            except (RuntimeError, MemoryError) as error:
                print(str(error).splitlines()[0], flush=True)
        else:
            with torch.inference_mode():
                start = time.perf_counter()
                call()
                print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
