"""Where the release departs from the paper: what the presets `paper` and `official` do about it, on a tiny base.

docs/paper_vs_release.md lists every row and the test that shows it; most are tested beside the function they are in.
"""

from pathlib import Path

import pytest
import torch
from helpers import concept_of, tiny_objective

from eqdiff.base import load_base
from eqdiff.frequency import Band
from eqdiff.latents import draw_batch
from eqdiff.pipeline import EqDiffPipeline

PRESETS = ("paper", "official")


def drawn(objective, latents, seed: int = 0):
    return draw_batch(latents, objective.config, 1000, torch.Generator().manual_seed(seed))


def test_class_images_are_filtered_by_official_only(tiny_base: Path, tiny_subject: Path) -> None:
    for preset in PRESETS:
        objective, latents = tiny_objective(tiny_base, tiny_subject, preset=preset)
        low, full = latents.classes.mean[:, Band.LOW], latents.classes.mean[:, Band.FULL]
        assert torch.equal(low, full) == (preset == "paper")
        assert set(drawn(objective, latents).bands[2:].tolist()) == {Band.FULL}  # no band for their captions


def test_rows_start_at_half_the_class_word_each_or_at_the_rare_token_each(tiny_base: Path, tiny_subject: Path) -> None:
    base = load_base(str(tiny_base))
    table = base.text_encoder.get_input_embeddings().weight.detach()
    for preset, word, size in (("paper", "dog toy", 1.0), ("official", "ktn", 2.0)):
        objective, _ = tiny_objective(tiny_base, tiny_subject, preset=preset)
        mean = table[base.tokenizer(word, add_special_tokens=False).input_ids].mean(0)
        rows = objective.model.tokens.rows.detach()
        assert torch.allclose(rows.sum(0), size * mean, atol=1e-6)
        assert torch.equal(rows[0], rows[1])


def test_official_loses_the_slot_behind_a_word_of_several_tokens(tiny_base: Path, tiny_subject: Path) -> None:
    """As in the release: the learned vector falls on a piece of that word, and the rare token stays in the slot."""
    prompt = "a pointillism-inspired {}"
    for preset in PRESETS:
        model = tiny_objective(tiny_base, tiny_subject, preset=preset)[0].model
        ids, slots = model.tokenize([prompt], "dog toy")
        rare = model.tokenizer("ktn", add_special_tokens=False).input_ids[0]
        if preset == "paper":
            assert torch.equal(slots, ids == model.placeholder_id)
        else:
            assert slots.nonzero().tolist() == [[0, 3]]
            assert ids[0, 3] != rare
            assert (ids == rare).sum() == 1
            assert not (ids == model.placeholder_id).any()


def test_class_images_come_with_plain_text_whole_masks_and_a_copy_as_reference(
    tiny_base: Path, tiny_subject: Path
) -> None:
    for preset, caption in (("paper", "photo of a dog toy"), ("official", "dog toy")):
        objective, latents = tiny_objective(tiny_base, tiny_subject, preset=preset)
        assert torch.equal(objective.class_text, objective.model.encode_plain([caption]))
        batch = drawn(objective, latents)
        assert bool((batch.mask[2:] == 1).all())
        assert bool((batch.mask_r[2:] == 1).all())
        assert len(batch.z_r) == len(batch.z0) == 4


def test_the_reference_is_read_under_the_class_word_alone(tiny_base: Path, tiny_subject: Path) -> None:
    for preset in PRESETS:
        objective, _ = tiny_objective(tiny_base, tiny_subject, preset=preset)
        assert torch.equal(objective.reference_text, objective.model.encode_plain(["photo of a dog toy"]))


def test_official_dilates_the_masks_of_noise_and_loss_but_not_those_of_attention(
    tiny_base: Path, tiny_subject: Path
) -> None:
    for preset in PRESETS:
        objective, latents = tiny_objective(tiny_base, tiny_subject, preset=preset)
        batch = drawn(objective, latents)
        grown = batch.mask[:2] - batch.subject_mask
        assert bool((grown >= 0).all())
        assert bool(grown.any()) == (preset == "official")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_reference_is_noised_at_sampling_or_clean_as_in_the_release(
    tiny_base: Path, tiny_subject: Path, preset: str
) -> None:
    concept = concept_of(*tiny_objective(tiny_base, tiny_subject, preset=preset))
    pipe = EqDiffPipeline.from_pretrained(tiny_base, safety_checker=None, requires_safety_checker=False)
    pipe.load_concept(concept)
    seen: list[torch.Tensor] = []
    pipe._model.reference_unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    schedule = pipe.schedule(3, (0,))
    for t in pipe.scheduler.timesteps:
        schedule.features(t)
    clean = [torch.equal(z, concept.references.latents[:1].expand_as(z)) for z in seen]
    assert clean == [preset == "official"] * 3


def test_the_optimizer_decays_the_token_rows_in_official_only(tiny_base: Path, tiny_subject: Path) -> None:
    from eqdiff.setup import make_optimizer

    for preset, decay in (("paper", 0.0), ("official", 0.01)):
        objective, _ = tiny_objective(tiny_base, tiny_subject, preset=preset)
        groups = make_optimizer(objective.model, objective.config).param_groups
        rows = next(g for g in groups if any(p is objective.model.tokens.rows for p in g["params"]))
        assert (len(rows["params"]), rows["weight_decay"]) == (1, decay)
        assert sum(len(g["params"]) for g in groups) == len(objective.model.concept_parameters())
