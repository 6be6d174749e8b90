"""Plans over the GPUs of this machine, one rank each over NCCL, beside PyTorch's context parallel.

    python3 bench/gpu/ranks.py --program build/bundle/annulus_bench --out FILE.csv [--gpus N]

Ours is `mpirun annulus_bench --backend cuda --transport nccl`, which compares rows of every rank with
float64 and bytes with the plan's, and measures one GPU alone with the same problem: as much of it as
--single-s seconds allow, the rest by the share of its work (column single_share). The peer is
torch.distributed's context_parallel around scaled_dot_product_attention, for causal cases; as it needs
as many KV heads as heads, it is given KV heads repeated. Times are of the slowest rank, medians, from a
barrier on. TFLOP/s of a GPU are 4·visited pairs·d over all query heads / time / GPUs.

Cases run in order of importance. With --budget-s a case that would not fit into what is left is
skipped with a line. --transport mpi or ucx tries the same on CPUs, with --shrink on small inputs.
"""

import argparse
import collections
import contextlib
import json
import os
import subprocess
import sys
import time

import results

# seconds: about what the case takes on four H100s, to know whether it fits
Case = collections.namedtuple("Case", "name tokens pattern plans repeat seconds heads kv_heads dim",
                              defaults=(32, 8, 128))


def documents(tokens):
    """Uneven ones, of odd lengths: half of all, a quarter, …"""
    lengths = []
    while tokens > 2048:
        lengths.append(tokens // 2 + 37)
        tokens -= lengths[-1]
    return f"docs({','.join(map(str, lengths + [tokens]))}) & causal"


S2 = "s2(64,16,8)"
MIX = "heads(0-1: causal; 2-7: window(4096))"
ALL = "ring,heads,mesh,group-cast"
K = 1 << 10
CASES = [
    Case("causal-128k", 128 * K, "causal", ALL, 10, 25),
    Case("s2-1m", 1024 * K, S2, "group-cast,ring", 2, 40),
    Case("causal-1m", 1024 * K, "causal", "group-cast,ring,heads,mesh", 1, 95),
    Case("s2-512k", 512 * K, S2, "group-cast,ring,heads", 4, 25),
    Case("mix-512k", 512 * K, MIX, "group-cast,ring,heads", 3, 25),
    Case("causal-512k", 512 * K, "causal", ALL, 2, 40),
    Case("docs-512k", 512 * K, documents(512 * K), "group-cast,ring,heads", 3, 25),
    Case("causal-128k-mha", 128 * K, "causal", "ring,heads", 10, 20, 16, 16),
    Case("s2-128k", 128 * K, S2, ALL, 10, 20),
    Case("docs-128k", 128 * K, documents(128 * K), ALL, 10, 20),
    Case("causal-128k-contiguous", 128 * K, "causal", "ring-contiguous", 5, 20),
]
# Of the peer: cases whose problem it runs too, all in one job after this many of ours.
PEER_CASES, PEER_AFTER, PEER_SECONDS = ("causal-128k", "causal-128k-mha", "causal-512k"), 4, 50
OURS = ("plan pattern tokens heads kv_heads head_dim dtype backend transport world ms tflops_per_rank pct_of_single "
        "bytes_sent planned_bytes exposed_comm_ms max_over_mean_work max_rel_err checked_rows "
        "stages predicted_ms single_ms single_share repeat")
COLUMNS = f"date gpu commit case {OURS} peer peer_ms peer_tflops_per_rank ratio".split()
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def ours(args, case, limit_s):
    """annulus_bench's rows; those it came to if it fails or takes longer, and then why."""
    # Unbound: a rank's threads list blocks and look after NCCL beside each other.
    command = ["mpirun", "--bind-to", "none", "-np", args.gpus, args.program,
               "--transport", args.transport, "--plan", case.plans, "--pattern", case.pattern,
               "--tokens", case.tokens, "--heads", case.heads, "--kv-heads", case.kv_heads,
               "--head-dim", case.dim, "--repeat", min(case.repeat, args.repeat), "--check",
               "--check-rows", args.check_rows, "--single-s", args.single_s, "--json"]
    if args.transport != "nccl":
        command.insert(1, "--oversubscribe")
    else:
        command += ["--backend", "cuda"]
    if args.clusters:
        command += ["--save-cluster", os.path.join(args.clusters, f"{case.name}.json")]
    with subprocess.Popen([str(part) for part in command], env=dict(os.environ, **MPI),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        why = None
        try:
            out, err = job.communicate(timeout=limit_s)
            if job.returncode != 0:
                why = (err.strip().splitlines() or [f"exit {job.returncode}"])
                why = next((line for line in why if line.startswith("annulus_bench:")), why[-1])
        except subprocess.TimeoutExpired:
            job.terminate()  # mpirun ends its ranks
            out, err = job.communicate()
            why = f"not done after {limit_s:.0f} s"
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")], why


def peers(args, limit_s):
    """Seconds of PyTorch's context parallel by (case, backend), each GPU a process."""
    cases = [case for case in args.chosen if case.name in PEER_CASES]
    work = [{"case": case.name, "tokens": case.tokens, "heads": case.heads, "dim": case.dim,
             "backend": backend, "repeat": min(case.repeat, args.repeat)}
            for case in cases for backend in ("cudnn", "fa2")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               str(args.gpus), __file__, "--peer-work", json.dumps(work)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        try:
            out, err = job.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            job.terminate()
            out, err = job.communicate()
    seconds = {}
    for line in out.splitlines():
        if not line.startswith("{"):
            continue
        one = json.loads(line)
        if "error" in one:  # whatever a peer cannot do is its own affair
            say(f"{one['case']} {one['backend']}: {one['error'][:200]}")
        else:
            seconds[one["case"], one["backend"]] = one["seconds"]
    if job.returncode != 0:
        say(f"peers: exit {job.returncode}: {(err.strip().splitlines() or [''])[-1][:200]}")
    if args.log:
        with open(args.log, "w", encoding="utf-8") as file:
            file.write(out + err)
    return seconds


def be_peer(all_work):
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(rank)
    mesh = init_device_mesh("cuda", (world,), mesh_dim_names=("cp",))
    for work in all_work:
        said = {"case": work["case"], "backend": work["backend"]}
        try:
            said["seconds"] = peer_seconds(work, mesh)
        except Exception as error:  # pylint: disable=broad-except
            said["error"] = f"{type(error).__name__}: {error}".replace("\n", " ")
            print(f"rank {rank}: {said}", file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
        if rank == 0:
            print(json.dumps(said), flush=True)
    dist.destroy_process_group()


def peer_seconds(work, mesh):
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor.experimental import context_parallel
    from torch.nn.attention import SDPBackend, sdpa_kernel
    torch.manual_seed(1)
    shape = (1, work["heads"], work["tokens"], work["dim"])
    q, k, v = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    backend = {"cudnn": SDPBackend.CUDNN_ATTENTION, "fa2": SDPBackend.FLASH_ATTENTION}
    times = []
    with torch.no_grad(), sdpa_kernel(backend[work["backend"]]):
        with context_parallel(mesh, buffers=[q, k, v], buffer_seq_dims=[2, 2, 2]):
            for run in range(work["repeat"] + 1):
                dist.barrier()
                torch.cuda.synchronize()
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                end.record()
                end.synchronize()
                seconds = torch.tensor([begin.elapsed_time(end) / 1e3], device="cuda")
                dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
                if run > 0:
                    times.append(seconds.item())
    return sorted(times)[(len(times) - 1) // 2]


def gpu_names():
    """Without PyTorch, which would keep some of a GPU's memory."""
    lines = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], check=True,
                           capture_output=True, text=True).stdout.splitlines()
    return [line.strip() for line in lines]


@contextlib.contextmanager
def watched(path):
    """Twice a second what each GPU draws and how fast it runs: one alone may run faster than one of many."""
    if not path:
        yield
        return
    query = "timestamp,index,clocks.sm,power.draw,temperature.gpu,clocks_event_reasons.active"
    with open(path, "w", encoding="utf-8") as file:
        watch = subprocess.Popen(["nvidia-smi", f"--query-gpu={query}", "--format=csv", "-lms", "500"],
                                 stdout=file)
        try:
            yield
        finally:
            watch.terminate()
            watch.wait()


def say(line):
    print(line, file=sys.stderr, flush=True)


class Run:
    """Our rows go to the file once the peers' times, if any, stand beside them."""

    def __init__(self, args, row):
        self.args, self.row = args, row
        self.end = time.monotonic() + (args.budget_s or float("inf"))
        self.rows, self.peers, self.began = [], {}, 0

    def left(self):
        return self.end - time.monotonic()

    def fits(self, name, seconds):
        if self.left() >= seconds:
            return True
        say(f"{name}: skipped, takes about {seconds} s and {self.left():.0f} s are left")
        return False

    def case(self, case):
        begin = time.monotonic()
        rows, why = ours(self.args, case, min(self.left(), 3600))
        for plan in rows:
            self.rows.append(dict(self.row, case=case.name, **{name: plan[name] for name in OURS.split()}))
            of_single = "" if plan["pct_of_single"] is None else f"{plan['pct_of_single']:5.1f}% of one, "
            say(f"{case.name:16} {plan['plan']:16} {plan['ms']:10.3f} ms "
                f"{plan['tflops_per_rank']:6.1f} TFLOP/s a GPU, {of_single}"
                f"exposed {plan['exposed_comm_ms']:7.2f} ms, {plan['bytes_sent'] / 1e6:8.1f} MB, "
                f"max/mean {plan['max_over_mean_work']:.3f}")
        say(f"{case.name}: {time.monotonic() - begin:.0f} s")
        if why is not None:
            raise RuntimeError(why)

    def write(self):
        """The whole file anew: what there is so far."""
        def run_case(case, writer):
            name = case[0]
            for row in (row for row in self.rows if row["case"] == name):
                beside = {of[1]: seconds for of, seconds in self.peers.items() if of[0] == name}
                for backend, seconds in (beside or {"": 0}).items():
                    out = dict(row, peer=backend)
                    if seconds:
                        ratio = seconds * 1e3 / row["ms"]
                        out.update(peer_ms=round(seconds * 1e3, 3), ratio=round(ratio, 3),
                                   peer_tflops_per_rank=round(row["tflops_per_rank"] / ratio, 1))
                    writer.writerow(out)
        names = dict.fromkeys(row["case"] for row in self.rows)
        results.write(self.args.out, COLUMNS, [(name,) for name in names], run_case)

    def all(self):
        failed = False
        with_peers = self.args.transport == "nccl" and not self.args.no_peers
        for number, case in enumerate(self.args.chosen):
            if with_peers and number == PEER_AFTER and self.fits("peers", PEER_SECONDS):
                self.peers = peers(self.args, self.left())
                say(f"peers: {self.peers}")
            if not self.fits(case.name, case.seconds):
                continue
            try:
                self.case(case)
            except RuntimeError as error:
                say(f"{case.name}: {error}")
                failed = True
            self.write()
        return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="build/bundle/annulus_bench")
    parser.add_argument("--out")
    parser.add_argument("--gpus", type=int, default=0, help="ranks; all GPUs if not given")
    parser.add_argument("--cases", help="names, separated by commas (all)")
    parser.add_argument("--repeat", type=int, default=10, help="at most")
    parser.add_argument("--budget-s", type=float, default=0, help="seconds for everything; 0: no limit")
    parser.add_argument("--single-s", type=int, default=10, help="for one GPU alone, each case")
    parser.add_argument("--check-rows", type=int, default=8, help="of each rank")
    parser.add_argument("--clusters", help="folder for what annulus_scale takes, a file a case")
    parser.add_argument("--log", help="file for what the peers say")
    parser.add_argument("--watch", help="file for the GPUs' clocks and power meanwhile")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--transport", default="nccl", choices=["nccl", "mpi", "ucx"])
    parser.add_argument("--shrink", type=int, default=1, help="divides the tokens of all cases")
    parser.add_argument("--peer-work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer_work:
        return be_peer(json.loads(args.peer_work))
    asked = args.cases.split(",") if args.cases else [case.name for case in CASES]
    args.chosen = [shrunk(case, args.shrink) for case in CASES if case.name in asked]
    names = gpu_names() if args.transport == "nccl" else ["none"] * 4
    args.gpus = args.gpus or len(names)
    if args.clusters:
        os.makedirs(args.clusters, exist_ok=True)
    with watched(args.watch):
        return Run(args, results.about_gpu(names[0])).all()


def shrunk(case, by):
    if by == 1:
        return case
    tokens = case.tokens // by
    pattern = documents(tokens) if case.pattern.startswith("docs") else case.pattern
    return case._replace(tokens=tokens, pattern=pattern, dim=32)


if __name__ == "__main__":
    sys.exit(main())
