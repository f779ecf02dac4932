"""What all sampling options share: half precision, moving the pipeline, flags and the manifest."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import concept_of, loaded, tiny_objective

from eqdiff.concept.concept import Concept
from eqdiff.errors import UserError
from eqdiff.sampler import SamplingOption
from eqdiff.sampling.dci import DCI
from eqdiff.sampling.dreammatcher import DreamMatcher
from eqdiff.sampling.freecustom import FreeCustom
from eqdiff.sampling.options import option_facts, options_of
from eqdiff.settings.sample import SampleConfig

OPTIONS = [DCI(share=1.0), DreamMatcher(start=0.0, guidance=1.0), FreeCustom()]
NAMES = [type(option).__name__.lower() for option in OPTIONS]


@pytest.fixture(scope="module")
def concept(tiny_base: Path, tiny_subject: Path) -> Concept:
    return concept_of(*tiny_objective(tiny_base, tiny_subject, rra=False, ra_loss_weight=0.0))


@pytest.mark.parametrize("option", OPTIONS, ids=NAMES)
def test_in_half_precision_the_picture_is_nearly_the_same(
    tiny_base: Path, concept: Concept, option: SamplingOption
) -> None:
    def draw(dtype: torch.dtype) -> torch.Tensor:
        pipe = loaded(tiny_base, concept)
        pipe.place(torch.device("cpu"), dtype)
        how: dict[str, Any] = {"seeds": [1], "num_inference_steps": 2, "output_type": "latent"}
        return pipe("a photo of a {}", sampling_options=[option], **how).images

    exact, rounded = draw(torch.float32), draw(torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().mean() < 0.1 * exact.std()


@pytest.mark.parametrize("option", OPTIONS, ids=NAMES)
def test_after_moving_the_pipeline_nothing_old_is_used(
    tiny_base: Path, concept: Concept, option: SamplingOption
) -> None:
    """What is kept over the steps is where the UNet was, in its precision."""
    pipe = loaded(tiny_base, concept)
    how: dict[str, Any] = {"seeds": [1], "num_inference_steps": 2, "output_type": "latent"}
    first = pipe("a {}", sampling_options=[option], **how).images
    pipe.to(torch.bfloat16)
    assert not pipe.carried.schedules
    pipe("a {}", sampling_options=[option], **how)
    pipe.to(torch.float32)
    again = pipe("a {}", sampling_options=[option], **how).images
    torch.testing.assert_close(again, first, atol=0.2, rtol=0.2)  # weights were rounded


def test_settings_make_the_options_that_they_name_and_the_manifest_says_so() -> None:
    assert options_of(SampleConfig()) == ()
    every = SampleConfig(
        dci=True,
        dci_noun="cup",
        dci_lambda=-1.0,
        dci_share=0.5,
        dci_gate="flat",
        dci_guidance="own",
        dreammatcher=True,
        dreammatcher_start=0.2,
        dreammatcher_layers=("up_blocks.3",),
        dreammatcher_confidence=0.3,
        dreammatcher_guidance=75.0,
        freecustom=True,
        freecustom_weight=1.0,
        freecustom_layers=("up_blocks.2",),
        freecustom_halves="both",
    )
    options = options_of(every)
    assert options == (
        DCI("cup", -1.0, 0.5, "flat", "own"),
        DreamMatcher(0.2, ("up_blocks.3",), 0.3, 75.0),
        FreeCustom(1.0, ("up_blocks.2",), "both"),
    )
    facts = option_facts(options)
    assert list(facts) == ["dci", "dreammatcher", "freecustom"]
    assert facts["dci"]["noun"] == "cup" and facts["freecustom"]["halves"] == "both"


def test_defaults_of_flags_are_those_of_the_options() -> None:
    options = options_of(SampleConfig(dci=True, dreammatcher=True, freecustom=True))
    assert options == (DCI(), DreamMatcher(), FreeCustom())
    bare = SampleConfig(dreammatcher=True, dreammatcher_masks=False)
    assert options_of(bare) == (DreamMatcher(masks=False),)


@pytest.mark.parametrize(
    ("changed", "switch"),
    [
        ({"dci_lambda": 1.0}, "--dci"),
        ({"dreammatcher_layers": ("up_blocks.3",), "dci": True}, "--dreammatcher"),
        ({"freecustom_halves": "both"}, "--freecustom"),
    ],
)
def test_a_flag_that_would_do_nothing_names_the_one_that_it_needs(
    changed: dict[str, Any], switch: str
) -> None:
    with pytest.raises(UserError, match=f"does nothing without {switch};"):
        SampleConfig(**changed)
