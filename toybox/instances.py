"""Subject instances: what tells one mug from another, and the disjoint tables they come from."""

import hashlib
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product

import numpy as np

CLASS_NAMES = ("mug", "teapot", "car", "boat", "fish", "cat", "robot", "house", "bird", "rocket")
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (216, 36, 40),
    "orange": (248, 132, 24),
    "yellow": (252, 218, 48),
    "green": (40, 160, 64),
    "blue": (36, 88, 220),
    "purple": (130, 56, 184),
    "pink": (252, 132, 186),
    "brown": (122, 72, 34),
    "white": (246, 244, 238),
    "black": (34, 34, 42),
}
PATTERNS = ("plain", "striped", "banded", "dotted", "checkered", "zigzag", "two-tone")
EMBLEMS = ("star", "heart", "sun", "moon", "cross", "ring", "triangle", "diamond")
SHAPES = 3  # discrete silhouette buckets of every class
TABLES = ("train", "dev", "test")
TABLE_SIZE = 2000  # instances per table and class
MIN_CONTRAST = 110.0  # RGB distance (0..441) between any two colours of an instance

Attributes = tuple[str, tuple[str, str, str], str, str, int]


@dataclass(frozen=True)
class Instance:
    """One individual of a class.

    colours: names of the main, the second (pattern, trim) and the emblem's colour.
    shape: 0..SHAPES-1. proportions: three numbers in 0..1, read by the class's drawing.
    period: pattern period as a share of the 100-unit drawing, 0.21..0.29. phase: 0..1 of a period.
    jitter: RGB offsets in 0..255 units, one triple a colour.
    """

    class_name: str
    colours: tuple[str, str, str]
    pattern: str
    emblem: str
    shape: int
    proportions: tuple[float, float, float]
    period: float
    phase: float
    jitter: tuple[tuple[int, int, int], ...]

    @property
    def attributes(self) -> Attributes:
        """The discrete part, which alone decides the table."""
        return (self.class_name, self.colours, self.pattern, self.emblem, self.shape)

    @property
    def rgb(self) -> tuple[tuple[int, ...], ...]:
        """The three colours as drawn: 3 x (r, g, b) in 0..255."""
        return tuple(
            tuple(min(255, max(0, c + j)) for c, j in zip(PALETTE[name], shift, strict=True))
            for name, shift in zip(self.colours, self.jitter, strict=True)
        )


def table_of(attributes: Attributes) -> str:
    """The one table that an attribute tuple belongs to: 8 of 10 train, 1 dev, 1 test."""
    digit = int.from_bytes(hashlib.sha256(repr(attributes).encode()).digest()[:8], "big") % 10
    return {8: "dev", 9: "test"}.get(digit, "train")


@cache
def _colour_triples() -> tuple[tuple[str, str, str], ...]:
    """All triples of palette colours that are well apart from one another."""

    def apart(a: str, b: str) -> bool:
        return float(np.linalg.norm(np.subtract(PALETTE[a], PALETTE[b]))) >= MIN_CONTRAST

    triples = product(PALETTE, repeat=3)
    return tuple((a, b, c) for a, b, c in triples if apart(a, b) and apart(b, c) and apart(a, c))


@cache
def _table(table: str, class_name: str) -> tuple[Attributes, ...]:
    """The first TABLE_SIZE tuples of the table, no two equal, in the class's one shuffled order."""
    triples = _colour_triples()
    sizes = (len(triples), len(PATTERNS), len(EMBLEMS), SHAPES)
    rng = np.random.default_rng(CLASS_NAMES.index(class_name))
    rows: list[Attributes] = []

    for code in rng.permutation(int(np.prod(sizes))):
        colours, pattern, emblem, shape = (int(i) for i in np.unravel_index(code, sizes))
        attributes = (class_name, triples[colours], PATTERNS[pattern], EMBLEMS[emblem], shape)
        if table_of(attributes) == table:
            rows.append(attributes)
            if len(rows) == TABLE_SIZE:
                break

    return tuple(rows)


@cache
def _index(table: str, class_name: str) -> dict[Attributes, int]:
    return {attributes: number for number, attributes in enumerate(_table(table, class_name))}


def index_of(subject: Instance, table: str) -> int:
    """The index that `instance` made this one from."""
    return _index(table, subject.class_name)[subject.attributes]


@lru_cache(maxsize=20000)
def instance(table: str, class_name: str, index: int) -> Instance:
    """Instance `index` (0..TABLE_SIZE-1) of a class in a table.

    Distinct indexes have distinct attributes. Raises ValueError if there is no such table.
    """
    if table not in TABLES:
        raise ValueError(f"unknown table {table!r}: one of {TABLES}")

    _, colours, pattern, emblem, shape = _table(table, class_name)[index]
    rng = np.random.default_rng([TABLES.index(table), CLASS_NAMES.index(class_name), index])
    return Instance(
        class_name=class_name,
        colours=colours,
        pattern=pattern,
        emblem=emblem,
        shape=shape,
        proportions=tuple(float(p) for p in rng.random(3)),
        period=float(rng.uniform(0.21, 0.29)),
        phase=float(rng.random()),
        jitter=tuple(tuple(int(j) for j in row) for row in rng.integers(-9, 10, (3, 3))),
    )
