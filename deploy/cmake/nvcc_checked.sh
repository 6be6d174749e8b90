#!/bin/sh
# nvcc_checked.sh BYTES COMMAND…: runs a compiler of CUDA sources with ptxas's report on (-Xptxas -v).
# Fails where ptxas says that a kernel is not what its source asks for: that it waits between matrix
# products or ignores setmaxnreg (notes C7508, C7510 to C7520), or keeps more than BYTES of a thread's
# registers in memory.
most=$1
shift
report=$("$@" 2>&1)
status=$?
if [ "$status" != 0 ]; then
  printf '%s\n' "$report" >&2
  exit "$status"
fi
bad=$(printf '%s\n' "$report" | awk -v most="$most" '
  /Compiling entry function/ { entry = $0 }
  /C75(08|1[0-9]|20)/ { print }
  / bytes spill stores/ { if ($5 + 0 > most || $1 + 0 > most) print entry "\n" $0 }')
if [ -n "$bad" ]; then
  printf '%s\n' "$bad" "nvcc_checked: expected at most $most bytes of spills and no note C75xx" >&2
  exit 1
fi
printf '%s\n' "$report" | grep -vE '^ptxas info|^ +[0-9]+ bytes stack frame|^$' >&2
exit 0
