#!/usr/bin/env bash
# run.sh FOLDER [BUNDLE]: everything about GPUs in one run, on a machine that has some: checks, then
# times beside PyTorch, with the programs of `./dev bundle` (build/bundle; a .tar.gz is unpacked
# first). Leaves in FOLDER: checks.log, kernels.csv and steps.csv (one GPU) and, with several,
# ranks.csv. Needs
# Python with PyTorch; for several GPUs mpirun and NCCL too.
set -uo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
out=${1:?"folder for the results"}
bundle=${2:-$here/../../build/bundle}
mkdir -p "$out"
if [[ -f $bundle ]]; then
  mkdir -p "$out/bundle" && tar -xzf "$bundle" -C "$out/bundle" || exit
  bundle=$out/bundle
fi
failed=0

check() {  # NAME COMMAND…
  local name=$1
  shift
  echo "== $name" >>"$out/checks.log"
  if "$@" >>"$out/checks.log" 2>&1; then
    echo "$name: ok" >&2
  else
    echo "$name: FAILED, see $out/checks.log" >&2
    failed=1
  fi
}

: >"$out/checks.log"
gpus=$(nvidia-smi -L | wc -l)
check version "$bundle/annulus" version
check kernels "$bundle/test_attention"
check engine "$bundle/test_engine"
[[ ! -x $bundle/test_gpu ]] || check instructions "$bundle/test_gpu"
[[ ! -x $bundle/test_nccl ]] || check nccl "$bundle/test_nccl" '~[channels]~[.]'
check demo "$bundle/annulus" demo --backend cuda --out-dir "$out/demo"
python3 "$here/gpu.py" --program "$bundle/annulus_gpu_bench" --out "$out/kernels.csv" \
  --steps "$out/steps.csv" || failed=1
if [[ $gpus -gt 1 && -x $bundle/annulus_bench ]]; then
  python3 "$here/ranks.py" --program "$bundle/annulus_bench" --out "$out/ranks.csv" || failed=1
fi
exit $failed
