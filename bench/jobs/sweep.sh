#!/usr/bin/env bash
# What both kinds of job run: a few problems under all plans that fit them, over both transports.
#   sweep.sh FOLDER LAUNCHER…        e.g. sweep.sh results mpirun -np 8
# Writes FOLDER/PROBLEM-TRANSPORT.csv and .json, which `./dev plot FOLDER/*.csv` draws.
# From the environment, where the defaults do not fit:
#   BENCH       the program (build/release/annulus_bench)
#   TOKENS      of a prefill (32K), DECODE_TOKENS of the context of a decode (1M)
#   TRANSPORTS  "mpi ucx"
#   CLUSTER     a file that describes the machines (`annulus explain --cluster`), for jobs over
#               several nodes: without it plans are weighed as if all ranks were on one
# Any ANNULUS_… variable is an option of annulus_bench, as ANNULUS_REPEAT=3.
set -euo pipefail

if [[ $# -lt 2 ]]; then
  echo "usage: sweep.sh FOLDER LAUNCHER…" >&2
  exit 2
fi
folder=$1
shift
bench=${BENCH:-$(dirname "${BASH_SOURCE[0]}")/../../build/release/annulus_bench}
tokens=${TOKENS:-32K}
mkdir -p "$folder"

shape=(--heads 32 --kv-heads 8 --head-dim 128 --dtype bf16 --check --json)
if [[ -n ${CLUSTER:-} ]]; then
  shape+=(--cluster "$CLUSTER")
else
  # Measured by rank 0 on the first run and kept beside the results.
  shape+=(--calibration "$folder/machine.json")
fi

status=0
run() {  # LAUNCHER… -- NAME OPTION…
  local launcher=()
  while [[ $1 != -- ]]; do
    launcher+=("$1")
    shift
  done
  local name=$2 transport
  shift 2
  for transport in ${TRANSPORTS:-mpi ucx}; do
    echo "sweep: $name over $transport" >&2
    # A wrong row or a byte too many fails the job, but not before the rest has run.
    "${launcher[@]}" "$bench" --transport "$transport" "${shape[@]}" "$@" \
      --csv "$folder/$name-$transport.csv" >"$folder/$name-$transport.json" || status=$?
  done
}

run "$@" -- causal --pattern causal --tokens "$tokens" \
  --plan ring,ring-contiguous,heads,mesh,group-cast
# Each of the 8 KV heads sees every 8th block at an offset of its own, and the last 16.
run "$@" -- s2 --pattern 's2(64,16,8)' --tokens "$tokens" --plan ring,heads,mesh,group-cast
run "$@" -- window --pattern 'causal & window(8192) | sink(64) & causal' --tokens "$tokens" \
  --plan ring,group-cast
run "$@" -- decode --pattern causal --tokens "${DECODE_TOKENS:-1M}" --q-tokens 1 --plan pass-q,heads
exit "$status"
