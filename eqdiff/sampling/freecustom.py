"""FreeCustom (arXiv 2405.13870, CVPR 2024): attention to photos without training, masks as weights.

In some self-attentions the picture's queries see, beside the picture's own cells, those cells of
the photos that are the subject, each with a weight. Keys and values of both come from the layer's
own projections. It is Residual Reference Attention (the paper's Sec. 4.3) without anything trained:
no projections, no H_r and no gate of its own.

Departures. The paper multiplies the logits by the weights; the release adds them, as here, so that
a cell of a photo counts e^weight times a cell of the picture. In the release the conditional half
alone sees the photos; that is a choice here. The photos are noised with the concept's fixed noise,
as for RRA, and read under their own text with the subject in it.

Axes: N images, G texts of the photos, R photos, B rows of a call, n cells of a layer, M cells of a
photo, C channels.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqdiff.context import side_by_side
from eqdiff.masking import at_level
from eqdiff.processors import visited
from eqdiff.reference import Features, ReferenceSchedule
from eqdiff.sampler import (
    Args,
    Drawing,
    Kwargs,
    SamplingOption,
    SamplingStep,
    sample_and_time,
)
from eqdiff.sampling.layers import LAYERS, require_photos, sites_of


def attention_beside(
    q: Tensor, k: Tensor, v: Tensor, k_r: Tensor, v_r: Tensor, weight: float, heads: int
) -> Tensor:
    """softmax of [q k^T / sqrt(d), q k_r^T / sqrt(d) + weight] over [v, v_r]: (B,n,C).

    q, k, v (B,n,C), k_r and v_r (B,m,C). The weight rides in one more channel of q and k, so that
    the map is never built; flash kernels want dimensions in multiples of 8.
    """
    own = k.shape[1]
    k = torch.cat([k, k_r.to(k.dtype)], dim=1)
    v = torch.cat([v, v_r.to(v.dtype)], dim=1)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B,H,.,d)

    d = q.shape[-1]
    width = (d + 8) // 8 * 8  # at least one channel more
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    q[..., d] = 1.0
    k[:, :, own:, d] = weight * d**0.5
    out = F.scaled_dot_product_attention(q, k, v, scale=d**-0.5)[..., :d]
    return out.transpose(1, 2).flatten(2)


@dataclasses.dataclass(frozen=True)
class FreeCustom(SamplingOption):
    """Attention to the concept's photos without training.

    weight: what is added to the logits of the subject's cells. layers: prefixes of the
    self-attentions. halves: of guidance that see the photos.
    """

    weight: float = 3.0
    layers: tuple[str, ...] = LAYERS
    halves: Literal["both", "conditional"] = "conditional"

    def check(self, carried: Any, prompts: Sequence[str], attending: frozenset[str]) -> None:
        """Raises UserError without a photo, without a layer, or with RRA in the same layers."""
        clash = "by RRA in the same layers, with what it has learned; add --no-rra"
        require_photos(
            "--freecustom", carried, self.layers, attending, use="attend to", clash=clash
        )

    def steps(self, drawing: Drawing) -> list[SamplingStep]:
        """The one step of a drawing."""
        self.check(drawing.carried, drawing.prompts, drawing.attending)
        return [PhotosStep(self, drawing)]


class PhotosStep(SamplingStep):
    """The photos' features in each call of the UNet, which is asked for them within that call."""

    def __init__(self, option: FreeCustom, drawing: Drawing) -> None:
        self.option = option
        self.drawing = drawing
        self.count = len(drawing.seeds)
        carried = drawing.carried
        self.sites = sites_of(carried.model.unet, option.layers)
        self.photos = carried.chosen(drawing.photos)

        own = [carried.concept.recipe.reference_prompt]
        texts = ["", *own] if option.halves == "both" else own
        self.texts = carried.encode(texts, drawing.pipe._execution_device)
        self.schedule: ReferenceSchedule | None = None
        self.features: Features = {}  # of this call
        self.context: Any = None  # of this call, so that the photos' own is told from it

    def within(self, unet: nn.Module) -> AbstractContextManager[None]:
        """Guests in the layers."""
        layers = {name: unet.get_submodule(name.removesuffix(".processor")) for name in self.sites}
        return visited(unet, {name: self._guest(layer) for name, layer in layers.items()})

    def before(self, unet: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Looks at the photos."""
        _, t = sample_and_time(args, kwargs)
        if self.schedule is None:
            self.schedule = self._photos_over_schedule(unet)
        self.features = self.schedule.features(t)
        self.context = kwargs["cross_attention_kwargs"]["reference"]

    def after(self, unet: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> None:
        """Nothing is looked at between calls."""
        self.features, self.context = {}, None

    def _photos_over_schedule(self, unet: nn.Module) -> ReferenceSchedule:
        """The photos' features over this schedule, made now or by an earlier drawing."""
        drawing = self.drawing
        carried = drawing.carried
        timesteps = drawing.pipe.scheduler.timesteps
        here = (str(self.texts.device), carried.model.unet.dtype)
        how = (self.option.layers, self.option.halves, self.photos, drawing.cache_gb)
        key = (here, "freecustom", tuple(timesteps.tolist()), *how)
        if key not in carried.schedules:
            references = carried.concept.references
            carried.schedules[key] = ReferenceSchedule(
                _Within(unet),
                self.sites,
                z_r0=references.latents[list(self.photos)].to(self.texts.device),
                noise=references.noise.to(self.texts.device),
                alphas_cumprod=carried.model.alphas_cumprod,
                texts=self.texts,
                timesteps=timesteps,
                cache_gb=drawing.cache_gb,
            )
        return carried.schedules[key]

    def _guest(self, layer: Any) -> Any:
        """A self-attention that sees the photos too."""

        def guest(
            name: str, attend: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, reference: Any
        ) -> Tensor:
            o_s = attend(q, k, v, heads, reference)
            if self.context is None or reference is not self.context:
                return o_s
            features = self._subject(self.features[name])  # (G,m,C)
            if not features.shape[1]:
                return o_s

            halves = min(len(features), self.drawing.pipe._halves())
            last = self.count * self.drawing.pipe._halves()
            looking = slice(last - self.count * halves, last)
            features = features[-halves:].to(layer.to_k.weight.dtype)
            k_r, v_r = (
                project(features).repeat_interleave(self.count, 0)
                for project in (layer.to_k, layer.to_v)
            )
            rows = (q[looking], k[looking], v[looking])
            mixed = attention_beside(*rows, k_r, v_r, self.option.weight, heads).to(o_s.dtype)
            return torch.cat([o_s[: looking.start], mixed, o_s[looking.stop :]])

        return guest

    def _subject(self, features: Tensor) -> Tensor:
        """The subject's cells of all photos, side by side: (G R,M,C) -> (G,m,C)."""
        masks = self.drawing.carried.concept.references.masks[list(self.photos)]
        level = at_level(masks, features.shape[1], binary=True)  # (R,M)
        inside = side_by_side(level, len(self.photos))[0].nonzero().flatten()  # m of R M
        return side_by_side(features, len(self.photos)).index_select(1, inside.to(features.device))


class _Within:
    """A UNet as it is called from within its own call: past its hooks."""

    def __init__(self, unet: nn.Module) -> None:
        self._unet = unet

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._unet.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)
