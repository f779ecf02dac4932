"""DreamMatcher (arXiv 2402.09812, CVPR 2024): a photo's values in self-attention, where they match.

Self-attention has a structure, softmax(Q K^T), and an appearance, V. The picture keeps its own Q
and K. Its V becomes the photo's, moved to where the picture wants it, inside the subject. It works
over any customized model and trains nothing.

Departures. In the release the photo's rows run in every batch; here they run once a subject and are
kept. It finds the subject by splitting the prompt on spaces, and takes DreamBooth's class word;
here the subject's own slots are looked at. The paper's steps 4 to 50 are a share of the steps, and
its 16 x 16 layers those nearest to that on other latents.

Axes: N images, G halves of guidance, B = G N rows [u..., c...], n cells of a layer, C channels, h,
w latent size, Ntok text tokens.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqdiff.masking import level_size
from eqdiff.processors import multi_head_attention, visited
from eqdiff.reference import Features
from eqdiff.sampler import (
    Args,
    Drawing,
    Kwargs,
    SamplingOption,
    SamplingStep,
    sample_and_time,
)
from eqdiff.sampling.guidance import pull, shifted
from eqdiff.sampling.layers import LAYERS, require_photos, sites_of
from eqdiff.sampling.matching import confidence, descriptors, match, matched_values
from eqdiff.sampling.photo import Photo

FEATURES = ("up_blocks.1", "up_blocks.2")  # whose outputs are compared
MASK_SIDE = 16  # cells of the cross-attentions that say where the subject is
LEVELS = 4  # of the UNet


def mask_tokens(cells: tuple[int, int]) -> int:
    """Tokens of the level whose sides are nearest to MASK_SIDE, on latents of `cells` (h, w)."""
    levels = [cells]
    for _ in range(LEVELS - 1):
        height, width = levels[-1]
        levels.append(((height + 1) // 2, (width + 1) // 2))
    counts = [height * width for height, width in levels]
    return min(counts, key=lambda tokens: abs(tokens**0.5 - MASK_SIDE))


def scaled(x: Tensor) -> Tensor:
    """x (N,n) from its least to its greatest value, to [0, 1]; 0 where all are equal."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    return (x - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny)


@dataclasses.dataclass(frozen=True)
class DreamMatcher(SamplingOption):
    """Values of the concept's photo, moved to where the picture wants them.

    start: the share of the steps before it begins. layers: prefixes of the self-attentions.
    limit: lambda_c, how far a match may come back from where it began [share of the subject's
    share of the side]; 0 changes nothing. guidance: lambda_g, see `guidance.py`; 0 is none. It
    takes a second pass of the UNet, with gradients. masks: without, each cell takes the photo's
    value that matches it best, whether it is the subject's or not, as in the paper's ablation.
    """

    start: float = 0.08
    layers: tuple[str, ...] = LAYERS
    limit: float = 0.4
    guidance: float = 0.0
    masks: bool = True

    def check(self, carried: Any, prompts: Sequence[str], attending: frozenset[str]) -> None:
        """Raises UserError without a photo, without a layer, or with RRA in the same layers."""
        clash = "(RRA) in the same layers, and both bring the photo; add --no-rra"
        require_photos(
            "--dreammatcher", carried, self.layers, attending, use="match with", clash=clash
        )

    def steps(self, drawing: Drawing) -> list[SamplingStep]:
        """The one step of a drawing."""
        self.check(drawing.carried, drawing.prompts, drawing.attending)
        return [MatchingStep(self, drawing)]


class MatchingStep(SamplingStep):
    """Appearance matching in each call of the UNet; the photo's own calls are made within it."""

    def __init__(self, option: DreamMatcher, drawing: Drawing) -> None:
        self.option = option
        self.drawing = drawing
        self.count = len(drawing.seeds)
        carried = drawing.carried
        self.sites = sites_of(carried.model.unet, option.layers)
        self.mask_tokens = mask_tokens(drawing.cells)
        _, self.slots = carried.model.tokenize(drawing.prompts, carried.concept.recipe.class_word)

        self.photo = Photo(drawing, option.layers)

        self.context: Any = None  # of the call that is matched; None where nothing is
        self.before_this: tuple[Features, Features] | None = None  # photo's and picture's features
        self.values: Features = {}  # V^X of this step
        self.psi: tuple[Tensor, Tensor] | None = None
        self.outputs: Features = {}  # of the blocks, in this call
        self.maps: list[Tensor] = []  # of this call, (N,n) each
        self.matches: dict[int, tuple[Tensor, Tensor]] = {}  # m and r, by cells

    @property
    def rows(self) -> int:
        """B: how many rows of a call are the picture's own. Others may have added rows behind."""
        return self.count * self.drawing.pipe._halves()

    @contextmanager
    def within(self, unet: nn.Module) -> Iterator[None]:
        """Guests in the layers, and a hook on each block whose output is compared."""
        cross = [name for name in unet.attn_processors if name.endswith(".attn2.processor")]
        guests = {**dict.fromkeys(cross, self._watch), **dict.fromkeys(self.sites, self._attend)}
        with ExitStack() as stack:
            stack.enter_context(visited(unet, guests))
            for name in FEATURES:
                save = partial(self._save, name)
                hook = unet.get_submodule(name).register_forward_hook(save)
                stack.callback(hook.remove)
            yield

    def _save(self, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        """A block's output, of the photo or of the picture."""
        if not self.photo.records(name, output):
            self.outputs[name] = output

    def before(self, unet: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Looks at the photo, and compares it with the picture as both were a step before."""
        _, t = sample_and_time(args, kwargs)
        steps = self.photo.steps(unet)
        done = steps.index(round(float(t)))
        first = round(self.option.start * len(steps))

        self.context, self.psi, self.maps, self.matches = None, None, [], {}
        if done + 1 < first:  # the step before the first one is looked at too
            return
        seen = self.photo.features(unet, t)
        if self.before_this is not None:
            self.psi = self._compare()
            self.context = kwargs["cross_attention_kwargs"]["reference"]
        self.values = {name: seen[name] for name in self.sites}
        self.before_this = (seen, {})

    def after(self, unet: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Keeps the picture's features for the next step, and pulls it to the photo if asked to."""
        if self.before_this is not None:
            picture = {name: x[: self.rows] for name, x in self.outputs.items()}
            self.before_this = (self.before_this[0], picture)
        guided_one = None
        if self.option.guidance and self.context is not None and self.maps:
            guided_one = self._guided(unet, args, kwargs, output[0])
        self.context = None
        self.outputs.clear()
        return guided_one

    def _compare(self) -> tuple[Tensor, Tensor]:
        """psi^X and psi^Y (B,D,h,w) of the features that were kept last."""
        photo, picture = self.before_this
        halves = self.rows // self.count
        # of the last halves alone: a callback may end guidance
        x = [photo[name][-halves:].repeat_interleave(self.count, 0) for name in FEATURES]
        y = [picture[name][-self.rows :] for name in FEATURES]
        return descriptors(x, y, self.drawing.cells)

    def _guided(self, unet: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> tuple[Tensor]:
        """The call's output (B,4,h,w) and more rows, with the picture's own rows pulled."""
        z, t = sample_and_time(args, kwargs)
        rows = slice(0, self.rows)
        alpha_bar = self.drawing.carried.model.alphas_cumprod[round(float(t))].to(z.device)
        text = kwargs["encoder_hidden_states"][rows]
        # a context of its own: this call is matched as the first was, without other guests
        self.context = copy.copy(self.context)
        options = {"cross_attention_kwargs": {"reference": self.context}}

        def predict(z: Tensor) -> Tensor:
            return unet.forward(z, t, text, **options, return_dict=False)[0]

        # where to look, by this call's features
        h, w = self.drawing.cells
        m, weight = self._weights(h * w, match(*self._compare(), (h, w)))
        photo = self.photo.z_0.flatten(2).mT.expand(self.rows, -1, -1)
        wanted = matched_values(photo, torch.zeros_like(photo), m, torch.ones_like(weight))
        wanted = wanted.mT.unflatten(-1, (h, w))
        weight = weight.view(-1, 1, h, w)

        kind = self.drawing.pipe.scheduler.config.prediction_type
        shift = self.option.guidance * pull(predict, z[rows], alpha_bar, kind, wanted, weight)
        found = shifted(output[rows], shift, alpha_bar, kind).to(output.dtype)
        return (torch.cat([found, output[self.rows :]]),)

    # The guests.

    def _watch(
        self, name: str, attend: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, reference: Any
    ) -> Tensor:
        """A cross-attention as it is; how much of it falls on the subject is noted."""
        matched = self.context is not None and reference is self.context
        if matched and q.shape[1] == self.mask_tokens:
            c = slice(self.rows - self.count, self.rows)
            weights = self.slots.to(q.device, q.dtype)
            _, mass = multi_head_attention(q[c], k[c], v[c], heads, weights)
            self.maps.append(mass.detach())
        return attend(q, k, v, heads, reference)

    def _attend(
        self, name: str, attend: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, reference: Any
    ) -> Tensor:
        """A self-attention with the photo's values where they match."""
        matched = self.context is not None and reference is self.context
        if not self.photo.records(name, v) and matched and self.maps:
            rows = self.rows
            v_x = self.values[name].repeat_interleave(self.count, 0)
            n = v.shape[1]
            if n not in self.matches:
                self.matches[n] = match(*self.psi, level_size(self.drawing.cells, n))
            m, weight = self._weights(n, self.matches[n])
            v_w = matched_values(v_x, v[:rows], m, weight)
            v = torch.cat([v_w, v[rows:]])
        return attend(q, k, v, heads, reference)

    def _weights(self, n: int, matches: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """m and M U (B,n) at a layer of n cells: where to look, and how much of it to take."""
        size = level_size(self.drawing.cells, n)
        m, r = matches
        if not self.option.masks:
            return m, torch.ones_like(m, dtype=torch.float32)

        subject = scaled(torch.stack(self.maps).mean(0))  # (N,mask_tokens)
        level = level_size(self.drawing.cells, self.mask_tokens)
        subject = F.interpolate(subject.unflatten(1, level)[:, None], size, mode="nearest")
        subject = subject.flatten(1).repeat(self.rows // self.count, 1)  # M (B,n), of c for u too

        side = (size[0] * size[1]) ** 0.5
        limit = self.option.limit * side * subject.mean(1)
        return m, subject * confidence(m, r, size[1], limit)
