"""Masks from a class word: GroundingDINO finds the box, SAM 2 cuts out what is in it.

Both models are transformers' own. A model is a folder or a hub id. A hub id is looked for in the
hub's cache first, and on the network only if it is not there.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eqdiff.base.allowed import hidden_code
from eqdiff.errors import UserError, reason_of
from eqdiff.masks.salient import fill_holes
from eqdiff.settings.places import is_hub_id

SCORE = 0.2  # GroundingDINO's confidence in a box, at least [0..1]
NEAR_BEST = 0.6  # boxes with less than this share of the best score are out
HUB_TIMEOUT = 5  # for the hub's first answer [seconds]
FILES = ["*.json", "*.txt", "*.safetensors"]
KINDS = {"--detector_model": ("grounding-dino",), "--segmenter_model": ("sam2", "sam2_video")}
LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
)


class Unavailable(Exception):
    """A model on the hub that cannot be had now, and the reason.

    detector: the detector, if that could be had and the segmenter is what is missing.
    """

    detector: "Detector | None" = None


@dataclass(frozen=True)
class Detector:
    """GroundingDINO with its processor, on one device."""

    detector: Any
    detector_processor: Any

    @torch.no_grad()
    def box(self, photo: Image.Image, word: str) -> list[float] | None:
        """The best box of the class word: left, top, right, bottom [pixels]; None without."""
        text = f"{word.lower().strip().rstrip('.')}."
        inputs = self.detector_processor(images=photo, text=text, return_tensors="pt").to(
            self.detector.device
        )
        outputs = self.detector(**inputs)
        results = self.detector_processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], threshold=SCORE, target_sizes=[photo.size[::-1]]
        )
        scores = results[0]["scores"].float().cpu()
        boxes = results[0]["boxes"].float().cpu()
        return best_box(scores, boxes, photo.size)


@dataclass(frozen=True)
class Segmenter(Detector):
    """The detector and SAM 2 with its processor, on one device."""

    segmenter: Any
    segmenter_processor: Any

    @torch.no_grad()
    def __call__(self, photo: Image.Image, word: str) -> np.ndarray:
        """RGB photo (H, W) and class word -> bool mask (H, W); empty if the word is not found."""
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


def best_box(scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[float] | None:
    """The best of boxes (n, 4) with scores (n,) in a photo of `size` (width, height).

    It has the greatest score x area among those that score at least NEAR_BEST of the best score. It
    is cut to the photo. None for n = 0.

    A part of the subject scores about as high as the whole; the area tells them apart. A box around
    everything scores low, and its area must not make up for that.
    """
    if not len(scores):
        return None

    limits = torch.tensor([*size, *size], dtype=boxes.dtype)
    boxes = boxes.clamp(min=0).minimum(limits)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    value = torch.where(scores >= NEAR_BEST * scores.max(), scores * area, -1)
    return boxes[value.argmax()].tolist()


def load_segmenter(detector: str, segmenter: str, device: str | torch.device = "cpu") -> Segmenter:
    """Both models, loaded onto the device.

    Raises UserError if there is no such folder or no such model in it. Raises Unavailable if a hub
    id cannot be had; that has the detector if the segmenter alone is missing.
    """
    import transformers  # heavy, and not needed where masks are made without these models

    transformers.utils.logging.disable_progress_bar()  # two files in a second need none
    models = (
        (
            "--detector_model",
            detector,
            transformers.GroundingDinoForObjectDetection,
            transformers.GroundingDinoProcessor,
        ),
        ("--segmenter_model", segmenter, transformers.Sam2Model, transformers.Sam2Processor),
    )
    for flag, name, _, _ in models:
        if not Path(name).is_dir() and not is_hub_id(name):
            remedy = "name one, or a hub id like owner/model"
            raise UserError(f"{flag} {name}: there is no such folder; {remedy}")

    loaded = Detector(*_load(*models[0], device))
    try:
        parts = _load(*models[1], device)
    except Unavailable as error:
        error.detector = loaded
        raise
    return Segmenter(loaded.detector, loaded.detector_processor, *parts)


def _load(
    flag: str, name: str, model: type, processor: type, device: str | torch.device
) -> tuple[Any, Any]:
    """A model on the device and its processor. Raises as load_segmenter does."""
    folder = find_model(name)
    try:
        _require_kind(folder, KINDS[flag])
        loaded = model.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        return loaded.to(device).eval(), processor.from_pretrained(folder, local_files_only=True)
    except LOADING_ERRORS as error:
        reason = reason_of(error, 160)
        if Path(name).is_dir():
            kind = KINDS[flag][0]
            message = f"{flag} {name}: cannot be loaded as {kind} ({reason}); name another"
            raise UserError(message) from None
        raise Unavailable(f"{name} cannot be loaded: {reason}") from None


def _require_kind(folder: Path, kinds: tuple[str, ...]) -> None:
    """Raises ValueError if a model is of another kind, or if it names code of its own."""
    configs = {}
    for path in folder.glob("*config.json"):
        configs[path.name] = json.loads(path.read_text(encoding="utf-8"))

    kind = configs["config.json"].get("model_type")
    if kind not in kinds:
        raise ValueError(f"it holds a {kind}")

    code = next(filter(None, map(hidden_code, configs.values())), None)
    if code:
        raise ValueError(f"it wants code of its own, {code}")


def find_model(name: str) -> Path:
    """The folder of a model: `name` itself, or the copy of a hub id in the hub's cache.

    What is not in the cache is downloaded. Raises Unavailable if the hub is offline or gives no
    answer.
    """
    if Path(name).is_dir():
        return Path(name)

    try:
        cached = huggingface_hub.snapshot_download(
            name, allow_patterns=FILES, local_files_only=True
        )
        folder = Path(cached)
        if (folder / "config.json").is_file() and list(folder.glob("*.safetensors")):
            return folder
    except (OSError, ValueError):
        pass

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise Unavailable(f"{name} is not in the cache, and HF_HUB_OFFLINE is set")

    try:
        # one request first: a download repeats its requests for minutes
        huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT)
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # the client's errors are other classes in each of its versions
        reason = reason_of(error, 120)
        unavailable = f"{name} is not in the cache, and the hub does not give it ({reason})"
        raise Unavailable(unavailable) from None
