"""Infusion (arXiv 2404.14007): the class word keeps its attention and carries other values.

Of each cross-attention layer one vector is learned, which is added to the value of the class word
where a prompt says {}. Queries, keys, text encoder and tokens stay the base's, and a prompt without
{} is drawn as the base draws it. On Stable Diffusion 1.x that is 12,480 numbers.

Two forwards: `single` is one stream, whose own attention maps drift in deeper layers, as the
release computes it. `dual` runs the base beside it and takes the base's maps, as the paper says:
twice the rows. The release learns a residual of the keys too, by accident: `infusion_keys`.

Only the abstract, two summaries and the release are known to us. Ours: the slot by token id, the
residual on every piece of the class word, and in `dual` the same prompt for both streams.

Axes: B batch, N tokens, M text tokens, D text width, C channels of a layer, K subjects, H heads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from eqdiff.base.adapters import plain_layer
from eqdiff.batch import Batch
from eqdiff.context import ReferenceContext
from eqdiff.errors import require
from eqdiff.method import Method
from eqdiff.methods.words import WordReader
from eqdiff.model import Customized
from eqdiff.objective import Objective
from eqdiff.processors import PlainProcessor
from eqdiff.sampler import Args, Kwargs, SamplingStep, sample_and_time
from eqdiff.settings.groups import Losses
from eqdiff.tokens import encode


class InfusionProcessor(PlainProcessor, nn.Module):
    """Cross-attention with a residual on the values, and perhaps the keys, of subjects' words.

    The text features have K more channels than the base's: 1 where the k-th subject is, else 0.
    Without them it is the stock attention.
    """

    def __init__(
        self, attn: Attention, name: str, *, subjects: int, with_keys: bool, dual: bool
    ) -> None:
        """dual: the first half of every batch is the base's stream, and its maps serve both."""
        nn.Module.__init__(self)
        PlainProcessor.__init__(self, attn, name)
        to_v = plain_layer(attn.to_v)
        self.width = to_v.in_features
        self.dual = dual

        how = {"dtype": to_v.weight.dtype, "device": to_v.weight.device}
        zeros = torch.zeros(subjects, to_v.out_features, **how)
        self.value = nn.Parameter(zeros)  # (K,C)
        self.key = nn.Parameter(zeros.clone()) if with_keys else None

    # V[slot] += r, and nothing else.
    def keys_and_values(
        self, attn: Attention, context: Tensor, reference: ReferenceContext | None
    ) -> tuple[Tensor, Tensor]:
        """context (B,M,D+K), or (B,M,D) without a subject -> K and V, (B,M,C) each."""
        marks = context[..., self.width :]
        k, v = super().keys_and_values(attn, context[..., : self.width], reference)
        v = _with_residual(v, marks, self.value)
        if self.key is not None:
            k = _with_residual(k, marks, self.key)
        return k, v

    # P_f = softmax(Q_f K_f^T / sqrt d); out_f = P_f V, out_s = P_f (V + residual).
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, reference: ReferenceContext | None
    ) -> Tensor:
        """q (B,N,C), k and v (B,M,C) -> (B,N,C). With two streams both look as the first does."""
        if self.dual:
            q, k = (torch.cat([x[: len(x) // 2]] * 2) for x in (q, k))
        return super().attend(q, k, v, heads, reference)


def _with_residual(x: Tensor, marks: Tensor, residuals: Tensor) -> Tensor:
    """x (B,M,C) plus residuals (K,C) where marks (B,M,K) say: exact, whatever the order of them."""
    for mark, residual in zip(marks.unbind(-1), residuals, strict=False):
        x = x + (mark[..., None] * residual).to(x.dtype)
    return x


def two_streams(z: Tensor, t: Tensor, text: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """z, t, text of a UNet call -> the same for both streams: first the base's, without marks."""
    base_text = torch.cat([text[..., :width], torch.zeros_like(text[..., width:])], dim=-1)
    twice = torch.cat([t, t]) if t.ndim and len(t) == len(z) else t
    return torch.cat([z, z]), twice, torch.cat([base_text, text])


class TwoStreams(SamplingStep):
    """Every call of the UNet while an image is drawn: the base's stream beside the subject's."""

    def __init__(self, width: int) -> None:
        """width: D, of the base's own text features."""
        self.width = width

    def before(self, unet: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        z, t = sample_and_time(args, kwargs)
        z, t, text = two_streams(z, t, kwargs["encoder_hidden_states"], self.width)
        rest = {name: value for name, value in kwargs.items() if name not in ("sample", "timestep")}
        return (z, t), rest | {"encoder_hidden_states": text}

    def after(self, unet: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        (noise,) = output
        return (noise[len(noise) // 2 :],)


class Infusion(Customized):
    """The base with a residual vector a subject in each cross-attention layer."""

    @property
    def streams(self) -> int:
        return 2 if self.recipe.infusion_streams == "dual" else 1

    @property
    def subjects(self) -> int:
        """K: one, or as many as the places of a prompt can name."""
        return max((number for number, _ in self.places.values()), default=1)

    @property
    def width(self) -> int:
        """D, of the base's own text features."""
        return self.text_encoder.config.hidden_size

    def processors(self) -> dict[str, PlainProcessor]:
        names = [name for name in self.unet.attn_processors if name.endswith(".attn2.processor")]
        how = {"subjects": self.subjects, "with_keys": self.recipe.infusion_keys}
        return {
            name: InfusionProcessor(
                self.unet.get_submodule(name.removesuffix(".processor")),
                name,
                dual=self.streams == 2,
                **how,
            )
            for name in names
        }

    def is_trained(self, name: str) -> bool:
        return ".attn2.processor." in name

    def make_reader(self, tokenizer: Any) -> WordReader:
        return WordReader(tokenizer, self.recipe, self.places)

    def sampling_steps(self) -> Sequence[SamplingStep]:
        return (TwoStreams(self.width),) if self.streams == 2 else ()

    def encode(
        self, ids: Tensor, slots: Tensor, bands: Tensor, clip_skip: int | None = None
    ) -> Tensor:
        """ids (B,N), slots (B,N) with the number of the subject -> tau(y) and marks (B,N,D+K).

        There is one kind of subject: bands do not matter.
        """
        text = encode(self.text_encoder, self.injector, ids, slots > 0, None, clip_skip)
        numbers = torch.arange(1, self.subjects + 1, device=slots.device)
        marks = (slots[..., None] == numbers).to(text.device, text.dtype)  # (B,N,K)
        return torch.cat([text, marks], dim=-1)

    def encode_plain(self, prompts: list[str]) -> Tensor:
        """tau of prompts without a subject, with marks of 0: (B,N,D+K)."""
        text = super().encode_plain(prompts)
        return torch.cat([text, torch.zeros_like(text[..., : self.subjects])], dim=-1)

    def predict(
        self, z: Tensor, t: Tensor, text: Tensor, context: ReferenceContext | None
    ) -> Tensor:
        """eps_theta of the subject's stream: (B,4,h,w)."""
        if self.streams == 1:
            return super().predict(z, t, text, context)
        return super().predict(*two_streams(z, t, text, self.width), context)[len(z) :]


class InfusionObjective(Objective):
    """The release's loss: soft masks, and no division by their area."""

    def __init__(
        self, model: Customized, config: Losses, class_captions: Sequence[str] = ()
    ) -> None:
        """Raises UserError if a loss looks at attention that two streams do not report."""
        single = config.infusion_streams == "single" or not config.cross_loss_weight
        require(single, "--cross_loss_weight: not with --infusion_streams dual; set it to 0")
        super().__init__(model, config, class_captions)

    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """mean (M (eps - eps_theta))^2 of each sample: (B,)."""
        difference = prediction.float() - self.target(batch).float()
        return (batch.mask * difference).square().mean((1, 2, 3))


INFUSION = Method(Infusion, InfusionObjective, several=True, references=False)
