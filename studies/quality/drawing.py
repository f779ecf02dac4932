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

KV = "evenly, both, token 3e-3"
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


def guided(scale: float, setting: str = KV, **options: Any) -> Drawing:
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
    **{
        f"guidance 2, whole UNet, rate {rate}{label}": guided(
            2.0, f"whole UNet, rate {rate}", **options
        )
        for rate in ("1e-4", "2e-4", "4e-4")
        for label, options in (("", {}), (", no RRA", WITHOUT))
    },
    "guidance 2, whole UNet, rate 1e-4, RRA's rate x 4": guided(
        2.0, "whole UNet, rate 1e-4, RRA x 4"
    ),
    "guidance 2, whole UNet, rate 2e-4, prior x 2": guided(2.0, "whole UNet, rate 2e-4, prior x 2"),
    "guidance 1.5, whole UNet, rate 2e-4": guided(1.5, "whole UNet, rate 2e-4"),
    **{
        f"guidance 2, whole UNet, rate 2e-4, RRA x {strength}": guided(
            2.0, "whole UNet, rate 2e-4", reference_strength=strength
        )
        for strength in (1.5, 2.0)
    },
}


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    args = flags_of(__doc__, "--drawings", DRAWINGS, 8, WORK / "drawing").parse_args(argv)

    def looks_of(folder: Path) -> dict[str, Look]:
        wanted = dict.fromkeys(DRAWINGS[name].setting for name in args.names)
        concepts = {
            setting: taught(folder, args.phrase, args.work / setting, *SETTINGS[setting])
            for setting in wanted
        }
        return {
            name: Look(concepts[setting], options)
            for name, (setting, options) in DRAWINGS.items()
            if name in args.names
        }

    answer(args, DRAWINGS, looks_of)


if __name__ == "__main__":
    sys.exit(main())
