"""The instruments: a small CLIP that names class, context and style, and a small DINO that knows an instance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from toybox.captions import STYLE_PHRASES
from toybox.instances import CLASS_NAMES
from toybox.world import CONTEXT_NAMES, STYLE_NAMES

ATTRIBUTES = ("class", "context", "style")
# what the judge reads for every value of an attribute
ATTRIBUTE_PROMPTS: dict[str, tuple[str, ...]] = {
    "class": tuple(f"a {name}" for name in CLASS_NAMES),
    "context": CONTEXT_NAMES,
    "style": tuple(STYLE_PHRASES[name][0].replace(" of {}", "") for name in STYLE_NAMES),
}


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids (N, max_length), padded as Stable Diffusion pads."""
    return tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids


def image_features(clip: CLIPModel, images: Tensor) -> Tensor:
    """Images (N, 3, 128, 128) in [-1, 1] -> unit features (N, D)."""
    return F.normalize(clip.get_image_features(pixel_values=images).pooler_output, dim=-1)


def text_features(clip: CLIPModel, ids: Tensor) -> Tensor:
    """Token ids (N, L) -> unit features (N, D)."""
    return F.normalize(clip.get_text_features(input_ids=ids).pooler_output, dim=-1)


def instance_features(vit: ViTModel, images: Tensor) -> Tensor:
    """Images (N, 3, 128, 128) in [-1, 1] -> unit class tokens (N, D)."""
    return F.normalize(vit(pixel_values=images).last_hidden_state[:, 0], dim=-1)


@dataclass
class Judges:
    """The committed instruments, ready to look at pictures."""

    clip: CLIPModel
    tokenizer: CLIPTokenizer
    dino: ViTModel

    @classmethod
    def load(cls, assets: Path = Path("assets/toybox")) -> "Judges":
        clip = CLIPModel.from_pretrained(assets / "clip", dtype=torch.float32).eval()
        dino = ViTModel.from_pretrained(assets / "dino", dtype=torch.float32, add_pooling_layer=False).eval()
        return cls(clip, CLIPTokenizer.from_pretrained(assets / "clip"), dino)

    @torch.no_grad()
    def name(self, images: Tensor) -> dict[str, Tensor]:
        """What the judge sees: attribute -> index of its value, int64 (N,)."""
        features = torch.cat([image_features(self.clip, part) for part in images.split(64)])
        prompts = {a: text_features(self.clip, tokenize(self.tokenizer, p)) for a, p in ATTRIBUTE_PROMPTS.items()}
        return {attribute: (features @ text.T).argmax(-1) for attribute, text in prompts.items()}

    @torch.no_grad()
    def identity(self, images: Tensor) -> Tensor:
        """Unit features (N, D) of who is shown; their cosine is the identity score."""
        return torch.cat([instance_features(self.dino, part) for part in images.split(64)])
