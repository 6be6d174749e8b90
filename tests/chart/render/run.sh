#!/usr/bin/env bash
# run.sh FILE [PROGRAM]: the tests of a file. Exits 77 (skipped) where ./dev chart --tools has not run.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
python=$root/build/venv/bin/python
export ANNULUS_PROGRAM=${2:-} PYTHONPATH=$root/tests/chart
needs='import checkov, kubernetes_validate, pytest, chart; assert all(map(chart.helm, chart.VERSIONS))'
[[ -x $python ]] && $python -c "$needs" 2>/dev/null || exit 77
status=0
$python -m pytest -q -rs -p no:cacheprovider "$1" || status=$?
[[ $status != 5 ]] || status=77  # every test was skipped by name before it began
exit $status
