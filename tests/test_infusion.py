"""Infusion: the class word carries other values, everything else is the base's; two subjects at
once."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, init_empty_weights
from diffusers import UNet2DConditionModel
from helpers import refused, run_test, tiny_config
from safetensors.torch import load_file
from torch import Tensor

from eqdiff.base.load import Base, load_base
from eqdiff.concept.concept import Concept, References, capture_concept
from eqdiff.concept.file import load_concept, save_concept
from eqdiff.concept.several import together
from eqdiff.errors import UserError
from eqdiff.methods.infusion import Infusion, InfusionProcessor
from eqdiff.methods.registry import METHODS
from eqdiff.methods.words import WordReader
from eqdiff.model import new_model
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.groups import Recipe
from eqdiff.settings.presets import METHOD_PRESETS
from eqdiff.training.trainer import Trainer

GIVEN = METHOD_PRESETS["infusion"]["paper"] | {"train_batch_size": 2, "concept_dtype": "fp32"}
SD1 = {
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}


def infusion(base: Base, streams: str = "single", keys: bool = False, word: str = "toy") -> Any:
    """An Infusion model on a base, its residuals 0, and a concept to attach it with."""
    changes = {"infusion_streams": streams, "infusion_keys": keys, "class_word": word}
    config = tiny_config(Path("base"), Path("photos"), method="infusion", **{**GIVEN, **changes})
    model = new_model(config, base, Infusion)
    noise = torch.zeros(1, 4, 8, 8)
    references = References(noise[:0], noise[:0, :1], noise, ())
    return model, capture_concept(model, references, dataclasses.asdict(config), 1)


def stirred(model: Any, seed: int = 0, size: float = 1.0) -> Any:
    """The model with random residuals."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.concept_parameters().values():
            value.copy_(size * torch.randn(value.shape, generator=generator))
    return model


def concept_with(base: Base, seed: int, word: str, **how: Any) -> Concept:
    model, concept = infusion(base, word=word, **how)
    stirred(model, seed)
    learned = {name: value.clone() for name, value in model.learned_values().items()}
    model.detach()
    return dataclasses.replace(concept, parameters=learned)


def picture(pipe: EqDiffPipeline, prompt: str, **how: Any) -> Tensor:
    given = {"seeds": [3], "num_inference_steps": 2, "output_type": "pt", **how}
    return pipe(prompt, **given).images[0]


def attached(base: Base, model: Any, concept: Concept) -> EqDiffPipeline:
    pipe = EqDiffPipeline.of(base)
    pipe.attach(model, concept)
    return pipe


def of_base(tiny_base: Path, prompt: str) -> Tensor:
    pipe = EqDiffPipeline.of(load_base(str(tiny_base)))
    return picture(pipe, prompt, guidance_scale=8.0)


# -- what is added, and where ----------------------------------------------------------------------


@pytest.mark.parametrize("keys", [False, True])
def test_without_residuals_it_is_the_base_bit_for_bit(tiny_base: Path, keys: bool) -> None:
    base = load_base(str(tiny_base))
    pipe = attached(base, *infusion(base, keys=keys))
    assert torch.equal(picture(pipe, "a {} on a beach"), of_base(tiny_base, "a toy on a beach"))


def test_two_streams_without_residuals_are_the_base(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    pipe = attached(base, *infusion(base, "dual"))
    wanted = of_base(tiny_base, "a toy on a beach")
    torch.testing.assert_close(picture(pipe, "a {} on a beach"), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("streams", ["single", "dual"])
def test_a_prompt_without_the_subject_is_drawn_as_the_base_draws_it(
    tiny_base: Path, streams: str
) -> None:
    base = load_base(str(tiny_base))
    model, concept = infusion(base, streams, keys=streams == "single")
    pipe = attached(base, stirred(model), concept)
    drawn = picture(pipe, "a toy on a beach")
    atol = 0 if streams == "single" else 1e-5
    torch.testing.assert_close(drawn, of_base(tiny_base, "a toy on a beach"), atol=atol, rtol=0)
    assert not torch.allclose(picture(pipe, "a {} on a beach"), drawn, atol=1e-3)


def test_two_streams_look_as_the_base_does_in_every_layer_whatever_was_learned(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    attend = InfusionProcessor.attend

    def watched(self: Any, q: Tensor, k: Tensor, *rest: Any) -> Tensor:
        seen.setdefault(self.name, []).append((q.detach(), k.detach()))
        return attend(self, q, k, *rest)

    handed: dict[str, list[tuple[Tensor, Tensor]]] = {}
    plain = "eqdiff.processors.multi_head_attention"
    from eqdiff import processors

    stock = processors.multi_head_attention

    def spied(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
        handed.setdefault("all", []).append((q.detach(), k.detach()))
        return stock(q, k, v, *rest)

    monkeypatch.setattr(InfusionProcessor, "attend", watched)
    monkeypatch.setattr(plain, spied)
    base = load_base(str(tiny_base))
    model, _ = infusion(base, "dual")
    stirred(model, size=3.0)
    ids, slots = model.tokenize(["a {} on a beach"], "toy")
    text = model.encode(ids, slots, torch.tensor([2]))
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    model.predict(z, torch.tensor([500]), text, None)
    cross = [pair for pair in handed["all"] if pair[1].shape[1] == ids.shape[1]]
    assert len(cross) == 10 == len(seen)
    assert all(torch.equal(q[:1], q[1:]) and torch.equal(k[:1], k[1:]) for q, k in cross)
    # the subject's own queries had drifted
    assert any(not torch.allclose(q[:1], q[1:]) for calls in seen.values() for q, _ in calls)

    # and the first stream is the base's, layer by layer
    base_queries = {name: calls[0][0][:1] for name, calls in seen.items()}
    seen.clear()
    stirred(model, size=0.0)
    model.predict(z, torch.tensor([500]), text, None)
    for name, calls in seen.items():
        torch.testing.assert_close(calls[0][0][:1], base_queries[name], atol=1e-6, rtol=0)


def test_the_residual_goes_to_the_values_of_the_slot_alone(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    model, _ = infusion(base, keys=True)
    stirred(model)
    ids, slots = model.tokenize(["a toy and a {}"], "toy")
    text = model.encode(ids, slots, torch.tensor([2]))
    name, processor = next(iter(model.installed.processors.items()))
    attn = base.unet.get_submodule(name.removesuffix(".processor"))
    k, v = processor.keys_and_values(attn, text, None)
    plain_k, plain_v = attn.to_k(text[..., :32]), attn.to_v(text[..., :32])
    inside = slots[0] > 0
    assert inside.sum() == 1 and inside[5]  # start, a, toy, and, a, toy
    assert torch.equal(v[:, ~inside], plain_v[:, ~inside])
    assert torch.equal(k[:, ~inside], plain_k[:, ~inside])
    torch.testing.assert_close((v - plain_v)[0, inside][0], processor.value[0])
    torch.testing.assert_close((k - plain_k)[0, inside][0], processor.key[0])


# -- the slot is found by token ids ----------------------------------------------------------------


def reader(base: Base, **places: tuple[int, str]) -> WordReader:
    return WordReader(base.tokenizer, Recipe(class_word="toy"), places)


def words_at(base: Base, ids: Tensor, numbers: Tensor, number: int = 1) -> str:
    return base.tokenizer.decode(ids[0][numbers[0] == number]).strip()


@pytest.mark.parametrize(
    ("prompt", "word", "marked"),
    [
        ("Pointillism-inspired {}", "toy", "toy"),
        ("a {}", "teapottoy", "teapottoy"),  # of several pieces
        ("a {} on a toy", "dog toy", "dog toy"),
        ("a {}nting", "pai", "painting"),  # one token with its ending
        ("three {}s", "toy", "toy"),
        ("a <new1> toy on a beach", "toy", "toy"),
        ("A  PHOTO\tof a {}, a toy", "Toy", "toy"),
    ],
)
def test_the_slot_is_what_the_place_wrote(
    tiny_base: Path, prompt: str, word: str, marked: str
) -> None:
    base = load_base(str(tiny_base))
    ids, numbers = reader(base).read([prompt], word)
    assert words_at(base, ids, numbers) == marked
    plain = prompt.replace("<new1> toy", "{}").replace("{}", word)
    wanted = base.tokenizer(plain, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(ids, wanted.input_ids)


def test_several_subjects_are_named_by_number_or_folder(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    places = {"1": (1, "toy"), "2": (2, "cat"), "my_mug": (1, "toy")}
    found = reader(base, **places)
    ids, numbers = found.read(["a {2} beside a {my_mug} and a cat"], "")
    assert words_at(base, ids, numbers, 1) == "toy"
    assert words_at(base, ids, numbers, 2) == "cat" and (numbers == 2).sum() == 1
    for prompt in ("a {}", "a {3}", "a {cat}"):
        with pytest.raises(UserError, match=r"is none of the concepts; use \{1\}, \{2\}"):
            found.read([prompt], "")


@pytest.mark.parametrize("word", ["toy", "dog " * 5 + "toy"])
def test_a_subject_that_is_cut_off_is_refused(tiny_base: Path, word: str) -> None:
    base = load_base(str(tiny_base))
    with pytest.raises(UserError, match="lies beyond"):
        reader(base).read(["a cat " * (37 if word == "toy" else 36) + "and {}"], word)
    with pytest.raises(UserError, match="lies beyond"):
        reader(base).read(["a cat " * 200 + "and {}"], word)


# -- what is trained, counted and kept -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single, False", "single, True", "dual, False"])
def test_training_moves_the_residuals_and_nothing_else(
    tiny_base: Path, tiny_subject: Path, own_caches: None, tmp_path: Path, kind: str
) -> None:
    streams, keys = kind.split(", ")[0], kind.endswith("True")
    changes = {"infusion_streams": streams, "infusion_keys": keys, "output_dir": str(tmp_path)}
    config = tiny_config(tiny_base, tiny_subject, method="infusion", **{**GIVEN, **changes})
    trainer = Trainer(config, Accelerator(cpu=True), load_base(str(tiny_base)))
    for step in (1, 2):
        losses = trainer.losses(trainer.draw(step))
        trainer.backward(losses)
        trainer.descend(step)
    assert set(losses) == {"loss", "diffusion"}

    before = load_base(str(tiny_base))
    now = dict(trainer.model.unet.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in before.unet.named_parameters())
    concept = trainer.concept(2)
    assert len(concept.parameters) == (20 if keys else 10)
    assert all(value.abs().sum() > 0 for value in concept.parameters.values())

    save_concept(concept, tmp_path / "concept.safetensors")
    assert set(load_file(tmp_path / "concept.safetensors")) == set(concept.parameters)
    pipe = EqDiffPipeline.of(before).load_concept(tmp_path / "concept.safetensors")
    wanted = picture(attached(trainer_base(trainer), trainer.model, concept), "a {}")
    assert torch.equal(picture(pipe, "a {}"), wanted)


def trainer_base(trainer: Trainer) -> Any:
    trainer.model.unet.eval()
    return trainer.model


def test_the_loss_is_the_mean_over_all_cells_of_the_masked_error(
    tiny_base: Path, tiny_subject: Path
) -> None:
    from types import SimpleNamespace

    from eqdiff.methods.infusion import InfusionObjective

    noise = torch.randn(2, 4, 8, 8)
    mask = torch.rand(2, 1, 8, 8)
    guess = torch.randn(2, 4, 8, 8)
    own = SimpleNamespace(target=lambda batch: batch.noise)
    found = InfusionObjective.error(own, guess, SimpleNamespace(noise=noise, mask=mask))
    torch.testing.assert_close(found, (mask * (guess - noise)).square().flatten(1).mean(1))


def sd1_residuals(keys: bool) -> dict[str, Tensor]:
    """Infusion's parameters at Stable Diffusion 1.x's sizes."""
    with init_empty_weights():
        unet = UNet2DConditionModel(**SD1)
    found = {}
    for name in unet.attn_processors:
        if name.endswith(".attn2.processor"):
            attn = unet.get_submodule(name.removesuffix(".processor"))
            own = InfusionProcessor(attn, name, subjects=1, with_keys=keys, dual=False)
            found |= {f"unet.{name}.{part}": value for part, value in own.named_parameters()}
    return {name: torch.zeros(value.shape) for name, value in found.items()}


@pytest.mark.parametrize(("keys", "dtype"), [(False, "fp32"), (True, "fp16")])
def test_at_the_true_sizes_it_is_12480_numbers_in_under_64_kb(
    tiny_base: Path, tmp_path: Path, keys: bool, dtype: str
) -> None:
    values = sd1_residuals(keys)
    each = 2 if keys else 1
    assert len(values) == 16 * each
    assert sum(value.numel() for value in values.values()) == 12_480 * each

    _, concept = infusion(load_base(str(tiny_base)), keys=keys)
    names = ("a_rather_long_name_of_a_photo.jpg",) * 6
    references = dataclasses.replace(concept.references, names=names)
    concept = dataclasses.replace(concept, parameters=values, references=references)
    save_concept(concept, tmp_path / "concept.safetensors", dtype=dtype)
    assert (tmp_path / "concept.safetensors").stat().st_size < 64_000
    assert not load_concept(tmp_path / "concept.safetensors").references.names


# -- several at once -------------------------------------------------------------------------------


def test_two_concepts_in_either_order_give_the_same_picture(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    mug, cat = (concept_with(base, seed, word) for seed, word in ((1, "mug"), (2, "cat")))
    prompt = "a {mug} beside a {cat} on a beach"
    drawn = []
    for concepts, names in (((mug, cat), ("mug", "cat")), ((cat, mug), ("cat", "mug"))):
        pipe = EqDiffPipeline.of(base).load_concept(together(concepts, names))
        drawn.append(picture(pipe, prompt))
        pipe.unload_concept()
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], of_base(tiny_base, "a mug beside a cat on a beach"))


def test_one_of_two_is_drawn_as_if_it_were_alone(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    mug, cat = (concept_with(base, seed, word) for seed, word in ((1, "mug"), (2, "cat")))
    pipe = EqDiffPipeline.of(base).load_concept([mug, cat])
    both = picture(pipe, "a {2} on a beach")
    alone = picture(pipe.load_concept(cat), "a {} on a beach")
    assert torch.equal(both, alone)


def test_only_concepts_that_go_together_are_drawn_together(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    mug, cat = (concept_with(base, seed, word) for seed, word in ((1, "mug"), (2, "cat")))
    dual = concept_with(base, 3, "dog", streams="dual")
    other = dataclasses.replace(cat, base_fingerprint="0" * 16, identity=None)
    eqdiffs = dataclasses.replace(cat, settings={**cat.settings, "method": "eqdiff"})
    for partner, says in (
        (dual, "infusion_streams"),
        (other, "same base"),
        (eqdiffs, "of --method eqdiff"),
    ):
        with pytest.raises(UserError, match=says):
            together([dataclasses.replace(mug, identity=None), partner], ["mug", "partner"])
    assert together([mug], ["mug"]) is mug


@pytest.mark.slow
def test_two_concepts_are_drawn_by_the_command_line(
    tiny_base: Path, own_caches: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = load_base(str(tiny_base))
    for seed, word in ((1, "mug"), (2, "cat")):
        file = tmp_path / f"my_{word}" / "concept.safetensors"
        file.parent.mkdir()
        save_concept(concept_with(base, seed, word), file)
    words = ["--concept", str(tmp_path / "my_mug"), "--concept", str(tmp_path / "my_cat")]
    words += ["--pretrained_model_name_or_path", str(tiny_base), "--num_inference_steps", "1"]

    run_test([*words, "--prompt", "a {my_mug} beside a {2}"])
    assert (tmp_path / "my_mug+my_cat" / "samples" / "grid.png").is_file()
    for prompt, says in (("a {}", "is none of the 2 concepts"), ("a mug", "none of the 2")):
        assert says in refused(capsys, run_test, [*words, "--prompt", prompt])
    assert "several concepts" in refused(capsys, run_test, words)


def test_infusion_says_that_it_carries_no_photos_and_several() -> None:
    assert [name for name, method in METHODS.items() if method.several] == ["infusion"]
    assert [name for name, method in METHODS.items() if not method.references] == ["infusion"]
