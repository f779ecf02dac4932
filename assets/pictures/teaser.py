"""Draws teaser.png: two photos of each bundled subject, then prompts that no photo shows; seed 0, nothing picked.

python assets/pictures/teaser.py        (trains the subjects into outputs/quality first where they are not there)
"""

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import train_eqdiff  # noqa: E402
from eqdiff.base import load_base  # noqa: E402
from eqdiff.config import BUNDLED_BASE  # noqa: E402
from eqdiff.data import image_grid  # noqa: E402
from eqdiff.pipeline import EqDiffPipeline, seed_of  # noqa: E402

PROMPTS = (
    "a photo of a {} on the beach",
    "a photo of a {} in the snow",
    "a pencil sketch of a {} in the snow",
    "a neon drawing of a {} by a brick wall",
    "a mosaic of a {} on pink fabric",
    "a watercolor painting of a {} on green grass",
)


def main() -> None:
    base = load_base(str(BUNDLED_BASE))
    pipe = EqDiffPipeline.of(base)
    cells: list[Image.Image] = []
    for subject in sorted(path for path in (ROOT / "assets" / "subjects").iterdir() if path.is_dir()):
        out = ROOT / "outputs" / "quality" / subject.name
        if not (out / "concept.safetensors").exists():
            train_eqdiff.main(["--instance_data_dir", str(subject), "--output_dir", str(out)])
        pipe.load_concept(str(out / "concept.safetensors"))
        photos = [Image.open(subject / f"{i:02}.png").convert("RGB") for i in (0, 1)]
        drawn = pipe(list(PROMPTS), seeds=[seed_of(0, prompt, 0) for prompt in PROMPTS]).images
        cells += [*photos, *drawn]
    image_grid(cells, columns=2 + len(PROMPTS)).save(ROOT / "assets" / "pictures" / "teaser.png")


if __name__ == "__main__":
    main()
