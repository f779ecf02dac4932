"""Photos that show the same thing from the same side: how one is laid over another.

SIFT features that two photos have in common say how. Pairs are (i, j): photo j laid over photo i.
"""

from collections.abc import Sequence

import cv2
import numpy as np

PARTNERS = 5  # photos that each one is laid over
FEATURES = 1500  # of a photo, at most
LEAST = 8  # features that have to agree on one movement: chance gives four or five
LEVELS = 12  # of likeness

Array = np.ndarray
Pairs = dict[tuple[int, int], Array]


def alignments(photos: Sequence[Array]) -> Pairs:
    """RGB photos -> the turn, scale and shift (2, 3) of each pair that has one."""
    sift = cv2.SIFT_create(FEATURES, contrastThreshold=0.02)
    greys = [cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY) for photo in photos]
    features = [sift.detectAndCompute(grey, None) for grey in greys]

    moves = {}
    for i in range(len(photos)):
        for step in range(1, min(PARTNERS, len(photos) - 1) + 1):
            j = (i + step) % len(photos)
            move = _movement(features[j], features[i])
            if move is not None:
                moves[i, j] = move
    return moves


def likeness(lab: Array, other: Array, move: Array) -> Array:
    """How alike a photo and one laid over it look near each pixel: float32 (h, w) in 0..1.

    Both are CIELAB (h, w, 3). Two pixels off still count as alike.
    """
    laid = cv2.warpAffine(other, move, lab.shape[1::-1], borderValue=(-1000, 0, 0))
    window = np.ones((5, 5), np.uint8)
    above = lab - cv2.dilate(laid, window)
    below = cv2.erode(laid, window) - lab
    gap = np.maximum(0, np.maximum(above, below)) / 20
    return cv2.blur(np.exp(-np.square(gap).sum(-1)), (7, 7))


def likeness_odds(partners: Sequence[Array], share: Array) -> Array | float:
    """Log-odds (h, w) of subject by the mean likeness to partners, learned from the map `share`."""
    if not partners:
        return 0.0

    level = np.minimum((np.mean(partners, 0) * LEVELS).astype(int), LEVELS - 1)
    inside = np.bincount(level.ravel(), share.ravel(), LEVELS) + 3
    outside = np.bincount(level.ravel(), 1 - share.ravel(), LEVELS) + 3
    odds = np.log(inside / inside.sum()) - np.log(outside / outside.sum())
    return np.clip(odds, -2, 2)[level]


def _movement(source: tuple, target: tuple) -> Array | None:
    """What moves the features of one photo onto another's; None if there is no such movement."""
    points, descriptors = source
    other_points, other_descriptors = target
    if min(len(points), len(other_points)) < LEAST:
        return None

    matches = cv2.BFMatcher().knnMatch(descriptors, other_descriptors, k=2)
    clear = [first for first, second in matches if first.distance < 0.8 * second.distance]
    if len(clear) < LEAST:
        return None

    here = np.float32([points[match.queryIdx].pt for match in clear])
    there = np.float32([other_points[match.trainIdx].pt for match in clear])
    cv2.setRNGSeed(0)
    move, agreed = cv2.estimateAffinePartial2D(here, there)
    if move is None or agreed.sum() < LEAST:
        return None

    scale = np.hypot(move[0, 0], move[1, 0])
    return move if 1 / 3 < scale < 3 else None
