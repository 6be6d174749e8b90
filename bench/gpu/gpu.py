"""Attention on one GPU beside its peers, in one run: ours, peer, ours, peer; medians.

    python3 bench/gpu/gpu.py --program build/bundle/annulus_gpu_bench --out FILE.csv [--only REGEX]
                             [--steps FILE.csv] [--flush-reads]

Ours is annulus_gpu_bench, which checks sampled rows against float64; peers are PyTorch's
scaled_dot_product_attention (cuDNN, FlashAttention 2), FlexAttention with the same mask (the
dense causal one for s2-128k, power-128k and those that choose keys by data, whose ratio is that of
the times; ours_choose_ms is the part of ours_ms that chooses) and other cases of
ours, by name. TFLOP/s are
2·visited pairs·(d + d_v) over all query heads / time; GB/s of a decode are the bytes of K and V,
read once, / time. Times are of device events, with a cold L2; inputs are random normal. What fills
the L2 before is written, and has to be written back during the call; with --flush-reads it is read.

--steps: decode steps of a service in process too, beside their kernels alone (a warm L2) and beside
a step over a CPU whose contexts have 64 tokens; beside_us is what is left of the p50.
"""

import argparse
import functools
import json
import re
import subprocess
import sys
import threading

import results

# Clocks rise under work, and settle under the power cap only after some hundred milliseconds.
WARM_UP_MS = 1000
FLUSH_BYTES = 256 << 20
# name, kind, tokens, queries, contexts, heads, KV heads, head dim, pattern, peers
PREFILL = "prefill"
DECODE = "decode"
SDPA = ("cudnn", "fa2")
# Of two layers in three (2410.01485); the others are dense.
LONGGEN = "causal & (sink(64) | window(1024))"
CASES = [
    ("full-16k", PREFILL, 1 << 14, 1 << 14, 1, 16, 16, 128, "full", SDPA),
    ("causal-16k", PREFILL, 1 << 14, 1 << 14, 1, 16, 16, 128, "causal", SDPA),
    ("causal-16k-outliers", PREFILL, 1 << 14, 1 << 14, 1, 16, 16, 128, "causal", ()),
    ("causal-32k", PREFILL, 1 << 15, 1 << 15, 1, 32, 8, 128, "causal", SDPA),
    ("causal-128k", PREFILL, 1 << 17, 1 << 17, 1, 32, 8, 128, "causal", SDPA),
    ("causal-16k-d64", PREFILL, 1 << 14, 1 << 14, 1, 32, 8, 64, "causal", SDPA),
    ("causal-16k-d256", PREFILL, 1 << 14, 1 << 14, 1, 8, 8, 256, "causal", SDPA),
    ("causal-16k-d192", PREFILL, 1 << 14, 1 << 14, 1, 16, 16, 192, "causal", SDPA),
    ("causal-16k-d80", PREFILL, 1 << 14, 1 << 14, 1, 16, 16, 80, "causal", SDPA),
    ("causal-16k-d96", PREFILL, 1 << 14, 1 << 14, 1, 16, 16, 96, "causal", SDPA),
    ("causal-64k", PREFILL, 1 << 16, 1 << 16, 1, 32, 8, 128, "causal", ("flex",)),
    ("s2-64k", PREFILL, 1 << 16, 1 << 16, 1, 32, 8, 128, "s2(128,8,16)", ("flex",)),
    ("window-64k", PREFILL, 1 << 16, 1 << 16, 1, 32, 8, 128, "window(4096)", ("flex",)),
    ("s2-128k", PREFILL, 1 << 17, 1 << 17, 1, 32, 8, 128, "s2(64,16,64)", ("fa2",)),
    # FlashInfer publishes 5.08 ms for this one, on an H200.
    ("lists-107k", PREFILL, 109632, 109632, 1, 7, 7, 128, "list(x)", ()),
    ("s2-64k-list", PREFILL, 1 << 16, 1 << 16, 1, 32, 8, 128, "list(x) & causal", ("s2-64k",)),
    ("tenth-64k-list", PREFILL, 1 << 16, 1 << 16, 1, 32, 8, 128, "list(x) & causal", ("causal-64k",)),
    ("power-128k", PREFILL, 1 << 17, 1 << 17, 1, 32, 8, 128, "power(256,5,1)", ("fa2", "cudnn", "causal-128k")),
    ("longgen-128k", PREFILL, 1 << 17, 1 << 17, 1, 32, 8, 128, LONGGEN, ("causal-128k",)),
    ("queries-64k-list", PREFILL, 1 << 16, 1 << 16, 1, 32, 8, 128, "list(x) & causal", ("causal-64k",)),
    ("moba-64k", PREFILL, 1 << 16, 1 << 16, 1, 32, 8, 128, "moba(128,8)", ("cudnn", "fa2", "causal-64k")),
    ("moba-64k-mha", PREFILL, 1 << 16, 1 << 16, 1, 32, 32, 128, "moba(128,8)", ("cudnn",)),
    ("moba-64k-d64", PREFILL, 1 << 16, 1 << 16, 1, 32, 8, 64, "moba(128,8)", ("cudnn",)),
    ("moba-128k", PREFILL, 1 << 17, 1 << 17, 1, 32, 8, 128, "moba(128,8)", ("cudnn",)),
    ("decode-128k", DECODE, 1 << 17, 1, 1, 32, 8, 128, "causal", SDPA),
    ("decode-1M", DECODE, 1 << 20, 1, 1, 32, 8, 128, "causal", SDPA),
    ("longgen-decode-128k", DECODE, 1 << 17, 1, 1, 32, 8, 128, LONGGEN, ("decode-128k",)),
    ("decode-16x64k", DECODE, 1 << 16, 1, 16, 32, 8, 128, "causal", SDPA),
    ("decode-16-ragged", DECODE, 1 << 16, 1, 16, 32, 8, 128, "causal", ()),
    ("latent-decode-16", DECODE, 1 << 15, 1, 64, 16, 1, 576, "causal", ()),
    ("latent-decode-128", DECODE, 1 << 15, 1, 64, 128, 1, 576, "causal", ()),
    ("latent-16k", PREFILL, 1 << 14, 1 << 14, 1, 16, 1, 576, "causal", ()),
]
# Where it is not the head dim; "latent" cases have their values within the keys.
V_HEAD_DIM = {"causal-16k-d192": 128, "latent-decode-16": 512, "latent-decode-128": 512,
              "latent-16k": 512}
# What list(x) shows.
LISTED = {"lists-107k": "64", "s2-64k-list": "s2(128,8,16)", "tenth-64k-list": "tenth",
          "queries-64k-list": "queries:7"}
COLUMNS = ("date gpu commit case tokens q_tokens contexts heads kv_heads head_dim pattern dtype "
           "ours_ms ours_choose_ms ours_call_ms ours_mhz ours_watts ours_tflops ours_gb_per_s share_of_copy peer peer_ms peer_mhz peer_watts peer_rate ratio "
           "copy_gb_per_s matmul_tflops max_rel_err max_lse_err").split()


STEP_COLUMNS = ("date gpu commit tokens contexts append p50_us p99_us kernel_us cpu_step_us "
                "beside_us").split()


class Meter:
    """SM clock and power while the GPU worked hardest, from samples every 10 ms."""

    def __enter__(self):
        import pynvml
        pynvml.nvmlInit()
        self.nvml, self.gpu = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
        self.samples, self.over = [], threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.over.wait(0.01):
            power = self.nvml.nvmlDeviceGetFieldValues(
                self.gpu, [self.nvml.NVML_FI_DEV_POWER_INSTANT])[0].value.uiVal
            self.samples.append((power / 1e3,
                                 self.nvml.nvmlDeviceGetClockInfo(self.gpu, self.nvml.NVML_CLOCK_SM)))

    def __exit__(self, *error):
        self.over.set()
        self.thread.join()

    def reading(self):
        """(MHz, watts)"""
        most = max((watts for watts, _ in self.samples), default=0)
        busy = [sample for sample in self.samples if sample[0] >= 0.9 * most] or [(0, 0)]
        return median([mhz for _, mhz in busy]), round(median([watts for watts, _ in busy]))


def median(values):
    return sorted(values)[len(values) // 2]


def ours(program, case, repeat, flush_reads):
    name, _, tokens, queries, contexts, heads, kv_heads, dim, pattern, _ = case
    command = [program, "--tokens", tokens, "--q-tokens", queries, "--contexts", contexts,
               "--heads", heads, "--kv-heads", kv_heads, "--head-dim", dim, "--pattern", pattern,
               "--repeat", repeat, "--check", 4 if tokens >= 1 << 20 else 8]
    if name.endswith("ragged"):
        command.append("--ragged")
    if name.endswith("outliers"):
        command.append("--outliers")
    if name in V_HEAD_DIM:
        command += ["--v-head-dim", V_HEAD_DIM[name]]
    if name in LISTED:
        command += ["--listed", LISTED[name]]
    if flush_reads:
        command.append("--flush-reads")
    if name.startswith("latent"):
        command.append("--latent")
    with Meter() as meter:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    mhz, watts = meter.reading()
    return dict(json.loads(done.stdout), mhz=mhz, watts=watts)


def time_calls(torch, call, repeat, flush_reads=False):
    """Milliseconds, the median."""
    flush = torch.zeros(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
    times = []
    warm_ms = 0
    while len(times) < repeat:
        flush.max() if flush_reads else flush.fill_(1)
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        if warm_ms >= WARM_UP_MS:
            times.append(begin.elapsed_time(end))
        warm_ms += begin.elapsed_time(end)
    return median(times)


def mask_of(pattern, kv_heads, group):
    """The pattern as a FlexAttention mask, its S2 heads spread over the stride."""
    if pattern == "causal":
        return lambda b, h, q, k: q >= k
    if pattern == "window(4096)":
        return lambda b, h, q, k: (q >= k) & (q - k < 4096)
    block, local, stride = map(int, re.findall(r"\d+", pattern.removeprefix("s2")))

    def s2(b, h, q, k):
        i, j = q // block, k // block
        residue = (h // group) * stride // kv_heads
        return (q >= k) & ((i - j < local) | (j % stride == residue))
    return s2


def peer_call(torch, peer, case):
    name, kind, tokens, queries, contexts, heads, kv_heads, dim, pattern, _ = case
    shape = functools.partial(torch.randn, dtype=torch.bfloat16, device="cuda")
    q = shape(contexts, heads, queries, dim)
    k = shape(contexts, kv_heads, tokens, dim)
    v = shape(contexts, kv_heads, tokens, V_HEAD_DIM.get(name, dim))
    if peer == "flex":
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        mask = torch.compile(create_block_mask)(
            mask_of(pattern, kv_heads, heads // kv_heads), None, heads, tokens, tokens,
            device="cuda", BLOCK_SIZE=128)
        flex = torch.compile(flex_attention)
        return lambda: flex(q, k, v, block_mask=mask, enable_gqa=heads != kv_heads)
    from torch.nn.attention import SDPBackend, sdpa_kernel
    backend = SDPBackend.CUDNN_ATTENTION if peer == "cudnn" else SDPBackend.FLASH_ATTENTION

    def call():
        with sdpa_kernel(backend):
            torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=pattern != "full" and kind == PREFILL,
                enable_gqa=heads != kv_heads)
    return call


def matmul_tflops(torch):
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    b = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    return 2 * 8192 ** 3 / time_calls(torch, lambda: a @ b, 10) / 1e9


def run_case(torch, args, case, row, writer):
    kind, peers = case[1], case[-1]
    own = {case[0]: case for case in CASES}
    first = ours(args.program, case, args.repeat, args.flush_reads)
    peers = [peer for peer in peers if peer in (args.peers or peer)]
    for peer in peers or ("",):
        peer_ms, peer_mhz, peer_watts = 0.0, 0, 0
        if peer in own:
            other = ours(args.program, own[peer], args.repeat, args.flush_reads)
            peer_ms, peer_mhz, peer_watts = other["ms"], other["mhz"], other["watts"]
        elif peer:
            try:
                with torch.inference_mode(), Meter() as meter:
                    call = peer_call(torch, peer, case)
                    peer_ms = time_calls(torch, call, args.repeat, args.flush_reads)
                peer_mhz, peer_watts = meter.reading()
            except Exception as error:  # whatever a peer cannot do is its own affair
                print(f"{case[0]} {peer}: {str(error).splitlines()[0][:120]}", file=sys.stderr)
            call = None
            torch.cuda.empty_cache()
        second = ours(args.program, case, args.repeat, args.flush_reads)
        ms = median([first["ms"], second["ms"]]) if peer == "" else (first["ms"] + second["ms"]) / 2
        scale = second["ms"] / ms
        rate = second["gb_per_s" if kind == DECODE else "tflops"] * scale
        out = dict(row, case=case[0], ours_ms=round(ms, 4), ours_call_ms=round(second["call_ms"], 4),
                   ours_choose_ms=round(second["choose_ms"], 4), ours_mhz=second["mhz"], ours_watts=second["watts"],
                   ours_tflops=round(second["tflops"] * scale, 1),
                   ours_gb_per_s=round(second["gb_per_s"] * scale, 1), peer=peer)
        for name in COLUMNS:
            if name in second and name not in out:
                out[name] = second[name]
        if kind == DECODE:
            out["share_of_copy"] = round(out["ours_gb_per_s"] / second["copy_gb_per_s"], 3)
        if peer_ms:
            out.update(peer_ms=round(peer_ms, 4), peer_rate=round(rate * ms / peer_ms, 1),
                       peer_mhz=peer_mhz, peer_watts=peer_watts,
                       ratio=round(peer_ms / ms, 3))
        writer.writerow(out)
        print(f"{case[0]:18} {rate:8.1f} {'GB/s' if kind == DECODE else 'TFLOP/s'}"
              f"  copy {out.get('share_of_copy', '-'):>5}  {peer:6} {out.get('peer_rate', '-'):>8}"
              f"  ratio {out.get('ratio', '-'):>5}  call {second['call_ms'] / ms:.3f}"
              f"  {second['mhz']} MHz {second['watts']} W, {peer_mhz} MHz {peer_watts} W"
              f"  err {second['max_rel_err']:.1e} lse {second['max_lse_err']:.1e}",
              file=sys.stderr, flush=True)


def run_steps(program, row, writer):
    run = subprocess.run([program, "--steps"], capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(run.stderr.strip())
    for line in run.stdout.splitlines():
        step = json.loads(line)
        writer.writerow(dict(row, **{name: round(value, 1) if name.endswith("_us") else value
                                     for name, value in step.items()}))
        print(f"step, {step['contexts']} × {step['tokens']}{' with append' * step['append']}:"
              f" {step['p50_us']:.0f} us, kernel {step['kernel_us']:.0f},"
              f" CPU step {step['cpu_step_us']:.0f}", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", default="", help="a regular expression on the cases' names")
    parser.add_argument("--peers", default="", help="of cudnn, fa2 and flex only these")
    parser.add_argument("--steps", default="", help="where the rows of decode steps go")
    parser.add_argument("--flush-reads", action="store_true")
    parser.add_argument("--repeat", type=int, default=20)
    args = parser.parse_args()
    import torch
    row = dict(results.about(torch), matmul_tflops=round(matmul_tflops(torch), 1))
    cases = [case for case in CASES if re.search(args.only, case[0])]
    failed = results.write(args.out, COLUMNS, cases,
                           lambda case, writer: run_case(torch, args, case, row, writer))
    if args.steps:
        failed |= results.write(args.steps, STEP_COLUMNS, [("steps",)],
                                lambda _, writer: run_steps(args.program, row, writer))
    return failed


if __name__ == "__main__":
    sys.exit(main())
