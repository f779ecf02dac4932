"""Broken concept files by the thousand, read by a process of bounded memory, and prompts as no one
would write them.

python tests/fuzz.py BASE FOLDER COUNT [SEED]: a line of JSON, how many files loaded, were refused,
did anything else
"""

import json
import random
import resource
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOM = 2**30  # bytes that reading may take beyond what the libraries and the base take
HOSTILE: list[Any] = [
    None, True, False, -1, 0, 1, 10**9, 10**30, -(2**63), 0.5, 1e308, -0.0, float("nan"),
    float("inf"), "", "x",
    "\ud800", "../../x", "/x", "\0", "a\nb", "\x1b[2J", "{}", "<new1>", "9" * 5000, "x" * 2_000_000,
    [], {}, [[]], [None], ["x"] * 9,
    {"x": {}}, [[[[[1]]]]], ["up_blocks.0"], "zero", "all", "none", "kv", "whitespace", "clean",
]  # fmt: skip
WORDS = "a photo of {} {} <new1> watercolor {}{} %s {0} {name} { } `rm` $HOME".split()
PIECES = [
    "../", "/", "\\", "..", "~", "C:\\", "\n", "\r\n", "\t", "\0", "\x07", "\x1b[2J", "\x7f",
    "\x85", "\u2028",
    "\u202e",
    "\u200b", "\ufeff", "\ufffe", "\ud800", "\udfff", "é", "e\u0301", "ß", "İ", "中文", "العربية",
    "עברית", "हिन्दी",
    "😀",
    "👨‍👩‍👧‍👦", "🏳️‍🌈", "𝔘", "'", '"', "''", '""', ";", "|", "&", "*", "?", "--help", "-", "#", "%",
    "%%", "%n", "=",
    "<",
    ">", "<NEW1>", "<new1", "<|endoftext|>", "<|startoftext|>", ".png", "con", "nul", " ", "  ",
    ",", "!", "(a:1.3)",
    "[a|b]",
]  # fmt: skip


def prompts(count: int, seed: int) -> list[str]:
    """As many different prompts, most of them with a slot somewhere."""
    found: dict[str, None] = dict.fromkeys(
        ["{}", "{}{}", "", " ", "<new1>", "{} " * 40, "a {}" + "x" * 5000, "{" * 5000]
    )
    rng = random.Random(seed)
    while len(found) < count:
        length = rng.choice([1, 2, 4, 8, 16, 60])
        parts = [rng.choice(WORDS if rng.random() < 0.6 else PIECES) for _ in range(length)]
        if rng.random() < 0.2:
            parts = [
                chr(
                    rng.choice(
                        [rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0x110000)]
                    )
                )
                for _ in parts
            ]
        if rng.random() < 0.8:
            parts.insert(rng.randrange(len(parts) + 1), "{}")
        if rng.random() < 0.05:
            parts.append(rng.choice(PIECES) * rng.randrange(1000))
        found[rng.choice(["", " ", " "]).join(parts)[:5000]] = None
    return list(found)


def split_file(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header: Any, data: bytes, text: str | None = None) -> bytes:
    words = (json.dumps(header) if text is None else text).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(words)) + words + data


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """One or more of the ways in which a file can be wrong."""
    ways = [
        flipped,
        cut,
        other_length,
        other_facts,
        other_facts,
        other_facts,
        other_tensors,
        other_tensors,
        doubled,
        not_finite,
    ]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        try:
            raw = rng.choice(ways)(raw, rng)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            RecursionError,
        ):  # no file any more that could get worse
            raw = flipped(raw, rng)
    return raw


def flipped(raw: bytes, rng: random.Random) -> bytes:
    out, head = bytearray(raw), min(len(raw), 12_000)
    for _ in range(rng.randint(1, 8) if out else 0):
        out[rng.randrange(head if rng.random() < 0.8 else len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(raw: bytes, rng: random.Random) -> bytes:
    where = rng.choice(
        [rng.randrange(20), rng.randrange(len(raw) + 1), max(0, len(raw) - rng.randrange(1, 9))]
    )
    return raw[:where] if rng.random() < 0.8 else raw + rng.randbytes(rng.randrange(1, 99))


def other_length(raw: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(raw[:8], "little") + rng.choice(
        [-8, -1, 1, 8, rng.randrange(-2000, 2000)]
    )
    return (
        struct.pack("<Q", rng.choice([length % 2**64, rng.randrange(2**64), 2**63, 10**8, 0]))
        + raw[8:]
    )


def other_facts(raw: bytes, rng: random.Random) -> bytes:
    header, data = split_file(raw)
    facts = json.loads(header["__metadata__"]["concept"])
    where = facts["settings"] if rng.random() < 0.7 else facts
    key = rng.choice(sorted(where))
    if rng.random() < 0.15:
        del where[key]
    else:
        where[key] = rng.choice(HOSTILE)
    text = json.dumps(facts)
    header["__metadata__"]["concept"] = rng.choice(
        [text] * 20 + ["[" * 90_000, text[:-1], "null", '{"settings":' + text + "}"]
    )
    if rng.random() < 0.1:
        header["__metadata__"] = rng.choice(
            [HOSTILE[0], [], {"format": "pt"}, {**header["__metadata__"], "x": "y" * 9000}]
        )
    return joined(header, data)


def other_tensors(raw: bytes, rng: random.Random) -> bytes:
    header, data = split_file(raw)
    names = sorted(set(header) - {"__metadata__"})
    one, two = header[rng.choice(names)], header[rng.choice(names)]
    way = rng.randrange(8)
    if way == 0:
        one["dtype"] = rng.choice(
            ["F64", "F16", "BF16", "I8", "I64", "BOOL", "U8", "F8_E4M3", "x", None, 3]
        )
    elif way == 1:
        one["shape"] = rng.choice(
            [one["shape"][::-1], [*one["shape"], 1], [2**40], [-1], [], "x", [1.5], [0], [2**63, 2]]
        )
    elif way == 2:
        one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]
    elif way == 3:
        one["data_offsets"] = rng.choice(
            [[0, 2**40], [5], [4, 0], [-4, 4], None, [0, 0], [x + 4 for x in one["data_offsets"]]]
        )
    elif way == 4:
        name = rng.choice(names)
        header[
            rng.choice(["tokens.rows", "unet.x", name + ".up", name[:-1], "x" * 400, "../x"])
        ] = header.pop(name)
    elif way == 5:
        del header[rng.choice(names)]
    elif way == 6:
        one.update(two)
    else:
        one["shape"], two["shape"] = two["shape"], one["shape"]
    return joined(header, data)


def doubled(raw: bytes, rng: random.Random) -> bytes:
    """A name twice, with another value."""
    header, data = split_file(raw)
    text = json.dumps(header)
    name = rng.choice(sorted(header))
    return joined(
        None, data, f'{{"{name}": {json.dumps(rng.choice(list(header.values())))}, {text[1:]}'
    )


def not_finite(raw: bytes, rng: random.Random) -> bytes:
    header, data = split_file(raw)
    about = header[rng.choice(sorted(set(header) - {"__metadata__"}))]
    start, stop = about["data_offsets"]
    at = rng.randrange(start, stop - 3)
    value = rng.choice(
        [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff", rng.randbytes(4)]
    )
    return joined(header, data[:at] + value + data[at + 4 :])


def originals(base: Any, folder: Path) -> list[bytes]:
    """Two files as they should be, one of them compressed."""
    import dataclasses

    import torch

    from eqdiff.concept.concept import References, capture_concept, model_for
    from eqdiff.concept.file import compress_concept, save_concept
    from eqdiff.model import new_model
    from eqdiff.settings.presets import preset_config
    from eqdiff.settings.train import portable

    config = preset_config(
        "paper",
        resolution=64,
        class_word="dog toy",
        rra_layers=("mid_block",),
        gate_init="identity",
    )
    model = new_model(config, base)
    with torch.no_grad():
        for parameter in model.concept_parameters().values():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    names = ("one.jpg", "two.jpg")
    references = References(
        torch.randn(2, 4, 8, 8), torch.ones(2, 1, 8, 8), torch.randn(1, 4, 8, 8), names
    )
    whole = capture_concept(model, references, portable(config), 5)
    size = sum(p.numel() for p in model.concept_parameters().values()) * 4
    small = compress_concept(whole, model, 0.3 * size / 1e6)
    model.detach()
    found = []
    for number, concept in enumerate((whole, small)):
        save_concept(concept, folder / f"{number}.safetensors")
        found.append((folder / f"{number}.safetensors").read_bytes())
    model_for(dataclasses.replace(small), base).detach()
    return found


def status(name: str) -> int:
    """VmRSS, its peak VmHWM, or VmSize of this process [bytes]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def read_all(base: Any, folder: Path, count: int, seed: int) -> dict[str, Any]:
    from eqdiff.base.identity import fingerprint
    from eqdiff.concept.concept import model_for
    from eqdiff.concept.file import load_concept
    from eqdiff.errors import UserError
    from eqdiff.pipeline import EqDiffPipeline

    files, mark, tally, other = originals(base, folder), base.fingerprint, Counter(), []
    path, slowest, before, started = (
        folder / "mutated.safetensors",
        0.0,
        status("VmRSS"),
        time.process_time(),
    )
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + ROOM, resource.RLIM_INFINITY))
    pipe = EqDiffPipeline.of(base)
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        path.write_bytes(mutated(rng.choice(files), rng))
        start = time.process_time()
        try:
            concept = load_concept(path)
            tally["parsed"] += 1
            model = model_for(concept, base)
            tally["loaded"] += 1
            if tally["loaded"] % 20 == 0:
                pipe.attach(model, concept)
                pipe("a {}", seeds=[0], num_inference_steps=1)
            model.detach()
        except UserError as error:
            tally["refused"] += 1
            if "\n" in str(error) or len(str(error)) > 2000:
                other.append(f"{number}: {str(error)[:300]!r}")
        except BaseException as error:  # whatever it is: that is what this looks for
            other.append(f"{number}: {type(error).__name__}: {str(error)[:300]}")
        slowest = max(slowest, time.process_time() - start)
    whole = fingerprint(base.unet, base.text_encoder) == mark
    peak = status("VmHWM")  # ru_maxrss is also the parent's, up to the exec
    figures = {"cpu_seconds": round(time.process_time() - started, 1), "slowest": round(slowest, 2)}
    figures |= {"grown_mb": round((peak - before) / 1e6, 1), "base_as_before": whole}
    return {"count": count, **tally, **figures, "other": other}


def main() -> None:
    import torch

    from eqdiff.base.load import load_base

    torch.set_num_threads(1)
    base, folder, count, *seed = sys.argv[1:]
    torch.manual_seed(0)
    print(json.dumps(read_all(load_base(base), Path(folder), int(count), int(*seed or [0]))))


if __name__ == "__main__":
    main()
