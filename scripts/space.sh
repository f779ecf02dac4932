#!/usr/bin/env bash
# Writes the checked-out commit as a Space of the Hugging Face hub: bash scripts/space.sh FOLDER
# Its README.md is that of app/, which says how a Space starts the page. The folder must not be there yet.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
fail() {
  echo "error: $*" >&2
  exit 2
}

folder=${1:-}
[[ -n $folder ]] || fail "no folder is named: bash scripts/space.sh FOLDER"
[[ ! -e $folder ]] || fail "$folder: it is there; remove it, or name another"
git -C "$root" rev-parse --verify --quiet HEAD >/dev/null || fail "$root: no git repository; clone it, and run again"
mkdir -p -- "$folder" || fail "$folder: cannot be made; name another"
# what the page runs; no tests, docs or results of studies
needed=(LICENSE app assets eqdiff scripts studies/__init__.py studies/insides toybox)
needed+=(train_eqdiff.py test_eqdiff.py eval_eqdiff.py export_concept.py make_masks.py make_gallery.py)
git -C "$root" archive HEAD -- "${needed[@]}" ':!assets/pictures' | tar -x -C "$folder"
mv -- "$folder/app/README.md" "$folder/README.md"
git -C "$root" show HEAD:requirements.txt >"$folder/requirements.txt"
printf -v quoted '%q' "$folder"
echo "done: $folder; push it with: hf upload OWNER/NAME $quoted . --repo-type space"
