"""Where reference attention looks (the paper's Fig. 8): the reference, warped by it, at each level.

    python -m studies.insides.warp CONCEPT [--picture FILE] [--target N] [--reference N]
        [--timestep T] [--base DIR]

A is the head-mean attention of a target photo, noised to T, on a reference photo, in the last layer
of a level. A applied to the reference's colours rebuilds the target from the reference's pixels. A
applied to M_r stands beside M_g, which it should give (Eq. 10).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from eqdiff.concept.concept import model_for
from eqdiff.concept.file import load_concept
from eqdiff.context import ReferenceContext
from eqdiff.data.sheets import to_pil
from eqdiff.data.subject import Subject
from eqdiff.data.vae import vae_encoder
from eqdiff.errors import main_guard, require
from eqdiff.frequency import Band
from eqdiff.masking import add_noise
from eqdiff.model import EqDiff
from eqdiff.processors import attention_with_mass
from eqdiff.reference import FeatureTap, capture
from eqdiff.settings.train import TrainConfig
from studies.insides.concepts import base_of, picture_of, save_grid, settings_of, subject_of

FEWEST_TOKENS = 16  # of a level: a map under 4 x 4 says nothing

Features = dict[str, Tensor]  # RRA layer -> (1,N,C)


def maps(model: EqDiff, site: str, queries: Tensor, features: Tensor, values: Tensor) -> Tensor:
    """Head-mean attention of a layer on `values` (1,C,h,w), at its own resolution: (1,C,h',w')."""
    attn = model.unet.get_submodule(site.removesuffix(".processor"))
    q = attn.to_q(queries).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    k = attn.processor.to_k_ref(features).unflatten(-1, (attn.heads, -1)).transpose(1, 2)

    side = int(queries.shape[1] ** 0.5)
    columns = F.adaptive_avg_pool2d(values, (side, side)).flatten(2).transpose(1, 2)  # (1,N,C)
    _, out = attention_with_mass(q, k, k, columns[:, None])
    return out.mean(1).transpose(1, 2).unflatten(2, (side, side))


def finest_sites(model: EqDiff, features: Features) -> list[str]:
    """The last RRA layer of each resolution, coarse to fine."""
    last = {features[site].shape[1]: site for site in model.sites}
    return [site for tokens, site in sorted(last.items()) if tokens >= FEWEST_TOKENS]


def both_branches(
    model: EqDiff, config: TrainConfig, target: Tensor, reference: Tensor, t: int
) -> tuple[Features, Features]:
    """Inputs of the RRA layers: of the target's branch, whose queries look, and of the reference's.

    target, reference: latents (1,4,h,w), already noised to t.
    """
    text = config.reference_prompt.replace("{}", config.class_word)
    prompt = model.encode_plain([text])
    features = capture(model.reference_unet, model.sites, reference, t, prompt)

    ids, slots = model.tokenize([config.instance_prompt], config.class_word)
    caption = model.encode(ids, slots, torch.tensor([Band.FULL]))
    with FeatureTap(model.unet, model.sites) as queries:
        model.predict(target, torch.tensor([t]), caption, ReferenceContext(features))
    return queries, features


@torch.no_grad()
def draw(model: EqDiff, config: TrainConfig, subject: Subject, args: argparse.Namespace) -> None:
    """Draws a row a level under the row of target, reference and M_g."""
    means, _ = vae_encoder(model.vae)(subject.images)
    noise = torch.randn(2, *means.shape[1:], generator=torch.Generator().manual_seed(0))
    alpha_bar = model.alphas_cumprod[args.timestep].expand(1)
    target = add_noise(means[args.target][None], noise[:1], alpha_bar)
    reference = add_noise(means[args.reference][None], noise[1:], alpha_bar)
    queries, features = both_branches(model, config, target, reference, args.timestep)

    photo = subject.images[args.reference][None]
    mask = subject.masks[args.reference][None]
    size = photo.shape[-2:]
    m_g = picture_of(subject.masks[args.target], size)
    cells = [to_pil(subject.images[args.target]), to_pil(photo[0]), m_g]
    captions = ["target", "reference", "M_g"]
    for site in finest_sites(model, features):
        warped = maps(model, site, queries[site], features[site], torch.cat([photo, mask], 1))[0]
        colours = F.interpolate(warped[None, :3], size=size, mode="nearest")[0]
        side = warped.shape[-1]
        cells += [to_pil(colours), picture_of(warped[3:], size), m_g]
        captions += [f"A x reference, {side} x {side}", f"A M_r, {side} x {side}", "M_g"]

    save_grid(args.picture, cells, 3, captions)


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concept", type=Path)
    parser.add_argument("--picture", type=Path, default=Path("warp.png"), metavar="FILE")
    parser.add_argument("--target", type=int, default=1, help="number of the photo that attends")
    parser.add_argument("--reference", type=int, default=0, help="number of the other photo")
    parser.add_argument("--timestep", type=int, default=200)
    parser.add_argument("--base", help="default: that of the concept's config.json")
    args = parser.parse_args(argv)

    config = settings_of(args.concept)
    subject = subject_of(config)
    photos = len(subject.images)
    for name in ("target", "reference"):
        number = getattr(args, name)
        require(0 <= number < photos, f"--{name} {number}: give a number from 0 to {photos - 1}")

    model = model_for(load_concept(args.concept), base_of(config, args.base))
    draw(model, config, subject, args)


if __name__ == "__main__":
    main()
