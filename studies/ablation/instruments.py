"""The eyes of the studies: the metrics of eval_eqdiff.py, by its own functions, and the judges."""

from pathlib import Path

from torch import Tensor

from eqdiff.data.folder import find_photos, load_photo
from eqdiff.data.sheets import to_pil
from eqdiff.evaluation.metrics import caption, load_clip, load_dino, pair_scores, text_scores
from eqdiff.settings.places import ASSETS
from studies.ablation.variants import Prompt, prompts
from toybox.instances import instance
from toybox.judges import Judges
from toybox.truth import truth_features

FIRST_TRUTH = 50_000  # seed of the first drawn picture that an image is compared with


class Instruments:
    """The toybox's CLIP, DINO and judges, loaded once."""

    def __init__(self) -> None:
        self.clip = load_clip(str(ASSETS / "toybox" / "clip"))
        self.dino = load_dino(str(ASSETS / "toybox" / "dino"))
        self.judges = Judges.load(ASSETS / "toybox")
        self._truths: dict[tuple[str, str, int], list[Tensor]] = {}

    def scores(
        self, images: Tensor, texts: list[Prompt], class_name: str, photos: Path
    ) -> dict[str, Tensor]:
        """Images (N,3,H,W) in [-1,1] and their N prompts -> clip_t, clip_i and dino_i, (N,) each.

        Cosines in [-1,1]: clip_t to the prompt, the others to the photos of that folder.
        """
        pictures = [to_pil(image) for image in images]
        originals = [load_photo(path).image for path in find_photos(photos)]

        features = self.clip.images(pictures)
        captions = self.clip.texts([caption(prompt.text, class_name) for prompt in texts])
        return {
            "clip_t": text_scores(features, captions),
            "clip_i": pair_scores(features, self.clip.images(originals)),
            "dino_i": pair_scores(self.dino.images(pictures), self.dino.images(originals)),
        }

    def truths(self, table: str, class_name: str, index: int) -> list[Tensor]:
        """What the judge sees in drawn pictures of a subject: (COUNT,D) a prompt."""
        subject = (table, class_name, index)
        if subject not in self._truths:
            self._truths[subject] = [
                truth_features(
                    instance(*subject),
                    prompt.context,
                    prompt.style,
                    FIRST_TRUTH + 100 * number,
                    self.judges,
                )
                for number, prompt in enumerate(prompts())
            ]
        return self._truths[subject]
