#!/usr/bin/env bash
# Runs studies on the toybox, by the engine of scripts/reproduce.sh, into studies/results/toybox/:
#   bash scripts/ablation.sh [TABLE ...] [any flag of scripts/reproduce.sh]
# Without a table: Fig. 7, the paper's ablation A-F. EQDIFF_PROCESSES=N: N cells at a time.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

tables=()
while [[ $# -gt 0 && $1 != -* ]]; do
  tables+=("$1")
  shift
done
[[ ${#tables[@]} -gt 0 ]] || tables=(fig7)
given=(--tables "${tables[@]}" --output_dir studies/results/toybox --keep pictures concepts)
[[ -z ${EQDIFF_PROCESSES:-} ]] || given+=(--processes "$EQDIFF_PROCESSES")
# one process: the engine starts its own
EQDIFF_PROCESSES=1 eqdiff_run studies/reproduce/run.py "${given[@]}" "$@"
