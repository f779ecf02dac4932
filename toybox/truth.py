"""The ground truth of a prompt: the very subject, drawn in the style and context that the prompt asks for."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from toybox.captions import plain_caption
from toybox.dataset import to_tensor
from toybox.instances import Instance, instance
from toybox.judges import Judges
from toybox.world import CONTEXT_NAMES, STYLE_NAMES, Scene, draw

COUNT = 6  # pictures a prompt, each in another pose
FIRST_SEED = 10_000  # the bundled photos' seeds are far below


def read_prompt(prompt: str) -> tuple[str, str] | None:
    """The (context, style) of a canonical prompt with {} for the subject; None for any other text."""
    pairs = ((context, style) for style in STYLE_NAMES for context in CONTEXT_NAMES)
    return next((pair for pair in pairs if plain_caption("{}", *pair) == prompt), None)


def pictures(who: Instance, context: str, style: str, first: int) -> np.ndarray:
    """COUNT drawn pictures of a subject in this context and style, their poses seeded from `first`: uint8 (n,H,W,3)."""
    return np.stack([draw(Scene(who, context, style, first + number)).image for number in range(COUNT)])


def truth_features(who: Instance, context: str, style: str, first: int, judges: Judges) -> Tensor:
    """What the toy DINO sees in them: (COUNT, D)."""
    return judges.identity(to_tensor(pictures(who, context, style, first)))


def truths(about: Path, prompts: Iterable[str]) -> dict[str, list[Image.Image]]:
    """Prompt -> pictures of the subject of an instance.json; prompts that are no caption of the toybox are left out.

    The poses are the same for every prompt, whatever others there are.
    """
    facts = json.loads(about.read_text(encoding="utf-8"))
    who = instance(facts["table"], facts["class"], facts["index"])
    asked = {prompt: read_prompt(prompt) for prompt in prompts}
    drawn = {prompt: pictures(who, *pair, FIRST_SEED) for prompt, pair in asked.items() if pair}
    return {prompt: [Image.fromarray(image) for image in images] for prompt, images in drawn.items()}
