"""Which colours a part of a photo has: histograms in CIELAB, and how alike two of them are."""

import cv2
import numpy as np

BINS = 20  # a channel

Array = np.ndarray


def lab_of(photo: Array) -> Array:
    """RGB (h, w, 3) in 8 bits -> CIELAB (h, w, 3), float32, a little smoothed against noise."""
    smooth = cv2.GaussianBlur(photo, (3, 3), 0).astype(np.float32) / 255
    return cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB)


def colour_codes(lab: Array) -> Array:
    """The histogram bin of each pixel's colour: int (h, w)."""
    levels = (lab / (100, 200, 200) + (0, 0.5, 0.5)) * BINS
    bins = np.clip(levels, 0, BINS - 1).astype(int)
    return (bins[..., 0] * BINS + bins[..., 1]) * BINS + bins[..., 2]


def histogram(codes: Array, weights: Array) -> Array:
    """The share of each colour in weighted pixels, blurred over its neighbours: (BINS**3,)."""
    counts = np.bincount(codes.ravel(), weights.ravel(), BINS**3)
    for _ in range(3):  # the first axis is blurred, and becomes the last
        counts = cv2.GaussianBlur(counts.reshape(BINS, -1), (1, 5), 1).T
    return counts.ravel() / max(counts.sum(), 1e-9)


def affinity(first: Array, second: Array) -> float:
    """How alike two histograms are: 1 for the same, 0 without a common colour (Bhattacharyya's)."""
    return float(np.sqrt(first * second).sum())
