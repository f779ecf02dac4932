"""Settings that are ours and not the paper's: noise, masks and the prior otherwise than Eq. 6-7."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import loaded, long_after, tiny_config, tiny_objective, train, trained_concept
from torch import Tensor

from eqdiff.attention import scaled_gate
from eqdiff.base.load import load_base
from eqdiff.base.schedule import sampler
from eqdiff.batch import Batch, draw_batch
from eqdiff.errors import UserError
from eqdiff.frequency import Band
from eqdiff.masking import add_noise, dilate, dilation_radius
from eqdiff.objective import Objective
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.sampling.run import Run
from eqdiff.settings.presets import parse, preset_config
from eqdiff.settings.sample import SampleConfig
from eqdiff.training.class_images import cache_folder, class_images

STEPS = 1000
PIC = SimpleNamespace(images=[])  # what a pipeline returns that draws nothing


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def made(tiny_base: Path, tiny_subject: Path) -> Any:
    """Settings -> an objective on the tiny base, and a batch of eight photos."""

    def make(**changes: Any) -> tuple[Objective, Batch, Any]:
        objective, latents = tiny_objective(
            tiny_base, tiny_subject, **{"train_batch_size": 8, **changes}
        )
        batch = draw_batch(latents, objective.config, STEPS, generator())
        return objective, batch, latents

    return make


def everywhere(batch: Batch) -> Tensor:
    """Which of the subject's samples have noise in every cell: (Bi,)."""
    return (batch.noised[: len(batch.caption)] == 1).all((1, 2, 3))


def same(one: Batch, two: Batch, *but: str) -> bool:
    """Whether two batches are the same bit for bit, but for these fields."""
    pairs = {name: (value, vars(two)[name]) for name, value in vars(one).items()}
    return all(torch.equal(*pair) for name, pair in pairs.items() if name not in but)


# -- noise and loss: Eq. 6-7 -----------------------------------------------------------------------


def test_noise_is_everywhere_from_the_bound_on_and_the_loss_stays_masked(made: Any) -> None:
    _, batch, latents = made(masked_noise_below=0.4)
    t = batch.t[:8]
    assert bool((t < 400).any()) and bool((t >= 400).any())
    assert torch.equal(everywhere(batch), t >= 400)
    assert torch.equal(batch.mask[:8], latents.noise_masks[batch.photo])
    assert same(batch, made()[1], "noised")


def test_a_bound_of_0_is_loss_masking_and_so_is_a_share_of_1(made: Any) -> None:
    loss = made(masking="loss")[1]
    assert same(made(masked_noise_below=0.0)[1], loss)
    assert same(made(full_noise_share=1.0)[1], loss, "z_r", "mask_r")  # drawn behind the share


def test_a_share_of_the_samples_has_noise_everywhere(made: Any) -> None:
    objective, _, latents = made(full_noise_share=0.5)
    batches = [draw_batch(latents, objective.config, STEPS, generator(seed)) for seed in range(12)]
    drawn = [everywhere(batch) for batch in batches]
    share = float(torch.cat(drawn).float().mean())
    assert 0.35 < share < 0.65
    assert any(0 < int(each.sum()) < 8 for each in drawn)  # each sample for itself


def test_what_is_off_by_default_draws_nothing(made: Any) -> None:
    """The generator is left where the paper's own draws leave it."""
    objective, _, latents = made()
    before, after = generator(), generator()
    n = len(latents.subject_masks)
    batch = draw_batch(latents, objective.config, STEPS, after)

    config = objective.config
    assert torch.equal(batch.photo, torch.randint(n, (8,), generator=before))
    torch.multinomial(torch.tensor(config.band_probs), 8, replacement=True, generator=before)
    torch.randn(8, 4, 8, 8, generator=before)  # the posterior's
    torch.randint(4, (8,), generator=before)  # class images
    torch.randn(8, 4, 8, 8, generator=before)
    noise = torch.randn(16, 4, 8, 8, generator=before)
    assert torch.equal(batch.noise, noise)
    assert torch.equal(batch.t, torch.randint(STEPS, (16,), generator=before))
    assert torch.equal(batch.noise_r, torch.randn(16, 4, 8, 8, generator=before))
    torch.multinomial(torch.ones(5), 8, replacement=True, generator=before)  # captions
    others = (batch.photo + torch.randint(1, n, (8,), generator=before)) % n
    z_r, mask_r = latents.reference(others, before)
    assert torch.equal(batch.z_r[:8], z_r) and torch.equal(batch.mask_r[:8], mask_r)


def test_the_mask_grows_with_the_noise(made: Any) -> None:
    _, batch, latents = made(mask_dilation=0.5, mask_dilation_by_t=True)
    radii = [dilation_radius(0.5 * t / STEPS, 8) for t in batch.t[:8].tolist()]
    assert len(set(radii)) > 2
    own = latents.subject_masks[batch.photo]
    for row, radius in enumerate(radii):
        assert torch.equal(batch.mask[row : row + 1], dilate(own[row : row + 1], radius))
    assert torch.equal(batch.noised, batch.mask)
    assert torch.equal(batch.subject_mask, own)
    assert same(batch, made(mask_dilation=0.5)[1], "mask", "noised")


def test_the_background_has_a_weight_of_its_own_between_loss_masking_and_none(made: Any) -> None:
    def loss(**changes: Any) -> Tensor:
        objective, batch, _ = made(train_batch_size=1, **changes)  # it holds for each photo alone
        return objective(batch)["diffusion"]

    masked, whole = loss(masking="loss"), loss(masking="none")
    assert torch.equal(loss(masking="loss", background_loss_weight=0.0), masked)
    assert torch.equal(loss(masking="loss", background_loss_weight=1.0), whole)
    between = float(loss(masking="loss", background_loss_weight=0.5).detach())
    assert min(masked, whole) < between < max(masked, whole)


BAD = {
    "--masked_noise_below": {"masking": "loss", "masked_noise_below": 0.4},
    "--full_noise_share": {"masking": "none", "full_noise_share": 0.5},
    "--background_loss_weight 0.5": {"masking": "noise", "background_loss_weight": 0.5},
    "--mask_dilation_by_t": {"mask_dilation_by_t": True},
    "--rra_rate 3": {"rra": False, "rra_rate": 3.0},
    "--prior_kind": {"prior_kind": "prediction", "with_prior_preservation": False},
}


@pytest.mark.parametrize("culprit", BAD)
def test_a_setting_that_does_nothing_is_refused(culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        preset_config("paper", **BAD[culprit])


# -- the prior without class images ----------------------------------------------------------------


def test_the_class_is_held_on_whole_photos_without_a_reference(made: Any) -> None:
    objective, batch, latents = made(prior_kind="prediction", train_batch_size=3)
    assert latents.class_count == 0
    assert len(batch.z0) == 6 and len(batch.z_r) == 3
    assert bool((batch.mask[3:] == 1).all()) and bool((batch.noised[3:] == 1).all())
    assert batch.bands[3:].tolist() == [Band.FULL] * 3
    nearest = (batch.z0[3:, None] - latents.targets.mean.flatten(0, 1)).square().mean((2, 3, 4))
    assert set((nearest.argmin(1) % 3).tolist()) == {int(Band.FULL)}

    context = objective.context(batch)
    assert all(context.at(site, 6)[1] == slice(0, 3) for site in objective.model.sites)


def test_the_class_is_held_to_the_bases_own_prediction(
    made: Any, tiny_base: Path, tiny_subject: Path
) -> None:
    objective, batch, latents = made(prior_kind="prediction", class_prompt="a {} on the beach")
    start = objective(batch)["prior"]
    assert float(start.detach()) < 1e-9  # at the start both are the base

    train(objective, latents, 3, rate=0.05)
    assert float(objective(batch)["prior"].detach()) > 1e-4
    base = load_base(str(tiny_base))
    t = batch.t[8:]
    z_t = add_noise(batch.z0[8:], batch.noise[8:], base.alphas_cumprod[t])
    text = objective.model.encode_plain(["a dog toy on the beach"]).expand(8, -1, -1)
    with torch.no_grad():
        wanted = base.unet(z_t, t, text).sample
    target = objective.target(batch)
    assert torch.equal(target[8:], wanted)
    assert torch.equal(target[:8], batch.noise[:8])
    assert not target.requires_grad


@pytest.mark.slow
def test_matching_holds_the_class_back(made: Any) -> None:
    """The prediction under the class caption moves less with the term than without it."""

    def moved(weight: float) -> float:
        objective, _, latents = made(
            prior_kind="prediction", prior_loss_weight=weight, train_batch_size=2
        )
        train(objective, latents, 12, rate=3e-3)
        batch = draw_batch(latents, objective.config, STEPS, generator(99))
        return float(objective(batch)["prior"].detach())

    assert moved(10.0) < 0.7 * moved(0.0)


def test_without_a_frozen_unet_predictions_cannot_be_matched(made: Any) -> None:
    with pytest.raises(UserError, match="--prior_kind prediction: .* --rra"):
        made(prior_kind="prediction", rra=False)


# -- sampling --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(tiny_base: Path, tiny_subject: Path) -> EqDiffPipeline:
    """A pipeline with a concept whose gates are open."""
    return loaded(tiny_base, trained_concept(tiny_base, tiny_subject, gate_init="identity"))


def drawn(pipe: EqDiffPipeline, **how: Any) -> Tensor:
    given = {"seeds": [1], "num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent"}
    return pipe("a photo of a {} in the snow", **{**given, **how}).images


@pytest.mark.parametrize("halves", long_after(1, ["both", "conditional"]))
def test_a_strength_of_0_is_no_reference_and_1_is_the_trained_gate_bit_for_bit(
    pipe: EqDiffPipeline, halves: str
) -> None:
    without = drawn(pipe, rra=False)
    whole = drawn(pipe, reference_for=halves)
    assert torch.equal(drawn(pipe, reference_for=halves, reference_strength=0.0), without)
    assert torch.equal(drawn(pipe, reference_for=halves, reference_strength=1.0), whole)
    far = [
        float((drawn(pipe, reference_for=halves, reference_strength=strength) - without).norm())
        for strength in (0.25, 0.5, 1.0, 1.5)
    ]
    assert 0 < far[0] < far[1] < far[2] < far[3]


def test_a_scaled_gate_stays_a_share() -> None:
    gate = torch.tensor([0.0, 0.3, 0.5, 1.0])
    assert scaled_gate(gate, 1.0) is gate
    assert torch.allclose(scaled_gate(gate, 0.5), gate / 2)
    assert torch.allclose(scaled_gate(gate, 2.5), torch.tensor([0.0, 0.75, 1.0, 1.0]))


@pytest.mark.parametrize("strength", [-0.5, 4.5, float("nan")])
def test_a_strength_out_of_range_is_refused(pipe: EqDiffPipeline, strength: float) -> None:
    with pytest.raises(UserError, match="reference_strength .* from 0 to 4"):
        drawn(pipe, reference_strength=strength)


def test_strength_and_rescaling_are_settings_of_a_drawing_and_reach_it(
    tiny_base: Path, pipe: EqDiffPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse(SampleConfig, "--reference_strength 0.5 --guidance_rescale 0.7".split())
    concept = pipe.carried.concept
    run = Run(config, concept, load_base(str(tiny_base)), Accelerator(cpu=True))
    assert (run.facts["reference_strength"], run.facts["guidance_rescale"]) == (0.5, 0.7)

    given: dict[str, Any] = {}
    monkeypatch.setattr(
        type(run.pipe), "__call__", lambda self, *_, **how: given.update(how) or PIC
    )
    run.images(["a {}"], [0])
    assert (given["reference_strength"], given["guidance_rescale"]) == (0.5, 0.7)


def test_the_conditional_halfs_reference_goes_with_rescaled_guidance(pipe: EqDiffPipeline) -> None:
    conditional = {"reference_for": "conditional"}
    plain = drawn(pipe, **conditional)
    assert torch.equal(drawn(pipe, guidance_rescale=0.0, **conditional), plain)
    assert not torch.equal(drawn(pipe, guidance_rescale=0.7, **conditional), plain)
    assert not torch.equal(drawn(pipe, guidance_rescale=0.7), plain)


# -- class images ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_caches")
def test_class_images_come_from_the_sampler_that_is_named_and_lie_apart(
    tiny_base: Path, tiny_subject: Path
) -> None:
    base = load_base(str(tiny_base))
    config = tiny_config(tiny_base, tiny_subject, class_word="dog toy", num_class_images=2)
    other = dataclasses.replace(config, class_scheduler="dpm++")
    assert cache_folder(base, config) != cache_folder(base, other)

    cpu = torch.device("cpu")
    usual, solved = (class_images(base, each, cpu, quiet=True) for each in (config, other))
    assert not torch.equal(usual, solved)
    pipe = EqDiffPipeline.of(base, sampler("dpm++", base.scheduler.config))
    prompt = "photo of a dog toy"
    size = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 7.5}
    seeds = [seed_of(0, prompt, number) for number in range(2)]
    wanted = pipe([prompt] * 2, seeds=seeds, output_type="pt", **size).images * 2 - 1
    assert (solved - wanted).abs().max() <= 1 / 127.5  # they were kept as PNG
