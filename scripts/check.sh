#!/usr/bin/env bash
# Lint, format and all tests: bash scripts/check.sh [any flag of pytest ...]
set -euo pipefail
EQDIFF_REQUIREMENTS=requirements-dev.txt
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

cd -- "$EQDIFF_ROOT"
"$PYTHON" -m ruff check --quiet .
"$PYTHON" -m ruff format --diff --quiet .
exec "$PYTHON" -m pytest --quiet "$@"
