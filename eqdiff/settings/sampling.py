"""What works at sampling over any concept: a group of settings for each, off by default.

`SampleConfig` in `sample.py` inherits them.
"""

import dataclasses
from typing import Literal

from eqdiff.errors import require
from eqdiff.settings.options import opt
from eqdiff.settings.prompts import STRANGE, shown


@dataclasses.dataclass(frozen=True)
class DciSettings:
    """DCI: a second picture with a plain noun lends its context (--dci)."""

    dci: bool = opt(False, "draw a second picture with a plain noun in the first steps")
    dci_noun: str | None = opt(None, "the noun (default: the concept's class word)")
    dci_lambda: float = opt(
        0.0, "more: more of the second picture, so more text and less subject", -100, 100
    )
    dci_share: float = opt(
        0.3, "the first steps that have both pictures [share of the noise schedule]", 0, 1
    )
    dci_gate: Literal["level", "flat"] = opt(
        "level", "the gate as SD 1.x has it at each level, or the release's 500 at any size"
    )
    dci_guidance: Literal["shared", "own"] | None = opt(
        None,
        "unconditional half of the second picture: the first one's (the release), or its own "
        "(default: the first one's, unless that attends to a photo)",
    )

    def check_noun(self) -> None:
        """Raises UserError if the noun is no plain text."""
        noun = self.dci_noun
        if noun is None:
            return
        plain = noun.strip() and "{}" not in noun and not STRANGE.search(noun) and len(noun) < 200
        require(plain, f"--dci_noun {shown(noun)}: give a plain noun, such as mug")


@dataclasses.dataclass(frozen=True)
class DreamMatcherSettings:
    """DreamMatcher: the photo's values in self-attention, where they match (--dreammatcher)."""

    dreammatcher: bool = opt(
        False, "take a photo's appearance where it matches, for concepts drawn without RRA"
    )
    dreammatcher_start: float = opt(0.08, "from here on [share of the steps]", 0, 1)
    dreammatcher_layers: tuple[str, ...] = opt(
        ("up_blocks.2", "up_blocks.3"), "in these self-attentions [module name prefixes]"
    )
    dreammatcher_confidence: float = opt(
        0.4, "how far a match may come back from its start; 0: plain sampling", 0, 100
    )
    dreammatcher_guidance: float = opt(
        0.0,
        "pull the predicted picture to the photo this much (the paper: 75; negative: its printed "
        "sign); it takes a second pass of the UNet",
        -10_000,
        10_000,
    )
    dreammatcher_masks: bool = opt(
        True, "only inside the subject, where matches hold; without (for comparison): everywhere"
    )

    def check_masks(self) -> None:
        """Raises UserError if the masks are off and how sharp they are is set."""
        usual = DreamMatcherSettings.dreammatcher_confidence
        sharp = self.dreammatcher_masks or self.dreammatcher_confidence == usual
        require(sharp, "--dreammatcher_confidence: does nothing with --no-dreammatcher_masks")


@dataclasses.dataclass(frozen=True)
class FreeCustomSettings:
    """FreeCustom: attention to photos without training (--freecustom)."""

    freecustom: bool = opt(
        False, "attend to the subject's cells of photos with the base's own projections"
    )
    freecustom_weight: float = opt(3.0, "what such a cell's logits get in addition", -100, 100)
    freecustom_layers: tuple[str, ...] = opt(
        ("up_blocks.2", "up_blocks.3"), "in these self-attentions [module name prefixes]"
    )
    freecustom_halves: Literal["both", "conditional"] = opt(
        "conditional", "halves of guidance that see the photos"
    )


@dataclasses.dataclass(frozen=True)
class AlignITSettings:
    """AlignIT: the other words as the base reads them (--alignit)."""

    alignit: bool = opt(False, "keys and values of all words but the subject's from the base")

    def check_alone(self) -> None:
        """Raises UserError if another option that adds to the UNet's calls is on."""
        rows = ("dci", "dreammatcher", "freecustom")
        others = [f"--{name}" for name in rows if self.alignit and getattr(self, name, False)]
        require(not others, f"--alignit: not together with {' '.join(others)}; choose one")


# Each option's own fields -> the settings that give them; the name of the option is its switch.
OPTIONS: dict[str, dict[str, str]] = {
    "dci": {
        "noun": "dci_noun",
        "strength": "dci_lambda",
        "share": "dci_share",
        "gate": "dci_gate",
        "guidance": "dci_guidance",
    },
    "dreammatcher": {
        "start": "dreammatcher_start",
        "layers": "dreammatcher_layers",
        "limit": "dreammatcher_confidence",
        "guidance": "dreammatcher_guidance",
        "masks": "dreammatcher_masks",
    },
    "freecustom": {
        "weight": "freecustom_weight",
        "layers": "freecustom_layers",
        "halves": "freecustom_halves",
    },
    "alignit": {},
}


def require_switches(config: object) -> None:
    """Raises UserError if a setting of a group is changed and the group is off."""
    for group in (DciSettings, DreamMatcherSettings, FreeCustomSettings):
        switch, *rest = dataclasses.fields(group)
        changed = [field.name for field in rest if getattr(config, field.name) != field.default]
        on = getattr(config, switch.name)
        told = f"--{changed[0]} does nothing without --{switch.name}; add it" if changed else ""
        require(on or not changed, told)
