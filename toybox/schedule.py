"""Learning rates as shares of their peak, 0..1. Each training multiplies the ones that it wants."""

import math


def warm_up(step: int, steps: int) -> float:
    """A linear rise over the first `steps` steps, then 1."""
    return min(1.0, (step + 1) / steps)


def cosine(progress: float, floor: float = 0.02) -> float:
    """Half a cosine wave from 1 at progress 0 to `floor` at progress 1."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def linear_fall(progress: float, last: float) -> float:
    """1, but for the `last` share of the training, in which it falls linearly to 0."""
    return min(1.0, max(0.0, (1 - progress) / last))


def constant_then_fall(samples: int, fall_from: int | None) -> float:
    """1 until `fall_from` samples, then a linear fall to 0 over a ninth as many; None: always 1."""
    if fall_from is None:
        return 1.0
    return max(0.0, 1 - (samples - fall_from) / (fall_from / 9))
