"""What the photos of one subject agree on: what recurs in them is the subject, the rest is not.

Each pixel's log-odds of subject against background are the sum of
- the network's, weighed so that the photos together can overrule it;
- the colour's: how common it is in the subject of the other photos, over how common it is in this
  photo's background. A colour that no other photo's subject has speaks against the subject;
- the alignment's: where photos that show the same side of the subject look alike is the subject,
  seldom what is behind it, and the aligned photos' log-odds count too.

Axes: h x w pixels. Photos are (h, w, 3) RGB in 8 bits; maps are float32 (h, w), 1 = subject.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from eqdiff.data.colours import affinity, colour_codes, histogram, lab_of
from eqdiff.masks.alignment import alignments, likeness, likeness_odds

TRUST = 0.25  # weight of the network's log-odds
MOST = {False: 1.0, True: 6.0}  # their limit, and that of a given mask's
RARE = 1e-4  # share of a colour that was never seen in the subject
UNSEEN = 2  # times as much for backgrounds: more can be behind the subject than in it
ROUNDS = 6
BLUR = 9  # of the log-odds: a pixel alone says little [pixels]
CLEARLY = 0.05  # a mask is replaced if another's colours are so much nearer to the others'

Array = np.ndarray


def agreed_maps(
    photos: Sequence[Array], maps: Sequence[Array], known: Sequence[bool]
) -> tuple[list[Array], list[bool]]:
    """The network's maps -> the maps that the photos agree on; which photos align with another.

    known: which maps are given masks. If there are any, they alone teach the subject's colours.
    """
    labs = [lab_of(photo) for photo in photos]
    codes = [colour_codes(lab) for lab in labs]
    moves = alignments(photos)
    alike = {(i, j): likeness(labs[i], labs[j], move) for (i, j), move in moves.items()}
    priors = [
        np.clip(TRUST * _log_odds(share), -MOST[given], MOST[given])
        for share, given in zip(maps, known, strict=True)
    ]

    agreed = [_sigmoid(prior) for prior in priors]
    for _ in range(ROUNDS):
        subjects = [histogram(code, share) for code, share in zip(codes, agreed, strict=True)]
        odds = []
        for i, (code, share) in enumerate(zip(codes, agreed, strict=True)):
            taught = np.mean([np.sqrt(subjects[j]) for j in _teachers(i, known)], 0)
            ratio = (np.square(taught) + RARE) / (histogram(code, 1 - share) + UNSEEN * RARE)
            partners = [alike[pair] for pair in moves if pair[0] == i]
            field = priors[i] + np.log(ratio)[code] + likeness_odds(partners, share)
            odds.append(np.clip(field, -6, 6).astype(np.float32))

        joined = [field.copy() for field in odds]
        for (i, j), move in moves.items():
            laid = cv2.warpAffine(odds[j], move, odds[i].shape[::-1], borderValue=-3)
            joined[i] += 0.5 * alike[i, j] * laid
        agreed = [_sigmoid(cv2.blur(field, (BLUR, BLUR))) for field in joined]
    return agreed, [any(i == pair[0] for pair in moves) for i in range(len(photos))]


def best_masks(
    photos: Sequence[Array], choices: Sequence[Sequence[Array]], known: Sequence[bool]
) -> list[Array]:
    """Of each photo's masks the first, or another that clearly agrees better with the other photos.

    Masks agree by their colours: how near these are to the mean of the other photos'.
    """
    codes = [colour_codes(lab_of(photo)) for photo in photos]
    colours = [[histogram(c, m) for m in masks] for c, masks in zip(codes, choices, strict=True)]
    chosen = [0] * len(photos)
    for _ in range(ROUNDS if len(photos) > 1 else 0):
        current = [own[k] for own, k in zip(colours, chosen, strict=True)]
        for i, own in enumerate(colours):
            common = np.mean([current[j] for j in _teachers(i, known)], 0)
            near = [affinity(one, common) for one in own]
            best = int(np.argmax(near))
            chosen[i] = best if near[best] > near[0] + CLEARLY else 0
    return [masks[k] for masks, k in zip(choices, chosen, strict=True)]


def _teachers(i: int, known: Sequence[bool]) -> list[int]:
    """The photos that say what the subject of photo i looks like: with given masks, those alone."""
    return [j for j in range(len(known)) if j != i and (known[j] or not any(known))] or [i]


def _log_odds(share: Array) -> Array:
    return np.log(np.clip(share, 1e-6, 1) / np.clip(1 - share, 1e-6, 1)).astype(np.float32)


def _sigmoid(odds: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(odds, -12, 12)))
