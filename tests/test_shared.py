"""The reference UNet shares what is not trained; what others do to the UNet does not reach it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from helpers import loaded, make_lora, tiny_objective, train

from benchmarks.counting import build
from eqdiff import model as module
from eqdiff.base.adapters import copy_as_it_came
from eqdiff.base.shared import changed, looks
from eqdiff.concept.concept import Concept
from eqdiff.errors import UserError
from eqdiff.settings.presets import preset_config

PROMPT = "a {} on the beach"
SHORT = {"num_inference_steps": 2, "seeds": 0, "output_type": "np"}


def not_shared(model: Any) -> int:
    """Numbers of the reference UNet that are its own."""
    own = {id(weight) for weight in model.unet.parameters()}
    weights = model.reference_unet.parameters()
    return sum(weight.numel() for weight in weights if id(weight) not in own)


def values(part: torch.nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in part.parameters()]


def are_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, first, second)) and len(first) == len(second)


@pytest.fixture(scope="module")
def lora(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lora(tiny_base, tmp_path_factory.mktemp("lora"))


def test_at_the_size_of_stable_diffusion_it_has_19_million_numbers_of_its_own() -> None:
    model = build(preset_config("paper", class_word="mug")).model
    whole = sum(weight.numel() for weight in model.reference_unet.parameters())
    assert (whole, not_shared(model)) == (859_520_964, 19_169_280)


@pytest.mark.parametrize("weights", ["kv", "all", "none"])
def test_what_is_trained_is_not_shared(tiny_base: Path, tiny_subject: Path, weights: str) -> None:
    objective, latents = tiny_objective(tiny_base, tiny_subject, unet_weights=weights)
    model = objective.model
    before = values(model.reference_unet)
    assert not_shared(model) == sum(value.numel() for value in model.base_values.values())
    train(objective, latents, 2)
    assert are_equal(values(model.reference_unet), before)


def test_a_training_is_that_with_two_whole_unets_bit_for_bit(
    tiny_base: Path, tiny_subject: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = []
    for copied in (copy_as_it_came, lambda unet, own: copy_as_it_came(unet)):
        monkeypatch.setattr(module, "copy_as_it_came", copied)
        objective, latents = tiny_objective(tiny_base, tiny_subject, gate_init="identity")
        losses = train(objective, latents, 3)
        learned.append((losses, objective.model.learned_values()))
    assert learned[0][0] == learned[1][0]
    assert are_equal(*(list(each[1].values()) for each in learned))


def test_it_goes_where_the_unet_goes_and_takes_its_precision(
    tiny_base: Path, attending: Concept
) -> None:
    pipe = loaded(tiny_base, attending)
    model = pipe.carried.model
    own = not_shared(model)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        pipe.to(dtype)
        assert {weight.dtype for weight in model.reference_unet.parameters()} == {dtype}
        assert not_shared(model) == own
        pipe(PROMPT, **SHORT)


def test_weights_that_are_stored_in_8_bits_are_its_own_in_the_precision_of_the_sums(
    tiny_base: Path, attending: Concept
) -> None:
    pipe = loaded(tiny_base, attending)
    pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    for _ in range(2):
        assert np.isfinite(pipe(PROMPT, **SHORT).images).all()
    model = pipe.carried.model
    assert {weight.dtype for weight in model.reference_unet.parameters()} == {torch.float32}


# -- what others do to the UNet --------------------------------------------------------------------


@pytest.mark.slow
def test_a_lora_that_is_fused_and_taken_off_does_not_reach_it(
    tiny_base: Path, attending: Concept, lora: Path
) -> None:
    pipe = loaded(tiny_base, attending)
    before = values(pipe.carried.model.reference_unet)
    pipe(PROMPT, **SHORT)
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe(PROMPT, **{**SHORT, "num_inference_steps": 3})
    assert are_equal(values(pipe.carried.model.reference_unet), before)


@pytest.mark.slow
def test_a_lora_that_is_fused_through_another_pipeline_of_the_same_parts_is_seen(
    tiny_base: Path, attending: Concept, lora: Path
) -> None:
    """Also where nothing of a schedule is kept, and it goes on with what it began with."""
    pipe = loaded(tiny_base, attending)
    twin = type(pipe).from_pipe(pipe)
    how = {**SHORT, "reference_cache_gb": 0.0}
    pipe(PROMPT, **how)
    twin.load_lora_weights(lora)
    twin.fuse_lora()
    assert (pipe(PROMPT, **how).images == twin(PROMPT, **how).images).all()


def fuse_in_the_unet(pipe: Any, lora: Path) -> None:
    pipe.load_lora_weights(lora)
    pipe.unet.fuse_lora()
    pipe.unload_lora_weights()


def fuse_through_a_stock_pipeline(pipe: Any, lora: Path) -> None:
    stock = StableDiffusionPipeline(**pipe.components)
    stock.load_lora_weights(lora)
    stock.fuse_lora()


def load_other_weights(pipe: Any, lora: Path) -> None:
    pipe.unet.load_state_dict(
        {name: 2 * value for name, value in pipe.unet.state_dict().items()}, strict=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "deed", [fuse_in_the_unet, fuse_through_a_stock_pipeline, load_other_weights]
)
def test_other_ways_to_change_its_weights_are_refused(
    tiny_base: Path, attending: Concept, lora: Path, deed: Callable[[Any, Path], None]
) -> None:
    pipe = loaded(tiny_base, attending)
    pipe(PROMPT, **SHORT)
    deed(pipe, lora)
    with pytest.raises(UserError, match="load the concept again"):
        pipe(PROMPT, **SHORT)


def test_a_look_sees_a_change_of_one_weight_and_not_its_rounding(tiny_base: Path) -> None:
    from eqdiff.base.load import load_base

    unet = load_base(str(tiny_base)).unet
    before = looks(unet)
    assert len(before) <= 16 * len(list(unet.parameters()))
    unet.to(torch.bfloat16).to(torch.float32)
    assert not changed(unet, before)
    *_, last = (weight for weight in unet.parameters() if weight.ndim > 1)
    last.data *= 1.1
    assert changed(unet, before)
