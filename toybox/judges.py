"""The committed instruments.

A judge names what is seen, a CLIP compares pictures with texts, a DINO knows an instance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, ResNetForImageClassification, ViTModel

from toybox.captions import STYLE_PHRASES
from toybox.instances import CLASS_NAMES
from toybox.judge import name
from toybox.world import CONTEXT_NAMES, STYLE_NAMES

ATTRIBUTES = ("class", "context", "style")
# what CLIP is taught for every value of an attribute
ATTRIBUTE_PROMPTS: dict[str, tuple[str, ...]] = {
    "class": tuple(f"a {name}" for name in CLASS_NAMES),
    "context": CONTEXT_NAMES,
    "style": tuple(STYLE_PHRASES[name][0].replace(" of {}", "") for name in STYLE_NAMES),
}


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids (N, max_length), padded as Stable Diffusion pads."""
    return tokenizer(
        list(texts), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids


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
    judge: ResNetForImageClassification

    @classmethod
    def load(cls, assets: Path = Path("assets/toybox")) -> "Judges":
        """Reads the three from the folder of the toybox's assets."""
        whole = dict(dtype=torch.float32)
        clip = CLIPModel.from_pretrained(assets / "clip", **whole).eval()
        tokenizer = CLIPTokenizer.from_pretrained(assets / "clip")
        dino = ViTModel.from_pretrained(assets / "dino", add_pooling_layer=False, **whole).eval()
        resnet = ResNetForImageClassification.from_pretrained(assets / "judge", **whole).eval()
        return cls(clip, tokenizer, dino, resnet)

    def name(self, images: Tensor) -> dict[str, Tensor]:
        """What the judge sees: attribute of judge.VALUES -> index of its value, int64 (N,)."""
        return name(self.judge, images)

    @torch.no_grad()
    def identity(self, images: Tensor) -> Tensor:
        """Unit features (N, D) of the instance in each picture; their cosine is the identity
        score.
        """
        return torch.cat([instance_features(self.dino, part) for part in images.split(64)])

    @torch.no_grad()
    def patches(self, images: Tensor) -> Tensor:
        """What the DINO sees in each patch of 16 x 16 pixels: (N, 64, D), row by row."""
        tokens = [self.dino(pixel_values=part).last_hidden_state for part in images.split(64)]
        return torch.cat(tokens)[:, 1:]
