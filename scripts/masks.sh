#!/usr/bin/env bash
# Makes masks of a subject's photos: bash scripts/masks.sh SUBJECT_DIR [CLASS_WORD] [any flag of make_masks.py ...]
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
# one process: two would write the same files
EQDIFF_PROCESSES=1 eqdiff_run make_masks.py ${named[@]+"${named[@]}"} "$@"
