"""Masks from a class word: GroundingDINO finds the box, SAM 2 cuts out what is in it. Both are transformers' own.

A model is a folder or a hub id. Of a hub id the cache is asked first; the network only if it is not there.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eqdiff.config import UserError
from eqdiff.grabcut import fill_holes

SCORE = 0.2  # GroundingDINO's confidence in a box, at least [0..1]
NEAR_BEST = 0.6  # boxes with less than this share of the best score are out
HUB_TIMEOUT = 5  # for the first answer [seconds]
FILES = ["*.json", "*.txt", "*.safetensors"]
KINDS = {"--detector_model": ("grounding-dino",), "--segmenter_model": ("sam2", "sam2_video")}


class Unavailable(Exception):
    """A model on the hub that cannot be had now; says why."""


@dataclass(frozen=True)
class Segmenter:
    """The two models with their processors, on one device."""

    detector: Any
    detector_processor: Any
    segmenter: Any
    segmenter_processor: Any

    @torch.no_grad()
    def __call__(self, photo: Image.Image, word: str) -> np.ndarray:
        """RGB photo (H, W) and class word -> bool mask (H, W); empty if nothing like the word is found."""
        box = self.box(photo, word)
        if box is None:
            return np.zeros(photo.size[::-1], bool)
        inputs = self.segmenter_processor(images=photo, input_boxes=[[box]], return_tensors="pt")
        outputs = self.segmenter(**inputs.to(self.segmenter.device), multimask_output=True)
        logits = self.segmenter_processor.post_process_masks(
            outputs.pred_masks.float().cpu(), inputs["original_sizes"], binarize=False
        )
        best = int(outputs.iou_scores[0, 0].argmax())  # SAM 2 rates its three masks itself
        return fill_holes((logits[0][0, best] > 0).numpy())

    def box(self, photo: Image.Image, word: str) -> list[float] | None:
        """The best box of the class word: left, top, right, bottom [pixels]; None without any."""
        text = f"{word.lower().strip().rstrip('.')}."
        inputs = self.detector_processor(images=photo, text=text, return_tensors="pt").to(self.detector.device)
        outputs = self.detector(**inputs)
        found = self.detector_processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], threshold=SCORE, target_sizes=[photo.size[::-1]]
        )[0]
        return best_box(found["scores"].float().cpu(), found["boxes"].float().cpu(), photo.size)


def best_box(scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[float] | None:
    """Of boxes (n, 4) with scores (n,) in a photo of `size` (width, height): the one with the greatest score x area
    among those that score at least NEAR_BEST of the best. Cut to the photo; None for n = 0.

    A subject's part scores about as high as the whole, and the area tells them apart; a box round everything there is
    scores low, and its area must not make up for that.
    """
    if not len(scores):
        return None
    limits = torch.tensor([*size, *size], dtype=boxes.dtype)
    boxes = boxes.clamp(min=0).minimum(limits)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    value = torch.where(scores >= NEAR_BEST * scores.max(), scores * area, -1)
    return boxes[value.argmax()].tolist()


def load_segmenter(detector: str, segmenter: str, device: str | torch.device = "cpu") -> Segmenter:
    """Both models. UserError: no such folder, or one without such a model. Unavailable: a hub id that cannot be had."""
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor, Sam2Model, Sam2Processor
    from transformers.utils import logging

    logging.disable_progress_bar()  # two files in a second are no progress to watch
    wanted = (
        ("--detector_model", detector, GroundingDinoForObjectDetection, GroundingDinoProcessor),
        ("--segmenter_model", segmenter, Sam2Model, Sam2Processor),
    )
    for flag, name, *_ in wanted:
        if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
            raise UserError(f"{flag} {name}: there is no such folder; name one, or a hub id like owner/model")
    parts = []
    for flag, name, model, processor in wanted:
        folder = find_model(name)
        try:
            kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
            if kind not in KINDS[flag]:
                raise ValueError(f"it holds a {kind}")
            loaded = model.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            parts.append(loaded.to(device).eval())
            parts.append(processor.from_pretrained(folder, local_files_only=True))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())[:160]
            if Path(name).is_dir():
                raise UserError(
                    f"{flag} {name}: cannot be loaded as {KINDS[flag][0]} ({reason}); name another"
                ) from None
            raise Unavailable(f"{name} cannot be loaded: {reason}") from None
    return Segmenter(*parts)


def find_model(name: str) -> Path:
    """The folder of a model: itself, or of a hub id its copy in the cache, fetched if need be.

    Unavailable: not in the cache, and offline or no answer.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    if Path(name).is_dir():
        return Path(name)
    try:
        cached = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
        if (cached / "config.json").is_file() and list(cached.glob("*.safetensors")):
            return cached
    except (OSError, ValueError):
        pass
    if constants.HF_HUB_OFFLINE:
        raise Unavailable(f"{name} is not in the cache, and HF_HUB_OFFLINE is set")
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)  # one question: a download would ask again for minutes
        return Path(snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # what the hub's client raises is another class in each of its versions
        reason = " ".join(str(error).split())[:120]
        raise Unavailable(f"{name} is not in the cache, and the hub does not give it ({reason})") from None
