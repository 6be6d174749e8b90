#!/usr/bin/env bash
# run.sh FOLDER SECONDS: all libFuzzer programs of a build folder in so long, each for its share, as
# many at a time as there are cores. What they reach beyond the corpus grows in FOLDER/fuzz and is
# the next run's start; an input that ends a program lies in FOLDER/fuzz/findings. One line a
# target, then a row for the table of reliability; exit 1 on a finding.
set -uo pipefail
build=$(realpath "$1")
corpus=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/corpus
mapfile -t targets < <(find "$corpus" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' | sort)
jobs=$(nproc)
rounds=$(((${#targets[@]} + jobs - 1) / jobs))
seconds=$(($2 / rounds > 0 ? $2 / rounds : 1))

fuzz_one() {
  local name=$1 log=$build/fuzz/$1.log status=0
  mkdir -p "$build/fuzz/$name" "$build/fuzz/findings"
  # -timeout: an input that takes seconds is a finding too.
  "$build/fuzz_$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 \
    -print_final_stats=1 -artifact_prefix="$build/fuzz/findings/$name-" \
    "$build/fuzz/$name" "$corpus/$name" >"$log" 2>&1 || status=$?
  local runs reached
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  reached=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
  printf '%-12s %10s runs, %5s branches reached: %s\n' "$name" "${runs:-?}" "${reached:-?}" \
    "$([[ $status == 0 ]] && echo "no finding" || echo "A FINDING, see $log")"
  if [[ $status != 0 ]]; then
    grep -E '^(ALARM|SUMMARY|Base64)|check failed:|ERROR: ' "$log" | sed "s/^/  $name: /"
  fi
  return "$status"
}
export -f fuzz_one
export build seconds corpus

status=0
printf '%s\n' "${targets[@]}" |
  xargs -P "$jobs" -I{} bash -c 'fuzz_one {} || exit 1' || status=1
runs=$(for target in "${targets[@]}"; do cat "$build/fuzz/$target.log"; done |
  awk '/^stat::number_of_executed_units:/ { sum += $2 } END { printf "%d", sum }')
[[ $status == 0 && $runs -ge 100000000 ]] && met=yes || met=no
printf 'reliability\t10\tbytes of strangers, %s readers fuzzed\t%s s\tno finding, 10^8 runs\t%s runs, %s\t%s\n' \
  "${#targets[@]}" "$2" "$runs" "$([[ $status == 0 ]] && echo "no finding" || echo "FINDINGS")" "$met"
exit "$status"
