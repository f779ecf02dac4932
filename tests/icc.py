"""Colour profiles as ICC bytes, version 2, built from primaries and curves.

None of them is anybody's file.
"""

import itertools
import struct
from collections.abc import Callable

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
D65_XY = (0.3127, 0.3290)
D50_XY = (0.3457, 0.3585)
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
SRGB_XY = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
SRGB_NAME = "sRGB IEC61966-2.1"
Curve = float | Callable[[np.ndarray], np.ndarray]


def srgb_curve(values: np.ndarray) -> np.ndarray:
    """Encoded 0..1 -> light 0..1."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def rec709_curve(values: np.ndarray) -> np.ndarray:
    """Encoded 0..1 -> light 0..1, as Rec. 2020 has it too."""
    return np.where(values < 0.081, values / 4.5, ((values + 0.099) / 1.099) ** (1 / 0.45))


def rgb_profile(name: str, primaries: tuple, white: tuple[float, float], curve: Curve) -> bytes:
    """A matrix profile.

    primaries: xy of red, green, blue. white: its xy. curve: a gamma, or encoded -> light.
    """
    matrix = _to_d50(white) @ _matrix(primaries, white)
    tags = {f"{channel}XYZ": _xyz(column) for channel, column in zip("rgb", matrix.T, strict=True)}
    tags |= {f"{channel}TRC": _curve(curve) for channel in "rgb"}
    return _profile(name, b"RGB ", b"XYZ ", b"mntr", tags)


def grey_profile(name: str, curve: Curve) -> bytes:
    return _profile(name, b"GRAY", b"XYZ ", b"mntr", {"kTRC": _curve(curve)})


def cmyk_profile(name: str) -> bytes:
    """Inks that are no ideal ones: a table of 5 steps an ink -> Lab."""
    inks = np.array(
        [[0.05, 0.55, 0.80], [0.75, 0.05, 0.40], [0.95, 0.85, 0.05], [0.08, 0.08, 0.08]]
    )  # as light
    amounts = np.array(list(itertools.product(np.linspace(0, 1, 5), repeat=4)))
    light = np.prod(1 - amounts[:, :, None] * (1 - inks), axis=1)
    lab = _lab(light @ (_to_d50(D65_XY) @ _matrix(SRGB_XY, D65_XY)).T)
    codes = (
        np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], 1)
        .round()
        .clip(0, 255)
        .astype(np.uint8)
    )
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 5, 0]) + b"".join(map(_fixed, np.eye(3).ravel()))
    table += ramp * 4 + codes.tobytes() + ramp * 3
    return _profile(name, b"CMYK", b"Lab ", b"prtr", {"A2B0": table})


def _profile(
    name: str, space: bytes, connection: bytes, kind: bytes, tags: dict[str, bytes]
) -> bytes:
    tags = {
        "desc": _description(name),
        "cprt": b"text" + bytes(4) + b"nobody\0",
        "wtpt": _xyz(D50),
    } | tags
    start = 128 + 4 + 12 * len(tags)
    entries = b""
    body = b""
    for tag, data in tags.items():
        entries += tag.encode() + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"none", 0x02400000, kind, space, connection
    )
    head += (
        struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + b"".join(map(_fixed, D50))
    )
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + body


def _description(name: str) -> bytes:
    text = name.encode("ascii") + b"\0"
    return b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(float(value) * 65536))


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, values))


def _curve(curve: Curve) -> bytes:
    if not callable(curve):
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(curve * 256))
    values = (curve(np.linspace(0, 1, 1024)) * 65535).round().astype(">u2")
    return b"curv" + bytes(4) + struct.pack(">I", len(values)) + values.tobytes()


def _white(xy: tuple[float, float]) -> np.ndarray:
    x, y = xy
    return np.array([x / y, 1, (1 - x - y) / y])


def _matrix(primaries: tuple, white: tuple[float, float]) -> np.ndarray:
    """Linear RGB -> XYZ."""
    columns = np.stack([_white(xy) for xy in primaries], 1)
    return columns * np.linalg.solve(columns, _white(white))


def _to_d50(white: tuple[float, float]) -> np.ndarray:
    """XYZ under a white -> XYZ under D50, by Bradford's cones."""
    ratio = (BRADFORD @ D50) / (BRADFORD @ _white(white))
    return np.linalg.inv(BRADFORD) @ np.diag(ratio) @ BRADFORD


def _lab(xyz: np.ndarray) -> np.ndarray:
    ratio = xyz / D50
    root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.stack(
        [116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], 1
    )
