"""The eyes of the studies: the metrics that eval_eqdiff.py reports, by its own functions, and the toybox's judges."""

from pathlib import Path

from torch import Tensor

from eqdiff.config import ASSETS
from eqdiff.data import to_pil
from eqdiff.metrics import caption, load_clip, load_dino, pair_scores, text_scores
from eqdiff.photos import find_photos, load_photo
from studies.variants import Prompt, prompts
from toybox.instances import instance
from toybox.judges import Judges
from toybox.truth import truth_features

FIRST_TRUTH = 50_000  # seed of the first drawn picture that an image is compared with


class Instruments:
    """The toybox's CLIP and DINO, loaded once."""

    def __init__(self) -> None:
        self.clip = load_clip(str(ASSETS / "toybox" / "clip"))
        self.dino = load_dino(str(ASSETS / "toybox" / "dino"))
        self.judges = Judges.load(ASSETS / "toybox")
        self._truths: dict[tuple[str, str, int], list[Tensor]] = {}

    def scores(self, images: Tensor, asked: list[Prompt], class_name: str, photos: Path) -> dict[str, Tensor]:
        """Images (N,3,H,W) in [-1,1] -> clip_t, clip_i, dino_i, (N,) each: cosines to the prompt and to the photos."""
        drawn = [to_pil(image) for image in images]
        seen = [load_photo(path).image for path in find_photos(photos)]
        texts = self.clip.texts([caption(prompt.text, class_name) for prompt in asked])
        features = self.clip.images(drawn)
        return {
            "clip_t": text_scores(features, texts),
            "clip_i": pair_scores(features, self.clip.images(seen)),
            "dino_i": pair_scores(self.dino.images(drawn), self.dino.images(seen)),
        }

    def truths(self, table: str, class_name: str, index: int) -> list[Tensor]:
        """What the judge sees in drawn pictures of the subject as each prompt asks for it: (COUNT,D) a prompt."""
        who = (table, class_name, index)
        if who not in self._truths:
            self._truths[who] = [
                truth_features(instance(*who), prompt.context, prompt.style, FIRST_TRUTH + 100 * n, self.judges)
                for n, prompt in enumerate(prompts())
            ]
        return self._truths[who]
