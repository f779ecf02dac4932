"""The work of DCI, DreamMatcher and FreeCustom, counted: part of `python -m benchmarks.count`.

Each option's own step runs around the model's call, as in the pipeline. The eigenvectors of
DreamMatcher are not counted, for FlopCounterMode does not know them: about 9 C^3 a row and level.
"""

from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.counting import META, build, flops, meta
from eqdiff.concept.concept import References
from eqdiff.drawing.carried import Carried
from eqdiff.sampler import Drawing, SamplingOption, around
from eqdiff.sampling.dci import DCI
from eqdiff.sampling.dreammatcher import FEATURES, DreamMatcher
from eqdiff.sampling.freecustom import FreeCustom
from eqdiff.settings.train import TrainConfig

FEW = 2  # timesteps that are counted: the photo is matched from the second on
EIGEN = 9  # times C^3, of the eigenvectors of a symmetric matrix


def drawing_of(objective: Any, side: int) -> Drawing:
    """A drawing of one guided image with a concept of one photo, shapes alone but for masks."""
    model = objective.model
    mask = torch.zeros(1, 1, side, side)
    mask[..., side // 4 : -side // 4, side // 4 : -side // 4] = 1  # a quarter of the photo
    latents = meta(1, 4, side, side)
    references = References(latents, mask, latents, ("1.png",))
    concept = SimpleNamespace(recipe=objective.config.recipe, references=references)

    model.scheduler.set_timesteps(FEW)
    pipe = SimpleNamespace(
        unet=model.unet,
        scheduler=model.scheduler,
        guidance_scale=7.5,
        vae_scale_factor=8,
        _execution_device=META.device,
        _halves=lambda: 2,
        prepare_extra_step_kwargs=lambda generator, eta: {},
    )
    given = {"prompt": "a {} on a beach", "height": 8 * side, "width": 8 * side}
    return Drawing(pipe, Carried(model, concept), given, (0,), frozenset(), "both", 0, 100.0)


@torch.no_grad()
def calls(objective: Any, side: int, option: SamplingOption | None, count: int) -> list[int]:
    """FLOP of the first `count` guided calls of the UNet, with an option around it."""
    drawing = drawing_of(objective, side)
    model = objective.model
    steps = list(option.steps(drawing)) if option else []
    z, text = meta(2, 4, side, side), meta(2, 77, 768)

    counts = []
    with around(model.unet, steps):
        for t in drawing.pipe.scheduler.timesteps[:count]:
            context = model.context()
            counts.append(flops(lambda t=t, c=context: _call(model, z, t, text, c)))
    return counts


def _call(model: Any, z: Any, t: Any, text: Any, context: Any) -> None:
    kwargs = {"encoder_hidden_states": text, "cross_attention_kwargs": {"reference": context}}
    model.unet(z, t, return_dict=False, **kwargs)


def option_lines(config: TrainConfig, u: float) -> dict[str, Any]:
    """A guided image with each option, and what the parts of it are."""
    objective = build(config)
    side, steps = config.resolution // 8, config.num_inference_steps
    plain = calls(objective, side, None, 1)[0]
    every = steps * plain

    shared, own = (
        calls(objective, side, DCI(share=1.0, guidance=how), 1)[0] for how in ("shared", "own")
    )
    part = round(DCI.share * steps)
    dci = [every + part * (call - plain) for call in (shared, own)]

    # first call: inversion, the photo, the picture; second: matching too; a drawing after that one:
    # the photo's is kept
    first, second = calls(objective, side, DreamMatcher(start=0.0), FEW)
    photo, matching, inversion = _matched_parts(first, second, plain)
    matched = steps - round(DreamMatcher.start * steps)
    picture = every + matched * matching
    once = steps * inversion + (matched + 1) * photo
    widths = [_width(objective.model.unet, name) for name in FEATURES]
    eigen = 2 * matched * sum(EIGEN * width**3 for width in widths)

    free = calls(objective, side, FreeCustom(), 1)
    photos, attended = _photo_parts(objective, side, free[0])
    return {
        "dci_u_per_image": {
            "shared": (dci[0] / u, f"3 rows in {part} of {steps} steps"),
            "own": (dci[1] / u, f"4 rows, with an unconditional half of its own, in {part}"),
            "plain": (every / u, f"{steps} guided calls, without text and decoding"),
            "ratio": (dci[0] / every, "shared / plain"),
        },
        "dreammatcher_u": {
            "picture": (picture / u, f"an image: {steps} calls, matching in {matched}"),
            "matching": (matching / u, "of a call: axes, matches and masks, two halves"),
            "once": (once / u, f"a subject: inversion {steps} calls, and {matched + 1} of 2 rows"),
            "eigenvectors": (eigen / u, f"not counted above: {EIGEN} C^3, {matched} x 2 x 2"),
        },
        "freecustom_u": {
            "picture": (steps * attended / u, "an image, a quarter of the photo is the subject"),
            "once": (steps * photos / u, "a subject: truncated calls of one row"),
        },
    }


def _matched_parts(first: int, second: int, plain: int) -> tuple[float, float, float]:
    """FLOP of the photo's call of two rows, of matching in a call, of a step of inversion."""
    inversion = plain / 2  # a call of one row
    photo = first - FEW * inversion - plain
    return photo, second - photo - plain, inversion


@torch.no_grad()
def _photo_parts(objective: Any, side: int, first: int) -> tuple[float, float]:
    """FLOP of the photos' truncated call, and of a picture's call that sees them."""
    drawing = drawing_of(objective, side)
    step = FreeCustom().steps(drawing)[0]
    schedule = step._photos_over_schedule(objective.model.unet)
    t = drawing.pipe.scheduler.timesteps[0]
    photos = flops(lambda: schedule.features(t))
    return photos, first - photos


def _width(unet: Any, name: str) -> int:
    """Channels of a block's output."""
    return unet.get_submodule(name).resnets[-1].out_channels
