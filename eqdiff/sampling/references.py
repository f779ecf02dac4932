"""The photos that sampling attends to: the concept's own, or those of a folder."""

import dataclasses
from pathlib import Path

from eqdiff.base.load import Base
from eqdiff.concept.concept import Concept, References
from eqdiff.data.latents import latent_masks
from eqdiff.data.subject import load_subject
from eqdiff.data.vae import vae_encoder
from eqdiff.errors import UserError


def photo_references(
    concept: Concept,
    base: Base,
    folder: str,
    mask_dir: str | None = None,
    made_masks: Path | None = None,
) -> Concept:
    """The concept with References from the photos in `folder`, made as its training made them.

    made_masks: a folder of masks that the training left.

    Raises UserError if `load_subject` refuses the photos or their masks.
    """
    recipe = concept.recipe
    subject = load_subject(
        folder,
        class_word=recipe.class_word,
        resolution=recipe.resolution,
        mask_dir=mask_dir,
        binary_masks=recipe.binary_masks,
        made_masks=made_masks,
    )

    means, _ = vae_encoder(base.vae)(subject.images)
    masks = latent_masks(subject.masks, means.shape[-2:], recipe)
    references = References(means, masks, concept.references.noise, subject.names)
    return dataclasses.replace(concept, references=references)


def reference_number(named: str | None, concept: Concept) -> int:
    """The number of the photo to attend to, from 0.

    named: its file name or its number; None for the first photo.

    Raises UserError if the concept has no such photo.
    """
    names = concept.references.names
    if named is None:
        return 0
    if not names:
        raise UserError(
            f"--reference {named}: the concept carries no photos; "
            "give them with --instance_data_dir"
        )

    known = {str(number): number for number in range(len(names))}
    known |= {name: number for number, name in enumerate(names)}
    if Path(named).name not in known:
        raise UserError(
            f"--reference {named}: not one of the concept's photos; name one of {', '.join(names)}"
        )
    return known[Path(named).name]
