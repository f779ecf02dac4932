"""Trains the instruments on drawn pictures: `clip` names class, context and style; `dino` tells instances apart."""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

from toybox.dataset import Dataset, load, to_tensor
from toybox.instances import CLASS_NAMES, instance
from toybox.judges import ATTRIBUTE_PROMPTS, ATTRIBUTES, image_features, instance_features, text_features, tokenize
from toybox.loop import add_arguments, budget, fit, progress_of
from toybox.tokenizer import MAX_TOKENS
from toybox.world import CONTEXT_NAMES, STYLE_NAMES, Scene, draw, random_scene

TEMPERATURE = 0.07
VIEWS = 4  # pictures of one instance in a DINO batch
SIZES = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4)
# what generated pictures suffer from: soft detail and slightly wrong colours
AUGMENT = v2.Compose(
    [v2.RandomApply([v2.GaussianBlur(5, (0.4, 1.4))], p=0.25), v2.RandomApply([v2.GaussianNoise(0, 0.05)], p=0.2)]
)

# Shares of pictures whose background is blank, and faded, after the first SHAPES_FIRST of the training; until then all
# are blank and the class alone is learned. A transformer this small, from nothing, finds contexts and styles at once
# and then never looks for shapes.
SHAPES_FIRST, BLANK, FADED = 0.25, 0.3, 0.3
UNKNOWN = -100  # the context where it can hardly be seen: cross_entropy ignores it


@torch.no_grad()
def place(position: Tensor, start: float = 0.5) -> None:
    """Fills position embeddings (1 + 8 * 8, D), in place, with waves along x and y about as strong as the pictures'
    own embeddings. At the libraries' 0.02 a patch hardly knows where it is, and shapes are not learned for ages."""
    side, width = int((len(position) - 1) ** 0.5), position.shape[1] // 4
    angle = torch.arange(side)[:, None] * torch.exp(-torch.arange(width) / width * 3.0)  # (side, D / 4)
    wave = torch.cat([angle.sin(), angle.cos()], 1)  # (side, D / 2)
    grid = torch.cat([wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)], -1)
    position[1:] = start * grid.reshape(side * side, -1)


def clip_model(eos: int) -> CLIPModel:
    text = dict(vocab_size=eos + 1, hidden_size=128, intermediate_size=256, num_hidden_layers=2)
    text |= dict(num_attention_heads=4, max_position_embeddings=MAX_TOKENS, eos_token_id=eos, bos_token_id=eos - 1)
    vision = dict(SIZES, image_size=128, patch_size=16)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))
    place(clip.get_parameter("vision_model.embeddings.position_embedding.weight"))
    return clip


def vit_model() -> ViTModel:
    vit = ViTModel(ViTConfig(image_size=128, patch_size=16, **SIZES), add_pooling_layer=False)
    place(vit.embeddings.position_embeddings[0])
    return vit


class ClipLoss(nn.Module):
    """Cross-entropy of each attribute against its prompts, and the contrastive loss against whole captions.

    A linear head, thrown away afterwards, names the class too: shapes come late, and until they do the text side would
    draw all class words together, which leaves the pictures no reason to tell them apart.
    """

    def __init__(self, clip: CLIPModel, prompts: dict[str, Tensor]) -> None:
        super().__init__()
        self.clip, self.prompts = clip, prompts
        self.head = nn.Linear(SIZES["hidden_size"], len(CLASS_NAMES))

    def forward(self, batch: tuple[Tensor, Tensor, Tensor, bool]) -> dict[str, Tensor]:
        images, ids, labels, shapes_only = batch  # (B, 3, 128, 128), (B, L), (B, 3)
        seen = self.clip.vision_model(pixel_values=images)
        head = F.cross_entropy(self.head(seen.last_hidden_state[:, 1:].mean(1)), labels[:, 0])
        features = F.normalize(self.clip.visual_projection(seen.pooler_output), dim=-1)
        texts = text_features(self.clip, torch.cat([ids, *self.prompts.values()]).to(ids.device))
        captions, *attributes = texts.split([len(ids), *(len(p) for p in self.prompts.values())])
        logits = features @ captions.T / TEMPERATURE
        target = torch.arange(len(ids), device=ids.device)
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        named = [F.cross_entropy(features @ a.T / TEMPERATURE, labels[:, i]) for i, a in enumerate(attributes)]
        parts = dict(zip(ATTRIBUTES, named, strict=True))
        rest = 0.3 * contrast + parts["style"] + parts["context"].nan_to_num()
        loss = head + parts["class"] + (0.0 if shapes_only else 1.0) * rest
        return {"loss": loss, "contrast": contrast, "head": head, **{n: v.nan_to_num() for n, v in parts.items()}}


class DinoLoss(nn.Module):
    """Supervised contrastive loss: the views of an instance attract, all other pictures of the batch repel."""

    def __init__(self, vit: ViTModel) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, who = batch  # (B, 3, 128, 128), (B,)
        features = instance_features(self.vit, images)
        itself = torch.eye(len(who), dtype=torch.bool, device=who.device)
        same = (who[:, None] == who[None]) & ~itself
        logits = (features @ features.T / TEMPERATURE).masked_fill(itself, -1e4)
        likelihood = logits.log_softmax(-1)
        return {"loss": -(likelihood * same).sum(-1).div(same.sum(-1)).mean()}


def isolate(images: Tensor, masks: np.ndarray, blank: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Fades to grey what is not subject, in some of images (B, 3, 128, 128); and in which it is hardly seen, (B,)."""
    keep = F.interpolate((torch.from_numpy(masks)[:, None] > 64).float(), scale_factor=8)
    kind, fade = rng.random((2, len(images)))
    seen = np.where(kind < blank, 0.0, np.where(kind < blank + FADED, fade, 1.0))
    shown = torch.from_numpy(seen).float()
    return images * torch.maximum(keep, shown[:, None, None, None]), shown < 0.5


def clip_batches(
    data: Dataset, tokenizer: CLIPTokenizer, size: int, seed: int, shapes_only: Callable[[], bool]
) -> Iterator[tuple[Tensor | bool, ...]]:
    rng = np.random.default_rng(seed)
    while True:
        shapes = shapes_only()
        rows = rng.integers(len(data), size=size)
        ids = tokenize(tokenizer, [data.caption(row, rng) for row in rows])
        images, blank = isolate(to_tensor(data.images[rows]), data.masks[rows], 1.0 if shapes else BLANK, rng)
        labels = torch.from_numpy(data.labels[rows, :3])
        labels[:, 1] = labels[:, 1].masked_fill(blank, UNKNOWN)
        yield images if shapes else AUGMENT(images), ids, labels, shapes


def dino_batches(data: Dataset, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of VIEWS pictures of each of size / VIEWS instances, all of two classes: hard negatives."""
    rng = np.random.default_rng(seed)
    groups: dict[int, dict[int, np.ndarray]] = {}
    for class_id in range(len(CLASS_NAMES)):
        rows = np.flatnonzero(data.labels[:, 0] == class_id)
        found = {int(n): rows[data.labels[rows, 3] == n] for n in np.unique(data.labels[rows, 3])}
        groups[class_id] = {n: r for n, r in found.items() if len(r) >= VIEWS}
    while True:
        rows, who = [], []
        for class_id in rng.choice(len(CLASS_NAMES), 2, replace=False):
            for number in rng.choice(list(groups[class_id]), size // VIEWS // 2, replace=False):
                rows += list(rng.choice(groups[class_id][number], VIEWS, replace=False))
                who += [class_id * 10000 + number] * VIEWS
        images, _ = isolate(to_tensor(data.images[rows]), data.masks[rows], BLANK, rng)
        yield AUGMENT(images), torch.tensor(who)


@torch.no_grad()
def clip_accuracy(clip: CLIPModel, prompts: dict[str, Tensor], count: int = 1200) -> dict[str, float]:
    """Share of fresh drawn pictures (dev instances, all triples) named rightly; the worst style's lowest share."""
    rng = np.random.default_rng(12345)
    scenes = [random_scene(rng, "dev", 50, photo_share=1 / 8, avoid_held_out=False) for _ in range(count)]
    images = to_tensor(np.stack([draw(scene).image for scene in scenes]))
    features = torch.cat([image_features(clip, part) for part in images.split(64)])
    truth = torch.tensor(
        [
            (CLASS_NAMES.index(s.instance.class_name), CONTEXT_NAMES.index(s.context), STYLE_NAMES.index(s.style))
            for s in scenes
        ]
    )
    said = torch.stack([(features @ text_features(clip, ids).T).argmax(-1) for ids in prompts.values()], 1)
    right = (said == truth).float()
    figures = {f"{name}_accuracy": round(float(right[:, i].mean()), 4) for i, name in enumerate(ATTRIBUTES)}
    by_style = [right[truth[:, 2] == style].mean(0).min() for style in range(len(STYLE_NAMES))]
    return figures | {"worst_style_accuracy": round(float(min(by_style)), 4)}


@torch.no_grad()
def dino_retrieval(vit: ViTModel, rounds: int = 2) -> dict[str, float]:
    """How often the right one of 50 dev instances of a class is nearest: photo to photo, and across styles.

    The gallery holds one photo of each instance; queries are other pictures, in photo style or in any other style.
    """
    rng = np.random.default_rng(4321)
    hits: dict[str, list[float]] = {"photo_retrieval": [], "style_retrieval": []}

    def features(scenes: list[Scene]) -> Tensor:
        return instance_features(vit, to_tensor(np.stack([draw(scene).image for scene in scenes])))

    def scene(class_name: str, number: int, style: str) -> Scene:
        context = CONTEXT_NAMES[int(rng.integers(len(CONTEXT_NAMES)))]
        return Scene(instance("dev", class_name, number), context, style, int(rng.integers(2**31)))

    for class_name in CLASS_NAMES:
        gallery = features([scene(class_name, i, "photo") for i in range(50)])
        for kind, styles in (("photo_retrieval", ("photo",)), ("style_retrieval", STYLE_NAMES[1:])):
            for _ in range(rounds):
                queries = [scene(class_name, i, styles[int(rng.integers(len(styles)))]) for i in range(50)]
                found = (features(queries) @ gallery.T).argmax(-1)
                hits[kind].append(float((found == torch.arange(50)).float().mean()))
    return {kind: round(float(np.mean(values)), 4) for kind, values in hits.items()}


def save(model: CLIPModel | ViTModel, folder: Path, figures: dict[str, float]) -> dict[str, float]:
    model.half().save_pretrained(folder)
    model.float()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=("clip", "dino"))
    add_arguments(parser, steps=20000, minutes=12, rate=5e-4, batch=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    data, folder = load(args.data), args.assets / args.which
    log = args.data.parent / f"{args.which}.jsonl"
    if args.which == "dino":
        vit = ViTModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False) if args.resume else None
        module = DinoLoss(vit or vit_model())
        stream = dino_batches(data, args.batch, args.seed)
        fit(module, stream, budget(args), lambda m: save(m.vit, folder, dino_retrieval(m.vit)), log)
        return
    tokenizer = CLIPTokenizer.from_pretrained(args.assets / "base" / "tokenizer")
    tokenizer.save_pretrained(folder)
    prompts = {name: tokenize(tokenizer, texts) for name, texts in ATTRIBUTE_PROMPTS.items()}
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32) if args.resume else clip_model(tokenizer.eos_token_id)
    plan, started = budget(args), time.monotonic()
    stream = clip_batches(
        data, tokenizer, args.batch, args.seed, lambda: not args.resume and progress_of(0, started, plan) < SHAPES_FIRST
    )
    fit(
        ClipLoss(clip, prompts),
        stream,
        plan,
        lambda m: save(m.clip, folder, clip_accuracy(m.clip, prompts)),
        log,
    )


if __name__ == "__main__":
    main()
