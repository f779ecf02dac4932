"""CLIP-T, CLIP-I and DINO-I as Custom Diffusion measures them: pictures and texts -> unit features -> scores.

The protocol is that of its customconcept101/evaluate.py: ViT-B/32, and the class token of dino_vits16, which sees a
picture resized to 256 and cut to 224. All in fp32: half precision moves the fourth digit.
Axes: N drawn pictures, M photos, D width of the features.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor

from eqdiff.options import UserError, require
from eqdiff.prompts import shown
from eqdiff.tokens import beyond, plain

LOG = logging.getLogger(__name__)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIPSCORE_SCALE = 2.5  # CLIPScore's, kept by Custom Diffusion; others report the bare cosine
BYTE_LEVEL = 2 * 256 + 2  # the least vocabulary of CLIP's kind: each byte, each that ends a word, start and end


@dataclasses.dataclass(frozen=True)
class Transform:
    """What a model wants to see: short side to `resize` pixels, the middle `crop` x `crop`, normalised channels.

    Pillow's bicubic with its antialiasing and 8-bit rounding, across and then down; offsets rounded as torchvision's
    CenterCrop does.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any size -> float32 (N, 3, crop, crop)."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        pixels = torch.stack([tv.pil_to_tensor(self._cut(image)) for image in images])
        return (pixels.float() / 255 - mean) / std

    def _cut(self, image: Image.Image) -> Image.Image:
        width, height = (int(self.resize * length / min(image.size)) for length in image.size)
        left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
        # one call would do, but Pillow 13 takes tall pictures down first and rounds otherwise: up to 9 levels of 255
        resized = image.convert("RGB").resize((width, image.height), Image.Resampling.BICUBIC)
        resized = resized.resize((width, height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + self.crop, top + self.crop))


def clip_transform(side: int = 224, about: Mapping[str, Any] | None = None) -> Transform:
    """CLIP's for a model that sees `side` pixels; `about`: its preprocessor_config.json, see `_as_told`."""
    return _as_told(Transform(side, side, CLIP_MEAN, CLIP_STD), about or {})


def dino_transform(side: int = 224, about: Mapping[str, Any] | None = None) -> Transform:
    """DINO's for a model that sees `side` pixels: 256/224 of that first; `about` as for CLIP."""
    return _as_told(Transform(round(side * 256 / 224), side, IMAGENET_MEAN, IMAGENET_STD), about or {})


@dataclasses.dataclass(frozen=True)
class Clip:
    """A CLIP with its tokenizer and transform."""

    model: Any
    tokenizer: Any
    transform: Transform

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures, one batch -> unit features (N, D) on the CPU."""
        pixels = self.transform(images).to(self.model.device)
        return F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1).cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts, cut to the model's length, which is said -> unit features (N, D) on the CPU."""
        length = self.model.config.text_config.max_position_embeddings
        for text, cut in zip(texts, beyond(self.tokenizer, texts, length), strict=True):
            if cut:
                LOG.warning("text %s: beyond the %d tokens that CLIP reads, not seen: %s", shown(text), length, cut)
        how = dict(padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids = self.tokenizer(list(texts), **how).input_ids.to(self.model.device)
        return F.normalize(self.model.get_text_features(input_ids=ids).pooler_output, dim=-1).cpu()


@dataclasses.dataclass(frozen=True)
class Dino:
    """A ViT trained by DINO, with its transform."""

    model: Any
    transform: Transform

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures, one batch -> unit class tokens (N, D) on the CPU."""
        pixels = self.transform(images).to(self.model.device)
        return F.normalize(self.model(pixel_values=pixels).last_hidden_state[:, 0], dim=-1).cpu()


def load_clip(name: str, device: str = "cpu") -> Clip:
    """A CLIP in Hugging Face's layout, folder or hub id. UserError: not found, another kind of model, incomplete."""
    from transformers import CLIPModel, CLIPTokenizer

    model, transform = _load("--clip_model", name, CLIPModel, "clip", clip_transform)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise _not_loaded("--clip_model", name, error) from None
    # without its files transformers makes an empty tokenizer and says nothing
    fits = BYTE_LEVEL <= len(tokenizer) <= model.config.text_config.vocab_size
    require(fits, f"--clip_model {name}: no tokenizer of this model there; name a folder with its tokenizer files")
    return Clip(model.to(device), tokenizer, transform)


def load_dino(name: str, device: str = "cpu") -> Dino:
    """A ViT in Hugging Face's layout, folder or hub id. UserError: not found, another kind of model, incomplete."""
    from transformers import ViTModel

    model, transform = _load("--dino_model", name, ViTModel, "vit", dino_transform, add_pooling_layer=False)
    return Dino(model.to(device), transform)


def caption(prompt: str, class_word: str) -> str:
    """What CLIP reads for a prompt: the class word alone where the subject goes, the learned token removed."""
    return plain(prompt, class_word)


def text_scores(images: Tensor, texts: Tensor) -> Tensor:
    """Unit features (N, D) of pictures and of their texts -> cosines (N,), float64: clip_t_cos."""
    return (images.double() * texts.double()).sum(-1)


def scaled(cosines: Tensor) -> Tensor:
    """Cosines -> CLIPScore's 2.5 max(cos, 0): clip_t_2.5."""
    return CLIPSCORE_SCALE * cosines.clamp(min=0)


def pair_scores(images: Tensor, photos: Tensor) -> Tensor:
    """Unit features (N, D) and (M, D) -> each picture's mean cosine to the photos, float64 (N,).

    Their mean over the pictures is the mean over all pairs: clip_i, dino_i.
    """
    return (images.double() @ photos.double().T).mean(1)


def agreement(images: Tensor) -> float:
    """Mean cosine of two different pictures of a set of unit features (N, D), N >= 2."""
    gram, count = images.double() @ images.double().T, len(images)
    return float((gram.sum() - gram.trace()) / (count * (count - 1)))


def _as_told(default: Transform, about: Mapping[str, Any]) -> Transform:
    """`default` with the mean and std of a preprocessor_config.json, and with its sizes if it says to cut the middle.

    A file that does not cut leaves the sizes alone: Hugging Face's for DINO squashes the picture to 224 x 224, which
    is not the protocol.
    """
    given = {name: tuple(about[f"image_{name}"]) for name in ("mean", "std") if f"image_{name}" in about}
    if about.get("do_center_crop") and "size" in about and "crop_size" in about:
        resize, crop = _side(about["size"], "shortest_edge"), _side(about["crop_size"], "height")
        if crop != default.crop or resize < crop:
            raise ValueError(f"it is resized to {resize} and cut to {crop}, and the model sees {default.crop} pixels")
        given |= {"resize": resize, "crop": crop}
    return dataclasses.replace(default, **given)


def _side(size: Any, name: str) -> int:
    return size[name] if isinstance(size, Mapping) else size


def _load(
    flag: str, name: str, cls: Any, kind: str, transform_for: Callable[[int, Mapping[str, Any]], Transform], **how: Any
) -> tuple[Any, Transform]:
    """The model in fp32, and its transform."""
    from safetensors import SafetensorError
    from transformers import AutoConfig
    from transformers.utils import cached_file, logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what matters of a loading report is checked below
    folder = Path(name)
    if (folder.is_dir() and not (folder / "config.json").is_file()) or (
        name.startswith((".", "/")) and not folder.exists()
    ):
        raise UserError(f"{flag} {name}: no config.json there; name a {kind} model's folder in Hugging Face's layout")
    try:
        found = AutoConfig.from_pretrained(name).model_type
        require(found == kind, f"{flag} {name}: a model of the kind {found}; name one of the kind {kind}")
        model, report = cls.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, use_safetensors=True, **how
        )
        file = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        about = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        transform = transform_for(getattr(model.config, "vision_config", model.config).image_size, about)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(flag, name, error) from None
    missing = sorted(report["missing_keys"])
    require(not missing, f"{flag} {name}: weights are missing, {missing[:1]} and {len(missing) - 1} more; load it anew")
    return model.eval().requires_grad_(False), transform


def _not_loaded(flag: str, name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{flag} {name}: cannot be loaded ({reason}); name a folder in Hugging Face's layout")
