"""The toy CLIP: its loss, its batches, and how often it names what is drawn."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from toybox.dataset import Dataset, to_tensor
from toybox.instances import CLASS_NAMES
from toybox.judge import AUGMENT, UNKNOWN
from toybox.judges import ATTRIBUTES, image_features, text_features, tokenize
from toybox.tokenizer import MAX_TOKENS
from toybox.vision import BLANK, SIZES, TEMPERATURE, isolate, place
from toybox.world import CONTEXT_NAMES, STYLE_NAMES, draw, random_scene

# Until SHAPES_FIRST of the training all backgrounds are blank and the class alone is learned; then
# a share of them is blank. A transformer this small, from nothing, finds contexts and styles at
# once and then never looks for shapes.
SHAPES_FIRST = 0.25


def clip_model(eos: int) -> CLIPModel:
    """A small CLIP for 128 x 128 pictures; eos: the last token of the vocabulary."""
    text = dict(
        vocab_size=eos + 1,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=eos - 1,
        eos_token_id=eos,
    )
    vision = dict(SIZES, image_size=128, patch_size=16)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))

    place(clip.get_parameter("vision_model.embeddings.position_embedding.weight"))
    return clip


class ClipLoss(nn.Module):
    """Cross-entropy of each attribute against its prompts; contrastive loss against captions.

    A linear head, thrown away afterwards, names the class too. Shapes come late, and until they do
    the text side would draw all class words together, which leaves the pictures no reason to tell
    them apart.
    """

    def __init__(self, clip: CLIPModel, prompts: dict[str, Tensor]) -> None:
        super().__init__()
        self.clip = clip
        self.prompts = prompts
        self.head = nn.Linear(SIZES["hidden_size"], len(CLASS_NAMES))

    def forward(self, batch: tuple[Tensor, Tensor, Tensor, bool]) -> dict[str, Tensor]:
        images, ids, labels, shapes_only = batch  # (B, 3, 128, 128), (B, L), (B, 3)
        seen = self.clip.vision_model(pixel_values=images)
        head = F.cross_entropy(self.head(seen.last_hidden_state[:, 1:].mean(1)), labels[:, 0])
        features = F.normalize(self.clip.visual_projection(seen.pooler_output), dim=-1)

        texts = text_features(self.clip, torch.cat([ids, *self.prompts.values()]).to(ids.device))
        counts = [len(ids), *(len(prompts) for prompts in self.prompts.values())]
        captions, *attributes = texts.split(counts)
        logits = features @ captions.T / TEMPERATURE
        target = torch.arange(len(ids), device=ids.device)
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

        parts = {}
        for i, (name, values) in enumerate(zip(ATTRIBUTES, attributes, strict=True)):
            parts[name] = F.cross_entropy(features @ values.T / TEMPERATURE, labels[:, i])
        parts["context"] = parts["context"].nan_to_num()  # where all are unknown

        rest = 0.3 * contrast + parts["style"] + parts["context"]
        loss = head + parts["class"] + (0.0 if shapes_only else 1.0) * rest
        return {"loss": loss, "contrast": contrast, "head": head, **parts}


def clip_batches(
    data: Dataset,
    tokenizer: CLIPTokenizer,
    size: int,
    seed: int,
    shapes_only: Callable[[], bool],
) -> Iterator[tuple[Tensor, Tensor, Tensor, bool]]:
    """Endless batches as ClipLoss wants them."""
    rng = np.random.default_rng(seed)
    while True:
        shapes = shapes_only()
        rows = rng.integers(len(data), size=size)
        ids = tokenize(tokenizer, [data.caption(row, rng) for row in rows])
        blank = 1.0 if shapes else BLANK
        images, hidden = isolate(to_tensor(data.images[rows]), data.masks[rows], blank, rng)

        labels = torch.from_numpy(data.labels[rows, :3])
        labels[:, 1] = labels[:, 1].masked_fill(hidden, UNKNOWN)
        yield images if shapes else AUGMENT(images), ids, labels, shapes


@torch.no_grad()
def clip_accuracy(
    clip: CLIPModel, prompts: dict[str, Tensor], count: int = 1200
) -> dict[str, float]:
    """Share of fresh drawn pictures (dev instances, all triples) that are named rightly.

    "worst_style_accuracy" is the lowest share of any attribute in any style.
    """
    rng = np.random.default_rng(12345)
    scenes = [
        random_scene(rng, "dev", 50, photo_share=1 / 8, avoid_held_out=False) for _ in range(count)
    ]
    images = to_tensor(np.stack([draw(scene).image for scene in scenes]))
    features = torch.cat([image_features(clip, part) for part in images.split(64)])

    columns = (
        [CLASS_NAMES.index(s.instance.class_name) for s in scenes],
        [CONTEXT_NAMES.index(s.context) for s in scenes],
        [STYLE_NAMES.index(s.style) for s in scenes],
    )
    truth = torch.tensor(columns).T
    texts = [text_features(clip, ids) for ids in prompts.values()]
    named = torch.stack([(features @ text.T).argmax(-1) for text in texts], 1)
    right = (named == truth).float()

    shares = right.mean(0)
    figures = {f"{n}_accuracy": round(float(s), 4) for n, s in zip(ATTRIBUTES, shares, strict=True)}
    by_style = [right[truth[:, 2] == style].mean(0).min() for style in range(len(STYLE_NAMES))]
    return figures | {"worst_style_accuracy": round(float(min(by_style)), 4)}
