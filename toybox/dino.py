"""The toy DINO: its loss, its batches, and how often it finds an instance again."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from toybox.dataset import Dataset, to_tensor
from toybox.instances import CLASS_NAMES, instance
from toybox.judge import AUGMENT
from toybox.judges import instance_features
from toybox.vision import BLANK, SIZES, TEMPERATURE, isolate, place
from toybox.world import CONTEXT_NAMES, STYLE_NAMES, Scene, draw

VIEWS = 4  # pictures of one instance in a batch


def vit_model() -> ViTModel:
    vit = ViTModel(ViTConfig(image_size=128, patch_size=16, **SIZES), add_pooling_layer=False)
    place(vit.embeddings.position_embeddings[0])
    return vit


class DinoLoss(nn.Module):
    """Supervised contrastive loss.

    The views of an instance attract, all other pictures of the batch repel.
    """

    def __init__(self, vit: ViTModel) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, instances = batch  # (B, 3, 128, 128), (B,)
        features = instance_features(self.vit, images)

        itself = torch.eye(len(instances), dtype=torch.bool, device=instances.device)
        same = (instances[:, None] == instances[None]) & ~itself

        logits = (features @ features.T / TEMPERATURE).masked_fill(itself, -1e4)
        likelihood = logits.log_softmax(-1)
        return {"loss": -(likelihood * same).sum(-1).div(same.sum(-1)).mean()}


def dino_batches(data: Dataset, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of VIEWS pictures of each of size / VIEWS instances.

    All are of two classes: hard negatives.
    """
    rng = np.random.default_rng(seed)
    groups: dict[int, dict[int, np.ndarray]] = {}  # class -> instance -> rows
    for class_id in range(len(CLASS_NAMES)):
        rows = np.flatnonzero(data.labels[:, 0] == class_id)
        numbers = data.labels[rows, 3]
        instances = {int(number): rows[numbers == number] for number in np.unique(numbers)}
        groups[class_id] = {n: rows for n, rows in instances.items() if len(rows) >= VIEWS}

    while True:
        rows = []
        identities = []
        for class_id in rng.choice(len(CLASS_NAMES), 2, replace=False):
            for number in rng.choice(list(groups[class_id]), size // VIEWS // 2, replace=False):
                rows += list(rng.choice(groups[class_id][number], VIEWS, replace=False))
                identities += [class_id * 10000 + number] * VIEWS

        images, _ = isolate(to_tensor(data.images[rows]), data.masks[rows], BLANK, rng)
        yield AUGMENT(images), torch.tensor(identities)


@torch.no_grad()
def dino_retrieval(vit: ViTModel, rounds: int = 2) -> dict[str, float]:
    """How often the right one of 50 dev instances of a class is nearest.

    The gallery holds one photo of each instance. Queries are other pictures, in photo style or in
    any other style.
    """
    rng = np.random.default_rng(4321)
    hits: dict[str, list[float]] = {"photo_retrieval": [], "style_retrieval": []}
    styles = {"photo_retrieval": ("photo",), "style_retrieval": STYLE_NAMES[1:]}

    def features(scenes: list[Scene]) -> Tensor:
        return instance_features(vit, to_tensor(np.stack([draw(scene).image for scene in scenes])))

    def scene(class_name: str, number: int, style: str) -> Scene:
        context = CONTEXT_NAMES[int(rng.integers(len(CONTEXT_NAMES)))]
        subject = instance("dev", class_name, number)
        return Scene(subject, context, style, int(rng.integers(2**31)))

    for class_name in CLASS_NAMES:
        gallery = features([scene(class_name, i, "photo") for i in range(50)])
        for kind, names in styles.items():
            for _ in range(rounds):
                queries = [
                    scene(class_name, i, names[int(rng.integers(len(names)))]) for i in range(50)
                ]
                nearest = (features(queries) @ gallery.T).argmax(-1)
                hits[kind].append(float((nearest == torch.arange(50)).float().mean()))

    return {kind: round(float(np.mean(values)), 4) for kind, values in hits.items()}
