"""Plans over the GPUs of this machine, one rank each over NCCL, beside PyTorch's context parallel.

    python3 bench/gpu/ranks.py --program build/bundle/annulus_bench --out FILE.csv [--gpus N]

Ours is `mpirun annulus_bench --backend cuda --transport nccl`, which compares rows of every rank with
float64 and bytes with the plan's. The peer is torch.distributed's context_parallel around
scaled_dot_product_attention, for the causal case that it can do (as many KV heads as heads). Both
run in turn; times are of the slowest rank, medians, from a barrier on. TFLOP/s of a GPU are 4·visited
pairs·d over all query heads / time / GPUs.
"""

import argparse
import json
import os
import subprocess
import sys

import results

# name, tokens, heads, KV heads, head dim, pattern, plans, peers
CASES = [
    ("causal-128k", 1 << 17, 32, 8, 128, "causal", "ring,ring-contiguous,heads,mesh,group-cast", ()),
    ("causal-128k-mha", 1 << 17, 16, 16, 128, "causal", "ring,heads", ("cudnn", "fa2")),
    ("s2-128k", 1 << 17, 32, 8, 128, "s2(64,16,8)", "ring,heads,group-cast", ()),
    ("s2-128k-heads", 1 << 17, 32, 8, 128, "s2(64,16,8,dense_heads=1)", "ring,group-cast", ()),
]
OURS = ("plan pattern tokens heads kv_heads head_dim dtype backend transport world ms tflops_per_rank pct_of_single "
        "bytes_sent planned_bytes exposed_comm_ms max_over_mean_work max_rel_err checked_rows")
COLUMNS = f"date gpu commit case {OURS} peer peer_ms peer_tflops_per_rank ratio".split()
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def ours(args, case):
    _, tokens, heads, kv_heads, dim, pattern, plans, _ = case
    command = ["mpirun", "-np", args.gpus, args.program, "--backend", "cuda", "--transport", "nccl",
               "--plan", plans, "--pattern", pattern, "--tokens", tokens, "--heads", heads,
               "--kv-heads", kv_heads, "--head-dim", dim, "--repeat", args.repeat, "--check", "--json"]
    done = subprocess.run([str(part) for part in command], env=dict(os.environ, **MPI),
                          capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return [json.loads(line) for line in done.stdout.splitlines()]


def peer(args, case, backend):
    """Seconds of PyTorch's context parallel, each GPU a process."""
    work = {"tokens": case[1], "heads": case[2], "dim": case[4], "backend": backend,
            "repeat": args.repeat}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               str(args.gpus), __file__, "--peer-work", json.dumps(work)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])["seconds"]


def be_peer(work):
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import context_parallel
    from torch.nn.attention import SDPBackend, sdpa_kernel
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(rank)
    mesh = init_device_mesh("cuda", (world,), mesh_dim_names=("cp",))
    torch.manual_seed(1)
    shape = (1, work["heads"], work["tokens"], work["dim"])
    q, k, v = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    backend = {"cudnn": SDPBackend.CUDNN_ATTENTION, "fa2": SDPBackend.FLASH_ATTENTION}
    times = []
    with torch.inference_mode(), sdpa_kernel(backend[work["backend"]]):
        with context_parallel(mesh, buffers=[q, k, v], buffer_seq_dims=[2, 2, 2]):
            for run in range(work["repeat"] + 2):
                dist.barrier()
                torch.cuda.synchronize()
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                end.record()
                end.synchronize()
                seconds = torch.tensor([begin.elapsed_time(end) / 1e3], device="cuda")
                dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
                if run >= 2:
                    times.append(seconds.item())
    if rank == 0:
        print(json.dumps({"seconds": sorted(times)[len(times) // 2]}), flush=True)
    dist.destroy_process_group()


def run_case(args, case, row, writer):
    rows = ours(args, case)
    peers = {}
    for backend in case[-1]:
        try:
            peers[backend] = peer(args, case, backend)
        except RuntimeError as error:  # whatever a peer cannot do is its own affair
            print(f"{case[0]} {backend}: {str(error)[:160]}", file=sys.stderr)
    if peers:  # ours again, so that both had the machine before and after
        for first, second in zip(rows, ours(args, case)):
            scale = (first["ms"] + second["ms"]) / 2 / first["ms"]
            first["ms"] *= scale
            first["tflops_per_rank"] /= scale
    for plan in rows:
        for backend, seconds in (peers or {"": 0}).items():
            out = dict(row, case=case[0], peer=backend)
            out.update({name: plan[name] for name in OURS.split()})
            if seconds:
                ratio = seconds * 1e3 / plan["ms"]
                out.update(peer_ms=round(seconds * 1e3, 3), ratio=round(ratio, 3),
                           peer_tflops_per_rank=round(plan["tflops_per_rank"] / ratio, 1))
            writer.writerow(out)
            print(f"{case[0]:16} {plan['plan']:16} {plan['ms']:9.3f} ms "
                  f"{plan['tflops_per_rank']:6.1f} TFLOP/s a GPU, {plan['pct_of_single']:5.1f}% of one, "
                  f"exposed {plan['exposed_comm_ms']:6.2f} ms, {plan['bytes_sent'] / 1e6:8.1f} MB  "
                  f"{backend:6} {out.get('ratio', '')}", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="build/bundle/annulus_bench")
    parser.add_argument("--out")
    parser.add_argument("--gpus", type=int, default=0, help="ranks; all GPUs if not given")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--peer-work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer_work:
        return be_peer(json.loads(args.peer_work))
    import torch
    args.gpus = args.gpus or torch.cuda.device_count()
    row = results.about(torch)
    return results.write(args.out, COLUMNS, CASES,
                         lambda case, writer: run_case(args, case, row, writer))


if __name__ == "__main__":
    sys.exit(main())
