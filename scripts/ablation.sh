#!/usr/bin/env bash
# Runs studies on the toybox:
#   bash scripts/ablation.sh [STUDY ...] [any flag of studies/ablation/run.py]
# Without arguments: the paper's ablation A-F. EQDIFF_PROCESSES=N: N cells at a time.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
eqdiff_run studies/ablation/run.py "$@"
