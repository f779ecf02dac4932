"""Stable Diffusion 1.x with a subject's parts in it: what is frozen, and what is trained.

Trained are S_LF and S_HF (Sec. 4.1), of each RRA layer K_r, V_r and H_r (Sec. 4.3), and K and V of
cross-attention. All else is frozen.

Departures from the paper: it does not name K and V of cross-attention, the release does. Training
all of the UNet's own weights, or none of them, is a choice: for DreamBooth and Textual Inversion.

Axes: B batch, N text tokens, D text width, R learned rows, h, w latent size.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from eqdiff.attention import RRAProcessor, rra_processors, rra_sites
from eqdiff.base.adapters import copy_as_it_came, fused_change, own_parameters
from eqdiff.base.load import Base
from eqdiff.base.offload import layers_change_by_themselves
from eqdiff.context import ReferenceContext
from eqdiff.errors import require
from eqdiff.processors import PlainProcessor, install
from eqdiff.reader import Places, PromptReader
from eqdiff.sampler import SamplingStep
from eqdiff.settings.groups import Recipe
from eqdiff.settings.train import TrainConfig
from eqdiff.start import start_rows
from eqdiff.tokens import SubjectTokens, TokenInjector, encode, require_rows


class Customized(nn.Module):
    """A base that carries one subject: its token rows, and what a method puts in.

    By itself it trains token rows alone. A method overrides `prepare`, `processors` and
    `is_trained`, and, if it does something while an image is drawn, `context` and `sampling_steps`.
    `detach` takes all of it out again.
    """

    streams = 1  # rows of a UNet call for each sample

    def __init__(
        self, base: Base, recipe: Recipe, rows: Tensor, places: Places = MappingProxyType({})
    ) -> None:
        """rows: (R,D), the start of the token rows, R as the recipe says. places: of several
        subjects, where the method can carry them.

        Raises UserError if the recipe needs what the base does not have.
        """
        super().__init__()
        self.recipe = recipe
        self.places = places

        # the base, frozen
        self.base_name = base.label
        self.base_fingerprint = base.fingerprint
        self.base_identity = base.identity
        self.vae = base.vae
        self.text_encoder = base.text_encoder
        self.unet = base.unet
        self.reference_unet: nn.Module | None = None
        self.scheduler = base.scheduler
        alphas_cumprod = base.alphas_cumprod.float().clone()
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)
        for frozen in (self.vae, self.text_encoder, self.unet):
            frozen.requires_grad_(False).eval()

        # the method's parts. Of what is trained in its UNet: `base_values` are the base's own,
        # `learned` the subject's, once it has been taken out
        self.prepare()
        self.base_values: dict[str, Tensor] = {}
        self.learned: dict[str, Tensor] = {}
        for name, parameter in own_parameters(self.unet):
            if self.is_trained(f"unet.{name}"):
                self.base_values[name] = parameter.detach().clone()
        self.installed = install(self.unet, self.processors())
        self.attached = True

        # the subject in the text
        self.tokens = self.make_tokens(rows)
        self.injector = TokenInjector(self.text_encoder)
        self.reader = self.make_reader(base.tokenizer)

        # what is trained
        for parameter in self.concept_parameters().values():
            parameter.requires_grad_(True)

    # What a method overrides.

    def prepare(self) -> None:
        """What is made of the base before anything is put in."""

    def processors(self) -> dict[str, PlainProcessor]:
        """The method's attention processors by layer; all other layers get plain ones."""
        return {}

    def is_trained(self, name: str) -> bool:
        """Whether a parameter of this module belongs to the concept. The one rule of a method."""
        return name.startswith("tokens.")

    def make_tokens(self, rows: Tensor) -> SubjectTokens:
        """The subject's embeddings, from the start of the rows (R,D)."""
        return SubjectTokens(rows)

    def start(self, base: Base, config: TrainConfig) -> None:
        """Where the method's parts start, beyond the rows and what `processors` makes."""

    def make_reader(self, tokenizer: Any) -> PromptReader:
        """How prompts are read."""
        return PromptReader(tokenizer, self.recipe)

    def context(self) -> ReferenceContext:
        """What the processors read during one call of the UNet while an image is drawn."""
        return ReferenceContext({})

    def sampling_steps(self) -> Sequence[SamplingStep]:
        """New steps around each call of the UNet, for one call of the pipeline."""
        return ()

    # What all methods share.

    @property
    def sites(self) -> list[str]:
        """The RRA layers in the order the UNet runs them, [] without RRA."""
        installed = self.installed.processors.items()
        return [name for name, processor in installed if isinstance(processor, RRAProcessor)]

    def concept_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, clipped, saved and loaded: the one list."""
        return {name: value for name, value in own_parameters(self) if self.is_trained(name)}

    def learned_values(self) -> dict[str, Tensor]:
        """The values of `concept_parameters`, whether the subject is in the UNet now or not."""
        if self.attached:
            return {name: value.detach() for name, value in self.concept_parameters().items()}

        rows = {f"tokens.{name}": value for name, value in self.tokens.named_parameters()}
        values = {name: value for name, value in rows.items() if self.is_trained(name)}
        values |= {f"unet.{name}": value for name, value in self.learned.items()}
        for site, processor in self.installed.processors.items():
            if isinstance(processor, nn.Module):
                own = processor.named_parameters()
                values |= {f"unet.{site}.{name}": value for name, value in own}
        return {name: value.detach() for name, value in values.items()}

    def to_dtype(self, frozen: torch.dtype, concept: torch.dtype = torch.float32) -> "Customized":
        """Weights in these precisions. Buffers stay: the noise schedule is useless in bf16."""
        learned = {id(parameter) for parameter in self.concept_parameters().values()}
        for parameter in self.parameters():
            dtype = concept if id(parameter) in learned else frozen
            parameter.data = parameter.data.to(dtype)
        return self

    def detach(self) -> None:
        """Takes the subject out: the base is as it was before, bit for bit."""
        if not self.attached:
            return

        self.installed.remove()
        for name, parameter in own_parameters(self.unet):
            if name in self.base_values:
                if name not in self.learned:
                    self.learned[name] = parameter.data
                    parameter.requires_grad_(False)
                parameter.data = self.base_values[name].to(parameter.device, parameter.dtype)
        self.attached = False

    def attach(self) -> None:
        """Puts the subject in again. Its parts go where the UNet is now, in its precision.

        What was done to the base in between (adapters, processors) is there again after `detach`.
        """
        if self.attached:
            return

        self.follow()
        self.installed.again()
        self.attached = True
        for name, parameter in own_parameters(self.unet):
            if name in self.base_values:
                self.base_values[name] = parameter.data
                change = fused_change(self.unet, name)
                value = self.learned[name].to(parameter.device, parameter.dtype)
                parameter.data = value if change is None else (value + change).to(value.dtype)

    def follow(self) -> None:
        """Moves what is the subject's own, and the reference UNet, to the UNet and its precision.

        While the UNet's weights are elsewhere (`is_sequential`), nothing moves.
        """
        device = self.unet.device
        dtype = self.unet.dtype
        if device.type == "meta":
            return

        for part in (self.tokens, self.reference_unet, *self.installed.processors.values()):
            if isinstance(part, nn.Module):
                part.to(device)
                for parameter in part.parameters():
                    parameter.data = parameter.data.to(dtype)
        self.learned = {name: value.to(device, dtype) for name, value in self.learned.items()}

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer with the placeholder among its words."""
        return self.reader.tokenizer

    def tokenize(self, prompts: list[str], class_word: str) -> tuple[Tensor, Tensor]:
        """Prompts, with {} for the subject or without a subject -> ids (B,N), slots (B,N) bool.

        See `PromptReader.read`. Raises UserError if a subject is cut off, or if a token in a prompt
        has no embedding.
        """
        ids, slots = self.reader.read(prompts, class_word)
        require_rows(self.tokenizer, self.text_encoder, ids.masked_fill(slots > 0, 0))
        device = self.tokens.rows.device
        return ids.to(device), slots.to(device)

    def placeholders(self, prompts: list[str], class_word: str) -> Tensor:
        """Where the placeholder's own token stands, whatever `slot_by` says: bool (B,N).

        The release finds the subject's vector by counting words, but its L_x looks here.
        """
        return self.reader.placeholders(prompts, class_word).to(self.tokens.rows.device)

    # Eq. 5: the subject enters the caption as S_LF, S_HF or S_ori.
    def encode(
        self, ids: Tensor, slots: Tensor, bands: Tensor, clip_skip: int | None = None
    ) -> Tensor:
        """ids, slots (B,N), bands (B,) -> tau(y) (B,N,D), without the last `clip_skip` layers."""
        vectors = self.tokens(bands)
        return encode(self.text_encoder, self.injector, ids, slots, vectors, clip_skip)

    @torch.no_grad()
    def encode_plain(self, prompts: list[str]) -> Tensor:
        """tau of prompts without a subject: (B,N,D). Raises ValueError if one has a subject."""
        ids, slots = self.tokenize(prompts, "")
        if slots.any():
            raise ValueError(f"a subject in {prompts}, where none belongs")
        return encode(self.text_encoder, self.injector, ids, slots, None)

    def predict(
        self, z: Tensor, t: Tensor, text: Tensor, context: ReferenceContext | None
    ) -> Tensor:
        """eps_theta(z, t, tau(y)) with the reference in `context`: (B,4,h,w)."""
        kwargs = {"reference": context}
        return self.unet(z, t, text, cross_attention_kwargs=kwargs, return_dict=False)[0]


class EqDiff(Customized):
    """The paper's model: token rows, K and V of cross-attention, RRA layers and their reference.

    The reference UNet, with RRA, is the base's, frozen: it shares all weights that are not trained.
    """

    def prepare(self) -> None:
        """Copies what is trained of the UNet before anything is put in."""
        if not self.recipe.rra:
            return

        apart = layers_change_by_themselves(self.unet)
        self.reference_unet = copy_as_it_came(
            self.unet, own=lambda name: apart or self.is_trained(f"unet.{name}")
        )

    def processors(self) -> dict[str, PlainProcessor]:
        """RRA at the layers that the recipe names. Raises UserError if there are none."""
        recipe = self.recipe
        if not recipe.rra:
            return {}
        sites = rra_sites(self.unet, recipe.rra_layers)
        layers = " ".join(recipe.rra_layers)
        require(sites, f"--rra_layers {layers}: no such self-attention; try mid_block up_blocks")
        return rra_processors(self.unet, sites, gate_init=recipe.gate_init, clamp=recipe.gate_clamp)

    def is_trained(self, name: str) -> bool:
        return is_concept(name, self.recipe.unet_weights)


def is_concept(name: str, unet_weights: str = "kv") -> bool:
    """Whether a parameter of `EqDiff` belongs to the concept. The one rule.

    Token rows and RRA do. Of the UNet's own weights those of cross-attention's K and V do ("kv",
    the paper), or "all", or "none".
    """
    if not name.startswith("unet."):
        return name.startswith("tokens.")
    if ".processor." in name:
        return True
    kv = ".attn2.to_k." in name or ".attn2.to_v." in name
    return {"kv": kv, "all": True, "none": False}[unet_weights]


def new_model(config: TrainConfig, base: Base, kind: type[Customized] = EqDiff) -> Customized:
    """The base with the subject's parts in it, as training starts them."""
    model = kind(base, config.recipe, start_rows(base, config))
    model.start(base, config)
    return model
