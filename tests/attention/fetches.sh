#!/usr/bin/env bash
# The kernels' requests for memory are in the machine code: to a compiler they have no effect, and it
# may leave them out. Usage: fetches.sh LIBRARY; exits 77 (skipped) where nobody can look.
set -euo pipefail
[[ $(uname -m) == x86_64 ]] && command -v objdump >/dev/null || exit 77
fetching=$(objdump --disassemble --demangle --no-show-raw-insn "$1" |
  awk '/^[0-9a-f]+ <.*>:$/ { name = $0 } /\tprefetch/ { print name }' | sort -u)
status=0
for kernel in bf16::StreamScores bf16::StreamValues bf16::AttendPanel N_AVX2::StreamScores \
  N_AVX2::StreamAllValues N_AVX2::AttendPanel; do
  if ! grep -q "$kernel<" <<<"$fetching"; then
    echo "$kernel: no prefetch; expected some in its machine code" >&2
    status=1
  fi
done
exit $status
