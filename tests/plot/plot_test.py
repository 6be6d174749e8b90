"""Pictures of every kind of result file, and bad files. Exits 77 (skipped) without matplotlib."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PLOT = os.path.join(ROOT, "bench", "plot", "plot.py")

SCALE = """scenario,scaling,series_tokens,plan,pattern,heads,kv_heads,head_dim,dtype,world,ms,\
work_ms,overhead_ms,imbalance_ms,bandwidth_ms,latency_ms,efficiency
ring,weak,32768,ring,causal,32,8,128,bf16,8,10,8,1,0.5,0.25,0.25,0.9
ring,weak,32768,ring,causal,32,8,128,bf16,16,20,14,1,2,2,1,0.75
cast,weak,8192,group-cast,"s2(64,16,16)",32,8,128,bf16,8,1,1,0,0,0,0,1
"""
BENCH = """plan,pattern,tokens,heads,kv_heads,head_dim,dtype,backend,transport,world,ms,\
tflops_per_rank,pct_of_single,bytes_sent,planned_bytes,exposed_comm_ms,max_over_mean_work,\
max_rel_err
ring,causal,65536,32,8,128,bf16,cpu,mpi,4,812.2,0.11,92.1,805306368,805306368,24,1,1e-3
group-cast,"s2(64,4,16)",65536,32,8,128,bf16,cpu,ucx,4,142,0.1,90,1053068,1053068,14,1.02,1e-3
"""
RANKS = """plan,pattern,tokens,heads,kv_heads,head_dim,dtype,backend,transport,world,ms,\
tflops_per_rank,pct_of_single,bytes_sent,planned_bytes,exposed_comm_ms,max_over_mean_work,\
peer,peer_ms,peer_tflops_per_rank,ratio
ring,causal,131072,32,8,128,bf16,cuda,nccl,4,109.8,320,90.9,16106,16106,2.1,1,cudnn,68.5,513,0.6
ring,causal,131072,32,8,128,bf16,cuda,nccl,4,109.8,320,90.9,16106,16106,2.1,1,fa2,113,310,1.03
heads,causal,131072,32,8,128,bf16,cuda,nccl,4,109.8,320,90.9,28311,28311,8.5,1,,,,
"""
KERNELS = "\n".join(json.dumps({"heads": 8, "kv_heads": 4, "head_dim": 64, **row}) for row in (
    {"kernel": "prefill", "dtype": "f32", "unit": "GFLOP/s", "ours": 150, "peak": 200.5, "peer": 0,
     "peer_name": ""},
    {"kernel": "decode", "dtype": "bf16", "unit": "GB/s", "ours": 33, "peak": 38, "peer": 3,
     "peer_name": "PyTorch SDPA"}))

GPU = """date,gpu,commit,case,q_tokens,ours_ms,ours_tflops,ours_gb_per_s,peer,peer_ms,peer_rate,\
copy_gb_per_s,matmul_tflops
2026-11-23,NVIDIA H200,1,causal-16k,16384,3.9,281.3,34.3,cudnn,1.77,619.7,4232,800
2026-11-23,NVIDIA H200,1,causal-16k,16384,3.9,282.3,34.5,fa2,3.41,322.4,4176,800
2026-11-23,NVIDIA H200,1,decode-1M,1,1.19,14.5,3617,,,,4236,800
"""
QUALITY = """pattern,density,mass,error,speed,decode_bytes,decode_speed,needle_asked,needle_seen,\
needle_found,needle_stray,needle_places,mqar_asked,mqar_seen,mqar_found,mqar_stray
causal,1,1,0,1,1,1,4,4,4,0,"++++",512,512,512,0
"snapkv(64)",0.1,0.8,0.2,,0.1,7,4,4,4,0,"++++",,,,
"causal & window(64)",0.1,0.4,0.6,5,0.1,7,4,2,1,0,"..o+",512,40,30,1
"""
# What was not measured is an empty field of CSV, and null in JSON.
UNMEASURED = (BENCH.replace(",92.1,", ",,").replace(",0.1,90,", ",,,"),
              SCALE.replace(",0.75\n", ",\n"),
              KERNELS.replace('"peer": 0, "peer_name": ""', '"peer": null, "peer_name": null'))
# Of one task.
NEEDLES = """pattern,density,mass,error,speed,decode_bytes,decode_speed,needle_asked,needle_seen,\
needle_found,needle_stray,needle_places,mqar_asked,mqar_seen,mqar_found,mqar_stray
"sink(64)",,,,,,,4,1,1,0,"+...",,,,
"""


class PlotTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def plot(self, text):
        path = os.path.join(self.folder, "result.csv")
        with open(path, "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
        return subprocess.run([sys.executable, PLOT, path], capture_output=True, text=True,
                              check=False)

    def test_every_kind_of_file_gives_both_pictures(self):
        for text, shown in ((SCALE, "s2(64,16,16)"), (BENCH, "s2(64,4,16)"),
                            (RANKS, "context parallel, FA2"),
                            (KERNELS, "PyTorch SDPA"), (GPU, "decode-1M"),
                            (QUALITY, "window(64)"), (QUALITY, "snapkv(64)"),
                            (NEEDLES, "sink(64)")):
            with self.subTest(shown):
                run = self.plot(text)
                self.assertEqual((run.returncode, run.stderr), (0, ""))
                with open(os.path.join(self.folder, "result.svg"), encoding="utf-8") as file:
                    self.assertIn(shown, file.read())
                with open(os.path.join(self.folder, "result.png"), "rb") as file:
                    self.assertEqual(file.read(4), b"\x89PNG")
                os.remove(os.path.join(self.folder, "result.svg"))

    def test_what_was_not_measured_is_not_drawn(self):
        for text in UNMEASURED:
            with self.subTest(text[:20]):
                run = self.plot(text)
                self.assertEqual((run.returncode, run.stderr), (0, ""))
                with open(os.path.join(self.folder, "result.svg"), encoding="utf-8") as file:
                    picture = file.read()
                self.assertNotIn("> 0%<", picture)
                self.assertNotIn("nan", picture)
        # Both rates of the first, neither share.
        self.plot(BENCH)
        with open(os.path.join(self.folder, "result.svg"), encoding="utf-8") as file:
            self.assertIn("92%", file.read())
        self.plot(UNMEASURED[0])
        with open(os.path.join(self.folder, "result.svg"), encoding="utf-8") as file:
            picture = file.read()
        self.assertNotIn("92%", picture)
        self.assertNotIn("one rank alone", picture)

    def test_the_planners_choice_is_told(self):
        header, ring, cast = BENCH.splitlines()
        self.plot(f"{header},chosen\n{ring},false\n{cast},true\n")
        with open(os.path.join(self.folder, "result.svg"), encoding="utf-8") as file:
            picture = file.read()
        self.assertIn("group-cast (auto), ucx", picture)
        self.assertIn("ring, mpi", picture)

    def test_a_bad_file_is_named_in_one_line(self):
        bad = {
            "": "no rows",
            "plan,pattern\n": "no rows below the header",
            "a,b\n1,2\n": "expected the columns of",
            SCALE + "ring,weak\n": "row 4: 2 fields; expected 17",
            SCALE.replace(",16,20,", ",16,twenty,"): "row 2: ms: 'twenty'; expected a number",
            SCALE.replace(",16,20,", ",16,0,"): "row 2: ms: 0.0; expected more than 0",
            SCALE.replace(",14,1,", ",nan,1,"): "work_ms: nan; expected a finite number",
            NEEDLES.replace(",4,1,1,0,", ",four,1,1,0,"): "needle_asked: 'four'; expected a number",
            "{\"kernel\": ": "row 1",
            KERNELS + "\n[1]": "row 3",
            b"\xff\xfe\x00": "utf-8",
        }
        for text, expected in bad.items():
            with self.subTest(expected):
                run = self.plot(text)
                self.assertEqual(run.returncode, 2, run.stderr)
                self.assertEqual(run.stderr.count("\n"), 1, run.stderr)
                self.assertIn(expected, run.stderr)
                self.assertIn("result.csv", run.stderr)
        missing = subprocess.run([sys.executable, PLOT, os.path.join(self.folder, "none")],
                                 capture_output=True, text=True, check=False)
        self.assertEqual((missing.returncode, missing.stderr.count("\n")), (2, 1))


if __name__ == "__main__":
    if importlib.util.find_spec("matplotlib") is None:
        print("skipped: matplotlib is not installed; ./dev plot installs it")
        sys.exit(77)
    unittest.main()
