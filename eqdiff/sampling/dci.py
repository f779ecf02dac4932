"""DCI (arXiv 2412.04831, ECCV 2024): a second picture lends its context in the first steps.

Early steps decide the layout, and there a customized model is weakest. So a second picture is drawn
beside the first, by the same model, from noise of its own; its prompt has a plain noun in the
subject's place. In every cross-attention the first picture takes the second one's output where the
subject is not. After `share` of the schedule the second picture is dropped.

Departures. The release counts token columns by hand: here they are found by their ids. Its 500 of
the gate is that of 64 x 64 latents: here it goes with the size, so that each level has SD 1.x's
gates, unless `gate` is "flat". It guides the second picture by the first one's unconditional half:
here not where that half attends to a photo, which the second picture must not see.

Axes: N images, H heads, n cells of a layer, Ntok text tokens, D text width, h, w latent size.
"""

import copy
import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eqdiff.drawing.arguments import initial_noise, seed_of
from eqdiff.errors import require
from eqdiff.processors import visited
from eqdiff.sampler import (
    Args,
    Drawing,
    Kwargs,
    SamplingOption,
    SamplingStep,
    sample_and_time,
)
from eqdiff.settings.prompts import shown
from eqdiff.tokens import PLACEHOLDER, encode, find_columns, plain

SHARPNESS = 10.0  # of both softmaxes
GATE_SCALE = 500.0  # of the gate, at CELLS latent cells
CELLS = 64 * 64


# The gate, per head: w, p and g of the method.
def subject_weight(probs: Tensor, content: Tensor, columns: Tensor) -> Tensor:
    """How much each cell looks at a word: (N,H,n) in [0, 1].

    probs (N,H,n,Ntok): attention. content, columns (N,Ntok) bool: the prompt's own tokens, and the
    word's among them. Attention is sharpened among the content columns of each cell.
    """
    outside = ~content[:, None, None]
    sharp = (SHARPNESS * probs).masked_fill(outside, float("-inf")).softmax(-1)
    return (sharp * columns[:, None, None]).sum(-1)


def gate(w_c: Tensor, w_a: Tensor, strength: float, scale: float) -> Tensor:
    """g_c (N,H,n) in [0, 1]: the first picture's share of its own cross-attention.

    w_c: where the subject is. w_a: where the noun is not. Both (N,H,n). strength: lambda. scale:
    what p sums to over the cells.
    """
    p_c, p_a = (scale * (SHARPNESS * w).softmax(-1) for w in (w_c, w_a))
    return torch.sigmoid(p_c - strength * p_a)  # exp(p_c) / (exp(p_c) + exp(strength p_a))


def gate_scale(cells: int, kind: Literal["level", "flat"]) -> float:
    """What p sums to at latents of so many cells.

    p is the scale over the cells of a layer, on average: in proportion to the latent's cells, each
    level has the p that it has at 64 x 64.
    """
    return GATE_SCALE * cells / CELLS if kind == "level" else GATE_SCALE


def attention_map(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) in fp32: (N,H,n,Ntok), of q (N,n,C) and k (N,Ntok,C)."""
    q, k = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


# Prompts: where the subject and the noun stand in them, by token ids.
@dataclasses.dataclass(frozen=True)
class Words:
    """Prompts as token ids (N,Ntok), their content and the columns of a word: (N,Ntok) bool."""

    ids: Tensor
    content: Tensor
    columns: Tensor


def subject_words(carried: Any, prompts: list[str]) -> Words:
    """Prompts with the subject: its columns are its slots and the class word behind them."""
    model = carried.model
    word = carried.concept.recipe.class_word
    ids, slots = model.tokenize(prompts, word)
    marks = model.placeholders(prompts, word)
    seen = ids.masked_fill(marks, model.reader.placeholder_id)

    pieces = model.tokenizer(word, add_special_tokens=False).input_ids
    columns = find_columns(seen, [model.reader.placeholder_id, *pieces])
    return Words(ids, content_of(seen, model.tokenizer), columns | slots | marks)


def noun_words(carried: Any, prompts: list[str], noun: str) -> Words:
    """Prompts with `noun` in the subject's place, and the noun's columns at that place alone.

    The noun is read behind the placeholder, which is then taken out of the ids. Raises UserError
    if the noun has no tokens, or is no word of its own in a prompt.
    """
    model = carried.model
    tokenizer = model.tokenizer
    pieces = tokenizer(noun, add_special_tokens=False).input_ids
    require(pieces, f"--dci_noun {shown(noun)}: the base reads nothing in it; give another")

    word = carried.concept.recipe.class_word
    texts = [plain(prompt, word, f"{PLACEHOLDER} {noun}") for prompt in prompts]
    read = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    marks = read == model.reader.placeholder_id
    columns = find_columns(read, [model.reader.placeholder_id, *pieces]) & ~marks
    for prompt, found in zip(prompts, columns.any(1), strict=True):
        told = f"prompt {shown(prompt)}: the noun {noun!r} of --dci is no word of its own in it"
        require(found, f"{told}; put spaces round {{}}")

    order = marks.int().sort(dim=1, stable=True).indices  # the placeholders go to the end
    ids = read.masked_fill(marks, tokenizer.pad_token_id).gather(1, order)
    columns = columns.gather(1, order)
    device = model.tokens.rows.device
    ids, columns = ids.to(device), columns.to(device)
    return Words(ids, content_of(ids, tokenizer), columns)


def content_of(ids: Tensor, tokenizer: Any) -> Tensor:
    """The columns of a prompt's own tokens, without start, end and padding: (N,Ntok) bool."""
    content = (ids == tokenizer.eos_token_id).int().cumsum(1) == 0
    content[:, 0] = False
    return content


@dataclasses.dataclass(frozen=True)
class DCI(SamplingOption):
    """Two branches in the first part of sampling.

    noun: for the second picture, None for the class word. strength: lambda of the gate, typically
    -2 to 2; more is more of the second picture. share: of the noise schedule, 0 to 1. gate: "level"
    or "flat", see `gate_scale`. guidance: "shared", "own", or None, which shares unless the first
    picture's unconditional half attends to a photo.
    """

    noun: str | None = None
    strength: float = 0.0
    share: float = 0.3
    gate: Literal["level", "flat"] = "level"
    guidance: Literal["shared", "own"] | None = None

    def check(self, carried: Any, prompts: Sequence[str], attending: frozenset[str]) -> None:
        """Raises UserError if the noun cannot be found in a prompt."""
        noun_words(carried, list(prompts), self.noun or carried.concept.recipe.class_word)

    def steps(self, drawing: Drawing) -> list[SamplingStep]:
        """The one step of a drawing."""
        carried = drawing.carried
        noun = self.noun or carried.concept.recipe.class_word
        words = noun_words(carried, drawing.prompts, noun)
        text = self._text(drawing, words.ids)
        return [DciStep(self, drawing, subject_words(carried, drawing.prompts), words, text)]

    def _text(self, drawing: Drawing, ids: Tensor) -> Tensor:
        """tau of the second picture's prompts (N,Ntok,D), without the subject."""
        model = drawing.carried.model
        nowhere = torch.zeros_like(ids, dtype=torch.bool)
        skip = drawing.given.get("clip_skip")
        device = drawing.pipe._execution_device
        return encode(model.text_encoder, model.injector, ids.to(device), nowhere, None, skip)


class DciStep(SamplingStep):
    """The second picture's rows in each call of the UNet, behind those of the first.

    A call's rows are [u, c, a], or [u, c, a, u_a] with an unconditional half of its own.
    """

    def __init__(
        self, option: DCI, drawing: Drawing, subject: Words, noun: Words, text: Tensor
    ) -> None:
        """subject, noun: the two prompts of each image. text: tau of the second (N,Ntok,D)."""
        pipe = drawing.pipe
        self.option = option
        self.pipe = pipe
        self.subject = subject
        self.noun = noun
        self.text = text
        self.scale = gate_scale(drawing.cells[0] * drawing.cells[1], option.gate)
        self.own = option.guidance == "own"
        if option.guidance is None:
            self.own = bool(drawing.attending) and drawing.reference_for == "both"

        # the second picture: draws of its own, so that the first is what it is without it
        own = [seed_of(seed, "dci", 0) for seed in drawing.seeds]
        self.noise = initial_noise(own, (pipe.unet.config.in_channels, *drawing.cells))
        steps = [torch.Generator().manual_seed(seed_of(seed, "dci", 1)) for seed in drawing.seeds]
        self.extra = pipe.prepare_extra_step_kwargs(steps, drawing.given.get("eta") or 0.0)
        self.scheduler: Any = None
        self.z_a: Tensor | None = None  # (N,4,h,w), once there is one
        self.first: int | None = None  # the row of c; None outside a call with both pictures
        self.context: Any = None  # of that call, so that calls within it are told from it

    def within(self, unet: nn.Module) -> AbstractContextManager[None]:
        """A guest in every cross-attention."""
        names = [name for name in unet.attn_processors if name.endswith(".attn2.processor")]
        return visited(unet, dict.fromkeys(names, self._lend))

    def before(self, unet: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """Adds the second picture's rows."""
        z, t = sample_and_time(args, kwargs)
        total = self.pipe.scheduler.config.num_train_timesteps
        if float(t) / total <= 1 - self.option.share:
            self.z_a = None
            return None
        if self.scheduler is None:  # the pipeline has set the timesteps by now
            self.scheduler = copy.deepcopy(self.pipe.scheduler)
            self.z_a = self.noise.to(z) * self.scheduler.init_noise_sigma

        count = len(self.noise)
        self.first = len(z) - count
        self.context = kwargs["cross_attention_kwargs"]["reference"]
        text = kwargs["encoder_hidden_states"]
        z_a = self.scheduler.scale_model_input(self.z_a, t)
        latents = [z, z_a.to(z)]
        texts = [text, self.text.to(text)]
        if self.own and self.first:
            latents.append(latents[-1])
            texts.append(text[:count])

        longer = {"encoder_hidden_states": torch.cat(texts)}
        return (torch.cat(latents), t), {**_without_place(kwargs), **longer}

    def after(self, unet: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Takes the second picture a step on, and its rows out."""
        if self.first is None:
            return None
        _, t = sample_and_time(args, kwargs)
        count = len(self.noise)
        end = self.first + count
        eps = output[0]

        eps_a = eps[end : end + count]
        if self.first:  # a guided call
            u = eps[end + count :] if self.own else eps[:count]
            eps_a = u + self.pipe.guidance_scale * (eps_a - u)
        self.z_a = self.scheduler.step(eps_a, t, self.z_a, **self.extra, return_dict=False)[0]
        self.first = None
        return (eps[:end], *output[1:])

    def _lend(
        self, name: str, attend: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, reference: Any
    ) -> Tensor:
        """O_s (B,n,C) of a cross-attention, with c's rows mixed of c's and a's."""
        o_s = attend(q, k, v, heads, reference)
        if self.first is None or reference is not self.context:
            return o_s

        count = len(self.noise)
        c = slice(self.first, self.first + count)
        a = slice(c.stop, c.stop + count)
        weights = []
        for rows, words in ((c, self.subject), (a, self.noun)):
            probs = attention_map(q[rows], k[rows], heads)
            content, columns = words.content.to(q.device), words.columns.to(q.device)
            weights.append(subject_weight(probs, content, columns))

        g = gate(weights[0], 1 - weights[1], self.option.strength, self.scale)  # (N,H,n)
        g = g.transpose(1, 2)[..., None]  # (N,n,H,1)
        o_c, o_a = (o_s[rows].unflatten(-1, (heads, -1)) for rows in (c, a))  # (N,n,H,d)
        mixed = (g * o_c + (1 - g) * o_a).flatten(2).to(o_s.dtype)
        return torch.cat([o_s[: c.start], mixed, o_s[c.stop :]])


def _without_place(kwargs: Kwargs) -> Kwargs:
    """The named arguments of a UNet call, without the two that are given by position."""
    return {name: x for name, x in kwargs.items() if name not in ("sample", "timestep")}
