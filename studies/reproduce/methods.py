"""The methods and the tables, as data: another method is one row of METHODS.

A method is flags of train_eqdiff.py and test_eqdiff.py. Two names with equal flags are one
training: Custom Diffusion of Table 1 is A of Fig. 7, and the full method stands in all three.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from studies.ablation.paper import PAPER, PAPER_TABLE1, Row
from studies.ablation.variants import DREAMBOOTH, INVERSION, OFF

FULL = ("--masking", "noise")


@dataclass(frozen=True)
class Method:
    """Flags of a method.

    train: of train_eqdiff.py. real, toy: beside them on a base of one's own, on the toybox, where
    the baselines' rates were chosen (study `rates`). draw: of test_eqdiff.py.
    """

    train: tuple[str, ...] = ()
    real: tuple[str, ...] = ()
    toy: tuple[str, ...] = ()
    draw: tuple[str, ...] = ()

    def flags(self, toybox: bool) -> tuple[str, ...]:
        """Those of a training."""
        return (*self.train, *(self.toy if toybox else self.real))


def _bands(low: str, high: str, full: str) -> Method:
    return Method((*FULL, "--band_probs", low, high, full))


# The paper says nothing of its baselines' settings. Ours on Stable Diffusion (`real`) are the
# usual ones of diffusers' examples, but for Custom Diffusion, which is the paper's own A.
METHODS: dict[str, Method] = {
    "EqDiff": Method(FULL),
    "Textual Inversion": Method(
        INVERSION,
        real=("--max_train_steps", "3000", "--token_learning_rate", "5e-4"),
        toy=("--token_learning_rate", "2e-2"),
    ),
    "DreamBooth": Method(
        DREAMBOOTH,
        real=("--learning_rate", "5e-6", "--max_train_steps", "800"),
        toy=("--learning_rate", "3e-4"),
    ),
    "Custom Diffusion": Method(
        OFF, toy=("--learning_rate", "2e-3", "--token_learning_rate", "2e-3")
    ),
    "A": Method(OFF),
    "B": Method(("--no-fdte", "--masking", "none", "--ra_loss_weight", "0")),
    "C": Method(("--no-fdte", "--masking", "none")),
    "D": Method(("--masking", "none")),
    "E": Method(("--masking", "loss")),
    "F": Method(FULL),
    "0.1 0.1 0.8": Method(FULL),
    "0 0 1": _bands("0", "0", "1"),
    "0.3 0.3 0.4": _bands("0.3", "0.3", "0.4"),
    "0.5 0.5 0": _bands("0.5", "0.5", "0"),
    "0.3 0.1 0.6": _bands("0.3", "0.1", "0.6"),
    "0.1 0.3 0.6": _bands("0.1", "0.3", "0.6"),
}
BANDS = tuple(name for name in METHODS if name.count(" ") == 2)


@dataclass(frozen=True)
class Table:
    """A table of the paper: its methods, the one that others are compared with, its figures."""

    title: str
    methods: tuple[str, ...]
    against: str
    paper: Mapping[str, Mapping[str, Row]] = field(default_factory=dict)


TABLES: dict[str, Table] = {
    "table1": Table(
        "Table 1",
        ("EqDiff", "Textual Inversion", "DreamBooth", "Custom Diffusion"),
        "EqDiff",
        PAPER_TABLE1,
    ),
    "fig7": Table("Fig. 7", tuple("ABCDEF"), "F", PAPER["ablation"]),
    # the paper draws Fig. 9 and prints no figure of it: it says that .1 .1 .8 is best
    "fig9": Table("Fig. 9", BANDS, "0.1 0.1 0.8"),
}
