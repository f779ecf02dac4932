"""Where reference attention looks (the paper's Fig. 8): the reference warped by it, A M_r beside M_g, at each level.

    python benchmarks/warp.py CONCEPT [--picture FILE] [--target N] [--reference N] [--timestep T] [--base DIR]

A is the head-mean attention of a target photo, noised to T, on a reference photo: A applied to the reference's colours
rebuilds the target from the reference's pixels; applied to M_r it should give M_g (Eq. 10). The last layer of a level.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eqdiff.attention import ReferenceContext, attention_with_mass  # noqa: E402
from eqdiff.base import load_base  # noqa: E402
from eqdiff.concept import load_concept, model_for  # noqa: E402
from eqdiff.config import TrainConfig, from_json, resolve_base  # noqa: E402
from eqdiff.data import image_grid, load_subject, to_pil  # noqa: E402
from eqdiff.encoding import vae_encoder  # noqa: E402
from eqdiff.frequency import Band  # noqa: E402
from eqdiff.masking import add_noise  # noqa: E402
from eqdiff.model import EqDiff  # noqa: E402
from eqdiff.reference import FeatureTap, capture  # noqa: E402


def maps(model: EqDiff, site: str, queries: Tensor, features: Tensor, values: Tensor) -> Tensor:
    """Head-mean attention of the layer on `values` (1,C,h,w) at its own resolution: (1,C,h,w)."""
    attn = model.unet.get_submodule(site.removesuffix(".processor"))
    q, k = attn.to_q(queries), attn.processor.to_k_ref(features)
    q, k = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k))
    side = int(queries.shape[1] ** 0.5)
    extra = F.adaptive_avg_pool2d(values, (side, side)).flatten(2).transpose(1, 2)  # (1,N,C)
    _, out = attention_with_mass(q, k, k, extra[:, None])
    return out.mean(1).transpose(1, 2).unflatten(2, (side, side))


def finest_sites(model: EqDiff, features: dict[str, Tensor]) -> list[str]:
    """The last RRA layer of each resolution, coarse to fine; levels under 4 x 4 say nothing."""
    last = {features[site].shape[1]: site for site in model.sites}
    return [site for tokens, site in sorted(last.items()) if tokens >= 16]


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concept", type=Path)
    parser.add_argument("--picture", type=Path, default=Path("warp.png"), metavar="FILE")
    parser.add_argument("--target", type=int, default=1, help="number of the photo that attends")
    parser.add_argument("--reference", type=int, default=0, help="number of the photo attended to")
    parser.add_argument("--timestep", type=int, default=200)
    parser.add_argument("--base", help="default: that of the concept's config.json")
    args = parser.parse_args(argv)
    config = from_json(TrainConfig, (args.concept.parent / "config.json").read_text())
    base = load_base(resolve_base(args.base or config.pretrained_model_name_or_path))
    model = model_for(load_concept(args.concept), base)
    subject = load_subject(config.instance_data_dir, class_word=config.class_word, resolution=config.resolution)
    means, _ = vae_encoder(base.vae)(subject.images)
    noise = torch.randn(2, *means.shape[1:], generator=torch.Generator().manual_seed(0))
    alpha_bar = model.alphas_cumprod[args.timestep].expand(1)
    pair = [(args.target, 0), (args.reference, 1)]
    z_t, z_r = (add_noise(means[i : i + 1], noise[n : n + 1], alpha_bar) for i, n in pair)
    text = model.encode_plain([config.reference_prompt.replace("{}", config.class_word)])
    features = capture(model.reference_unet, model.sites, z_r, args.timestep, text)
    ids, slots = model.tokenize([config.instance_prompt], config.class_word)
    with FeatureTap(model.unet, model.sites) as queries:
        context = ReferenceContext(features)
        model.predict(z_t, torch.tensor([args.timestep]), model.encode(ids, slots, torch.tensor([Band.FULL])), context)
    photo, mask = (x[args.reference : args.reference + 1] for x in (subject.images, subject.masks))
    m_g = to_pil(subject.masks[args.target].expand(3, -1, -1) * 2 - 1)
    cells = [
        to_pil(subject.images[args.target]),
        to_pil(photo[0]),
        m_g,
    ]
    captions = ["target", "reference", "M_g"]
    for site in finest_sites(model, features):
        seen = maps(model, site, queries[site], features[site], torch.cat([photo, mask * 2 - 1], 1))
        shown = F.interpolate(seen, size=photo.shape[-2:], mode="nearest")[0]
        cells += [
            to_pil(shown[:3]),
            to_pil(shown[3:].expand(3, -1, -1)),
            m_g,
        ]
        side = seen.shape[-1]
        captions += [f"A x reference, {side} x {side}", f"A M_r, {side} x {side}", "M_g"]
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    image_grid(cells, columns=3, captions=captions).save(args.picture)


if __name__ == "__main__":
    main()
