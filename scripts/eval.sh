#!/usr/bin/env bash
# Measures drawn pictures: bash scripts/eval.sh [SAMPLES_DIR ...] [any flag of eval_eqdiff.py ...]
# Without arguments: the newest samples under outputs/.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

if [[ $# -gt 0 && $1 != -* ]]; then
  set -- --samples "$@"
fi
eqdiff_threads
# one process: two would write the same files
EQDIFF_PROCESSES=1 eqdiff_run eval_eqdiff.py "$@"
