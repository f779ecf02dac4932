"""Contact sheets of image tensors."""

from pathlib import Path

from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid


def save_sheet(path: Path, images: Tensor, columns: int) -> None:
    """Writes float images (N, 3, H, W) in [-1, 1] as one PNG, row by row."""
    pixels = images.float().cpu().clamp(-1, 1).add(1).div(2)
    grid = make_grid(pixels, nrow=columns, padding=2, pad_value=1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(grid).save(path)
