"""FreeCustom: the subject's cells of photos beside the picture's own, with nothing trained."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import concept_of, loaded, tiny_objective
from torch import Tensor

from eqdiff.concept.concept import Concept, References
from eqdiff.errors import UserError
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.processors import visited
from eqdiff.sampler import Drawing, SamplingOption, SamplingStep
from eqdiff.sampling.dci import DCI
from eqdiff.sampling.freecustom import FreeCustom, attention_beside
from eqdiff.sampling.layers import sites_of

PROMPT = "a mosaic of a {} on the beach"


@pytest.fixture(scope="module")
def pipe(tiny_base: Path, plain: Concept) -> EqDiffPipeline:
    return loaded(tiny_base, plain)


def latent(pipe: EqDiffPipeline, *options: SamplingOption, **how: Any) -> Tensor:
    """Latents (N,4,8,8) of three steps."""
    given = {"seeds": [1], "num_inference_steps": 3, "guidance_scale": 3.0, "prompt": PROMPT}
    return pipe(sampling_options=options, output_type="latent", **{**given, **how}).images


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("d", [4, 8, 5])
def test_it_is_attention_over_both_with_a_weight_on_the_photos_cells(d: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 6, 2 * d, generator=generator)
    k_r, v_r = torch.randn(2, 2, 3, 2 * d, generator=generator)
    found = attention_beside(q, k, v, k_r, v_r, 1.5, heads=2)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (2, d)).transpose(1, 2)

    logits = torch.cat([split(q) @ split(k).mT, split(q) @ split(k_r).mT], -1) / d**0.5
    logits[..., 6:] += 1.5
    wanted = logits.softmax(-1) @ torch.cat([split(v), split(v_r)], 2)
    torch.testing.assert_close(found, wanted.transpose(1, 2).flatten(2))

    alone = attention_beside(q, k, v, k_r, v_r, -100.0, heads=2)
    torch.testing.assert_close(alone, attention_beside(q, k, v, k_r[:, :0], v_r[:, :0], 0.0, 2))


def test_photos_without_a_subject_leave_plain_sampling_bit_for_bit(
    tiny_base: Path, plain: Concept, pipe: EqDiffPipeline
) -> None:
    nowhere = dataclasses.replace(plain.references, masks=torch.zeros_like(plain.references.masks))
    empty = loaded(tiny_base, dataclasses.replace(plain, references=nowhere))
    wanted = latent(pipe)
    assert torch.equal(latent(empty, FreeCustom()), wanted)
    close(latent(pipe, FreeCustom(weight=-100.0)), wanted)
    assert not torch.allclose(latent(pipe, FreeCustom()), wanted, atol=1e-3)


class Spy(SamplingOption, SamplingStep):
    """What comes of the attention at some layers."""

    def __init__(self, sites: list[str]) -> None:
        self.sites = sites
        self.seen: list[Tensor] = []

    def steps(self, drawing: Drawing) -> list[SamplingStep]:
        return [self]

    @contextmanager
    def within(self, unet: Any) -> Iterator[None]:
        with visited(unet, dict.fromkeys(self.sites, self.note)):
            yield

    def note(self, name: str, attend: Any, q: Tensor, *rest: Any) -> Tensor:
        out = attend(q, *rest)
        if len(q) == 2:  # the picture's own call
            self.seen.append(out)
        return out


@pytest.mark.parametrize("halves", ["both", "conditional"])
def test_the_halves_that_are_named_see_the_photos(pipe: EqDiffPipeline, halves: Any) -> None:
    sites = sites_of(pipe.unet, ("up_blocks.2", "up_blocks.3"))[:1]
    plainly, beside = Spy(sites), Spy(sites)
    latent(pipe, plainly)
    option = FreeCustom(layers=("up_blocks.2",), halves=halves)
    pipe.carried.schedules = {}
    latent(pipe, option, beside)  # the photos' call has as many rows as halves
    first = [out for out in beside.seen if len(out) == 2]
    u, c = (first[1 if halves == "both" else 0][row] for row in (0, 1))
    assert torch.equal(u, plainly.seen[0][0]) == (halves == "conditional")
    assert not torch.allclose(c, plainly.seen[0][1], atol=1e-4)


def test_photos_are_looked_at_once_a_subject_and_several_at_a_time(pipe: EqDiffPipeline) -> None:
    pipe.carried.schedules = {}
    rows: list[int] = []
    seen = pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        first = latent(pipe, FreeCustom())
        assert rows == [1, 2] * 3
        rows.clear()
        assert torch.equal(latent(pipe, FreeCustom()), first)
        assert rows == [2] * 3
        rows.clear()
        several = latent(pipe, FreeCustom(), reference=(0, 1, 2))
        assert rows == [3, 2] * 3
    finally:
        seen.remove()
    assert not torch.equal(several, first)
    assert torch.equal(latent(pipe, FreeCustom(), reference_cache_gb=0.0), first)


def test_two_images_in_a_batch_are_what_they_are_alone(pipe: EqDiffPipeline) -> None:
    prompts = [PROMPT, "a photo of a {}"]
    together = latent(pipe, FreeCustom(), prompt=prompts, seeds=[1, 2])
    for number, prompt in enumerate(prompts):
        alone = latent(pipe, FreeCustom(), prompt=prompt, seeds=[number + 1])
        close(together[number : number + 1], alone)
    assert latent(pipe, FreeCustom(), guidance_scale=1.0).isfinite().all()


def test_it_goes_together_with_dci(pipe: EqDiffPipeline) -> None:
    wanted = latent(pipe, FreeCustom())
    never = DCI(strength=-1e9, share=1.0)
    for options in ([never, FreeCustom()], [FreeCustom(), never]):
        close(latent(pipe, *options), wanted)


def test_only_the_subjects_cells_of_a_photo_count(
    tiny_base: Path, plain: Concept, pipe: EqDiffPipeline
) -> None:
    """Keys are taken by the mask: cells beside it may hold anything."""
    step = FreeCustom().steps(drawing(pipe))[0]
    mask = plain.references.masks[0, 0].flatten() > 0
    assert 0 < mask.sum() < len(mask)
    features = torch.arange(2.0 * len(mask)).view(2, len(mask), 1)
    torch.testing.assert_close(step._subject(features), features[:, mask])


def test_values_of_the_photo_go_through_the_layers_own_projection(pipe: EqDiffPipeline) -> None:
    """With all weight on the photo, a cell gets a mean of the photo's values."""
    step = FreeCustom(weight=100.0).steps(drawing(pipe))[0]
    name = step.sites[0]
    layer = pipe.unet.get_submodule(name.removesuffix(".processor"))
    generator = torch.Generator().manual_seed(0)
    width = layer.to_k.in_features
    cell = torch.randn(1, 1, width, generator=generator)
    features = cell.expand(1, 64, -1)  # one and the same everywhere: any mean is its value
    step.features, step.context = {name: features}, object()
    pipe._guidance_scale = 1.0
    q, k, v = torch.randn(3, 1, 64, width, generator=generator)

    def attend(*_: Any) -> Tensor:
        return v

    out = step._guest(layer)(name, attend, q, k, v, layer.heads, step.context)
    torch.testing.assert_close(out, layer.to_v(features), atol=1e-4, rtol=1e-4)


def drawing(pipe: EqDiffPipeline) -> Drawing:
    given = {"prompt": PROMPT, "height": 64, "width": 64}
    return Drawing(pipe, pipe.carried, given, (1,), frozenset(), "both", 0, 2.0)


def test_without_a_photo_or_with_rra_in_the_same_layers_it_is_refused(
    tiny_base: Path, tiny_subject: Path, plain: Concept
) -> None:
    references = plain.references
    none = References(references.latents[:0], references.masks[:0], references.noise, ())
    pipe = loaded(tiny_base, dataclasses.replace(plain, references=none))
    with pytest.raises(UserError, match="--instance_data_dir"):
        latent(pipe, FreeCustom())
    with pytest.raises(UserError, match="no such self-attention"):
        latent(loaded(tiny_base, plain), FreeCustom(layers=("up_blocks.9",)))

    objective, latents = tiny_objective(tiny_base, tiny_subject, gate_init="identity")
    pipe = loaded(tiny_base, concept_of(objective, latents))
    with pytest.raises(UserError, match="add --no-rra"):
        latent(pipe, FreeCustom())
    assert not torch.equal(latent(pipe, FreeCustom(), rra=False), latent(pipe, rra=False))
