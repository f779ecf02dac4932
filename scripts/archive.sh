#!/usr/bin/env bash
# Packs the commit that is checked out, for an archive with a DOI: bash scripts/archive.sh [FILE]
# SHA256SUMS in it lists every file. Packed again, the same commit gives the same bytes.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
fail() {
  echo "error: $*" >&2
  exit 2
}

git -C "$root" rev-parse --verify --quiet HEAD >/dev/null || fail "$root: no git repository; clone it, and run again"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/eqdiff/__init__.py")
name=eqdiff-$version
file=${1:-$name.tar.gz}
[[ ! -e $file ]] || fail "$file: it is there; remove it, or name another"
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

git -C "$root" archive --prefix="$name/" HEAD | tar -x -C "$work"
(cd -- "$work/$name" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum >"$work/sums")
mv -- "$work/sums" "$work/$name/SHA256SUMS"
when=$(git -C "$root" log -1 --format=%ct)
tar --sort=name --mtime="@$when" --owner=0 --group=0 --numeric-owner -C "$work" -c "$name" | gzip -n >"$work/packed" ||
  fail "$file: it could not be packed; make room, and run again"
mv -- "$work/packed" "$file" || fail "$file: cannot be written; name another"
echo "done: $file, $(wc -l <"$work/$name/SHA256SUMS") files; commit $(git -C "$root" rev-parse --short HEAD)"
