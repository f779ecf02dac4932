"""Stable Diffusion 1.x with a subject's parts in it: what is frozen, and the one list of what is trained."""

import copy
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eqdiff.attention import ReferenceContext, install, rra_sites
from eqdiff.base import Base
from eqdiff.config import UserError
from eqdiff.prompts import shown
from eqdiff.tokens import (
    PLACEHOLDER,
    SubjectTokens,
    TokenInjector,
    add_placeholder,
    beyond,
    encode,
    expand,
    find_slots,
    find_slots_by_whitespace,
    initial_rows,
)

LOG = logging.getLogger(__name__)


def is_concept(name: str, unet_weights: str = "kv") -> bool:
    """Whether a parameter of `EqDiff` belongs to the concept: token rows, RRA, and of the UNet's own weights those of
    cross-attention's K/V ("kv", the paper), "all" or "none". The one rule."""
    if not name.startswith("unet."):
        return name.startswith("tokens.")
    own = {"kv": ".attn2.to_k." in name or ".attn2.to_v." in name, "all": True, "none": False}
    return ".processor." in name or own[unet_weights]


class EqDiff(nn.Module):
    """A base whose UNet and text encoder carry one subject; `detach` takes it out again, bit for bit.

    The reference UNet is a frozen copy of the base's, made before anything is put in (Sec. 4.3); None without RRA.
    """

    def __init__(
        self,
        base: Base,
        rows: Tensor,
        *,
        rra: bool = True,
        rra_layers: Sequence[str] = ("mid_block", "up_blocks"),
        unet_weights: str = "kv",
        gate_init: str = "zero",
        clamp: str = "inward",
        slot_by: str = "token_id",
        stand_in: int = 0,
    ) -> None:
        """rows: (R,D) start of the token rows. rra_layers: name prefixes of the layers that get RRA. unet_weights: see
        `is_concept`. slot_by, stand_in: parity with the release (see `tokens`). UserError: no such layers."""
        super().__init__()
        self.base_name, self.base_fingerprint = base.name, base.fingerprint
        self.vae, self.text_encoder, self.unet = base.vae, base.text_encoder, base.unet
        self.tokenizer, self.scheduler = copy.deepcopy(base.tokenizer), base.scheduler
        for frozen in (self.vae, self.text_encoder, self.unet):
            frozen.requires_grad_(False).eval()
        self.reference_unet = copy.deepcopy(self.unet) if rra else None
        self.unet_weights, self.gate_init, own = unet_weights, gate_init, self.unet.named_parameters()
        self.former = {n: p.detach().clone() for n, p in own if is_concept(f"unet.{n}", unet_weights)}
        sites = rra_sites(self.unet, rra_layers) if rra else []
        if rra and not sites:
            raise UserError(f"--rra_layers {' '.join(rra_layers)}: no such self-attention; try mid_block up_blocks")
        self.installed = install(self.unet, gate_init=gate_init, clamp=clamp, sites=sites)
        self.tokens, self.injector = SubjectTokens(rows), TokenInjector(self.text_encoder)
        self.placeholder_id, self.slot_by, self.stand_in = add_placeholder(self.tokenizer), slot_by, stand_in
        self.said: set[str] = set()  # prompts whose end was reported as cut off
        self.register_buffer("alphas_cumprod", base.alphas_cumprod.float().clone(), persistent=False)
        for parameter in self.concept_parameters().values():
            parameter.requires_grad_(True)

    @property
    def sites(self) -> list[str]:
        """The RRA layers in the order the UNet runs them, [] without RRA."""
        return list(self.installed.processors)

    def concept_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, clipped, saved and loaded: the one list."""
        named = self.named_parameters()
        return {name: parameter for name, parameter in named if is_concept(name, self.unet_weights)}

    def to_dtype(self, frozen: torch.dtype, concept: torch.dtype = torch.float32) -> "EqDiff":
        """Weights in these precisions. Buffers stay: the noise schedule is useless in bf16."""
        learned = {id(p) for p in self.concept_parameters().values()}
        for parameter in self.parameters():
            parameter.data = parameter.data.to(concept if id(parameter) in learned else frozen)
        return self

    def detach(self) -> None:
        """Leave the base as it was found."""
        self.installed.remove()
        self.injector.remove()
        with torch.no_grad():
            for name, parameter in self.unet.named_parameters():
                if name in self.former:
                    parameter.data = self.former[name].to(parameter.device)
        self.unet.requires_grad_(False)

    def tokenize(self, prompts: list[str], class_word: str) -> tuple[Tensor, Tensor]:
        """Prompts, with {} for the subject or without a subject -> ids (B,N), slots (B,N) bool.

        What is cut off for its length is said once. UserError: a subject is.
        """
        texts = [expand(p, class_word) if "{}" in p else p for p in prompts]
        ids = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        slots, length = find_slots(ids, self.placeholder_id), ids.shape[1]
        if self.slot_by == "whitespace":
            ids = ids.masked_fill(slots, self.stand_in)
            slots = find_slots_by_whitespace(texts, PLACEHOLDER, length)
        for text, found, cut in zip(texts, slots.any(1), beyond(self.tokenizer, texts, length), strict=True):
            if PLACEHOLDER in cut.lower() or (PLACEHOLDER in text.lower() and not found):
                raise UserError(
                    f"prompt {shown(text)}: a subject in it lies beyond the {length} tokens that the base reads; "
                    "put {} earlier or shorten the prompt"
                )
            if cut and text not in self.said:
                self.said.add(text)
                LOG.warning(
                    "prompt %s: beyond the %d tokens that the base reads, not seen: %s", shown(text), length, cut
                )
        return ids.to(self.tokens.rows.device), slots.to(self.tokens.rows.device)

    # Eq. 5: the subject enters the caption as S_LF, S_HF or S_ori.
    def encode(self, ids: Tensor, slots: Tensor, bands: Tensor) -> Tensor:
        """ids, slots (B,N), bands (B,) -> tau(y) (B,N,D)."""
        return encode(self.text_encoder, self.injector, ids, slots, self.tokens(bands))

    @torch.no_grad()
    def encode_plain(self, prompts: list[str]) -> Tensor:
        """tau of prompts without a subject: (B,N,D). ValueError: one has a subject."""
        ids, slots = self.tokenize(prompts, "")
        if slots.any():
            raise ValueError(f"a subject in {prompts}, where none belongs")
        return encode(self.text_encoder, self.injector, ids, slots, None)

    def predict(self, z: Tensor, t: Tensor, text: Tensor, context: ReferenceContext | None) -> Tensor:
        """eps_theta(z, t, tau(y)) with the reference in `context`: (B,4,h,w)."""
        return self.unet(z, t, text, cross_attention_kwargs={"reference": context}, return_dict=False)[0]


def start_rows(base: Base, *, word: str, n_rows: int, scale: float) -> Tensor:
    """Start of the token rows (n_rows,D): the mean embedding of `word`, `scale` times as long once they are summed."""
    ids = base.tokenizer(word, add_special_tokens=False).input_ids
    if not ids:
        raise UserError(f"{word!r} has no tokens to start the subject from: give another --class_word")
    table = base.text_encoder.get_input_embeddings().weight
    return initial_rows(table, ids, n_rows, scale / n_rows)
