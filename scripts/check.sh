#!/usr/bin/env bash
# Lint, format and all tests but the long ones: bash scripts/check.sh [any flag of pytest ...]; it names the slowest.
# bash scripts/check.sh --fast [any flag of pytest ...] leaves out the tests marked slow too, says how many, and names
# those that have become slow: under two minutes on two cores.
# bash scripts/check.sh --long [any flag of pytest ...] runs the long tests too, the mutants (scripts/mutants.sh) and the
# soak (benchmarks/soak.py), over an hour in all on two cores, and writes the figures to docs/check_long.log. Each part
# runs whatever became of those before it; exit status 1: one of them failed.
set -euo pipefail
EQDIFF_REQUIREMENTS=requirements-dev.txt
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

# A test process for each core; -n 0 among your flags runs them in one, as a debugger needs it.
PYTEST=(-m pytest --quiet --numprocesses logical --maxprocesses 8 --dist worksteal)

# part TITLE COMMAND ...: its output below its title, the time it took after it.
part() {
  local title=$1 started=$SECONDS result=passed
  shift
  echo "== $title"
  "$@" || { result=FAILED && failed=1; }
  echo "-- $title: $result in $((SECONDS - started)) s"
}

tests() {
  "$PYTHON" "${PYTEST[@]}" -m "" "$@" | tee >(cat >&2) | { grep -E "^(FAILED|ERROR|figure:)|(passed|failed|error).* in " || true; }
}

everything() {
  local failed=0
  "$PYTHON" - <<'PYTHON_CODE'
from datetime import date

from benchmarks.common import commit, machine, versions

facts = {"date": date.today(), "commit": commit(), **machine(), **versions()}
print(", ".join(f"{name} {value}" for name, value in facts.items()))
PYTHON_CODE
  part "tests, the long ones too" tests "$@"
  part mutants "$PYTHON" tests/mutants/run.py
  part soak "$PYTHON" -m benchmarks.soak --json benchmarks/soak.json
  return "$failed"
}

cd -- "$EQDIFF_ROOT"
eqdiff_path
"$PYTHON" -m ruff check --quiet .
"$PYTHON" -m ruff format --diff --quiet .
if [[ ${1:-} == --long ]]; then
  shift
  status=0
  # beside it: the former log is committed, and would be a change of the commit that the new one names
  everything "$@" | tee docs/check_long.log.partial || status=1
  mv docs/check_long.log.partial docs/check_long.log
  exit "$status"
elif [[ ${1:-} == --fast ]]; then
  shift
  exec "$PYTHON" "${PYTEST[@]}" -m "not long and not slow" --durations 10 --durations-min 3 "$@"
else
  exec "$PYTHON" "${PYTEST[@]}" --durations 20 --durations-min 8 "$@"
fi
