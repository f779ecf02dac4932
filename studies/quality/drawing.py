"""How the toybox's concepts are best drawn: guidance, how much of RRA, and by which weights.

    python -m studies.quality.drawing [--subjects 8] [--phrase words] [--drawings NAME ...]
        [--json FILE]

Dev subjects are taught by all that words can say of them, or with --phrase noun by their bare noun:
K/V as the paper has it, or the whole UNet. Each concept is then drawn in several ways, in the
pictures of `neighbours`, which asks the same of how it is trained. --drawings: these alone; the
others keep the figures that FILE has of the same pictures.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eqdiff.errors import main_guard
from studies.quality.neighbours import SETTINGS, answer, flags_of
from studies.quality.subjects import WORK, taught
from toybox.customization import Look

BY_KV = "evenly, both, token 3e-3"
BY_WHOLE_UNET = "whole UNet, rate 2e-4"  # the preset's, with two photos a step
STEPS = 30  # of the sampler
WITHOUT = {"rra": False}
HALF = {"reference_strength": 0.5}
# in the first half of the steps alone, where shapes are decided, or in the second
FIRST = {"attention_window": (0.0, 0.5)}
LAST = {"attention_window": (0.5, 1.0)}


class Drawing(NamedTuple):
    """How a concept is drawn: by which of SETTINGS it was trained, and the pipeline's arguments."""

    setting: str
    options: dict[str, Any]


def guided(scale: float, setting: str = BY_KV, **options: Any) -> Drawing:
    """The same guidance, and as many steps, whatever the preset has."""
    return Drawing(setting, {"guidance_scale": scale, "num_inference_steps": STEPS, **options})


DRAWINGS: dict[str, Drawing] = {
    "guidance 3": guided(3.0),
    "guidance 2": guided(2.0),
    "guidance 1.5": guided(1.5),
    "guidance 3, no RRA": guided(3.0, **WITHOUT),
    "guidance 2, no RRA": guided(2.0, **WITHOUT),
    "guidance 2, half of RRA": guided(2.0, **HALF),
    "guidance 2, quarter of RRA": guided(2.0, reference_strength=0.25),
    "guidance 2, RRA first": guided(2.0, **FIRST),
    "guidance 2, RRA last": guided(2.0, **LAST),
    **{f"guidance 2, {name}": guided(2.0, name) for name in SETTINGS if "whole UNet" in name},
    **{
        f"guidance 2, whole UNet, rate {rate}, no RRA": guided(
            2.0, f"whole UNet, rate {rate}", **WITHOUT
        )
        for rate in ("1e-4", "2e-4")
    },
    f"guidance 1.5, {BY_WHOLE_UNET}": guided(1.5, BY_WHOLE_UNET),
    **{
        f"guidance 2, {BY_WHOLE_UNET}, {name}": guided(2.0, BY_WHOLE_UNET, **options)
        for name, options in {
            "RRA x 0.75": {"reference_strength": 0.75},
            "RRA x 1.5": {"reference_strength": 1.5},
            "RRA x 2.0": {"reference_strength": 2.0},
            "two photos": {"reference": (0, 1)},
            "conditional half": {"reference_for": "conditional"},
            "50 steps": {"num_inference_steps": 50},
        }.items()
    },
}


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    args = flags_of(__doc__, "--drawings", DRAWINGS, 8, WORK / "drawing").parse_args(argv)

    def looks_of(folder: Path) -> dict[str, Look]:
        looks = {}
        for name in args.names:
            setting, options = DRAWINGS[name]
            concept = taught(folder, args.phrase, args.work / setting, *SETTINGS[setting])
            looks[name] = Look(concept, options)
        return looks

    answer(args, DRAWINGS, looks_of)


if __name__ == "__main__":
    sys.exit(main())
