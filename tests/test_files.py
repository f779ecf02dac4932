"""The one atomic write: whole or not there, whatever fails, and readable by whom the umask says."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import environment
from safetensors.torch import load_file

from eqdiff import files
from eqdiff.errors import UserError
from eqdiff.files import replacing, write_tensors


def test_a_file_appears_whole_with_the_folders_above_it(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    with replacing(target) as beside:
        beside.write_text("new")
        assert (
            not target.exists() and beside.parent == target.parent and beside.name.startswith(".")
        )
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize(
    "error", [ValueError("no"), OSError(28, "No space left on device")], ids=["ours", "disk"]
)
def test_what_fails_leaves_the_former_file_and_nothing_beside_it(
    tmp_path: Path, error: Exception
) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with (
        pytest.raises((ValueError, UserError), match="no|cannot be written .No space left"),
        replacing(target) as part,
    ):
        part.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("kind", ["text", "tensors"])
def test_a_file_may_be_read_by_whom_the_umask_lets(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "UMASK", 0o027)
    target = tmp_path / "file"
    if kind == "tensors":
        write_tensors(target, {"a": torch.ones(2)}, {"mark": "x"})
        assert torch.equal(load_file(target)["a"], torch.ones(2))
    else:
        with replacing(target) as beside:
            beside.write_text("x")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_tensors_may_share_memory_and_lie_in_it_in_any_order(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    given = {"whole": whole, "part": whole[:1], "turned": whole.T, "none": whole[:0]}
    write_tensors(tmp_path / "file", given, {})
    assert all(
        torch.equal(value, given[name]) for name, value in load_file(tmp_path / "file").items()
    )


def test_tensors_that_would_be_refused_are_not_written(tmp_path: Path) -> None:
    def refuse(_: Path) -> None:
        raise UserError("not finite")

    with pytest.raises(
        UserError, match="not written, it would be refused when it is read .not finite"
    ):
        write_tensors(tmp_path / "c", {"a": torch.ones(2)}, {}, refuse)
    assert not list(tmp_path.iterdir())


WRITES_OFTEN = """
import sys
from pathlib import Path
from eqdiff.files import replacing

for number in range(40):
    with replacing(Path(sys.argv[1], "shared.txt"), shared=True) as beside:
        beside.write_text(str(number) * 5000)
"""


def test_several_processes_may_write_one_file_of_a_cache(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITES_OFTEN, str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment()) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["shared.txt"]
    assert len(set((tmp_path / "shared.txt").read_text())) <= 2


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match="cannot be written"),
        replacing(tmp_path / "file" / "inside.txt"),
    ):
        pytest.fail("the block must not run")
    assert os.listdir(tmp_path) == ["file"]
