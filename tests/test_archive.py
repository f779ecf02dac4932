"""scripts/archive.sh: what is packed is what is committed, and the sums say so."""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from helpers import ROOT

HAS_GIT = shutil.which("git") and (ROOT / ".git").exists()
pytestmark = pytest.mark.skipif(not HAS_GIT, reason="no git repository here")


def packed(file: Path) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "scripts" / "archive.sh"), str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.long
def test_an_archive_is_the_commit_with_its_sums_and_the_same_again(tmp_path: Path) -> None:
    one, two = tmp_path / "one.tar.gz", tmp_path / "two.tar.gz"
    for file in (one, two):
        done = packed(file)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"done: {file}")
    assert one.read_bytes() == two.read_bytes()

    with tarfile.open(one) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    (folder,) = (tmp_path / "out").iterdir()
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    sums = dict(reversed(line.split("  ", 1)) for line in lines)
    files = {f"./{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()}
    assert sums.keys() == files - {"./SHA256SUMS"}
    for name in ("./README.md", "./eqdiff/pipeline.py"):
        assert sums[name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "mine.tar.gz"
    file.write_text("mine")
    done = packed(file)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {file}: it is there")
    assert file.read_text() == "mine"
