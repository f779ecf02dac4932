#!/usr/bin/env bash
# Teaches the model a subject: bash scripts/train.sh [SUBJECT_DIR] [CLASS_WORD] [any flag of train_eqdiff.py ...]
# Without arguments: a bundled subject on the bundled base. EQDIFF_PROCESSES=N: data-parallel.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

named=()
for flag in --instance_data_dir --class_word; do
  if [[ $# -gt 0 && $1 != -* ]]; then
    named+=("$flag" "$1")
    shift
  fi
done
eqdiff_threads
eqdiff_run train_eqdiff.py ${named[@]+"${named[@]}"} "$@"
