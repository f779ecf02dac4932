#!/usr/bin/env bash
# Breaks the method one line at a time and looks whether a test notices: bash scripts/mutants.sh [--only NAME ...]
set -euo pipefail
EQDIFF_REQUIREMENTS=requirements-dev.txt
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

exec "$PYTHON" "$EQDIFF_ROOT/tests/mutants/run.py" "$@"
