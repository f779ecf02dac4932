#!/usr/bin/env bash
# All tests with the oldest and the newest libraries that requirements.txt allows, a line for each:
# bash scripts/check_versions.sh [oldest | newest] [any flag of pytest ...]
# The environments lie in .venv-oldest and .venv-newest (up to 6 GB each) and are kept for the next time. oldest needs
# Python 3.10, 3.11 or 3.12 (from PATH or pyenv; the lowest is taken), newest any from 3.10 on (the highest). The newest
# has pillow-heif too, so that HEIC is tested.
# Exit status 1: tests failed, or an end could not be run (no such Python, pip failed): its line says which.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd -- "$ROOT" # with -c and -m Python imports from the folder it is started in

# find_python VERSION ...: prints the first Python of these versions that can make environments.
find_python() {
  local version python
  for version in "$@"; do
    for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
      if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$python"
        return 0
      fi
    done
  done
  return 1
}

# check END REQUIREMENTS VERSIONS: makes the environment, runs the tests (flags in PYTEST), prints the line. A word of
# REQUIREMENTS with .txt is a file here.
check() {
  local end=$1 venv=$ROOT/.venv-$1 log=$ROOT/.venv-$1.log python started=$SECONDS libraries result=0 word
  local needs=()
  for word in $2; do
    if [[ $word == *.txt ]]; then needs+=(-r "$ROOT/$word"); else needs+=("$word"); fi
  done
  if ! python=$(find_python $3); then
    echo "$end: not run: no Python with the module venv among $3; install one of them"
    return 1
  fi
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
  python=$venv/bin/python
  if ! "$python" -m pip install --quiet --upgrade --disable-pip-version-check "${needs[@]}" >"$log" 2>&1; then
    echo "$end: not run: pip could not install $2; see $log"
    return 1
  fi
  libraries=$("$python" - <<'PYTHON_CODE'
import platform
from importlib.metadata import version

names = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pillow")
print(", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)]))
PYTHON_CODE
  )
  (cd -- "$ROOT" && "$python" -m pytest --quiet --numprocesses logical --maxprocesses 8 --dist worksteal ${PYTEST[@]+"${PYTEST[@]}"}) >"$log" 2>&1 || result=$?
  echo "$end ($libraries): $(tail -n 1 "$log"); $((SECONDS - started)) s with the installation; see $log"
  return "$result"
}

ends=(oldest newest)
if [[ ${1:-} == oldest || ${1:-} == newest ]]; then
  ends=("$1")
  shift
fi
PYTEST=("$@")
status=0
for end in "${ends[@]}"; do
  case $end in
    oldest) check oldest requirements-oldest.txt "3.10 3.11 3.12" || status=1 ;;
    newest) check newest "requirements-dev.txt pillow-heif" "3.14 3.13 3.12 3.11 3.10" || status=1 ;;
  esac
done
exit "$status"
