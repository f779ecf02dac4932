"""What the toy CLIP and the toy DINO share: sizes, positions, pictures with the subject alone."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07  # of the contrastive losses
# of both vision transformers
SIZES = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4)
BLANK = 0.3  # of pictures have no background
FADED = 0.3  # of pictures have a background faded to grey in part


@torch.no_grad()
def place(position: Tensor, start: float = 0.5) -> None:
    """Fills position embeddings (1 + 8 * 8, D), in place, with waves along x and y.

    They are about as strong as the pictures' own embeddings. At the libraries' 0.02 a patch hardly
    knows where it is, and shapes are learned very late.
    """
    side = int((len(position) - 1) ** 0.5)
    width = position.shape[1] // 4
    angle = torch.arange(side)[:, None] * torch.exp(-torch.arange(width) / width * 3.0)

    wave = torch.cat([angle.sin(), angle.cos()], 1)  # (side, D / 2)
    columns = wave[:, None].expand(-1, side, -1)
    rows = wave[None].expand(side, -1, -1)
    grid = torch.cat([columns, rows], -1)  # (side, side, D)
    position[1:] = start * grid.reshape(side * side, -1)


def isolate(
    images: Tensor, masks: np.ndarray, blank: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Fades to grey what is not subject, in some of images (B, 3, 128, 128).

    Returns the images, and in which of them the background is hardly seen, bool (B,).
    """
    subject = F.interpolate((torch.from_numpy(masks)[:, None] > 64).float(), scale_factor=8)
    kind, fade = rng.random((2, len(images)))
    strength = np.where(kind < blank, 0.0, np.where(kind < blank + FADED, fade, 1.0))
    background = torch.from_numpy(strength).float()

    faded = images * torch.maximum(subject, background[:, None, None, None])
    return faded, background < 0.5
