"""What the paper reports in its Table 1 and Fig. 7.

method -> prompt set -> CLIP-T (x 2.5), CLIP-I, DINO-I.
"""

from typing import Any

Row = tuple[float, float, float]

CLIP_T_FACTOR = 2.5  # the paper reports this many times the cosine

PAPER: dict[str, dict[str, Row]] = {
    "A": {"plain": (0.770, 0.792, 0.634), "style": (0.774, 0.718, 0.505)},
    "B": {"plain": (0.755, 0.822, 0.690), "style": (0.746, 0.755, 0.591)},
    "C": {"plain": (0.755, 0.823, 0.691), "style": (0.749, 0.757, 0.595)},
    "D": {"plain": (0.758, 0.805, 0.656), "style": (0.772, 0.717, 0.513)},
    "E": {"plain": (0.760, 0.811, 0.670), "style": (0.765, 0.726, 0.537)},
    "F": {"plain": (0.782, 0.810, 0.670), "style": (0.790, 0.755, 0.584)},
}

# of these, ELITE needs a pretrained encoder and is not built here
PAPER_TABLE1: dict[str, dict[str, Row]] = {
    "Textual Inversion": {"plain": (0.725, 0.765, 0.537), "style": (0.742, 0.698, 0.418)},
    "DreamBooth": {"plain": (0.777, 0.788, 0.616), "style": (0.795, 0.696, 0.467)},
    "Custom Diffusion": {"plain": (0.770, 0.792, 0.634), "style": (0.774, 0.718, 0.505)},
    "EqDiff": {"plain": (0.782, 0.810, 0.670), "style": (0.790, 0.755, 0.584)},
    "ELITE": {"plain": (0.756, 0.777, 0.589), "style": (0.718, 0.741, 0.548)},
    "DreamMatcher": {"plain": (0.768, 0.792, 0.637), "style": (0.766, 0.703, 0.503)},
}


def as_cells() -> list[dict[str, Any]]:
    """The figures of Fig. 7 as cells of one subject, CLIP-T as a plain cosine.

    Whatever reads our cells can read them.
    """
    cells = []
    for variant, by_kind in PAPER.items():
        rows = [
            {"kind": kind, "clip_t": clip_t / CLIP_T_FACTOR, "clip_i": clip_i, "dino_i": dino_i}
            for kind, (clip_t, clip_i, dino_i) in by_kind.items()
        ]
        cells.append({"variant": variant, "subject": "the paper", "rows": rows})
    return cells
