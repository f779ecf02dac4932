"""What is no base of Stable Diffusion 1.x or 2.x is refused by one line that says what it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import edit, refusal, retensor
from ldm import original_layout
from safetensors.torch import save_file

from eqdiff.base.formats import other_pipeline
from eqdiff.base.load import load_base
from eqdiff.errors import UserError
from eqdiff.settings.places import ASSETS


@pytest.mark.parametrize(
    ("index", "kind"),
    [
        (
            {"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["transformers", "X"]},
            "Stable Diffusion XL",
        ),
        (
            {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "X"]},
            "Stable Diffusion 3",
        ),
        ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}, "FLUX"),
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "an inpainting model"),
        (
            {"_class_name": "PixArtAlphaPipeline", "transformer": ["diffusers", "X"]},
            "a PixArtAlphaPipeline",
        ),
    ],
)
def test_a_folder_of_another_kind_is_told_by_name(
    base_copy: Path, index: dict[str, Any], kind: str
) -> None:
    edit(base_copy / "model_index.json", **index)
    assert f"this is {kind}; name a Stable Diffusion 1.x or 2.x" in refusal(base_copy)


def test_other_pipelines_of_stable_diffusion_are_not_refused() -> None:
    index = json.loads((ASSETS / "sd1" / "model_index.json").read_text())
    for name in ("StableDiffusionPipeline", "EqDiffPipeline", "StableDiffusionImg2ImgPipeline"):
        assert other_pipeline(index | {"_class_name": name, "text_encoder_2": [None, None]}) is None


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (
            ["conditioner.embedders.1.model.ln_final.bias", "model.diffusion_model.x"],
            "Stable Diffusion XL",
        ),
        (["model.diffusion_model.joint_blocks.0.x"], "Stable Diffusion 3"),
        (["double_blocks.0.img_attn.x"], "FLUX"),
        (["model.diffusion_model.double_blocks.0.x"], "FLUX"),
        (["lora_unet_down_blocks_0.lora_up.weight"], "a LoRA"),
        (["unet.down_blocks.0.lora_A.weight"], "a LoRA"),
        (["tokens.rows"], "a concept of EqDiff"),
        (["model.diffusion_model.x", "cond_stage_model.transformer.x"], "a model without VAE"),
        (["anything"], "not a model"),
        (
            ["model.diffusion_model.x", "first_stage_model.x", "cond_stage_model.model.x"],
            "Stable Diffusion 2.x, .* EQDIFF_BASE_CONFIG=FOLDER",
        ),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_tensors(
    tmp_path: Path, names: list[str], kind: str
) -> None:
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "what.safetensors")
    with pytest.raises(UserError, match=f"this is {kind}"):
        load_base(str(tmp_path / "what.safetensors"))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".CKPT"])
def test_pickles_are_not_opened(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"model{suffix}").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert "convert it to .safetensors" in refusal(tmp_path / f"model{suffix}")


def test_a_folder_of_pickles_is_not_opened(base_copy: Path) -> None:
    weights = base_copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "pickles alone" in refusal(base_copy)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_that_lacks_a_weight_is_refused(base_copy: Path, part: str) -> None:
    (file,) = (base_copy / part).glob("*.safetensors")
    retensor(file, lambda tensors: dict(sorted(tensors.items())[1:]))
    assert "get it again" in refusal(base_copy)


@pytest.mark.usefixtures("configuration")
@pytest.mark.parametrize("stray", ["lora_te_text_model.lora_up.weight", "x.lora_A.weight", "ema"])
def test_a_whole_model_with_a_stray_tensor_is_a_whole_model(
    tiny_base: Path, tmp_path: Path, stray: str
) -> None:
    tensors = original_layout(tiny_base) | {stray: torch.zeros(1)}
    save_file(tensors, tmp_path / "merged.safetensors")
    assert load_base(str(tmp_path / "merged.safetensors")).unet is not None


@pytest.mark.usefixtures("configuration")
@pytest.mark.parametrize(
    "start", ["model.diffusion_model.out.2", "first_stage_model.quant", "cond_stage_model"]
)
def test_a_file_that_lacks_weights_is_refused(tiny_base: Path, tmp_path: Path, start: str) -> None:
    tensors = original_layout(tiny_base)
    lost = [name for name in tensors if name.startswith(start)][0]
    del tensors[lost]
    save_file(tensors, tmp_path / "torn.safetensors")
    assert "get it again" in refusal(tmp_path / "torn.safetensors")


def test_what_cannot_be_a_base_is_one_line(
    base_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"torn")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "models").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "models" / "dream.safetensors")

    assert "cannot be loaded" in refusal(torn)
    assert "neither a folder nor a .safetensors file" in refusal(tmp_path / "notes.txt")
    assert "dream.safetensors" in refusal(tmp_path / "models")
    assert "no such folder or file" in refusal(tmp_path / "nowhere")

    shutil.rmtree(base_copy / "unet")
    with pytest.raises(UserError, match="no weights"):
        load_base(str(base_copy))
    monkeypatch.setenv("EQDIFF_BASE_CONFIG", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="EQDIFF_BASE_CONFIG"):
        load_base(str(torn))


def test_nine_input_channels_are_an_inpainting_model(base_copy: Path) -> None:
    edit(base_copy / "unet" / "config.json", in_channels=9)
    weights = base_copy / "unet" / "diffusion_pytorch_model.safetensors"
    retensor(weights, lambda tensors: tensors | {"conv_in.weight": torch.zeros(16, 9, 3, 3)})
    assert "an inpainting model, 9 input channels" in refusal(base_copy)
