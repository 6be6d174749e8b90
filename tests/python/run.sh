#!/usr/bin/env bash
# run.sh FILE: the tests of a file, with the package that ./dev wheel has installed; run.sh lint:
# style and types of all Python. Exits 77 (skipped) where ./dev wheel has not run.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
python=build/venv/bin/python
[[ -x $python ]] && $python -c 'import annulus' 2>/dev/null || exit 77
if [[ $1 == lint ]]; then
  files=(python tests/python tests/chart bench/python deploy/wheel.py helm)
  $python -m ruff check "${files[@]}"
  $python -m ruff format --check "${files[@]}"
  exec $python -m mypy
fi
export OPENBLAS_NUM_THREADS=1  # beside workers' threads, more of NumPy's wait for each other
status=0
$python -m pytest -q -rs -p no:cacheprovider "$1" || status=$?
[[ $status != 5 ]] || status=77  # every test was skipped by name before it began
exit $status
