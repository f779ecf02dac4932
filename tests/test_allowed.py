"""Bases of strangers: what they name is on a short list, or refused before anything of theirs could
run."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eqdiff.base.allowed import hidden_code, require_allowed, require_index
from eqdiff.base.load import load_base
from eqdiff.errors import UserError
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.places import ASSETS, BUNDLED_BASE

OWN = ["evil_part", "Evil"]
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
CONFIGS = {"tokenizer": "tokenizer_config.json", "scheduler": "scheduler_config.json"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pipeline": ("model_index.json", {"_class_name": OWN}),
    **{part: ("model_index.json", {part: OWN}) for part in PARTS},
    "one more part": ("model_index.json", {"evil": OWN}),
    "hidden part": ("model_index.json", {"_evil": OWN}),
    "any library": ("model_index.json", {"vae": ["os", "system"]}),
    "library in words": ("model_index.json", {"vae": ["evil_part.inner", "Evil"]}),
    "a part's class elsewhere": ("model_index.json", {"vae": ["diffusers",
    "UNet2DConditionModel"]}),
    "three words": ("model_index.json", {"vae": ["diffusers", "AutoencoderKL", "evil_part"]}),
    "asked for in the index": ("model_index.json", {"trust_remote_code": True}),
    "custom pipeline": ("model_index.json", {"custom_pipeline": "evil_part"}),
    **{f"class in {part}": (f"{part}/{CONFIGS.get(part, 'config.json')}",
    {"_class_name": OWN}) for part in PARTS},
    "class of its own": ("scheduler/scheduler_config.json", {"_class_name": "EvilScheduler"}),
    **{f"map in {part}": (f"{part}/{CONFIGS.get(part, 'config.json')}",
    {"auto_map": {"A": "evil_part.Evil"}})
       for part in PARTS},
    "map within": ("text_encoder/config.json",
    {"text_config": [{"auto_map": {"AutoModel": "evil_part.Evil"}}]}),
    "kernel": ("text_encoder/config.json", {"attn_implementation": "evil/kernel"}),
    "inner kernel": ("text_encoder/config.json", {"_attn_implementation_internal": "evil/kernel"}),
}  # fmt: skip


@pytest.fixture
def trap(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny base with a module that leaves a trace wherever a library might look for
    it."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    for folder in (base, tmp_path / "path", *(base / part for part in PARTS)):
        folder.mkdir(exist_ok=True)
        trace = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n"
        (folder / "evil_part.py").write_text(trace)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return base


def change(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(load: Callable[[], Any], trap: Path) -> str:
    """The one line of a refusal that came before any code."""
    with pytest.raises(UserError, match="code of its own") as caught:
        load()
    assert not (trap.parent / "ran").exists() and "evil_part" not in sys.modules
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("door", ["load_base", "pipeline"])
@pytest.mark.parametrize("case", CASES)
def test_a_base_that_names_code_of_its_own_is_refused_before_it_runs(
    trap: Path, case: str, door: str
) -> None:
    for part in PARTS:
        (
            trap / part / "evil_part.py"
        ).unlink()  # alone in the folder it would be refused for being there
    file, values = CASES[case]
    if file == "model_index.json" and set(values) <= set(PARTS):
        shutil.copy(trap / "evil_part.py", trap / next(iter(values)))
    change(trap / file, values)
    loading = {"load_base": load_base, "pipeline": EqDiffPipeline.from_pretrained}[door]
    said = refused(lambda: loading(str(trap)), trap)
    assert str(trap) in said


def test_a_file_that_poses_as_a_library_is_refused(trap: Path) -> None:
    """diffusers prefers vae/diffusers.py to diffusers."""
    for part in PARTS:
        (trap / part / "evil_part.py").unlink()
    (trap / "evil_part.py").rename(trap / "vae" / "diffusers.py")
    assert "vae/diffusers.py" in refused(lambda: load_base(str(trap)), trap)


def test_the_configuration_of_a_single_file_is_held_to_the_same_list(
    trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQDIFF_BASE_CONFIG", str(trap))
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    assert str(trap) in refused(lambda: load_base(str(tmp_path / "model.safetensors")), trap)


def test_a_hub_id_is_refused_by_its_index_before_anything_else_is_fetched(
    trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from diffusers import DiffusionPipeline

    change(trap / "model_index.json", {"vae": OWN})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: str(trap))
    monkeypatch.setattr(DiffusionPipeline, "download", lambda *a, **how: pytest.fail("fetched"))
    monkeypatch.setattr(EqDiffPipeline, "load_config", lambda name, **how: json.loads(
        (trap / "model_index.json").read_text()))  # fmt: skip
    assert "some/base" in refused(lambda: load_base("some/base"), trap)
    refused(lambda: EqDiffPipeline.from_pretrained("some/base"), trap)


def test_asking_for_code_is_refused_too(tiny_base: Path) -> None:
    for how in ({"trust_remote_code": True}, {"custom_pipeline": "some/where"}):
        with pytest.raises(UserError, match="no code of a base's own"):
            EqDiffPipeline.from_pretrained(tiny_base, **how)


def test_what_people_have_is_on_the_list(tiny_base: Path) -> None:
    for folder in (tiny_base, BUNDLED_BASE, ASSETS / "sd1"):
        require_allowed(folder, str(folder))
    index = json.loads((ASSETS / "sd1" / "model_index.json").read_text())
    for scheduler in (
        "PNDM",
        "DDIM",
        "EulerAncestralDiscrete",
        "DPMSolverMultistep",
        "UniPCMultistep",
    ):
        require_index(index | {"scheduler": ["diffusers", f"{scheduler}Scheduler"]}, "base")
    saved = {
        "requires_safety_checker": False,
        "image_encoder": [None, None],
        "_name_or_path": "some/base",
    }
    require_index(index | saved, "base")
    assert (
        hidden_code(
            {"_attn_implementation_autoset": True, "attn_implementation": "sdpa", "auto_map": None}
        )
        is None
    )


def test_a_judge_that_wants_code_of_its_own_is_refused_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks on the terminal whether it may run it."""
    from transformers import CLIPConfig

    from eqdiff.evaluation.metrics import load_clip

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    CLIPConfig().save_pretrained(tmp_path)
    change(tmp_path / "config.json", {"auto_map": {"AutoConfig": "evil_part.Evil"}})
    with pytest.raises(UserError, match="--clip_model .* code of its own"):
        load_clip(str(tmp_path))
    change(tmp_path / "config.json", {"model_type": "evil"})
    with pytest.raises(UserError, match="--clip_model .* code of its own"):
        load_clip(str(tmp_path))


def test_a_mask_maker_that_wants_code_of_its_own_is_refused(tmp_path: Path) -> None:
    from eqdiff.masks.segment import load_segmenter

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "grounding-dino"}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": "evil_part.Evil"}})
    )
    with pytest.raises(UserError, match="--detector_model .* code of its own"):
        load_segmenter(str(tmp_path), str(tmp_path))
