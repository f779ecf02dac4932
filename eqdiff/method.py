"""A way to customize Stable Diffusion, as the trainer sees it. This project's own is `EQDIFF`."""

from dataclasses import dataclass

from eqdiff.model import Customized, EqDiff
from eqdiff.objective import Objective


@dataclass(frozen=True)
class Method:
    """What a method brings: two classes, of which it overrides what is its own."""

    model: type[Customized]  # what is put in, what is trained, what happens at sampling
    objective: type[Objective]  # the caption and the losses
    several: bool = False  # whether one base may carry several of its concepts at once
    references: bool = True  # whether its concept file carries the photos and their noise


EQDIFF = Method(EqDiff, Objective)
