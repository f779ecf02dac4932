"""The base's training on a GPU, as far as a CPU can tell: what it draws, its optimizer, its end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn
from transformers import CLIPTokenizer

from eqdiff.settings.places import ASSETS, BUNDLED_BASE
from toybox import publish
from toybox.base_model import BaseLoss, Recipe, text_model, unet_model
from toybox.dataset import training_scene
from toybox.latents import DROP, wordings_of
from toybox.loop import MATRIX_RATE
from toybox.muon import CapturedMuon, Muon
from toybox.train_gpu import AVERAGE_EVERY, Scenes, Training

SMALL = Recipe(widths=(16, 16, 16, 16), batch=4)
WORDINGS = 3


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(BUNDLED_BASE / "tokenizer")


def write_shard(folder: Path, number: int, value: float, tokenizer: CLIPTokenizer) -> None:
    """Ten scenes whose latents are all of one value."""
    scenes = [training_scene(10 * number + i) for i in range(10)]
    arrays = {
        "latents": np.full((10, 4, 16, 16), value, np.float16),
        "masks": np.full((10, 16, 16), 255, np.uint8),
        "labels": np.zeros((10, 7), np.int64),
        "ids": wordings_of(scenes, tokenizer, WORDINGS),
    }
    np.savez(folder / f"{number:05}.npz", **arrays)


@pytest.fixture
def scenes(tmp_path: Path, tokenizer: CLIPTokenizer) -> Scenes:
    write_shard(tmp_path, 0, 1.0, tokenizer)
    found = Scenes(tmp_path, tokenizer, 25, "cpu")
    assert found.look() == 10
    return found


@pytest.fixture
def training(scenes: Scenes, tokenizer: CLIPTokenizer) -> Training:
    torch.manual_seed(0)
    module = BaseLoss(unet_model(SMALL.widths), text_model(tokenizer), SMALL)
    return Training(module, scenes, SMALL)


def test_wordings_name_the_scenes_subject_and_differ(tokenizer: CLIPTokenizer) -> None:
    scene = training_scene(3)
    ids = wordings_of([scene], tokenizer, 8)
    texts = tokenizer.batch_decode(ids[0].astype(int), skip_special_tokens=True)
    assert all(scene.instance.class_name in text for text in texts)
    assert len(set(texts)) > 2
    np.testing.assert_array_equal(ids, wordings_of([scene], tokenizer, 8))


def test_only_scenes_that_are_there_are_drawn_and_new_ones_as_they_come(
    scenes: Scenes, tokenizer: CLIPTokenizer
) -> None:
    assert scenes.draw(200).latents.unique().tolist() == [1.0]

    write_shard(scenes.folder, 1, 2.0, tokenizer)
    write_shard(scenes.folder, 2, 3.0, tokenizer)
    assert scenes.look() == scenes.look() == 25  # what there is room for
    values, counts = scenes.draw(2000).latents[:, 0, 0, 0].unique(return_counts=True)
    assert values.tolist() == [1.0, 2.0, 3.0]
    assert torch.allclose(counts / 2000, torch.tensor([0.4, 0.4, 0.2]), atol=0.05)


def test_a_tenth_of_the_captions_is_empty_and_masks_are_shares(scenes: Scenes) -> None:
    batch = scenes.draw(2000)
    empty = (batch.ids == scenes.empty).all(1).float().mean()
    assert abs(float(empty) - DROP) < 0.03
    assert batch.masks.shape == (2000, 1, 16, 16) and batch.masks.unique().tolist() == [1.0]


def test_equal_shapes_together_move_as_one_by_one() -> None:
    def moved(kind: type[Muon]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layers = [nn.Linear(32, 32), nn.Linear(32, 32), nn.Conv2d(32, 48, 3), nn.Linear(48, 4)]
        module = nn.ModuleList(layers)
        if kind is CapturedMuon:
            optimizer = CapturedMuon(module, weight_decay=0.1)
            optimizer.set_rates(0.02, 0.01)
        else:
            optimizer = Muon(module, lr=0.01, weight_decay=0.1)
            optimizer.param_groups[0]["lr"] = 0.02
        for _ in range(3):
            for p in module.parameters():
                p.grad = torch.randn(p.shape)
            optimizer.step()
        return [p.detach().clone() for p in module.parameters()]

    for together, apart in zip(moved(CapturedMuon), moved(Muon), strict=True):
        torch.testing.assert_close(together, apart, atol=2e-4, rtol=2e-3)


def test_a_step_at_the_end_moves_nothing_and_the_average_follows(training: Training) -> None:
    before = [p.detach().clone() for p in training.parameters]
    training.advance(1.0)
    assert all(torch.equal(p, old) for p, old in zip(training.parameters, before, strict=True))

    training.optimizer.set_rates(MATRIX_RATE * 1e-3, 1e-3)
    for _ in range(AVERAGE_EVERY - 1):
        training.advance(0.1)
    assert training.steps == AVERAGE_EVERY and training.samples == 4 * AVERAGE_EVERY
    pairs = list(zip(training.average.parameters(), training.parameters, before, strict=True))
    moved = [(shadow, p, old) for shadow, p, old in pairs if not torch.equal(p, old)]
    assert moved
    # between what it was and what it is now
    assert all(((shadow - old) * (p - shadow) >= 0).all() for shadow, p, old in moved)


def test_what_a_gpu_trained_becomes_the_committed_base(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, assets = tmp_path / "trained", tmp_path / "assets"
    found = training.average.half()
    found.unet.save_pretrained(trained / "unet", max_shard_size="100KB")
    found.text_encoder.save_pretrained(trained / "text_encoder")
    (trained / "progress.jsonl").write_text('{"samples": 8}\n{"samples": 16}\n')
    monkeypatch.setattr(publish, "PROGRESS", tmp_path / "progress.jsonl")
    left_out = shutil.ignore_patterns("unet", "text_encoder")
    shutil.copytree(ASSETS / "toybox" / "base", assets / "base", ignore=left_out)

    assert publish.take(trained, assets) == {"samples": 16}
    pipe = StableDiffusionPipeline.from_pretrained(assets / "base", dtype=torch.float16)
    for name, value in found.unet.state_dict().items():
        assert torch.equal(pipe.unet.state_dict()[name], value), name
    assert [path.name for path in (assets / "base" / "unet").glob("*.safetensors")] == [
        "diffusion_pytorch_model.safetensors"
    ]
    assert len((tmp_path / "progress.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "progress.jsonl").read_text().splitlines()[0]) == {"samples": 8}
