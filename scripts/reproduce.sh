#!/usr/bin/env bash
# Rebuilds the paper's Table 1, Fig. 7 and Fig. 9:
#   bash scripts/reproduce.sh [--base FOLDER --subjects DIR --clip FOLDER --dino FOLDER] [any flag: --help]
# Without arguments: on the toybox. --smoke: a few steps of everything. --plan: says what it would do.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
# one process: the engine starts its own
EQDIFF_PROCESSES=1 eqdiff_run studies/reproduce/run.py "$@"
