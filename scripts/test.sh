#!/usr/bin/env bash
# Draws a learned subject: bash scripts/test.sh [CONCEPT] [any flag of test_eqdiff.py ...]
# Without arguments: the newest concept under outputs/. EQDIFF_PROCESSES=N: the prompts are shared out.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

if [[ $# -gt 0 && $1 != -* ]]; then
  set -- --concept "$@"
fi
eqdiff_threads
eqdiff_run test_eqdiff.py "$@"
