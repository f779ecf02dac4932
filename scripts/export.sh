#!/usr/bin/env bash
# Writes a learned subject for somewhere else: bash scripts/export.sh [CONCEPT] [any flag of export_concept.py ...]
# Without arguments: the newest concept under outputs/, as it is, into export/ beside it.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

if [[ $# -gt 0 && $1 != -* ]]; then
  set -- --concept "$@"
fi
# one process: two would write the same files
EQDIFF_PROCESSES=1 eqdiff_run export_concept.py "$@"
