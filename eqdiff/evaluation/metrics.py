"""CLIP-T, CLIP-I and DINO-I as Custom Diffusion measures them.

Pictures and texts become unit features, and features become scores. The protocol is that of its
customconcept101/evaluate.py: ViT-B/32, and the class token of dino_vits16, which sees a picture
resized to 256 and cut to 224. All is in fp32: half precision moves the fourth digit.

Axes: N drawn pictures, M photos, D width of the features.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    CLIPModel,
    CLIPTokenizer,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    PretrainedConfig,
    ViTModel,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from eqdiff.base.allowed import hidden_code
from eqdiff.base.trial import tokenizer_problem
from eqdiff.errors import UserError, reason_of, require
from eqdiff.evaluation.transforms import Transform, clip_transform, dino_transform
from eqdiff.settings.places import is_hub_id
from eqdiff.settings.prompts import shown
from eqdiff.tokens import plain, truncated_tails

LOG = logging.getLogger(__name__)
# kind of model, as its config.json says -> what loads it
CLIPS: dict[str, Callable[..., Any]] = {"clip": CLIPModel.from_pretrained}
DINOS: dict[str, Callable[..., Any]] = {
    "vit": partial(ViTModel.from_pretrained, add_pooling_layer=False),
    "dinov2": Dinov2Model.from_pretrained,
    "dinov2_with_registers": Dinov2WithRegistersModel.from_pretrained,
    "dinov3_vit": DINOv3ViTModel.from_pretrained,
}
ANY_SIZE = frozenset(DINOS) - {"vit"}  # their config.json tells the size of the last training
SIDE = 224  # of the picture that such a one sees [pixels], as it is always compared
CLIPSCORE_SCALE = 2.5  # CLIPScore's, kept by Custom Diffusion; others report the bare cosine


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
        features = self.model.get_image_features(pixel_values=pixels).pooler_output
        return F.normalize(features, dim=-1).cpu()

    @torch.no_grad()
    def patches(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures, one batch -> what it sees in each patch, row by row: (N, L, D) on the CPU.

        They are the vision transformer's own, before the projection to the space of texts.
        """
        pixels = self.transform(images).to(self.model.device)
        return self.model.get_image_features(pixel_values=pixels).last_hidden_state[:, 1:].cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> unit features (N, D) on the CPU.

        A text beyond the context length is truncated with a warning.
        """
        length = self.model.config.text_config.max_position_embeddings
        for text, cut in zip(texts, truncated_tails(self.tokenizer, texts, length), strict=True):
            if cut:
                LOG.warning(
                    "text %s: beyond the %d tokens that CLIP reads, not seen: %s",
                    shown(text),
                    length,
                    cut,
                )

        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        ids = tokens.input_ids.to(self.model.device)
        features = self.model.get_text_features(input_ids=ids).pooler_output
        return F.normalize(features, dim=-1).cpu()


@dataclasses.dataclass(frozen=True)
class Dino:
    """A ViT trained by DINO, with its transform."""

    model: Any
    transform: Transform

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures, one batch -> unit class tokens (N, D) on the CPU."""
        pixels = self.transform(images).to(self.model.device)
        class_tokens = self.model(pixel_values=pixels).last_hidden_state[:, 0]
        return F.normalize(class_tokens, dim=-1).cpu()

    @torch.no_grad()
    def patches(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures, one batch -> what it sees in each patch, row by row: (N, L, D) on the CPU.

        Register tokens, which some have before their patches, are left out.
        """
        pixels = self.transform(images).to(self.model.device)
        tokens = self.model(pixel_values=pixels).last_hidden_state
        first = 1 + getattr(self.model.config, "num_register_tokens", 0)
        return tokens[:, first:].cpu()


def load_clip(name: str, device: str = "cpu") -> Clip:
    """A CLIP in Hugging Face's layout, a folder or a hub id.

    Raises UserError if it is not found, is another kind of model, or is incomplete.
    """
    model, transform = _load("--clip_model", name, CLIPS, clip_transform)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise _not_loaded("--clip_model", name, error) from None

    problem = tokenizer_problem(tokenizer)
    if len(tokenizer) > model.config.text_config.vocab_size:
        problem = f"{len(tokenizer)} entries are more than the model has embeddings"
    require(
        problem is None,
        f"--clip_model {name}: no tokenizer of this model there ({problem}); "
        "name a folder with its tokenizer files",
    )
    return Clip(model.to(device), tokenizer, transform)


def load_dino(name: str, device: str = "cpu") -> Dino:
    """A ViT by DINO, DINOv2 or DINOv3 in Hugging Face's layout, a folder or a hub id.

    The protocol's is the first, the others see pictures cut in the same way.

    Raises UserError if it is not found, is another kind of model, or is incomplete.
    """
    model, transform = _load("--dino_model", name, DINOS, dino_transform)
    return Dino(model.to(device), transform)


def load_judges(clip_model: str, dino_model: str) -> tuple[Clip, Dino]:
    """Both models on the GPU if there is one, in full precision.

    Their first layers are convolutions, in which TF32 would move the fourth digit of a score.
    """
    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_clip(clip_model, device), load_dino(dino_model, device)


def caption(prompt: str, class_word: str) -> str:
    """The text that CLIP reads for a prompt: the class word in the subject's place, no token."""
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
    gram = images.double() @ images.double().T
    count = len(images)
    return float((gram.sum() - gram.trace()) / (count * (count - 1)))


def _load(
    flag: str,
    name: str,
    kinds: Mapping[str, Callable[..., Any]],
    transform_for: Callable[[int, Mapping[str, Any]], Transform],
) -> tuple[Any, Transform]:
    """The model in fp32, and its transform.

    kinds: the model_type that its config.json may name -> what loads such a one.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # the loading report is checked below
    _require_config(flag, name, next(iter(kinds)))

    try:
        load = kinds[_require_kind(flag, name, kinds)]
        model, report = load(
            name, dtype=torch.float32, output_loading_info=True, use_safetensors=True
        )
        config = getattr(model.config, "vision_config", model.config)
        side = SIDE if config.model_type in ANY_SIZE else config.image_size
        transform = transform_for(side, _preprocessor(name))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(flag, name, error) from None

    missing = sorted(report["missing_keys"])
    require(
        not missing,
        f"{flag} {name}: weights are missing, {missing[:1]} and {len(missing) - 1} more; "
        "load it anew",
    )
    return model.eval().requires_grad_(False), transform


def _require_config(flag: str, name: str, kind: str) -> None:
    """Raises UserError if the name is a folder without config.json, or a path to nothing."""
    folder = Path(name)
    is_model = (folder / "config.json").is_file()
    may_be_on_the_hub = not folder.exists() and is_hub_id(name)
    require(
        is_model or may_be_on_the_hub,
        f"{flag} {name}: no config.json there; "
        f"name a {kind} model's folder in Hugging Face's layout, or a hub id",
    )


def _require_kind(flag: str, name: str, kinds: Mapping[str, Any]) -> str:
    """The kind of model that config.json names.

    Raises UserError if it wants code of its own, or is another kind of model.
    """
    config, _ = PretrainedConfig.get_config_dict(name)
    code = hidden_code(config)
    model_type = config.get("model_type", "unknown")

    require(not code, f"{flag} {name}: it wants code of its own ({code}); name a model without")
    require(
        model_type in kinds,
        f"{flag} {name}: a model of the kind {model_type}; name one of the kind {', '.join(kinds)}",
    )
    return model_type


def _preprocessor(name: str) -> dict[str, Any]:
    """The model's preprocessor_config.json; {} if it has none."""
    file = cached_file(
        name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False
    )
    return json.loads(Path(file).read_text(encoding="utf-8")) if file else {}


def _not_loaded(flag: str, name: str, error: Exception) -> UserError:
    reason = reason_of(error)
    return UserError(
        f"{flag} {name}: cannot be loaded ({reason}); name a folder in Hugging Face's layout"
    )
