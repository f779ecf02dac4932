"""What a study is made of: a method is flags of the scripts, a table compares some methods."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from studies.reproduce.paper import Row


@dataclass(frozen=True)
class Method:
    """Flags of a method.

    train: of train_eqdiff.py. toy: beside them on the toybox, where a method has the preset of
    `eqdiff/settings/methods.py`. real: beside them on a base of one's own. draw: of
    test_eqdiff.py.
    """

    train: tuple[str, ...] = ()
    toy: tuple[str, ...] = field(default=(), kw_only=True)
    real: tuple[str, ...] = ()
    draw: tuple[str, ...] = ()

    def flags(self, toybox: bool) -> tuple[str, ...]:
        """Those of a training."""
        return (*self.train, *(self.toy if toybox else self.real))


@dataclass(frozen=True)
class Table:
    """A table: its methods, the one that others are compared with, what is claimed.

    paper: its figures. directions: (has more, has less, kind of prompts, metric) of each claim,
    where it is not a figure of the paper that claims it. dev: it chooses settings, so that it takes
    the toybox's subjects for development. toybox: its flags mean something there alone.
    """

    title: str
    methods: tuple[str, ...]
    against: str
    paper: Mapping[str, Mapping[str, Row]] = field(default_factory=dict)
    directions: tuple[tuple[str, str, str, str], ...] = ()
    dev: bool = False
    toybox: bool = False
