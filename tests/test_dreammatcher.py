"""DreamMatcher: the photo's values where they match; queries, keys and the photo's rows stay."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    concept_of,
    flags,
    loaded,
    long_after,
    run_test,
    run_train,
    tiny_objective,
    training_words,
)
from PIL import Image
from torch import Tensor

from eqdiff.concept.concept import Concept, References
from eqdiff.context import ReferenceContext
from eqdiff.errors import UserError
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.processors import visited
from eqdiff.sampler import Drawing, SamplingOption, SamplingStep
from eqdiff.sampling.dci import DCI, attention_map
from eqdiff.sampling.dreammatcher import DreamMatcher, MatchingStep, mask_tokens, scaled
from eqdiff.sampling.guidance import clean_of, distance, pull, shifted
from eqdiff.sampling.inversion import invert, noise_of
from eqdiff.sampling.layers import sites_of
from eqdiff.sampling.matching import confidence, descriptors, match, matched_values, principal

PROMPT = "a mosaic of a {} on the beach"
ALWAYS = DreamMatcher(start=0.0, limit=100.0)  # from the second step on, every match counts


@pytest.fixture(scope="module")
def pipe(tiny_base: Path, plain: Concept) -> EqDiffPipeline:
    return loaded(tiny_base, plain)


def latent(pipe: EqDiffPipeline, *options: SamplingOption, **how: Any) -> Tensor:
    """Latents (N,4,8,8) of four steps."""
    given = {"seeds": [1], "num_inference_steps": 4, "guidance_scale": 3.0, "prompt": PROMPT}
    return pipe(sampling_options=options, output_type="latent", **{**given, **how}).images


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def step_of(monkeypatch: pytest.MonkeyPatch) -> list[MatchingStep]:
    """The steps that are made from now on."""
    made: list[MatchingStep] = []
    start = MatchingStep.__init__

    def init(self: MatchingStep, *args: Any) -> None:
        start(self, *args)
        made.append(self)

    monkeypatch.setattr(MatchingStep, "__init__", init)
    return made


# -- matching --------------------------------------------------------------------------------------


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_picture_matches_itself_cell_for_cell() -> None:
    x = [random(2, 24, 4, 4), random(2, 12, 8, 8, seed=1)]
    psi_x, psi_y = descriptors(x, x, (8, 8))
    m, r = match(psi_x, psi_y, (8, 8))
    cells = torch.arange(64).expand(2, -1)
    assert torch.equal(m, cells) and torch.equal(r, cells)
    assert confidence(m, r, 8, torch.full((2,), 1e-6)).all()
    v = random(2, 64, 6)
    weight = torch.rand(2, 64)
    torch.testing.assert_close(matched_values(v, v, m, weight), v)


def test_a_rolled_picture_is_found_where_it_went() -> None:
    x = random(1, 24, 8, 8)
    y = x.roll((2, 3), (2, 3))
    psi_x, psi_y = descriptors([x], [y], (8, 8))
    m, r = match(psi_x, psi_y, (8, 8))
    where = torch.arange(64).view(8, 8)
    assert torch.equal(m[0].view(8, 8), where.roll((2, 3), (0, 1)))
    assert torch.equal(r[0].view(8, 8), where.roll((-2, -3), (0, 1)))
    moved = matched_values(x.flatten(2).mT, torch.zeros(1, 64, 24), m, torch.ones(1, 64))
    torch.testing.assert_close(moved.mT.view_as(y), y)


def test_the_gather_is_a_warp_by_the_flow() -> None:
    height, width = 5, 7
    v = random(1, height * width, 3)
    m = torch.randint(height * width, (1, height * width), generator=torch.Generator())
    down, along = m // width, m % width
    grid = torch.stack([2 * along / (width - 1) - 1, 2 * down / (height - 1) - 1], -1)
    picture = v.mT.unflatten(-1, (height, width))
    grid = grid.view(1, height, width, 2)
    warped = F.grid_sample(picture, grid, mode="bilinear", align_corners=True).flatten(2).mT
    gathered = matched_values(v, torch.zeros_like(v), m, torch.ones(1, height * width))
    torch.testing.assert_close(gathered, warped, atol=1e-5, rtol=0)


def test_a_match_counts_only_if_it_comes_back_nearer_than_the_limit() -> None:
    m = torch.tensor([[5, 5, 2, 3, 4, 5]])
    r = torch.tensor([[0, 1, 2, 3, 4, 1]])  # 0 -> 5 -> 1: one cell; 1 -> 5 -> 1: none
    u = confidence(m, r, 3, torch.tensor([1.0]))
    assert u[0].tolist() == [0, 1, 1, 1, 1, 0]
    assert confidence(m, r, 3, torch.tensor([1.01]))[0, 0] == 1
    assert not confidence(m, r, 3, torch.zeros(1)).any()
    corner = confidence(
        torch.tensor([[5, 0, 0, 0, 0, 0]]), m.new_tensor([[0] * 6]), 3, torch.tensor([5**0.5])
    )
    assert corner[0, 5] == 0 and corner[0, 4] == 1  # 2 cells along and 1 down; 1 and 1


def test_principal_axes_keep_the_distances_and_do_not_change_from_run_to_run() -> None:
    x, y = random(2, 20, 8), random(2, 20, 8, seed=1)
    p_x, p_y = principal(x, y)
    torch.testing.assert_close(torch.cdist(p_x, p_y), torch.cdist(x, y), atol=1e-4, rtol=1e-4)
    fewer = principal(x, y, axes=3)[0]
    assert fewer.shape == (2, 20, 3)
    assert torch.equal(fewer, principal(x, y, axes=3)[0])
    both = torch.cat([x[:1], y[:1]], 1)
    spread = torch.linalg.svdvals((both - both.mean(1, keepdim=True))[0])
    kept = torch.cat(principal(x[:1], y[:1], axes=3), 1)[0].norm()
    torch.testing.assert_close(kept, spread[:3].norm())


def test_the_subjects_mask_is_scaled_from_its_least_to_its_greatest() -> None:
    assert scaled(torch.tensor([[0.2, 0.4, 0.3]])).tolist() == [[0.0, 1.0, pytest.approx(0.5)]]
    assert not scaled(torch.full((1, 4), 0.3)).any()
    assert mask_tokens((64, 64)) == mask_tokens((16, 16)) == 256
    assert mask_tokens((64, 96)) == 16 * 24


# -- inversion -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_inversion_goes_the_way_of_ddim_backwards(kind: str) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        set_alpha_to_one=False, clip_sample=False, steps_offset=1, prediction_type=kind
    )
    scheduler.set_timesteps(10)
    alphas = scheduler.alphas_cumprod
    z_0, noise = random(1, 4, 8, 8), random(1, 4, 8, 8, seed=1)

    def predict(z: Tensor, t: int) -> Tensor:
        """What a UNet that always finds `noise` says of z at timestep t."""
        a = alphas[t]
        x_0 = (z - (1 - a).sqrt() * noise) / a.sqrt()
        return {
            "epsilon": noise,
            "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x_0,
            "sample": x_0,
        }[kind]

    torch.testing.assert_close(noise_of(predict(z_0, 501), z_0, alphas[501], kind), noise)
    if kind != "epsilon":
        return
    latents = invert(predict, z_0, scheduler.timesteps.tolist(), alphas, kind)
    assert set(latents) == set(scheduler.timesteps.tolist())
    z = latents[int(scheduler.timesteps[0])]
    for t in scheduler.timesteps:
        torch.testing.assert_close(z, latents[int(t)], atol=1e-4, rtol=1e-4)
        z = scheduler.step(predict(z, int(t)), t, z).prev_sample
    torch.testing.assert_close(z, z_0, atol=1e-4, rtol=1e-4)


# -- guidance --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_guided_prediction_is_nearer_to_the_photo_and_the_printed_sign_farther(
    kind: str,
) -> None:
    """The ideal denoiser of pictures that are normal around 0: x_0 = sqrt(a) z at any alpha_bar."""
    a = torch.tensor(0.4)
    z, wanted = random(2, 4, 8, 8), random(2, 4, 8, 8, seed=1)
    weight = (random(2, 1, 8, 8, seed=2) > 0).float()

    def predict(z: Tensor) -> Tensor:
        x_0 = a.sqrt() * z
        eps = (z - a.sqrt() * x_0) / (1 - a).sqrt()
        velocity = a.sqrt() * eps - (1 - a).sqrt() * x_0
        return {"epsilon": eps, "v_prediction": velocity, "sample": x_0}[kind]

    def d(strength: float) -> Tensor:
        shift = strength * pull(predict, z, a, kind, wanted, weight)
        found = shifted(predict(z), shift, a, kind)
        return distance(clean_of(found, z, a, kind), wanted, weight)

    plain = distance(a.sqrt() * z, wanted, weight)
    torch.testing.assert_close(d(0.0), plain)
    assert (d(75.0) < plain).all() and (d(-75.0) > plain).all()

    z.requires_grad_(True)
    (gradient,) = torch.autograd.grad(distance(a.sqrt() * z, wanted, weight).sum(), z)
    shift = 75.0 * (1 - a).sqrt() * gradient
    torch.testing.assert_close(75.0 * pull(predict, z, a, kind, wanted, weight), shift)
    eps = noise_of(shifted(predict(z), shift, a, kind), z, a, kind)
    torch.testing.assert_close(eps, noise_of(predict(z), z, a, kind) + shift)


def test_guidance_pulls_the_picture_to_the_photo_where_they_match(pipe: EqDiffPipeline) -> None:
    pulled = dataclasses.replace(ALWAYS, guidance=75.0)
    away = dataclasses.replace(ALWAYS, guidance=-75.0)
    nothing = dataclasses.replace(pulled, limit=0.0)
    close(latent(pipe, nothing), latent(pipe))  # D of no match is 0
    photo = pipe.carried.concept.references.latents[:1]
    far, near = ((latent(pipe, option) - photo).square().mean() for option in (away, pulled))
    assert near < far
    both = latent(pipe, pulled, prompt=[PROMPT, "a photo of a {}"], seeds=[1, 2])
    close(both[:1], latent(pipe, pulled))
    never = DCI(strength=-1e9, share=1.0)
    for options in ([never, pulled], [pulled, never]):
        close(latent(pipe, *options), latent(pipe, pulled))


# -- in the pipeline -------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_limit_0_is_plain_sampling_bit_for_bit(pipe: EqDiffPipeline, guidance: float) -> None:
    wanted = latent(pipe, guidance_scale=guidance)
    nothing = DreamMatcher(start=0.0, limit=0.0)
    assert torch.equal(latent(pipe, nothing, guidance_scale=guidance), wanted)
    assert not torch.equal(latent(pipe, ALWAYS, guidance_scale=guidance), wanted)


def test_without_masks_every_cell_takes_the_value_that_matches_it(
    pipe: EqDiffPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And limit 0, by which no match counts, has no say."""
    made = step_of(monkeypatch)
    bare = DreamMatcher(start=0.0, limit=0.0, masks=False)
    sites = sites_of(pipe.unet, bare.layers)
    inside, outside = Spy(sites), Spy(sites)
    latent(pipe, inside, bare, outside)

    step = made[0]  # what it holds is of the last step, as are the last calls of the layers
    calls = zip(sites, inside.seen[-len(sites) :], outside.seen[-len(sites) :], strict=True)
    for name, (_, _, given), (_, _, own) in calls:
        m, _ = step.matches[own.shape[1]]
        assert torch.equal(given, matched_values(step.values[name], own, m, torch.ones_like(m)))
        assert not torch.equal(given, own)


def test_it_begins_after_the_first_share_of_the_steps(pipe: EqDiffPipeline) -> None:
    def halfway(*options: SamplingOption) -> list[Tensor]:
        kept: list[Tensor] = []

        def keep(_: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
            kept.append(given["latents"].clone())
            return given

        latent(pipe, *options, callback_on_step_end=keep)
        return kept

    wanted = halfway()
    drawn = halfway(DreamMatcher(start=0.5, limit=100.0))
    same = [torch.equal(a, b) for a, b in zip(drawn, wanted, strict=True)]
    assert same == [True, True, False, False]


def test_the_same_picture_every_time_and_whether_the_photos_stream_is_kept_or_not(
    pipe: EqDiffPipeline,
) -> None:
    wanted = latent(pipe, ALWAYS)
    assert torch.equal(latent(pipe, ALWAYS), wanted)
    assert torch.equal(latent(pipe, ALWAYS, reference_cache_gb=0.0), wanted)
    pipe.carried.schedules = {}
    assert torch.equal(latent(pipe, ALWAYS), wanted)


def test_the_photos_stream_is_computed_once_a_subject(pipe: EqDiffPipeline) -> None:
    pipe.carried.schedules = {}
    rows: list[int] = []
    seen = pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        latent(pipe, ALWAYS)
        assert rows == [1] * 4 + [2] * 8  # inversion; then the photo's two texts, and the picture
        rows.clear()
        latent(pipe, ALWAYS, seeds=[2, 3], num_images_per_prompt=2)
        assert rows == [4] * 4
    finally:
        seen.remove()


def test_the_photos_rows_are_what_they_are_in_one_batch_with_the_pictures(
    pipe: EqDiffPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = step_of(monkeypatch)
    latent(pipe, ALWAYS)
    step = made[0]
    stream = step.photo._stream
    t = list(stream.latents)[2]
    z = torch.cat([stream.latents[t]] * 2 + [random(2, 4, 8, 8)])
    texts = torch.cat([step.photo.texts, random(2, *step.photo.texts.shape[1:])])
    values: dict[str, Tensor] = {}

    def note(name: str, attend: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        values[name] = v[:2]
        return attend(q, k, v, *rest)

    model = pipe.carried.model
    model.attach()
    with visited(pipe.unet, dict.fromkeys(step.sites, note)), torch.no_grad():
        pipe.unet(z, t, texts, cross_attention_kwargs={"reference": ReferenceContext({})})
    model.detach()
    kept = stream.features(t, None)
    assert len(values) == 4
    for name, v in values.items():
        close(v, kept[name])


def test_a_picture_that_is_the_photo_stays_as_it_is(
    pipe: EqDiffPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X = Y: each cell matches itself, so its values are its own."""
    trajectory: list[Tensor] = []
    times: list[int] = []

    def keep(_: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        trajectory.append(given["latents"].clone())
        times.append(int(t))
        return given

    how = {"prompt": "photo of a {}", "num_inference_steps": 4}
    start = random(1, 4, 8, 8)
    wanted = latent(pipe, seeds=None, latents=start, callback_on_step_end=keep, **how)
    made = step_of(monkeypatch)
    own = dict(zip(times, [start, *trajectory], strict=False))
    monkeypatch.setattr("eqdiff.sampling.photo.invert", lambda *_: own)
    pipe.carried.schedules = {}
    drawn = latent(pipe, ALWAYS, seeds=None, latents=start, **how)
    pipe.carried.schedules = {}
    close(drawn, wanted)
    assert all(
        torch.equal(m, torch.arange(m.shape[1]).expand_as(m)) for m, _ in made[0].matches.values()
    )


class Spy(SamplingOption, SamplingStep):
    """What reaches the attention at some layers."""

    def __init__(self, sites: list[str]) -> None:
        self.sites = sites
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def steps(self, drawing: Drawing) -> list[SamplingStep]:
        return [self]

    @contextmanager
    def within(self, unet: Any) -> Iterator[None]:
        with visited(unet, dict.fromkeys(self.sites, self.note)):
            yield

    def note(self, name: str, attend: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        self.seen.append((q, k, v))
        return attend(q, k, v, *rest)


def test_queries_and_keys_reach_the_attention_untouched(pipe: EqDiffPipeline) -> None:
    sites = sites_of(pipe.unet, ("up_blocks.2", "up_blocks.3"))
    assert len(sites) == 4
    inside, outside = Spy(sites), Spy(sites)
    latent(pipe, inside, ALWAYS, outside)
    changed = 0
    for (q, k, v), (q0, k0, v0) in zip(inside.seen, outside.seen, strict=True):
        assert q is q0 and k is k0
        changed += not torch.equal(v, v0)
    assert changed == 3 * len(sites)  # in all steps but the first


def test_two_images_in_a_batch_are_what_they_are_alone(pipe: EqDiffPipeline) -> None:
    prompts = [PROMPT, "a photo of a {}"]
    together = latent(pipe, ALWAYS, prompt=prompts, seeds=[1, 2])
    for number, prompt in enumerate(prompts):
        alone = latent(pipe, ALWAYS, prompt=prompt, seeds=[number + 1])
        close(together[number : number + 1], alone)


def test_the_mask_is_the_slots_behind_words_of_several_pieces(
    pipe: EqDiffPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = step_of(monkeypatch)
    prompt = "a xylophone-inspired {}"
    spy = Spy([name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")])
    latent(pipe, ALWAYS, spy, prompt=prompt)
    tokenizer = pipe.carried.model.tokenizer
    before = tokenizer(prompt.partition("{}")[0], add_special_tokens=False).input_ids
    assert len(before) > 5
    slot = 1 + len(before)
    assert made[0].slots[0].nonzero().flatten().tolist() == [slot]

    finest = [(q, k) for q, k, _ in spy.seen if q.shape[1] == 64][-len(made[0].maps) :]
    for (q, k), mass in zip(finest, made[0].maps, strict=True):
        wanted = attention_map(q[1:], k[1:], heads=2)[..., slot].mean(1)  # of the conditional half
        torch.testing.assert_close(mass, wanted)


def test_another_photo_gives_another_picture_and_so_does_another_size(
    pipe: EqDiffPipeline,
) -> None:
    first, second = (latent(pipe, ALWAYS, reference=number) for number in (0, 1))
    assert not torch.equal(first, second)
    assert latent(pipe, ALWAYS, height=96, width=64).shape == (1, 4, 12, 8)


def test_it_goes_together_with_dci(pipe: EqDiffPipeline) -> None:
    wanted = latent(pipe, ALWAYS)
    never = DCI(strength=-1e9, share=1.0)
    for options in ([never, ALWAYS], [ALWAYS, never]):
        close(latent(pipe, *options), wanted)


def test_a_callback_may_end_guidance(pipe: EqDiffPipeline) -> None:
    def end(pipeline: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        if i == 1:
            pipeline._guidance_scale = 0.0
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[-1]
        return given

    how = {
        "callback_on_step_end": end,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    assert latent(pipe, ALWAYS, **how).isfinite().all()


# -- what is refused -------------------------------------------------------------------------------


def test_with_rra_in_the_same_layers_it_is_refused(tiny_base: Path, tiny_subject: Path) -> None:
    objective, latents = tiny_objective(tiny_base, tiny_subject, gate_init="identity")
    pipe = loaded(tiny_base, concept_of(objective, latents))
    with pytest.raises(UserError, match="add --no-rra"):
        latent(pipe, ALWAYS)
    assert not torch.equal(latent(pipe, ALWAYS, rra=False), latent(pipe, rra=False))


def test_without_a_photo_it_is_refused(tiny_base: Path, plain: Concept) -> None:
    references = plain.references
    none = References(references.latents[:0], references.masks[:0], references.noise, ())
    pipe = loaded(tiny_base, dataclasses.replace(plain, references=none))
    with pytest.raises(UserError, match="--instance_data_dir"):
        latent(pipe, ALWAYS)
    with pytest.raises(UserError, match="--reference 9"):
        latent(loaded(tiny_base, plain), ALWAYS, reference=9)
    with pytest.raises(UserError, match="no such self-attention"):
        latent(loaded(tiny_base, plain), DreamMatcher(layers=("up_blocks.9",)))


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("own_caches")
@pytest.mark.parametrize("weights", long_after(1, ["kv", "all", "none"]))
def test_concepts_of_custom_diffusion_dreambooth_and_textual_inversion_carry_their_photo(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, weights: str
) -> None:
    """Trained, saved and drawn by the scripts, with the photo that --reference names."""
    out = tmp_path / "out"
    words = training_words(tiny_base, tiny_subject, out, max_train_steps=1, unet_weights=weights)
    run_train([*words, "--no-rra", "--no-fdte", "--masking", "none"])
    where = flags({"pretrained_model_name_or_path": tiny_base, "concept": out, "prompt": "a {}"})

    pictures = []
    for more in ([], ["--dreammatcher"], ["--dreammatcher", "--reference", "02.jpg"]):
        always = ["--dreammatcher_start", "0", "--dreammatcher_confidence", "100"]
        run_test([*where, *more, *(always if more else [])])
        row = json.loads((out / "samples" / "manifest.jsonl").read_text())
        assert ("dreammatcher" in row) == bool(more)
        assert row["reference"] == ("02.jpg" if len(more) > 1 else "00.jpg")
        pictures.append(np.asarray(Image.open(out / "samples" / row["file"])))
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])
