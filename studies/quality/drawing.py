"""How the preset's concepts of the toybox are best drawn: guidance, and how much of RRA.

    python -m studies.quality.drawing [--subjects 8] [--phrase words] [--drawings NAME ...]
        [--json FILE]

Dev subjects are taught once, by all that words can say of them, or with --phrase noun by their bare
noun. Each concept is then drawn in several ways, in the pictures of `neighbours`, which asks the
same of how it is trained. --drawings: these alone; the others keep the figures that FILE has of the
same pictures.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqdiff.errors import main_guard
from studies.quality.neighbours import SETTINGS, answer, flags_of
from studies.quality.subjects import WORK, taught
from toybox.customization import Look

SETTING = "evenly, both, token 3e-3"  # how they are trained
STEPS = 30
WITHOUT = {"rra": False}
HALF = {"reference_strength": 0.5}
# in the first half of the steps alone, where shapes are decided, or in the second
FIRST = {"attention_window": (0.0, 0.5)}
LAST = {"attention_window": (0.5, 1.0)}


def guidance(scale: float) -> dict[str, Any]:
    """The same guidance, and as many steps, whatever the preset has."""
    return {"guidance_scale": scale, "num_inference_steps": STEPS}


# name -> arguments of the pipeline
DRAWINGS: dict[str, dict[str, Any]] = {
    "guidance 3": guidance(3.0),
    "guidance 2": guidance(2.0),
    "guidance 1.5": guidance(1.5),
    "guidance 3, no RRA": guidance(3.0) | WITHOUT,
    "guidance 2, no RRA": guidance(2.0) | WITHOUT,
    "guidance 2, half of RRA": guidance(2.0) | HALF,
    "guidance 2, quarter of RRA": guidance(2.0) | {"reference_strength": 0.25},
    "guidance 2, RRA first": guidance(2.0) | FIRST,
    "guidance 2, RRA last": guidance(2.0) | LAST,
}


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    args = flags_of(__doc__, "--drawings", DRAWINGS, 8, WORK / "drawing").parse_args(argv)

    def looks_of(folder: Path) -> dict[str, Look]:
        concept = taught(folder, args.phrase, args.work / SETTING, *SETTINGS[SETTING])
        return {name: Look(concept, DRAWINGS[name]) for name in args.names}

    answer(args, DRAWINGS, looks_of)


if __name__ == "__main__":
    sys.exit(main())
