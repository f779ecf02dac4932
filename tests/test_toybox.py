"""The committed toybox: plain diffusers opens it, its sizes are right, its instruments load."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from eqdiff.settings.places import BUNDLED_BASE
from toybox.captions import best_caption, pair_caption
from toybox.dataset import to_tensor
from toybox.instances import CLASS_NAMES, PALETTE, PATTERNS, instance
from toybox.judges import Judges
from toybox.quality import evaluation_triples, held_out_triples, noise_of
from toybox.world import CONTEXT_NAMES, STYLE_NAMES, Scene, draw, held_out

ASSETS = BUNDLED_BASE.parent
# chance is 0.1; benchmarks/toybox_quality.py measures how right the instruments are
FAR_ABOVE_CHANCE = 0.5


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(BUNDLED_BASE)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float32)


def pictures(scenes: list[Scene]) -> torch.Tensor:
    """The scenes drawn, (N, 3, 128, 128)."""
    return to_tensor(np.stack([draw(scene).image for scene in scenes]))


def test_plain_diffusers_draws_with_the_base(pipe: StableDiffusionPipeline) -> None:
    image = pipe("a photo of a mug in the snow", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (128, 128, 3)
    assert np.isfinite(image).all()


def test_the_base_has_the_arrangement_of_stable_diffusion(pipe: StableDiffusionPipeline) -> None:
    unet = pipe.unet
    assert sum(p.numel() for p in unet.parameters()) <= 12_000_000
    assert list(unet.config.down_block_types) == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet.config.sample_size == 16

    assert pipe.vae_scale_factor == 8
    assert pipe.vae.config.latent_channels == 4

    schedule = pipe.scheduler.config
    assert (schedule.prediction_type, schedule.beta_schedule) == ("epsilon", "scaled_linear")
    assert schedule.num_train_timesteps == 1000


def test_any_text_tokenizes_and_the_rare_word_is_one_token(pipe: StableDiffusionPipeline) -> None:
    tokenizer = pipe.tokenizer
    for text in ("", "ünïcödé 日本 🙂", "Georgia O'Keeffe's pointillism-inspired mug"):
        ids = tokenizer(text).input_ids
        assert max(ids) < pipe.text_encoder.config.vocab_size
    assert len(tokenizer("ktn", add_special_tokens=False).input_ids) == 1
    assert len(tokenizer("pointillism-inspired", add_special_tokens=False).input_ids) > 1

    for i in range(200):
        teapot = instance("dev", "teapot", i)
        rocket = instance("dev", "rocket", i)
        best = best_caption(teapot, "on a wooden floor", "pointillism")
        for text in (best, pair_caption(teapot, rocket, None, "neon")):
            ids = tokenizer(text).input_ids
            assert len(ids) <= tokenizer.model_max_length
            assert len(ids) <= len(text.split()) + 4, f"a word of {text!r} is in pieces"


def test_the_vae_keeps_a_drawn_picture(pipe: StableDiffusionPipeline) -> None:
    mug = instance("dev", "mug", 0)
    images = pictures([Scene(mug, context, "photo", 5) for context in CONTEXT_NAMES])
    with torch.no_grad():
        again = pipe.vae.decode(pipe.vae.encode(images).latent_dist.mean).sample
    assert float((again - images).abs().mean()) < 0.08


@pytest.mark.skipif(
    not (ASSETS / "dino" / "model.safetensors").exists(), reason="instruments are not trained yet"
)
def test_the_judge_names_a_drawn_picture_and_dino_its_owner() -> None:
    judges = Judges.load(ASSETS)
    subjects = [instance("dev", name, 1) for name in CLASS_NAMES]
    snow = [Scene(subject, "in the snow", "photo", i) for i, subject in enumerate(subjects)]
    beach = [Scene(subject, "on the beach", "photo", 50 + i) for i, subject in enumerate(subjects)]
    images = pictures(snow)

    truth = {
        "class": list(range(len(CLASS_NAMES))),
        "context": [CONTEXT_NAMES.index("in the snow")] * len(subjects),
        "style": [STYLE_NAMES.index("photo")] * len(subjects),
        "colour": [tuple(PALETTE).index(subject.colours[0]) for subject in subjects],
        "pattern": [PATTERNS.index(subject.pattern) for subject in subjects],
    }
    named = judges.name(images)
    for attribute, values in truth.items():
        right = named[attribute] == torch.tensor(values)
        assert float(right.float().mean()) >= FAR_ABOVE_CHANCE, attribute

    match = judges.identity(images) @ judges.identity(pictures(beach)).T
    nearest = match.argmax(1) == torch.arange(len(subjects))
    assert float(nearest.float().mean()) >= FAR_ABOVE_CHANCE


def test_held_out_triples_are_eighty_and_only_those() -> None:
    triples = held_out_triples()
    assert len(set(triples)) == 80
    names = [
        (CLASS_NAMES[t.class_id], CONTEXT_NAMES[t.context], STYLE_NAMES[t.style]) for t in triples
    ]
    assert all(held_out(*triple) for triple in names)
    assert evaluation_triples(100)[80:] == triples[:20]


def test_noise_of_a_seed_is_its_own() -> None:
    assert torch.equal(noise_of([3, 4], (4, 2, 2))[1], noise_of([4], (4, 2, 2))[0])


def test_nothing_cached_is_committed() -> None:
    names = {path.name for path in Path(ASSETS.parent).rglob("*") if path.is_file()}
    assert not [name for name in names if name.startswith(("concept", "latents"))]
