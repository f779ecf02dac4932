"""Where the release departs from the paper: what the presets `paper` and `official` do about it, on
a tiny base.

docs/paper_vs_release.md lists every row and the test that shows it; most are tested beside the
function they are in.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import concept_of, tiny_objective
from PIL import Image

from eqdiff.base.load import load_base
from eqdiff.batch import draw_batch
from eqdiff.concept.file import save_concept
from eqdiff.frequency import Band
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.places import ASSETS
from eqdiff.tokens import rare_ids

PRESETS = ("paper", "official")


def drawn(objective, latents, seed: int = 0):
    return draw_batch(latents, objective.config, 1000, torch.Generator().manual_seed(seed))


def test_class_images_are_filtered_by_official_only(tiny_base: Path, tiny_subject: Path) -> None:
    for preset in PRESETS:
        objective, latents = tiny_objective(tiny_base, tiny_subject, preset=preset)
        low, full = latents.classes.mean[:, Band.LOW], latents.classes.mean[:, Band.FULL]
        assert torch.equal(low, full) == (preset == "paper")
        assert set(drawn(objective, latents).bands[2:].tolist()) == {
            Band.FULL
        }  # no band for their captions


def test_rows_start_at_half_the_class_word_each_or_at_the_rare_token_each(
    tiny_base: Path, tiny_subject: Path
) -> None:
    base = load_base(str(tiny_base))
    table = base.text_encoder.get_input_embeddings().weight.detach()
    for preset, word, size in (("paper", "dog toy", 1.0), ("official", "ktn", 2.0)):
        objective, _ = tiny_objective(tiny_base, tiny_subject, preset=preset)
        mean = table[base.tokenizer(word, add_special_tokens=False).input_ids].mean(0)
        rows = objective.model.tokens.rows.detach()
        assert torch.allclose(rows.sum(0), size * mean, atol=1e-6)
        assert torch.equal(rows[0], rows[1])


@pytest.fixture
def clips_words(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base with CLIP's own vocabulary, and a row for each of its words."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(ASSETS / "sd1" / "tokenizer", folder / "tokenizer")
    text = CLIPTextConfig.from_pretrained(tiny_base, subfolder="text_encoder")
    text.vocab_size, text.bos_token_id, text.eos_token_id, text.pad_token_id = (
        49408,
        49406,
        49407,
        49407,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    return folder


def test_officials_rare_token_is_the_vocabularys_entry_as_in_the_release(
    clips_words: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    """CLIP reads the text "ktn" as "k" and "tn"; its entry "ktn" is a piece of other words. In
    rows, slot and file."""
    objective, latents = tiny_objective(clips_words, tiny_subject, preset="official")
    model, table = objective.model, objective.model.text_encoder.get_input_embeddings().weight
    assert torch.equal(model.tokens.rows, table[42170].expand(2, -1))
    ids, slots = model.tokenize(["a pointillism-inspired {}"], "dog toy")
    assert (ids == 42170).sum() == 1 and not slots[ids == 42170].any()
    save_concept(concept_of(objective, latents), tmp_path / "c.safetensors")
    pipe = EqDiffPipeline.from_pretrained(clips_words).load_concept(str(tmp_path / "c.safetensors"))
    assert torch.equal(
        pipe._carried.model.tokenize(["a pointillism-inspired {}"], "dog toy")[0], ids
    )


def test_officials_size_prefixes_are_the_releases_and_lose_the_slot_where_it_does(
    clips_words: Path, tiny_subject: Path
) -> None:
    """CLIP reads "zoomed" as one token or several; the vector stands where counting words says."""
    plain, _ = tiny_objective(clips_words, tiny_subject, preset="paper")
    assert len(plain.ids) == 1
    official, _ = tiny_objective(clips_words, tiny_subject, preset="official")
    starts = ["", "a far away ", "very small ", "zoomed in ", "close up "]
    captions = [f"{start}photo of a ktn dog toy" for start in starts]
    read = official.model.tokenizer.batch_decode(official.ids, skip_special_tokens=True)
    squeezed = [text.replace("</w>", "").replace(" ", "") for text in read]
    assert squeezed == [caption.replace(" ", "") for caption in captions]

    words = [caption.split().index("ktn") + 1 for caption in captions]  # + 1: the start token
    assert official.slots.nonzero().tolist() == [[row, word] for row, word in enumerate(words)]


def test_a_class_word_is_read_as_it_is_typed(clips_words: Path, tiny_subject: Path) -> None:
    """The release's "cat_toy" has an underscore, which CLIP reads as a token of its own."""
    read = {}
    for word in ("cat toy", "cat_toy"):
        objective, _ = tiny_objective(clips_words, tiny_subject, class_word=word)
        model = objective.model
        after = int(objective.slots[0].nonzero()) + 1
        read[word] = model.tokenizer.convert_ids_to_tokens(objective.ids[0, after : after + 3])
    assert read["cat_toy"] == ["cat</w>", "_</w>", "toy</w>"]
    assert read["cat toy"][:2] == ["cat</w>", "toy</w>"]


def test_officials_masks_keep_their_greys_down_to_the_latents(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_subject, tmp_path / "subject"))
    for file in (folder / "masks").iterdir():
        with Image.open(file) as mask:
            grey = mask.convert("L").point(lambda level: 200 if level >= 128 else 0)
        grey.save(file)
    for preset, level in (("paper", 1.0), ("official", 200 / 255)):
        _, latents = tiny_objective(tiny_base, folder, preset=preset)
        assert float(latents.subject_masks.max()) == pytest.approx(level)


def test_officials_cross_loss_looks_at_the_placeholders_token_where_the_slot_is_lost(
    clips_words: Path, tiny_subject: Path
) -> None:
    """As in the release: L_x finds the placeholder by its id, the vector by counting words."""
    prompt = "pointillism-inspired photo of a {}"
    given = {"preset": "official", "instance_prompt": prompt, "size_prefixes": False}
    objective, latents = tiny_objective(clips_words, tiny_subject, **given)
    model = objective.model
    ids = model.tokenizer([prompt.replace("{}", "<new1> dog toy")], padding="max_length").input_ids
    own = torch.tensor(ids) == model.reader.placeholder_id

    context = objective.context(drawn(objective, latents))
    assert torch.equal(context.slots[:2], own.expand(2, -1))
    assert not torch.equal(context.slots[:1], objective.slots)
    assert not context.slots[2:].any()  # class images have no subject


@pytest.mark.parametrize(
    ("word", "ids"),
    [("ktn", [42170]), ("sks", [48136]), ("dog toy", [1929, 5988]), ("xxy5", [5675, 344, 276])],
)
def test_a_rare_token_that_is_no_entry_is_read_as_text(word: str, ids: list[int]) -> None:
    from transformers import CLIPTokenizer

    assert rare_ids(CLIPTokenizer.from_pretrained(ASSETS / "sd1" / "tokenizer"), word) == ids


def test_official_loses_the_slot_behind_a_word_of_several_tokens(
    tiny_base: Path, tiny_subject: Path
) -> None:
    """As in the release: the learned vector falls on a piece of that word, and the rare token stays
    in the slot."""
    prompt = "a pointillism-inspired {}"
    for preset in PRESETS:
        model = tiny_objective(tiny_base, tiny_subject, preset=preset)[0].model
        ids, slots = model.tokenize([prompt], "dog toy")
        rare = model.tokenizer("ktn", add_special_tokens=False).input_ids[0]
        if preset == "paper":
            assert torch.equal(slots, ids == model.reader.placeholder_id)
        else:
            assert slots.nonzero().tolist() == [[0, 3]]
            assert ids[0, 3] != rare
            assert (ids == rare).sum() == 1
            assert not (ids == model.reader.placeholder_id).any()


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


def test_the_reference_is_read_under_the_class_word_alone(
    tiny_base: Path, tiny_subject: Path
) -> None:
    for preset in PRESETS:
        objective, _ = tiny_objective(tiny_base, tiny_subject, preset=preset)
        assert torch.equal(
            objective.reference_text, objective.model.encode_plain(["photo of a dog toy"])
        )


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
    pipe = EqDiffPipeline.from_pretrained(
        tiny_base, safety_checker=None, requires_safety_checker=False
    )
    pipe.load_concept(concept)
    seen: list[torch.Tensor] = []
    pipe._carried.model.reference_unet.register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    schedule = pipe.schedule(3, (0,))
    for t in pipe.scheduler.timesteps:
        schedule.features(t)
    clean = [torch.equal(z, concept.references.latents[:1].expand_as(z)) for z in seen]
    assert clean == [preset == "official"] * 3


def test_the_optimizer_decays_the_token_rows_in_official_only(
    tiny_base: Path, tiny_subject: Path
) -> None:
    from eqdiff.training.build import make_optimizer

    for preset, decay in (("paper", 0.0), ("official", 0.01)):
        objective, _ = tiny_objective(tiny_base, tiny_subject, preset=preset)
        groups = make_optimizer(objective.model, objective.config).param_groups
        rows = next(g for g in groups if any(p is objective.model.tokens.rows for p in g["params"]))
        assert (len(rows["params"]), rows["weight_decay"]) == (1, decay)
        assert sum(len(g["params"]) for g in groups) == len(objective.model.concept_parameters())


@pytest.mark.parametrize("kind", [{}, {"unet_weights": "all"}], ids=str)
def test_rra_has_a_rate_of_its_own_and_everything_learned_has_one(
    tiny_base: Path, tiny_subject: Path, kind: dict[str, Any]
) -> None:
    from eqdiff.training.build import make_optimizer

    rates = {"learning_rate": 1e-4, "token_learning_rate": 1e-3, "rra_rate": 3.0}
    objective, _ = tiny_objective(tiny_base, tiny_subject, **rates, **kind)
    learned = objective.model.concept_parameters()
    rate_of = {
        parameter: group["lr"]
        for group in make_optimizer(objective.model, objective.config).param_groups
        for parameter in group["params"]
    }
    assert rate_of.keys() == set(learned.values())
    for name, parameter in learned.items():
        wanted = 1e-3 if name.startswith("tokens.") else 3e-4 if ".processor." in name else 1e-4
        assert rate_of[parameter] == pytest.approx(wanted), name
