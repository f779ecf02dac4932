#!/usr/bin/env bash
# The page in the browser, on this machine alone: bash scripts/app.sh [any flag of app/serve.py ...]
# The first time it installs gradio into .venv, unless your environment has it.
set -euo pipefail
EQDIFF_REQUIREMENTS=requirements-app.txt
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

# one process: it starts the others
EQDIFF_PROCESSES=1 eqdiff_run app/serve.py "$@"
