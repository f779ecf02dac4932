"""What users get wrong: each case is a command line on a small world, and the word that its error line must name."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from helpers import TINY, flags
from PIL import Image
from safetensors.torch import load_file, save_file

MISSING = "not_there"


@dataclass(frozen=True)
class World:
    """A base, photos, and the output folder of a finished training with its samples, none of which may change."""

    base: Path
    subject: Path
    finished: Path

    @property
    def concept(self) -> Path:
        return self.finished / "concept.safetensors"


class Case(NamedTuple):
    """`argv(world, folder)`: the command line of `program`, with `folder` to make broken things in."""

    name: str
    program: str
    argv: Callable[[World, Path], list[str]]
    culprit: str


# -- command lines ----------------------------------------------------------------------------------------------------


def training(world: World, *more: str, **changes: Any) -> list[str]:
    given = {
        "pretrained_model_name_or_path": world.base,
        "instance_data_dir": world.subject,
        "class_word": "dog toy",
        "output_dir": world.finished,
        "report_to": "none",
    }
    return [*_words({**TINY, **given, **changes}), "--overwrite", *more]


def drawing(world: World, *more: str, **changes: Any) -> list[str]:
    given = {"pretrained_model_name_or_path": world.base, "concept": world.finished, "prompt": "a {}"}
    return [*_words({**given, "num_inference_steps": 1, **changes}), *more]


def trains(name: str, culprit: str, *more: str, **changes: Any) -> Case:
    """A training with settings that may be functions of (world, folder)."""
    return Case(name, "train", lambda w, d: training(w, *more, **_made(changes, w, d)), culprit)


def draws(name: str, culprit: str, *more: str, **changes: Any) -> Case:
    return Case(name, "test", lambda w, d: drawing(w, *more, **_made(changes, w, d)), culprit)


def exports(name: str, culprit: str, **changes: Any) -> Case:
    given = {"concept": lambda w, d: w.finished, "pretrained_model_name_or_path": lambda w, d: w.base, **changes}
    return Case(name, "export", lambda w, d: _words(_made(given, w, d)), culprit)


def measures(name: str, culprit: str, *more: str, **changes: Any) -> Case:
    given = {"samples": lambda w, d: w.finished, **changes}
    return Case(name, "eval", lambda w, d: [*_words(_made(given, w, d)), *more], culprit)


def masks(name: str, culprit: str, **changes: Any) -> Case:
    given = {"instance_data_dir": bare_photos, "class_word": "dog toy", **changes}
    return Case(name, "masks", lambda w, d: _words(_made(given, w, d)), culprit)


def _made(changes: dict[str, Any], world: World, folder: Path) -> dict[str, Any]:
    return {name: value(world, folder) if callable(value) else value for name, value in changes.items()}


def _words(given: dict[str, Any]) -> list[str]:
    """The command line of settings; None: not given."""
    return flags({name: value for name, value in given.items() if value is not None})


# -- broken things ----------------------------------------------------------------------------------------------------


def missing(world: World, folder: Path) -> Path:
    return folder / MISSING


def empty(world: World, folder: Path) -> Path:
    (folder / "empty_folder").mkdir()
    return folder / "empty_folder"


def file(content: bytes = b"x", name: str = "plain_file") -> Callable[[World, Path], Path]:
    def make(world: World, folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def under_a_file(world: World, folder: Path) -> Path:
    return file()(world, folder) / "out"


def photos(change: Callable[[Path], None] | None = None) -> Callable[[World, Path], Path]:
    """A copy of the subject, changed."""

    def make(world: World, folder: Path) -> Path:
        shutil.copytree(world.subject, folder / "photos")
        if change:
            change(folder / "photos")
        return folder / "photos"

    return make


bare_photos = photos(lambda folder: shutil.rmtree(folder / "masks"))


def only(name: str, content: bytes) -> Callable[[Path], None]:
    """A folder with nothing but this file."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / name).write_bytes(content)

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: _write(folder / name, content)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: _write(folder / name, (folder / name).read_bytes()[:300])


def mask(image: Image.Image) -> Callable[[Path], None]:
    return lambda folder: image.save(folder / "masks" / "00.png")


def dot() -> Image.Image:
    """A mask of the first photo with one pixel in it."""
    image = Image.new("L", (96, 72))
    image.putpixel((40, 40), 255)
    return image


def many(folder: Path) -> None:
    for number in range(201):
        shutil.copy(folder / "00.jpg", folder / f"copy{number}.jpg")


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def base(change: Callable[[Path], None]) -> Callable[[World, Path], Path]:
    """A copy of the base, changed."""

    def make(world: World, folder: Path) -> Path:
        shutil.copytree(world.base, folder / "broken_base")
        change(folder / "broken_base")
        return folder / "broken_base"

    return make


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """Other values in a JSON file."""

    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**found, **changes}))

    return change


def other_weights(folder: Path) -> None:
    path = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(path)
    save_file({name: value + 1 for name, value in tensors.items()}, path, {"format": "pt"})


def lora(world: World, folder: Path) -> Path:
    save_file({"lora_unet_down.weight": torch.zeros(2, 2)}, folder / "style.safetensors")
    return folder / "style.safetensors"


def parts_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts of a concept file."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return load_file(path), json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["concept"])


def concept(**settings: Any) -> Callable[[World, Path], Path]:
    """The finished concept with other settings."""
    return told(lambda facts: facts["settings"].update(settings))


def told(change: Callable[[dict[str, Any]], Any]) -> Callable[[World, Path], Path]:
    """The finished concept with other facts."""

    def make(world: World, folder: Path) -> Path:
        tensors, facts = parts_of(world.concept)
        change(facts)
        return _saved(folder, tensors, json.dumps(facts))

    return make


def tensors_with(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[World, Path], Path]:
    """The finished concept with other tensors."""

    def make(world: World, folder: Path) -> Path:
        tensors, facts = parts_of(world.concept)
        change(tensors)
        return _saved(folder, tensors, json.dumps(facts))

    return make


def metadata(text: str) -> Callable[[World, Path], Path]:
    return lambda world, folder: _saved(folder, load_file(world.concept), text)


def _saved(folder: Path, tensors: dict[str, torch.Tensor], text: str) -> Path:
    save_file(tensors, folder / "bad.safetensors", {"format": "eqdiff-concept-1", "concept": text})
    return folder / "bad.safetensors"


def raw_header(header: Any, length: int | None = None) -> Callable[[World, Path], Path]:
    """A file with this header, and another length of it if told so."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return file(struct.pack("<Q", len(text) if length is None else length) + text, "bad.safetensors")


def without_photos(world: World, folder: Path) -> Path:
    tensors, facts = parts_of(world.concept)
    facts["photos"] = []
    for part in ("latents", "masks"):
        del tensors[f"reference.{part}"]
    return _saved(folder, tensors, json.dumps(facts))


def samples(change: Callable[[Path], None]) -> Callable[[World, Path], Path]:
    """A copy of the finished folder's results, changed."""

    def make(world: World, folder: Path) -> Path:
        shutil.copytree(world.finished / "samples", folder / "out" / "samples")
        shutil.copy(world.finished / "config.json", folder / "out")
        change(folder / "out")
        return folder / "out"

    return make


HUGE = {"dtype": "F32", "shape": [2**19, 2**19], "data_offsets": [0, 2**40]}
FACTS = {"format": "eqdiff-concept-1", "concept": "{}"}
LONG = "a painting of many things, " * 30 + "and a {}"
NOWHERE = "a" * 300

CASES = [
    # -- training: flags
    trains("no steps", "max_train_steps", max_train_steps=0),
    trains("steps in words", "max_train_steps", max_train_steps="many"),
    trains("half a step", "max_train_steps", max_train_steps=1.5),
    trains("rate is nan", "learning_rate", learning_rate="nan"),
    trains("rate is infinite", "learning_rate", learning_rate="inf"),
    trains("negative rate", "learning_rate", learning_rate=-1),
    trains("negative seed", "seed", seed=-1),
    trains("seed beyond 64 bits", "seed", seed=2**70),
    trains("dilation above 1", "mask_dilation", mask_dilation=2),
    trains("bands do not sum", "band_probs", "--band_probs", ".5", ".5", ".5"),
    trains("two bands", "band_probs", "--band_probs", ".5", ".5"),
    trains("resolution not of 8", "resolution", resolution=100),
    trains("resolution too small", "resolution", resolution=8),
    trains("unknown preset", "sdxl", preset="sdxl"),
    trains("unknown flag", "no_such_flag", "--no_such_flag", "1"),
    trains("unknown precision", "mixed_precision", mixed_precision="fp8"),
    trains("unknown memory", "memory", memory=16),
    trains("flag without value", "seed", "--seed"),
    trains("caption without slot", "instance_prompt", instance_prompt="a photo"),
    trains("caption with control character", "U+0007", instance_prompt="a \a {}"),
    trains("caption too long", "lies beyond", instance_prompt=LONG),
    trains("class word of spaces", "class_word", class_word=" "),
    trains("class word is a slot", "class_word", class_word="{}"),
    trains("class word of two lines", "class_word", class_word="cat\ntoy"),
    trains("class word is an essay", "class_word", class_word="toy " * 50),
    trains("class prompt with subject", "class_prompt", class_prompt="<new1> toy"),
    trains("reference prompt with subject", "reference_prompt", reference_prompt="a <NEW1>"),
    trains("no rare token", "rare_token", rare_token=""),
    trains("no layer named", "rra_layers", "--rra_layers", ""),
    trains("layers that are not", "rra_layers", rra_layers="nowhere"),
    trains("loss layers that are not", "nowhere", ra_loss_layers="nowhere"),
    # -- training: prompts, photos, masks
    trains("preview prompts missing", MISSING, validation_prompts=missing),
    trains("preview prompts empty", "plain_file", validation_prompts=file(b"# none\n")),
    trains("preview prompts without slot", "line 2", validation_prompts=file(b"a {}\na mug\n")),
    trains("preview prompts are a picture", "plain_file", validation_prompts=file(b"\x89PNG\xff\x00")),
    trains("photos missing", MISSING, instance_data_dir=missing),
    trains("photos are a file", "plain_file", instance_data_dir=file()),
    trains("photo folder empty", "empty_folder", instance_data_dir=empty),
    trains("photo folder of junk", "photos", instance_data_dir=photos(only("notes.txt", b"x"))),
    trains("photo of no bytes alone", "photos", instance_data_dir=photos(only("a.jpg", b""))),
    trains("photo is text", "01.jpg", instance_data_dir=photos(write("01.jpg", b"no picture"))),
    trains("photo is cut off", "02.jpg", instance_data_dir=photos(cut("02.jpg"))),
    trains("photo is a bomb", "huge.png", instance_data_dir=photos(write("huge.png", bomb()))),
    trains("photos differ in suffix", "00.jpg", instance_data_dir=photos(write("00.png", b"x"))),
    trains("too many photos", "205 photos", instance_data_dir=photos(many)),
    trains("path too long", "aaaa", instance_data_dir=NOWHERE),
    trains("class word not known", "class_word", class_word=None),
    trains("class.txt empty", "class_word", class_word=None, instance_data_dir=photos(write("class.txt", b"\n"))),
    trains("mask folder missing", MISSING, mask_dir=missing),
    trains("mask folder is a file", "plain_file", mask_dir=file()),
    trains("mask is black", "00.png", instance_data_dir=photos(mask(Image.new("L", (96, 72))))),
    trains("mask of another aspect", "00.png", instance_data_dir=photos(mask(Image.new("L", (72, 96), 255)))),
    trains("mask is text", "00.png", instance_data_dir=photos(write("masks/00.png", b"no picture"))),
    trains("mask vanishes", "00", instance_data_dir=photos(mask(dot())), resolution=32),
    trains(
        "mask for some", "00.jpg", "--no-auto_masks", instance_data_dir=photos(lambda f: (f / "masks/00.png").unlink())
    ),
    trains("no such detector", MISSING, instance_data_dir=bare_photos, detector_model=missing),
    trains("class images are a file", "plain_file", class_data_dir=file()),
    trains("class image is junk", "0.png", class_data_dir=lambda w, d: file(b"junk", "0.png")(w, d).parent),
    # -- training: base and output
    trains("base missing", MISSING, pretrained_model_name_or_path=missing),
    trains("base folder empty", "empty_folder", pretrained_model_name_or_path=empty),
    trains("base of the hub, offline", "nobody/nothing", pretrained_model_name_or_path="nobody/nothing"),
    trains("base is a pickle", "model.ckpt", pretrained_model_name_or_path=file(name="model.ckpt")),
    trains("base is a LoRA", "LoRA", pretrained_model_name_or_path=lora),
    trains("base is no safetensors", "m.safetensors", pretrained_model_name_or_path=file(name="m.safetensors")),
    trains("base is a concept", "concept", pretrained_model_name_or_path=lambda w, d: w.concept),
    trains(
        "base is SDXL",
        "Stable Diffusion XL",
        pretrained_model_name_or_path=base(edit("model_index.json", _class_name="StableDiffusionXLPipeline")),
    ),
    trains(
        "base has a torn index",
        "broken_base",
        pretrained_model_name_or_path=base(write("model_index.json", b"{")),
    ),
    trains(
        "base is torn",
        "broken_base",
        pretrained_model_name_or_path=base(cut("unet/diffusion_pytorch_model.safetensors")),
    ),
    trains("base lacks its VAE", "broken_base", pretrained_model_name_or_path=base(lambda f: shutil.rmtree(f / "vae"))),
    trains(
        "base of other widths",
        "broken_base",
        pretrained_model_name_or_path=base(edit("unet/config.json", cross_attention_dim=48)),
    ),
    trains("output is a file", "plain_file", output_dir=file()),
    trains("output under a file", "plain_file", output_dir=under_a_file),
    trains("output of half characters", "output_dir", output_dir="out\udcff"),
    trains("resume from nothing", MISSING, resume_from_checkpoint=missing),
    trains("resume from a file", "plain_file", resume_from_checkpoint=file()),
    trains("resume where nothing is", "latest", resume_from_checkpoint="latest", output_dir=empty),
    Case("finished and no overwrite", "train", lambda w, d: training(w)[:-1], "--overwrite"),
    # -- drawing: the concept
    draws("concept missing", MISSING, concept=missing),
    draws("concept folder empty", "empty_folder", concept=empty),
    draws("concept is text", "plain_file", concept=file(b"no concept at all")),
    draws("concept is empty", "plain_file", concept=file(b"")),
    draws("concept is cut off", "torn", concept=lambda w, d: file(w.concept.read_bytes()[:-9], "torn")(w, d)),
    draws("concept is a LoRA", "style.safetensors", concept=lora),
    draws("concept of another base", "trained on the base", pretrained_model_name_or_path=base(other_weights)),
    draws("header longer than the file", "bad.safetensors", concept=raw_header({}, 2**62)),
    draws("header of gigabytes", "header", concept=raw_header(" " * 3_000_000)),
    draws("a terabyte is claimed", "bad.safetensors", concept=raw_header({"__metadata__": FACTS, "a": HUGE})),
    draws("header is a list", "bad.safetensors", concept=raw_header([])),
    draws("header nests", "bad.safetensors", concept=raw_header("[" * 100_000)),
    draws("settings nest", "bad.safetensors", concept=metadata("[" * 100_000)),
    draws("settings are a list", "bad.safetensors", concept=told(lambda facts: facts.update(settings=[]))),
    draws("settings twice", "twice", concept=metadata('{"settings": {}, "settings": {}}')),
    draws("negative resolution", "resolution", concept=concept(resolution=-8)),
    draws("another resolution", "references", concept=concept(resolution=4096)),
    draws("a billion steps", "num_inference_steps", concept=concept(num_inference_steps=10**9)),
    draws("inference steps in words", "num_inference_steps", concept=concept(num_inference_steps="3; rm")),
    draws("layers nest", "rra_layers", concept=concept(rra_layers=[["mid_block"]])),
    draws("half a class word", "bad.safetensors", concept=concept(class_word="\ud800")),
    draws("no class word", "class_word", concept=concept(class_word=None)),
    draws("guidance is a list", "guidance_scale", concept=concept(guidance_scale=[1])),
    draws("photos with paths", "photos", concept=told(lambda facts: facts.update(photos=["../../x.jpg"] * 4))),
    draws("photos without latents", "references", concept=told(lambda facts: facts.update(photos=["x.jpg"] * 9))),
    draws("a value is no number", "tokens.rows", concept=tensors_with(lambda t: t["tokens.rows"].fill_(torch.nan))),
    draws("rows are missing", "token rows", concept=tensors_with(lambda t: t.pop("tokens.rows"))),
    draws(
        "rows of another width",
        "token rows",
        concept=tensors_with(lambda t: t.update({"tokens.rows": torch.zeros(2, 9)})),
    ),
    draws("a tensor too many", "does not fit", concept=tensors_with(lambda t: t.update({"unet.x": torch.zeros(1)}))),
    draws(
        "whole numbers",
        "unet.x",
        concept=tensors_with(lambda t: t.update({"unet.x": torch.zeros(1, dtype=torch.int8)})),
    ),
    draws("no photos to attend to", "instance_data_dir", concept=without_photos),
    # -- drawing: the rest
    draws("prompt without slot", "a mug", prompt="a mug"),
    draws("prompt empty", "--prompt", prompt=""),
    draws("prompt with NUL", "--prompt", prompt="a {}\0"),
    draws("prompt of half characters", "--prompt", prompt="a {}\ud800"),
    draws("slot beyond what is read", "lies beyond", prompt=LONG),
    draws("second slot beyond what is read", "lies beyond", prompt="a {}, " + LONG),
    draws("prompts missing", MISSING, prompts=missing),
    draws("prompts are a folder", "empty_folder", prompts=empty),
    draws("prompts empty", "plain_file", prompts=file(b"")),
    draws("prompts binary", "plain_file", prompts=file(bytes(range(256)))),
    draws("prompts without slot", "line 1", prompts=file(b"a mug")),
    draws("unknown sampler", "scheduler", scheduler="euler"),
    draws("no inference step", "num_inference_steps", num_inference_steps=0),
    draws("too many inference steps", "num_inference_steps", num_inference_steps=1001),
    draws("guidance is nan", "guidance_scale", guidance_scale="nan"),
    draws("no batch", "batch_size", batch_size=0),
    draws("no image", "num_images_per_prompt", num_images_per_prompt=0),
    draws("window backwards", "attention_window", "--attention_window", "1", "0"),
    draws("no such reference", "99.jpg", reference="99.jpg"),
    draws("reference beyond the last", "--reference 4", reference=4),
    draws("reference is a power", "²", reference="²"),
    draws("too many references", "num_references", num_references=17),
    draws("other photos missing", MISSING, instance_data_dir=missing),
    draws("other masks missing", MISSING, instance_data_dir=lambda w, d: w.subject, mask_dir=missing),
    draws("samples are a file", "plain_file", output_dir=file()),
    draws("samples under a file", "plain_file", output_dir=under_a_file),
    draws("drawing base missing", MISSING, pretrained_model_name_or_path=missing),
    # -- exporting
    exports("export of nothing", MISSING, concept=missing),
    exports("export to nothing", "compress", compress=0),
    exports("export to nan", "compress", compress="nan"),
    exports("export to too little", "--compress 0.001", compress=0.001),
    exports("export under another suffix", "x.bin", output="x.bin"),
    exports("export onto itself", "concept itself", output=lambda w, d: w.concept),
    exports("export onto a file", "there.safetensors", output=file(name="there.safetensors")),
    exports("export under a file", "plain_file", output=lambda w, d: under_a_file(w, d) / "x.safetensors"),
    exports("compressed inversion", "compress", compress=1, format="textual_inversion"),
    exports("unknown format", "format", format="ckpt"),
    exports("unknown dtype", "dtype", dtype="int8"),
    exports("export of hostile settings", "resolution", concept=concept(resolution=[1])),
    # -- measuring
    measures("samples missing", MISSING, samples=missing),
    measures("manifest torn", "line 1", samples=samples(write("samples/manifest.jsonl", b'{"file": '))),
    measures("manifest binary", "manifest.jsonl", samples=samples(write("samples/manifest.jsonl", b"\xff\xfe"))),
    measures("manifest of nothing", "manifest.jsonl", samples=samples(write("samples/manifest.jsonl", b""))),
    measures(
        "manifest names a stranger",
        "line 1",
        samples=samples(write("samples/manifest.jsonl", b'{"file": "../config.json", "prompt": "a {}"}')),
    ),
    measures(
        "manifest names a lost picture",
        "lost.png",
        samples=samples(write("samples/manifest.jsonl", b'{"file": "lost.png", "prompt": "a {}"}')),
    ),
    measures("settings near are torn", "config.json", samples=samples(write("config.json", b"{"))),
    measures(
        "settings near are numbers",
        "instance_data_dir",
        samples=samples(write("config.json", b'{"instance_data_dir": 5}')),
    ),
    measures("CLIP missing", MISSING, clip_model=missing),
    measures("CLIP is the base", "clip_model", clip_model=lambda w, d: w.base),
    measures("CLIP of the hub, offline", "nobody/clip", clip_model="nobody/clip"),
    measures("best of one", "--pick", "--pick"),
    measures("no batch of pictures", "batch_size", batch_size=0),
    # -- making masks
    Case("masks of nothing", "masks", lambda w, d: [], "SUBJECT_DIR"),
    masks("masks of a missing folder", MISSING, instance_data_dir=missing),
    masks("masks of an empty folder", "empty_folder", instance_data_dir=empty),
    masks("masks of junk", "01.jpg", instance_data_dir=photos(write("01.jpg", b"no picture"))),
    masks("masks of nobody knows what", "class_word", class_word=None),
    masks("masks into a file", "plain_file", mask_dir=file()),
    masks("masks by magic", "mask_maker", mask_maker="magic"),
    masks("masks by a missing detector", MISSING, detector_model=missing),
]
AS_PROCESSES = (
    "no steps", "photos missing", "base is SDXL", "a terabyte is claimed", "prompt without slot",
    "compressed inversion",
    "samples missing", "masks of a missing folder",
)  # fmt: skip
