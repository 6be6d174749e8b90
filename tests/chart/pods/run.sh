#!/usr/bin/env bash
# run.sh FILE [PROGRAM IMAGE]: the tests of a file. Exits 77 (skipped) where ./dev chart --tools has not
# run, or containers cannot.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
python=$root/build/venv/bin/python
[[ -x $python ]] && $python -c 'import yaml' 2>/dev/null || exit 77
export PYTHONPATH=$root/tests/chart
exec "$python" -W ignore::ResourceWarning "$@"
