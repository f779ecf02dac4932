"""How a judge wants to see a picture: size, crop and normalisation.

Axes: N pictures.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Transform:
    """Short side to `resize` pixels, the middle `crop` x `crop` of that, normalised channels.

    It is Pillow's bicubic with its antialiasing and 8-bit rounding, across and then down. Offsets
    are rounded as torchvision's CenterCrop does.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any size -> float32 (N, 3, crop, crop)."""
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        pixels = torch.stack([tv.pil_to_tensor(self.cut(image.convert("RGB"))) for image in images])
        return (pixels.float() / 255 - mean) / std

    def cut(self, image: Image.Image) -> Image.Image:
        """The middle of a picture, or of its mask, crop x crop."""
        short = min(image.size)
        width, height = (int(self.resize * length / short) for length in image.size)

        # one call would do, but Pillow 13 takes tall pictures down first and rounds otherwise, by
        # up to 9 levels of 255
        resized = image.resize((width, image.height), Image.Resampling.BICUBIC)
        resized = resized.resize((width, height), Image.Resampling.BICUBIC)

        left = round((width - self.crop) / 2)
        top = round((height - self.crop) / 2)
        return resized.crop((left, top, left + self.crop, top + self.crop))


def clip_transform(side: int = 224, preprocessor: Mapping[str, Any] | None = None) -> Transform:
    """The transform of a CLIP that sees `side` pixels.

    preprocessor: its preprocessor_config.json, see `_adjusted`.
    """
    default = Transform(side, side, CLIP_MEAN, CLIP_STD)
    return _adjusted(default, preprocessor or {})


def dino_transform(side: int = 224, preprocessor: Mapping[str, Any] | None = None) -> Transform:
    """The transform of a DINO that sees `side` pixels: 256/224 of that before the crop.

    preprocessor: its preprocessor_config.json, see `_adjusted`.
    """
    default = Transform(round(side * 256 / 224), side, IMAGENET_MEAN, IMAGENET_STD)
    return _adjusted(default, preprocessor or {})


def _adjusted(default: Transform, preprocessor: Mapping[str, Any]) -> Transform:
    """`default` with the mean and std of a preprocessor_config.json, and the sizes if it crops.

    A file that does not crop leaves the sizes alone: Hugging Face's for DINO squashes the picture
    to 224 x 224, which is not the protocol.

    Raises ValueError if the file's sizes do not fit the model.
    """
    changes: dict[str, Any] = {}
    for name in ("mean", "std"):
        if f"image_{name}" in preprocessor:
            changes[name] = tuple(preprocessor[f"image_{name}"])

    sized = "size" in preprocessor and "crop_size" in preprocessor
    if preprocessor.get("do_center_crop") and sized:
        resize = _side(preprocessor["size"], "shortest_edge")
        crop = _side(preprocessor["crop_size"], "height")
        if crop != default.crop or resize < crop:
            raise ValueError(
                f"it is resized to {resize} and cut to {crop}, "
                f"and the model sees {default.crop} pixels"
            )
        changes["resize"] = resize
        changes["crop"] = crop
    return dataclasses.replace(default, **changes)


def _side(size: Any, name: str) -> int:
    """A length that the file gives as a number, or under a name."""
    return size[name] if isinstance(size, Mapping) else size
