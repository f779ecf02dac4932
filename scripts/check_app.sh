#!/usr/bin/env bash
# The tests of the page in the browser: bash scripts/check_app.sh [any flag of pytest ...]
# They run in .venv-app, which stands on the environment of check.sh: gradio takes no pillow as new as is tested there.
set -euo pipefail
EQDIFF_REQUIREMENTS=requirements-dev.txt
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

venv=$EQDIFF_ROOT/.venv-app
if ! eqdiff_satisfies "$venv/bin/python" "$EQDIFF_ROOT/requirements-app.txt"; then
  echo "making $venv" >&2
  eqdiff_apart "$PYTHON" -m venv --clear "$venv"
  below=$(eqdiff_apart "$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  own=$(eqdiff_apart "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$below" >"$own/below.pth"
  eqdiff_apart "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$EQDIFF_ROOT/requirements-app.txt"
fi

cd -- "$EQDIFF_ROOT"
eqdiff_path
exec "$venv/bin/python" -m pytest --quiet tests/test_app*.py "$@"
