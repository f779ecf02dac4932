"""Bases of Stable Diffusion 2.x, which predict velocities: loaded, trained on and sampled."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import assert_same, drawn, edit, refusal
from helpers import tiny_objective
from ldm import write_single_file
from tiny import only_configuration

from eqdiff.base.load import load_base


@pytest.fixture(scope="module")
def velocity_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as SD 2.x has it.

    It predicts velocities, projects linearly, has heads by level and another text width.
    """
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = Path(shutil.copytree(tiny_base, tmp_path_factory.mktemp("velocity") / "tiny"))
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")

    changes = {
        "attention_head_dim": [2, 2, 4, 4],
        "use_linear_projection": True,
        "cross_attention_dim": 48,
    }
    config = {**UNet2DConditionModel.load_config(tiny_base, subfolder="unet"), **changes}
    text = CLIPTextConfig.from_pretrained(tiny_base, subfolder="text_encoder")
    text.hidden_size = 48
    text.projection_dim = 48
    text.hidden_act = "gelu"

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
        CLIPTextModel(text).save_pretrained(folder / "text_encoder")

    return folder


def test_a_single_file_of_sd_2_needs_its_configuration_and_is_then_its_folder(
    velocity_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_single_file(velocity_base, tmp_path / "v2.safetensors", open_clip=True)
    assert "EQDIFF_BASE_CONFIG=FOLDER" in refusal(file)
    folder = only_configuration(velocity_base, tmp_path / "configuration")
    monkeypatch.setenv("EQDIFF_BASE_CONFIG", str(folder))
    assert load_base(str(file)).scheduler.config.prediction_type == "v_prediction"
    assert_same(load_base(str(velocity_base)), load_base(str(file)))


def test_where_the_scheduler_says_so_the_target_is_the_velocity(
    velocity_base: Path, tiny_subject: Path
) -> None:
    """The loss is zero for a model that answers with v, and the reference is noised as ever."""
    from eqdiff.batch import draw_batch

    objective, latents = tiny_objective(velocity_base, tiny_subject, ra_loss_weight=0.0)
    batch = draw_batch(latents, objective.config, 1000, torch.Generator().manual_seed(0))
    share = objective.model.alphas_cumprod[batch.t].view(-1, 1, 1, 1)
    v = share.sqrt() * batch.noise - (1 - share).sqrt() * batch.z0

    losses = objective(batch)
    assert losses["loss"].isfinite()
    assert losses["diffusion"] > 0.1
    objective.predict = lambda *_: v
    assert objective(batch)["loss"] < 1e-12

    # a scheduler makes of v the clean latent and the noise: sampling and training agree
    z_t = share.sqrt() * batch.z0 + (1 - share).sqrt() * batch.noise
    assert torch.allclose(share.sqrt() * z_t - (1 - share).sqrt() * v, batch.z0, atol=1e-5)


def test_a_velocity_base_is_sampled_as_its_scheduler_says(
    velocity_base: Path, tmp_path: Path
) -> None:
    right = drawn(load_base(str(velocity_base)))
    epsilon = Path(shutil.copytree(velocity_base, tmp_path / "epsilon"))
    edit(epsilon / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    wrong = drawn(load_base(str(epsilon)))

    assert np.isfinite(right).all()
    assert not np.allclose(right, wrong)
