"""AlignIT (arXiv 2406.18893): only the subject's own keys and values come from what was tuned.

Training changes the text features behind the subject and, with K and V of cross-attention, every
word's keys and values: so the rest of the prompt is drawn less well. Here keys and values of all
other tokens are the base's, of the prompt with an untuned word in the subject's place.

We know the paper's abstract alone. Ours: the subject is what {} stands for, its learned tokens and
the class word behind them; the untuned word is the class word's mean embedding; a negative prompt
has no subject, so all of it is the base's. RRA and the UNet's other weights stay as they are.

Axes: B rows of a call, N images, M text tokens, D text width, C channels of a layer.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqdiff.errors import require
from eqdiff.methods.ico import behind
from eqdiff.model import Customized, EqDiff
from eqdiff.sampler import Args, Drawing, Kwargs, SamplingOption, SamplingStep
from eqdiff.tokens import encode

PROJECTIONS = (".attn2.to_k", ".attn2.to_v")


@dataclasses.dataclass(frozen=True)
class AlignIT(SamplingOption):
    """Keys and values of all tokens but the subject's from the untuned path."""

    def check(self, carried: Any, prompts: Sequence[str], attending: frozenset[str]) -> None:
        """Raises UserError if the concept's method leaves the other words as they are anyway."""
        recipe = carried.concept.recipe
        require(
            isinstance(carried.model, EqDiff),
            f"--alignit: with --method {recipe.method} other words are the base's already; "
            "draw without --alignit",
        )

    def steps(self, drawing: Drawing) -> Sequence[SamplingStep]:
        """One step. Raises what `check` raises, or UserError without prompts."""
        self.check(drawing.carried, drawing.prompts, drawing.attending)
        return (Aligned(drawing),)


class Aligned(SamplingStep):
    """Hooks on cross-attention's projections during one call of the pipeline."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        self.model: Customized = drawing.carried.model
        self.text: Tensor | None = None  # untuned, (N,M,D)
        self.own: Tensor | None = None  # the subject's columns, bool (N,M)
        self.untuned: Tensor | None = None  # of this call of the UNet, (B,M,D)
        self.kept: Tensor | None = None  # its tokens that stay tuned, bool (B,M,1)

    def within(self, unet: nn.Module) -> AbstractContextManager[None]:
        return self._hooked(unet)

    @contextmanager
    def _hooked(self, unet: nn.Module) -> Iterator[None]:
        """Within: the projections of cross-attention give the untuned output where it belongs."""
        with ExitStack() as hooks:
            for name, layer in unet.named_modules():
                if name.endswith(PROJECTIONS):
                    weight = self.model.base_values.get(f"{name}.weight")
                    hook = layer.register_forward_hook(self._exchange(layer, weight))
                    hooks.callback(hook.remove)
            yield

    # k_j = W_k tau_j for the subject's j, else W_k^base tau_j^base; the values likewise.
    def _exchange(self, layer: Any, weight: Tensor | None) -> Any:
        """A hook of a projection. weight: the base's, None where it was not trained."""

        def exchange(module: nn.Module, args: tuple[Tensor, ...], tuned: Tensor) -> Tensor:
            base = layer.weight if weight is None else weight.to(tuned.device)
            plain = F.linear(self.untuned.to(base.dtype), base, layer.bias).to(tuned.dtype)
            return torch.where(self.kept, tuned, plain)

        return exchange

    def before(self, unet: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Sees which rows of this call have which text; changes nothing of the call."""
        tuned = kwargs["encoder_hidden_states"]
        if self.text is None:
            self._read(tuned.device, tuned.dtype)

        rest = len(tuned) - len(self.text)  # the unconditional half
        self.untuned = torch.cat([tuned[:rest], self.text])
        no_subject = torch.zeros_like(self.own[:1]).expand(rest, -1)
        self.kept = torch.cat([no_subject, self.own])[..., None]

    @torch.no_grad()
    def _read(self, device: torch.device, dtype: torch.dtype) -> None:
        """Reads the prompts of the images, untuned, and where the subject is in them."""
        model = self.model
        word = self.drawing.carried.concept.recipe.class_word or ""
        ids, slots = model.tokenize(self.drawing.prompts, word)
        noun = model.tokenizer(word, add_special_tokens=False).input_ids
        table = model.text_encoder.get_input_embeddings().weight
        vectors = table[noun].float().mean(0).expand(len(ids), -1)

        skip = self.drawing.given.get("clip_skip")
        where = table.device
        text = encode(
            model.text_encoder, model.injector, ids.to(where), slots.to(where), vectors, skip
        )
        self.text = text.to(device, dtype)
        self.own = (slots | behind(slots, len(noun))).to(device)
