"""Masks without any trained model: what the photos of one subject have in common, cut out along edges by GrabCut.

Per pixel, the log-odds of subject against background are the sum of
- a prior: the middle of the photo, not its border;
- colour: how common it is in the subject of all photos (geometric mean: one photo without it says no), over how common
  it is in the background of this photo;
- agreement: photos that SIFT features lay over one another agree where the subject is, and seldom behind it; the
  partners' log-odds come along.
Estimate and colours are found in turns, from the prior on; OpenCV's GrabCut then draws the outline. Photos are RGB in
8 bits.
"""

from collections.abc import Sequence

import cv2
import numpy as np

SIDE = 256  # longest side of the working copies [pixels]
PARTNERS = 5  # photos that each one is laid over
ROUNDS = 6
BINS = 20  # of a colour histogram, a channel
RARE = 1e-4  # share of a colour below which it says nothing
LEVELS = 12  # of agreement
BAND = 4  # radius of the smoothing along edges [pixels]
LIKELY, SURE = 0.7, 0.98  # GrabCut starts from what is likely the subject, and what is sure stays as it is

Array = np.ndarray
Pairs = dict[tuple[int, int], Array]


def subject_masks(photos: Sequence[Array], given: Sequence[Array | None] | None = None) -> list[Array]:
    """Photos (H, W, 3) of one subject, each of its own size -> masks bool (H, W). Deterministic.

    given: masks that are known, bool (H, W); they teach the others what the subject looks like.
    """
    small = [_shrunk(photo) for photo in photos]
    known = [None if mask is None else _shrunk(mask.astype(np.uint8)) > 0 for mask in given or [None] * len(photos)]
    shares = estimate(small, known)
    cuts = [tidy(_cut(photo, share), share) for photo, share in zip(small, shares, strict=True)]
    sizes = [photo.shape[1::-1] for photo in photos]
    grown = (
        cv2.resize(cut.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        for cut, size in zip(cuts, sizes, strict=True)
    )
    return [mask > 0.5 for mask in grown]


def estimate(photos: Sequence[Array], known: Sequence[Array | None]) -> list[Array]:
    """Probability of subject, float32 (h, w) in 0..1, for photos (h, w, 3) of working size, known masks bool (h, w)."""
    labs = [cv2.cvtColor(cv2.GaussianBlur(p, (3, 3), 0).astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for p in photos]
    codes = [_codes(lab) for lab in labs]
    priors = [
        _prior(lab.shape[:2]) if mask is None else np.where(mask, np.float32(6), np.float32(-6))
        for lab, mask in zip(labs, known, strict=True)
    ]
    moves = alignments(photos)
    agree = {pair: agreement(labs[pair[0]], labs[pair[1]], move) for pair, move in moves.items()}
    # given masks alone say what the subject looks like; without any, all photos do
    teachers = [i for i, mask in enumerate(known) if mask is not None] or range(len(photos))
    shares = [_sigmoid(prior) for prior in priors]
    for number in range(ROUNDS):
        inside = [_histogram(code, share) for code, share in zip(codes, shares, strict=True)]
        common = np.exp(np.mean([np.log(inside[i] + RARE) for i in teachers], 0))
        common = common / common.sum() + 5 * RARE
        odds = []
        for i, (code, share) in enumerate(zip(codes, shares, strict=True)):
            ratio = np.log(common / (_histogram(code, 1 - share) + 5 * RARE))
            partners = [agree[pair] for pair in agree if pair[0] == i]
            odds.append(np.clip(priors[i] + ratio[code] + _agreement_odds(partners, share), -6, 6).astype(np.float32))
        if number:
            odds = [_with_partners(i, odds, moves, agree) for i in range(len(odds))]
        shares = [_sigmoid(_smooth(lab[..., 0] / 100, field)) for lab, field in zip(labs, odds, strict=True)]
    return shares


def alignments(photos: Sequence[Array]) -> Pairs:
    """(i, j) -> the affine map (2, 3) that lays photo j over photo i, for the pairs whose features have one."""
    sift = cv2.SIFT_create(1500, contrastThreshold=0.02)
    found = [sift.detectAndCompute(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), None) for photo in photos]
    count = len(photos)
    pairs = [(i, (i + step) % count) for i in range(count) for step in range(1, min(PARTNERS, count - 1) + 1)]
    moves = {(i, j): _alignment(found[j], found[i]) for i, j in pairs}
    return {pair: move for pair, move in moves.items() if move is not None}


def agreement(lab: Array, partner: Array, move: Array) -> Array:
    """How alike photo and aligned partner look around each pixel: float32 (h, w) in 0..1; two pixels off is alike."""
    size = lab.shape[1::-1]
    laid = cv2.warpAffine(partner, move, size, borderValue=(-1000, 0, 0))
    window = np.ones((5, 5), np.uint8)
    gap = np.maximum(0, np.maximum(lab - cv2.dilate(laid, window), cv2.erode(laid, window) - lab))
    return cv2.blur(np.exp(-np.square(gap / 20).sum(-1)), (7, 7))


def tidy(mask: Array, share: Array) -> Array:
    """A cut without specks and holes: what holds a fifth of the largest part's probability stays."""
    mask = cv2.morphologyEx(fill_holes(mask, share).astype(np.uint8), cv2.MORPH_OPEN, _disc(5))
    count, parts = cv2.connectedComponents(mask)
    weight = np.bincount(parts.ravel(), share.ravel(), count)
    weight[0] = 0
    return (weight >= 0.2 * weight.max())[parts] & (parts > 0)


def fill_holes(mask: Array, share: Array | None = None) -> Array:
    """A bool mask (h, w) with its holes filled, but for large ones (1 % of it) that look like background.

    share: probability of subject (h, w); a hole with 0.15 and more is filled whatever its size. None: large ones stay.
    """
    count, parts, stats, _ = cv2.connectedComponentsWithStats(1 - np.pad(mask, 1).astype(np.uint8), connectivity=4)
    parts = parts[1:-1, 1:-1]
    outside = cv2.connectedComponents(1 - np.pad(mask, 1).astype(np.uint8), connectivity=4)[1][0, 0]
    area = stats[:, cv2.CC_STAT_AREA]
    filled = area < 0.01 * mask.sum()
    if share is not None:
        total = np.bincount(parts.ravel(), share.ravel(), count)
        filled |= total >= 0.15 * area
    filled[outside] = False
    return mask | (filled[parts] & ~mask)


def _shrunk(photo: Array) -> Array:
    scale = SIDE / max(photo.shape[:2])
    size = tuple(max(1, round(length * scale)) for length in photo.shape[1::-1])
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _prior(shape: tuple[int, int]) -> Array:
    """Log-odds by place: 1.5 in the middle, -3.5 in the middle of an edge."""
    y, x = (np.abs((np.arange(length, dtype=np.float32) + 0.5) * 2 / length - 1) for length in shape)
    return 1.5 - 5 * (y[:, None] ** 4 + x[None] ** 4) ** 0.75


def _codes(lab: Array) -> Array:
    """The histogram bin of every pixel: (h, w)."""
    bins = np.clip((lab / (100, 200, 200) + (0, 0.5, 0.5)) * BINS, 0, BINS - 1).astype(int)
    return (bins[..., 0] * BINS + bins[..., 1]) * BINS + bins[..., 2]


def _histogram(codes: Array, weights: Array) -> Array:
    """Share of each colour (BINS**3,) in the weighted pixels, blurred over neighbours."""
    counts = np.bincount(codes.ravel(), weights.ravel(), BINS**3).reshape(BINS, BINS, BINS)
    kernel = sum(
        share * np.eye(BINS, k=k) for k, share in zip(range(-2, 3), (0.06, 0.24, 0.4, 0.24, 0.06), strict=True)
    )
    for _ in range(3):
        counts = np.tensordot(counts, kernel, axes=(0, 0))  # takes the first axis, puts it last
    return (counts / counts.sum()).ravel()


def _alignment(source: tuple, target: tuple) -> Array | None:
    """The affine map between two photos' features, or None: too few agree, or it is no view of the same thing."""
    (points, descriptors), (others, other_descriptors) = source, target
    if min(len(points), len(others)) < 5:
        return None
    matches = cv2.BFMatcher().knnMatch(descriptors, other_descriptors, k=2)
    good = [first for first, second in matches if first.distance < 0.8 * second.distance]
    if len(good) < 5:
        return None
    here = np.float32([points[match.queryIdx].pt for match in good])
    there = np.float32([others[match.trainIdx].pt for match in good])
    cv2.setRNGSeed(0)
    move, agreed = cv2.estimateAffine2D(here, there, method=cv2.RANSAC, ransacReprojThreshold=3)
    if move is None or agreed.sum() < 8 or np.linalg.det(move[:, :2]) <= 0:
        return None
    large, low = np.linalg.svd(move[:, :2], compute_uv=False)
    return move if large < 3 and low > 1 / 3 and large < 1.8 * low else None


def _agreement_odds(partners: Sequence[Array], share: Array) -> Array | float:
    """Log-odds of subject by the mean agreement with the partners, learned from the estimate itself."""
    if not partners:
        return 0.0
    level = np.minimum((np.mean(partners, 0) * LEVELS).astype(int), LEVELS - 1)
    inside, outside = (np.bincount(level.ravel(), w.ravel(), LEVELS) + 3 for w in (share, 1 - share))
    return np.clip(np.log(inside / inside.sum() / (outside / outside.sum())), -2, 2)[level]


def _with_partners(i: int, odds: Sequence[Array], moves: Pairs, agree: Pairs) -> Array:
    """The log-odds of photo i plus half of its aligned partners', where they agree."""
    size = odds[i].shape[::-1]
    laid = [
        agree[pair] * cv2.warpAffine(odds[pair[1]], moves[pair], size, borderValue=-3) for pair in moves if pair[0] == i
    ]
    return odds[i] + 0.5 * sum(laid)


def _smooth(guide: Array, field: Array) -> Array:
    """Guided filter: `field` smoothed, but not across the edges of `guide`, both float32 (h, w)."""

    def box(values: Array) -> Array:
        return cv2.blur(values, (2 * BAND + 1, 2 * BAND + 1))

    middle, level = box(guide), box(field)
    slope = (box(guide * field) - middle * level) / (box(guide * guide) - middle * middle + 1e-3)
    return box(slope) * guide + box(level - slope * middle)


def _cut(photo: Array, share: Array) -> Array:
    """GrabCut from the estimate: bool (h, w). Its own five colours a side, and edges."""
    labels = np.where(share > LIKELY, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[share > SURE], labels[share < 1 - SURE] = cv2.GC_FGD, cv2.GC_BGD
    labels[[0, -1]] = labels[:, [0, -1]] = cv2.GC_BGD
    if min((labels & 1).sum(), (1 - (labels & 1)).sum()) < 10:  # it wants five colours of each
        return share > LIKELY
    cv2.setRNGSeed(0)
    cv2.grabCut(photo, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
    return (labels & 1).astype(bool)


def _disc(width: int) -> Array:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))


def _sigmoid(odds: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(odds, -8, 8)))
