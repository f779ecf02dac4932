"""docs/quickstart.ipynb: its cells run, in their order, and leave what they say."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, TINY, flags

NOTEBOOK = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_well_formed_and_holds_no_results() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == (
            [],
            None,
        )
    for code in CODE:
        compile(code, "cell", "exec")


@pytest.mark.long
def test_its_cells_run_in_their_order(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the tiny base, with fewer steps; the words of its training are otherwise its own."""
    for name, value in {"EQDIFF_BASE": tiny_base, "EQDIFF_CACHE": tmp_path / "cache"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "cwd", lambda: ROOT)
    space: dict[str, Any] = {}
    exec(CODE[0], space)
    space["STEPS"] = 2
    more = {k: v for k, v in TINY.items() if k not in ("max_train_steps", "validation_steps")}
    training = CODE[1].replace("*words]", f"*words, *{flags(more)!r}]")
    assert training != CODE[1]
    for code in (training, *CODE[2:]):
        exec(code, space)
    assert [image.size for image in space["images"]] == [(64, 64)] * 2
    out = tmp_path / "outputs" / "notebook"
    assert (out / "concept.safetensors").is_file() and (out / "samples" / "gallery.html").is_file()
