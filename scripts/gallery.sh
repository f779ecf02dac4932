#!/usr/bin/env bash
# Writes a page of a run, or of several side by side: bash scripts/gallery.sh [RUN ...] [any flag of make_gallery.py ...]
# Without arguments: the newest run under outputs/.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

if [[ $# -gt 0 && $1 != -* ]]; then
  set -- --runs "$@"
fi
# one process: two would write the same file
EQDIFF_PROCESSES=1 eqdiff_run make_gallery.py "$@"
