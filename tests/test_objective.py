"""The training step: what moves, what each loss depends on, how the presets differ."""

from pathlib import Path

import pytest
import torch
from helpers import concept_of, tiny_objective, train

from eqdiff.attention_loss import reference_attention_loss
from eqdiff.batch import draw_batch
from eqdiff.errors import UserError
from eqdiff.frequency import Band
from eqdiff.objective import Objective
from eqdiff.reference import capture


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_after_five_steps_exactly_the_concept_has_moved(
    tiny_base: Path, tiny_subject: Path
) -> None:
    objective, latents = tiny_objective(
        tiny_base, tiny_subject, gate_init="identity", ra_loss_layers=("up", "mid")
    )
    model = objective.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(objective, latents, 5)
    moved = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == set(model.concept_parameters())


@pytest.mark.parametrize("weights", ["all", "none"])
def test_the_methods_beside_move_the_whole_unet_or_nothing_of_it(
    tiny_base: Path, tiny_subject: Path, weights: str
) -> None:
    """DreamBooth and Textual Inversion."""
    alone = {"rra": False, "fdte": False, "masking": "none"}
    objective, latents = tiny_objective(tiny_base, tiny_subject, unet_weights=weights, **alone)
    before = {name: value.clone() for name, value in objective.model.state_dict().items()}
    train(objective, latents, 5)
    after = objective.model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    whole = {name for name in after if name.startswith("unet.")}
    assert moved == {"tokens.rows"} | (whole if weights == "all" else set())
    objective.model.detach()
    restored = objective.model.unet.state_dict()
    assert all(torch.equal(value, before[f"unet.{name}"]) for name, value in restored.items())


def test_frozen_weights_in_bf16_train_and_preview_as_on_a_gpu(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    from eqdiff.training.likeness import Likeness
    from eqdiff.training.preview import preview

    objective, latents = tiny_objective(tiny_base, tiny_subject, gate_init="identity")
    exact = objective(draw_batch(latents, objective.config, 1000, generator()))["loss"]
    model = objective.model.to_dtype(torch.bfloat16)
    objective = Objective(model, objective.config)  # its constant texts in the new precision
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(draw_batch(latents, objective.config, 1000, generator()))["loss"]
        loss.backward()
        likeness = Likeness(objective.config)
        concept = concept_of(objective, latents)
        preview(model, concept, objective.config, tmp_path / "preview.png", likeness)
    assert abs(loss - exact) < 0.05 * exact
    assert (tmp_path / "preview.png").is_file()
    named = model.concept_parameters()
    assert {p.dtype for p in named.values()} == {torch.float32}
    assert {p.grad.dtype for p in named.values() if p.grad is not None} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if n not in named} == {torch.bfloat16}


def test_a_zero_gate_opens_in_training(tiny_base: Path, tiny_subject: Path) -> None:
    objective, latents = tiny_objective(tiny_base, tiny_subject)
    batch = draw_batch(latents, objective.config, 1000, generator(9))
    assert all(dead == 1 for _, _, dead in objective.inspect(batch)["gate"].values())
    train(objective, latents, 3)
    gates = objective.inspect(batch)["gate"]
    assert len(gates) == 7
    assert sum(dead < 1 for _, _, dead in gates.values()) >= 3


def test_a_model_a_has_neither_reference_nor_rra_parameters(
    tiny_base: Path, tiny_subject: Path
) -> None:
    objective, latents = tiny_objective(
        tiny_base, tiny_subject, rra=False, fdte=False, masking="none"
    )
    assert objective.model.reference_unet is None
    assert not [n for n in objective.model.concept_parameters() if ".processor." in n]
    batch = draw_batch(latents, objective.config, 1000, generator())
    assert set(batch.bands.tolist()) == {Band.FULL}
    assert bool((batch.mask == 1).all())
    assert set(objective(batch)) == {"loss", "diffusion", "prior"}
    assert objective.model.tokens.rows.shape[0] == 1


def test_loss_is_a_function_of_the_batch_alone(tiny_base: Path, tiny_subject: Path) -> None:
    objective, latents = tiny_objective(tiny_base, tiny_subject)
    batch = draw_batch(latents, objective.config, 1000, generator())
    first = objective(batch)["loss"]
    torch.manual_seed(1234)
    assert torch.equal(first, objective(batch)["loss"])


def test_draws_depend_on_the_generator_alone(tiny_base: Path, tiny_subject: Path) -> None:
    objective, latents = tiny_objective(tiny_base, tiny_subject)
    one, two, other = (
        draw_batch(latents, objective.config, 1000, generator(seed)) for seed in (3, 3, 4)
    )
    assert all(
        torch.equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True)
    )
    assert not torch.equal(one.noise, other.noise)


def test_a_reference_is_never_made_from_its_target_while_there_are_others(
    tiny_base: Path, tiny_subject: Path
) -> None:
    from eqdiff.batch import _other_photos

    for target in range(4):
        chosen = _other_photos(torch.full((60,), target), 4, 1, generator())
        assert set(chosen.tolist()) == {0, 1, 2, 3} - {target}


def test_loss_ignores_what_the_unet_says_outside_the_mask(
    tiny_base: Path, tiny_subject: Path
) -> None:
    objective, latents = tiny_objective(
        tiny_base, tiny_subject, with_prior_preservation=False, ra_loss_weight=0.0
    )
    batch = draw_batch(latents, objective.config, 1000, generator())
    predict = objective.predict
    plain = objective(batch)["loss"]
    objective.predict = lambda b, c: predict(b, c) + 100 * (1 - b.mask)
    assert torch.equal(plain, objective(batch)["loss"])
    objective.predict = lambda b, c: predict(b, c) + 100 * b.mask
    assert not torch.equal(plain, objective(batch)["loss"])


def test_masked_noising_is_what_tells_noise_from_loss_masking(
    tiny_base: Path, tiny_subject: Path
) -> None:
    seen = {}
    for masking in ("noise", "loss"):
        objective, latents = tiny_objective(tiny_base, tiny_subject, masking=masking)
        batch = draw_batch(latents, objective.config, 1000, generator())
        objective.model.predict = lambda z, *rest, kind=masking: seen.setdefault(kind, z)
        objective.predict(batch, None)
        outside = (batch.mask == 0).expand_as(batch.z0)
        assert outside.any()
        assert torch.equal(seen[masking][outside], batch.z0[outside]) == (masking == "noise")


def test_official_totals_are_a_quarter_of_the_releases(tiny_base: Path, tiny_subject: Path) -> None:
    """The release: sum over channels / mask area for the subject, channel mean for class images,
    0.1 L_ra, 0.1 L_x."""
    objective, latents = tiny_objective(tiny_base, tiny_subject, preset="official")
    batch = draw_batch(latents, objective.config, 1000, generator())
    ours = objective(batch)
    context = objective.context(batch)
    n = len(batch.caption)
    error = (objective.predict(batch, context) - batch.noise).square()
    masked = (error * batch.mask).sum((1, 2, 3))[:n] / batch.mask.sum((1, 2, 3))[:n]
    release = masked.mean() + 1.0 * error[n:].mean()
    release += 0.1 * ours["reference_attention"] + 0.1 * ours["cross_attention"]
    assert torch.allclose(4 * ours["loss"], release, rtol=1e-5)


def test_official_reference_shares_noise_and_is_two_steps_earlier(
    tiny_base: Path, tiny_subject: Path
) -> None:
    objective, latents = tiny_objective(tiny_base, tiny_subject, preset="official")
    batch = draw_batch(latents, objective.config, 1000, generator())
    assert torch.equal(batch.noise_r, batch.noise)
    assert torch.equal(batch.t_r, (batch.t - 2).clamp(min=0))
    paper, latents = tiny_objective(tiny_base, tiny_subject)
    batch = draw_batch(latents, paper.config, 1000, generator())
    assert not torch.equal(batch.noise_r, batch.noise)
    assert torch.equal(batch.t_r, batch.t)


def test_official_prefixes_captions_as_often_as_the_release(
    tiny_base: Path, tiny_subject: Path
) -> None:
    objective, latents = tiny_objective(tiny_base, tiny_subject, preset="official")
    drawn = torch.cat(
        [draw_batch(latents, objective.config, 1000, generator(s)).caption for s in range(400)]
    )
    assert abs(float((drawn > 0).float().mean()) - 0.61) < 0.06
    assert len(objective.ids) == 5
    plain, latents = tiny_objective(tiny_base, tiny_subject)
    assert int(draw_batch(latents, plain.config, 1000, generator()).caption.max()) == 0


def test_the_reference_has_its_own_noise_at_its_own_timestep_under_its_own_text(
    tiny_base: Path, tiny_subject: Path
) -> None:
    given = {
        "reference_time_gap": 400,
        "class_prompt": "a {} on the beach",
        "reference_prompt": "a red {}",
    }
    objective, latents = tiny_objective(tiny_base, tiny_subject, **given)
    batch, model = draw_batch(latents, objective.config, 1000, generator()), objective.model
    assert not torch.equal(batch.t_r, batch.t)
    share = model.alphas_cumprod[batch.t_r].view(-1, 1, 1, 1)
    z_r = share.sqrt() * batch.z_r + (1 - share).sqrt() * batch.noise_r
    text = model.encode_plain(["a red dog toy"]).expand(len(z_r), -1, -1)
    wanted, got = (
        capture(model.reference_unet, model.sites, z_r, batch.t_r, text),
        objective.context(batch).features,
    )
    assert all(torch.allclose(got[site], wanted[site], atol=1e-5) for site in model.sites)


def test_eq_10_takes_the_references_mask_on_its_side_and_the_targets_on_its(
    tiny_base: Path, tiny_subject: Path
) -> None:
    objective, latents = tiny_objective(tiny_base, tiny_subject)
    batch = draw_batch(latents, objective.config, 1000, generator())
    context = objective.context(batch)
    assert torch.equal(context.mask, batch.mask_r)
    assert not torch.equal(context.mask, batch.mask)
    objective.predict(batch, context)
    n = len(batch.caption)
    mass = {name: rho[:n] for name, rho in context.mass.items()}
    l_ra, other = (
        reference_attention_loss(mass, mask[:n], form="all")
        for mask in (batch.subject_mask, batch.mask_r)
    )
    assert torch.allclose(objective(batch)["reference_attention"], l_ra.mean())
    assert not torch.allclose(l_ra.mean(), other.mean(), rtol=1e-3)


def test_captions_are_the_subjects_with_its_band_then_the_class_images(
    tiny_base: Path, tiny_subject: Path
) -> None:
    given = {"class_prompt": "a {} on the beach", "train_batch_size": 3}
    objective, latents = tiny_objective(tiny_base, tiny_subject, **given)
    model, seen = objective.model, []
    with torch.no_grad():
        model.tokens.rows[0] += 1.0
    batch = draw_batch(latents, objective.config, 1000, generator())
    batch.bands[:3] = torch.tensor(list(Band))
    model.predict = lambda z, t, text, context: seen.append(text)
    objective.predict(batch, None)
    ids, slots = model.tokenize(["photo of a {}"], "dog toy")
    for row, band in enumerate(Band):
        assert torch.allclose(
            seen[0][row], model.encode(ids, slots, torch.tensor([band]))[0], atol=1e-5
        )
    assert torch.allclose(seen[0][3:], model.encode_plain(["a dog toy on the beach"]), atol=1e-5)


def test_class_images_have_captions_of_their_own_in_turn(
    tiny_base: Path, tiny_subject: Path
) -> None:
    objective, latents = tiny_objective(tiny_base, tiny_subject, train_batch_size=4)
    captions = ["a dog toy", "a mosaic of a dog toy", "a dog toy in the snow"]
    objective = Objective(objective.model, objective.config, captions)
    batch = draw_batch(latents, objective.config, 1000, generator())
    batch.class_image = torch.tensor([4, 0, 2, 1])
    seen = objective.caption(batch)[4:]
    assert torch.equal(seen, objective.model.encode_plain([captions[i] for i in (1, 0, 2, 1)]))


def test_the_one_list_is_that_of_the_paper(tiny_base: Path, tiny_subject: Path) -> None:
    """S_LF and S_HF; keys and values of all 10 cross-attentions; of the 7 RRA layers K_r, V_r and
    H_r (Sec. 4)."""
    model = tiny_objective(tiny_base, tiny_subject)[0].model
    names = set(model.concept_parameters())
    own = {n for n in names if ".processor." not in n and n.startswith("unet.")}
    assert len(own) == 20
    assert {n.split(".attn2.")[1] for n in own} == {"to_k.weight", "to_v.weight"}
    learned = {n.split(".processor.")[1] for n in names if ".processor." in n}
    assert learned == {"to_k_ref.weight", "to_v_ref.weight", "fuse.weight", "fuse.bias"}
    assert names == own | {f"unet.{site}.{n}" for site in model.sites for n in learned} | {
        "tokens.rows"
    }
    assert {n for n, p in model.named_parameters() if p.requires_grad} == names


def test_layers_that_are_not_there_are_refused(tiny_base: Path, tiny_subject: Path) -> None:
    with pytest.raises(UserError, match="ra_loss_layers"):
        tiny_objective(tiny_base, tiny_subject, ra_loss_layers=("nowhere",))


@pytest.mark.parametrize("size", [1, 2])
def test_prior_can_go_without_reference(tiny_base: Path, tiny_subject: Path, size: int) -> None:
    """Also for one photo a step, whose features could be taken for the whole batch's."""
    objective, latents = tiny_objective(
        tiny_base, tiny_subject, reference_on_prior=False, train_batch_size=size
    )
    batch = draw_batch(latents, objective.config, 1000, generator())
    context = objective.context(batch)
    assert all(
        context.at(site, len(batch.z0))[1] == slice(0, size) for site in objective.model.sites
    )
    assert torch.isfinite(objective(batch)["loss"])
