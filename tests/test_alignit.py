"""AlignIT: all words but the subject's are the base's."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import moved_model
from torch import Tensor

from eqdiff.base.load import Base, load_base
from eqdiff.concept.concept import References, capture_concept
from eqdiff.errors import UserError
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.processors import PlainProcessor
from eqdiff.sampling.alignit import AlignIT

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.processor"
PROMPT = "a {} on a beach"


def attached(base: Base, learned: float, method: str = "eqdiff", **changes: Any) -> EqDiffPipeline:
    """A pipeline with a concept whose parameters are moved by noise of that size."""
    given = {"rra": False, "class_word": "dog toy", **changes}
    model, config = moved_model(base, method, learned, **given)
    noise = torch.zeros(1, 4, 8, 8)
    references = References(noise[:0], noise[:0, :1], noise, ())
    pipe = EqDiffPipeline.of(base)
    pipe.attach(model, capture_concept(model, references, dataclasses.asdict(config), 1))
    return pipe


def picture(pipe: EqDiffPipeline, prompt: str, *options: Any, **how: Any) -> Tensor:
    given = {"seeds": [3], "num_inference_steps": 2, "output_type": "pt", **how}
    return pipe(prompt, sampling_options=options, **given).images[0]


def seen(pipe: EqDiffPipeline, monkeypatch: pytest.MonkeyPatch, *options: Any) -> Any:
    """K and V of the conditional half in a layer, of the first call."""
    found = []
    door = PlainProcessor.keys_and_values

    def watched(self: Any, *args: Any) -> Any:
        k, v = door(self, *args)
        if self.name == LAYER:
            found.append((k[1].detach().clone(), v[1].detach().clone()))
        return k, v

    with monkeypatch.context() as patch:
        patch.setattr(PlainProcessor, "keys_and_values", watched)
        picture(pipe, PROMPT, *options)
    return found[0]


@pytest.mark.parametrize("weights", ["kv", "all", "none"])
def test_of_a_concept_that_learned_nothing_it_changes_nothing(
    tiny_base: Path, weights: str
) -> None:
    pipe = attached(load_base(str(tiny_base)), 0.0, unet_weights=weights)
    assert torch.equal(picture(pipe, PROMPT, AlignIT()), picture(pipe, PROMPT))


def test_keys_and_values_of_other_words_are_the_bases_and_the_subjects_are_tuned(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untuned = seen(attached(load_base(str(tiny_base)), 0.0), monkeypatch)
    pipe = attached(load_base(str(tiny_base)), 0.3)
    tuned = seen(pipe, monkeypatch)
    aligned = seen(pipe, monkeypatch, AlignIT())

    own = torch.zeros(77, dtype=torch.bool)
    own[2:5] = True  # start, a, then <new1> dog toy
    for found, base, subject in zip(aligned, untuned, tuned, strict=True):
        torch.testing.assert_close(found[~own], base[~own])
        assert torch.equal(found[own], subject[own])
        assert not torch.allclose(base, subject, atol=1e-3)
    assert not torch.equal(picture(pipe, PROMPT, AlignIT()), picture(pipe, PROMPT))


def test_a_prompt_without_the_subject_is_the_bases(tiny_base: Path) -> None:
    pipe = attached(load_base(str(tiny_base)), 0.3)
    drawn = picture(pipe, "a dog on a beach", AlignIT())
    stock = EqDiffPipeline.of(load_base(str(tiny_base)))
    assert torch.equal(drawn, picture_of(stock, "a dog on a beach", pipe))


def picture_of(stock: EqDiffPipeline, prompt: str, like: EqDiffPipeline) -> Tensor:
    guidance = like._carried.concept.recipe.guidance_scale
    how = {"num_inference_steps": 2, "output_type": "pt", "guidance_scale": guidance}
    return stock(prompt, seeds=[3], **how).images[0]


def test_two_images_of_a_batch_are_what_each_is_alone(tiny_base: Path) -> None:
    pipe = attached(load_base(str(tiny_base)), 0.3)
    prompts = [PROMPT, "an oil painting of a {}"]
    both = pipe(
        prompts,
        seeds=[3, 4],
        num_inference_steps=2,
        output_type="pt",
        sampling_options=[AlignIT()],
    ).images
    for number, prompt in enumerate(prompts):
        alone = picture(pipe, prompt, AlignIT(), seeds=[3 + number])
        torch.testing.assert_close(both[number], alone, atol=1e-5, rtol=0)


def test_nothing_of_it_is_left_behind(tiny_base: Path) -> None:
    pipe = attached(load_base(str(tiny_base)), 0.3)
    before = picture(pipe, PROMPT)
    picture(pipe, PROMPT, AlignIT())
    with pytest.raises(RuntimeError, match="in the middle"):
        picture(pipe, PROMPT, AlignIT(), callback_on_step_end=broken)
    assert not any(layer._forward_hooks for layer in pipe.unet.modules())
    assert torch.equal(picture(pipe, PROMPT), before)


def broken(*_: Any) -> Any:
    raise RuntimeError("in the middle")


def test_it_is_refused_where_other_words_are_the_bases_anyway(tiny_base: Path) -> None:
    pipe = attached(load_base(str(tiny_base)), 0.3, "infusion")
    with pytest.raises(UserError, match="--alignit: with --method infusion"):
        picture(pipe, PROMPT, AlignIT())
