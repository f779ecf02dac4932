"""Picture files written by hand, sample by sample: what Pillow does not write."""

import struct
import zlib

import numpy as np

# kind of a numpy type -> TIFF's number for it
SAMPLE_FORMATS = {"u": 1, "i": 2, "f": 3}


def png(rows: np.ndarray, colour_type: int, *, transparent: int | None = None) -> bytes:
    """A PNG of big-endian 16-bit samples (H,W) or (H,W,channels). transparent: the grey that is."""
    height, width = rows.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
        *([] if transparent is None else [(b"tRNS", struct.pack(">H", transparent))]),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def tiff(samples: np.ndarray, *, photometric: int | None = None, bits: int | None = None) -> bytes:
    """A TIFF of one strip, then the directory.

    samples: (H,W), or (H,W,channels) for colours, of a little-endian type. photometric: 0 if the
    lowest is white. bits: of a sample, if they are packed: of unsigned grey alone.
    """
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    data = samples.tobytes() if bits is None else _packed(samples, bits)
    bits = bits or 8 * samples.itemsize
    photometric = photometric if photometric is not None else (1 if channels == 1 else 2)

    end = 8 + len(data)
    several = struct.pack(f"<{channels}H", *[bits] * channels)
    number_of_bits = bits if channels == 1 else end
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, number_of_bits),
        (259, 3, 1, 1),
    ]
    tags += [(262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height)]
    tags += [
        (279, 4, 1, len(data)),
        (284, 3, 1, 1),
        (339, 3, 1, SAMPLE_FORMATS[samples.dtype.kind]),
    ]
    directory = (
        struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        + bytes(4)
    )
    return struct.pack("<2sHI", b"II", 42, end + len(several)) + data + several + directory


def _packed(samples: np.ndarray, bits: int) -> bytes:
    """Each row from a byte of its own on."""
    rows = []
    for row in samples.tolist():
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return b"".join(rows)
