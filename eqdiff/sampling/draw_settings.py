"""How the images of a sampling run are drawn."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from eqdiff.concept.concept import Concept
from eqdiff.sampling.references import reference_number
from eqdiff.settings.sample import SampleConfig


@dataclass(frozen=True)
class DrawSettings:
    """How all images of a run are drawn. The pipeline and the manifest both take them from here."""

    reference: str | None  # name of the photo that is attended to
    reference_number: int
    num_references: int
    rra: bool
    attention_window: tuple[float, float]
    reference_for: Literal["both", "conditional"]
    reference_strength: float
    steps: int
    guidance: float
    guidance_rescale: float
    scheduler: str
    negative_prompt: str  # "" without one
    height: int  # pixels, as the width
    width: int
    concept: str  # digest of the concept file

    @classmethod
    def of(cls, config: SampleConfig, concept: Concept) -> "DrawSettings":
        """The run's settings. What `config` leaves open, the concept decides.

        Raises UserError if --reference names no photo of the concept.
        """
        recipe = concept.recipe
        names = concept.references.names
        number = reference_number(config.reference, concept)

        return cls(
            reference=names[number] if names else None,
            reference_number=number,
            num_references=config.num_references or recipe.num_references,
            rra=config.rra and recipe.rra,
            attention_window=config.attention_window,
            reference_for=config.reference_for,
            reference_strength=config.reference_strength if recipe.rra else 1.0,
            steps=config.steps(recipe),
            guidance=config.guidance(recipe),
            guidance_rescale=config.guidance_rescale,
            scheduler=config.scheduler,
            negative_prompt=config.negative_prompt or "",
            height=config.height or recipe.resolution,
            width=config.width or recipe.resolution,
            concept=concept.hash,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The settings as they stand in a line of the manifest."""
        return asdict(self)
