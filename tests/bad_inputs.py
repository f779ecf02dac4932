"""What users get wrong: each case is a command line on a small world, and the word that its error
line must name."""

import hashlib
import io
import json
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from helpers import TINY, flags
from PIL import Image
from safetensors.torch import load_file, save_file

MISSING = "not_there"


@dataclass(frozen=True)
class World:
    """A base, photos, and the output folder of a finished training with its samples, none of which
    may change."""

    base: Path
    subject: Path
    finished: Path

    @property
    def concept(self) -> Path:
        return self.finished / "concept.safetensors"


class Case(NamedTuple):
    """`argv(world, folder)`: the command line of `program`, with `folder` to make broken things
    in.
    """

    name: str
    program: str
    argv: Callable[[World, Path], list[str]]
    culprit: str


# -- command lines ---------------------------------------------------------------------------------


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
    given = {
        "pretrained_model_name_or_path": world.base,
        "concept": world.finished,
        "prompt": "a {}",
    }
    return [*_words({**given, "num_inference_steps": 1, **changes}), *more]


def trains(name: str, culprit: str, *more: str, **changes: Any) -> Case:
    """A training with settings that may be functions of (world, folder)."""
    return Case(name, "train", lambda w, d: training(w, *more, **_made(changes, w, d)), culprit)


def draws(name: str, culprit: str, *more: str, **changes: Any) -> Case:
    return Case(name, "test", lambda w, d: drawing(w, *more, **_made(changes, w, d)), culprit)


def twice(name: str, culprit: str, **changes: Any) -> Case:
    """A drawing with two concepts, the same one twice."""
    again = lambda w, d: drawing(w, "--concept", str(w.finished), **_made(changes, w, d))  # noqa: E731
    return Case(name, "test", again, culprit)


def exports(name: str, culprit: str, **changes: Any) -> Case:
    given = {
        "concept": lambda w, d: w.finished,
        "pretrained_model_name_or_path": lambda w, d: w.base,
        **changes,
    }
    return Case(name, "export", lambda w, d: _words(_made(given, w, d)), culprit)


def measures(name: str, culprit: str, *more: str, **changes: Any) -> Case:
    given = {"samples": lambda w, d: w.finished, **changes}
    return Case(name, "eval", lambda w, d: [*_words(_made(given, w, d)), *more], culprit)


def masks(name: str, culprit: str, **changes: Any) -> Case:
    given = {"instance_data_dir": bare_photos, "class_word": "dog toy", **changes}
    return Case(name, "masks", lambda w, d: _words(_made(given, w, d)), culprit)


def rebuilds(name: str, culprit: str, **changes: Any) -> Case:
    given = {"base": lambda w, d: w.base, "subjects": lambda w, d: w.subject.parent, **changes}
    return Case(name, "reproduce", lambda w, d: _words(_made(given, w, d)), culprit)


def shows(name: str, culprit: str, *more: str, **changes: Any) -> Case:
    given = {
        "runs": lambda w, d: w.finished,
        "output": lambda w, d: d / "page.html",
        **changes,
    }
    return Case(name, "gallery", lambda w, d: [*_words(_made(given, w, d)), *more], culprit)


def _made(changes: dict[str, Any], world: World, folder: Path) -> dict[str, Any]:
    return {
        name: value(world, folder) if callable(value) else value for name, value in changes.items()
    }


def _words(given: dict[str, Any]) -> list[str]:
    """The command line of settings; None: not given."""
    return flags({name: value for name, value in given.items() if value is not None})


# -- broken things ---------------------------------------------------------------------------------


def missing(world: World, folder: Path) -> Path:
    return folder / MISSING


def empty(world: World, folder: Path) -> Path:
    (folder / "empty_folder").mkdir()
    return folder / "empty_folder"


def known(world: World, folder: Path) -> Path:
    """A subject whose class word is known by its name, in a folder of subjects."""
    shutil.copytree(world.subject, folder / "subjects" / "can")
    return folder / "subjects"


def file(content: bytes = b"x", name: str = "plain_file") -> Callable[[World, Path], Path]:
    def make(world: World, folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def pipe(world: World, folder: Path) -> Path:
    """A named pipe that nobody writes into: who opens it waits for ever."""
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def pipe_in(name: str) -> Callable[[Path], None]:
    """A named pipe in place of a file of a folder."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def endless(world: World, folder: Path) -> Path:
    """A link to a device whose content never ends."""
    (folder / "endless").symlink_to("/dev/zero")
    return folder / "endless"


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


def bomb(width: int = 60_000, height: int = 60_000, kind: int = 2) -> bytes:
    """A PNG of so many pixels in a few bytes. kind: 2 for colours, 6 with alpha."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def plain(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel."""
    data = io.BytesIO()
    Image.new("1", (width, height)).save(data, format="PNG", compress_level=1)
    return data.getvalue()


def picture(image: Image.Image, container: str, **how: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, format=container, **how)
    return data.getvalue()


def levels(white: float, dtype: str) -> Image.Image:
    """A mask of the first photo whose white is not a byte's."""
    samples = np.zeros((72, 96), dtype)
    samples[20:60, 20:60] = white
    return Image.fromarray(samples)


def postscript() -> bytes:
    """A picture as EPS, which Pillow has Ghostscript run."""
    return picture(Image.new("RGB", (96, 72), "white"), "EPS")


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
    save_file({name: value * 1.01 for name, value in tensors.items()}, path, {"format": "pt"})


SCHEDULE = "scheduler/scheduler_config.json"


def scheduled(**changes: Any) -> Callable[[World, Path], Path]:
    """A base with another noise schedule."""
    return base(edit(SCHEDULE, **changes))


def not_a_number(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_in.bias"][0] = torch.nan
    save_file(tensors, path, {"format": "pt"})


# a token that was added to a tokenizer and never given an embedding
orphan = base(write("tokenizer/added_tokens.json", b'{"<cat-toy>": 5000}'))


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
    return file(
        struct.pack("<Q", len(text) if length is None else length) + text, "bad.safetensors"
    )


def without_photos(world: World, folder: Path) -> Path:
    tensors, facts = parts_of(world.concept)
    facts["photos"] = []
    for part in ("latents", "masks"):
        del tensors[f"reference.{part}"]
    return _saved(folder, tensors, json.dumps(facts))


TAKEN = socket.socket()  # listens as long as the tests run


def taken_port() -> str:
    """The port of another program."""
    if TAKEN.getsockname()[1] == 0:
        TAKEN.bind(("127.0.0.1", 0))
        TAKEN.listen()
    return str(TAKEN.getsockname()[1])


def strangers_page(world: World, folder: Path) -> Path:
    return file(b"<!doctype html>", "page.html")(world, folder)


def samples(change: Callable[[Path], None]) -> Callable[[World, Path], Path]:
    """A copy of the finished folder's results, changed."""

    def make(world: World, folder: Path) -> Path:
        shutil.copytree(world.finished / "samples", folder / "out" / "samples")
        shutil.copy(world.finished / "config.json", folder / "out")
        change(folder / "out")
        return folder / "out"

    return make


def checkpoint(change: Callable[[Path], None]) -> Callable[[World, Path], Path]:
    """A copy of the finished training's first checkpoint, changed."""

    def make(world: World, folder: Path) -> Path:
        shutil.copytree(world.finished / "checkpoints" / "step-000001", folder / "step-000001")
        change(folder / "step-000001")
        return folder / "step-000001"

    return make


def moments(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Other tensors of the optimizer, with a state.json that vouches for them."""

    def change(folder: Path) -> None:
        path = folder / "optimizer.safetensors"
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)
        state = json.loads((folder / "state.json").read_text())
        state["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "state.json").write_text(json.dumps(state))

    return change


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["without a slash"] = tensors.pop(min(tensors))


def reshaped(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in sorted(tensors) if name.startswith("exp_avg/"))
    tensors[name] = torch.zeros(7)


def not_finite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[next(name for name in sorted(tensors) if name.startswith("exp_avg/"))].fill_(torch.nan)


def resumes(name: str, culprit: str, change: Callable[[Path], None]) -> Case:
    """A training that resumes from a changed checkpoint."""
    return trains(
        name, culprit, max_train_steps=2, log_steps=1, resume_from_checkpoint=checkpoint(change)
    )


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
    trains("negative rate", "0 or more", learning_rate=-1),
    trains("rate beyond all use", "9.22337e+18 or less", learning_rate=1e30),
    trains("negative seed", "seed", seed=-1),
    trains("seed beyond 64 bits", "seed", seed=2**70),
    trains("dilation above 1", "mask_dilation", mask_dilation=2),
    trains(
        "noise outside a mask that none has", "masking noise", masking="loss", full_noise_share=1
    ),
    trains("background without noise", "background_loss_weight", background_loss_weight=1),
    trains("a mask that does not grow", "mask_dilation", "--mask_dilation_by_t"),
    trains("no frozen UNet to match", "prior_kind", "--no-rra", prior_kind="prediction"),
    trains(
        "predictions without a prior",
        "no-with_prior_preservation",
        "--no-with_prior_preservation",
        prior_kind="prediction",
    ),
    trains("bands do not sum", "band_probs", "--band_probs", ".5", ".5", ".5"),
    trains("two bands", "band_probs", "--band_probs", ".5", ".5"),
    trains("resolution not of 8", "resolution", resolution=100),
    trains("resolution too small", "resolution", resolution=8),
    trains("unknown preset", "sdxl", preset="sdxl"),
    trains("unknown method", "no_such_method", method="no_such_method"),
    trains("method without a release", "paper, toybox", method="dreambooth", preset="official"),
    trains("unknown streams", "infusion_streams", method="infusion", infusion_streams="three"),
    trains(
        "a loss on maps that two streams do not report",
        "cross_loss_weight",
        method="infusion",
        cross_loss_weight=1,
    ),
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
    trains("preview prompts are a pipe", "no regular file", validation_prompts=pipe),
    trains("preview prompts never end", "no regular file", validation_prompts=endless),
    trains("photos are a pipe", "pipe", instance_data_dir=pipe),
    trains("base is a pipe", "pipe", pretrained_model_name_or_path=pipe),
    trains("class images are a pipe", "pipe", class_data_dir=pipe),
    trains(
        "class.txt is a novel",
        "class_word",
        class_word=None,
        instance_data_dir=photos(write("class.txt", b"once upon a time " * 10_000)),
    ),
    trains("preview prompts empty", "plain_file", validation_prompts=file(b"# none\n")),
    trains("preview prompts without slot", "line 2", validation_prompts=file(b"a {}\na mug\n")),
    trains(
        "preview prompts are a picture", "plain_file", validation_prompts=file(b"\x89PNG\xff\x00")
    ),
    trains("class prompts missing", MISSING, class_prompts=missing),
    trains("class prompts are a pipe", "no regular file", class_prompts=pipe),
    trains("class prompts empty", "plain_file", class_prompts=file(b"# none\n")),
    trains("class prompts with subject", "line 2", class_prompts=file(b"a {}\na <new1> mug\n")),
    trains(
        "class prompts beside class images",
        "class_data_dir",
        class_prompts="p.txt",
        class_data_dir="c",
    ),
    trains("photos missing", MISSING, instance_data_dir=missing),
    trains("photos are a file", "plain_file", instance_data_dir=file()),
    trains("photo folder empty", "empty_folder", instance_data_dir=empty),
    trains("photo folder of junk", "photos", instance_data_dir=photos(only("notes.txt", b"x"))),
    trains("photo of no bytes alone", "photos", instance_data_dir=photos(only("a.jpg", b""))),
    trains("photo is text", "01.jpg", instance_data_dir=photos(write("01.jpg", b"no picture"))),
    trains("photo is cut off", "02.jpg", instance_data_dir=photos(cut("02.jpg"))),
    trains("photo is a program", "01.jpg", instance_data_dir=photos(write("01.jpg", postscript()))),
    trains(
        "mask is a program", "00.png", instance_data_dir=photos(write("masks/00.png", postscript()))
    ),
    trains("photo is a bomb", "huge.png", instance_data_dir=photos(write("huge.png", bomb()))),
    trains(
        "photo of many pixels with alpha",
        "huge.png",
        instance_data_dir=photos(write("huge.png", bomb(17_300, 17_300, 6))),
    ),
    trains(
        "photo is a line",
        "line.png",
        instance_data_dir=photos(write("line.png", bomb(1, 80_000, 6))),
    ),
    trains(
        "photo of 12 bits in 16",
        "deep.png",
        instance_data_dir=photos(write("deep.png", picture(levels(4095, "u2"), "PNG"))),
    ),
    trains(
        "photo of floats beyond white",
        "deep.tif",
        instance_data_dir=photos(write("deep.tif", picture(levels(3.5, "f4"), "TIFF"))),
    ),
    trains(
        "photo of floats, not numbers",
        "deep.tif",
        instance_data_dir=photos(write("deep.tif", picture(levels(float("nan"), "f4"), "TIFF"))),
    ),
    trains(
        "photo of inks with a broken profile",
        "inks.jpg",
        instance_data_dir=photos(
            write("inks.jpg", picture(Image.new("CMYK", (96, 72)), "JPEG", icc_profile=b"x" * 200))
        ),
    ),
    trains(
        "photo is half a download",
        "half.jpg",
        instance_data_dir=photos(
            write("half.jpg", picture(Image.effect_noise((96, 72), 60), "JPEG")[:-99] + bytes(4096))
        ),
    ),
    trains(
        "mask of a byte in 16 bits",
        "00.png",
        instance_data_dir=photos(mask(levels(255, "u2"))),
    ),
    trains("photos differ in suffix", "00.jpg", instance_data_dir=photos(write("00.png", b"x"))),
    trains("too many photos", "205 photos", instance_data_dir=photos(many)),
    trains("path too long", "aaaa", instance_data_dir=NOWHERE),
    trains("class word not known", "class_word", class_word=None),
    trains(
        "class.txt empty",
        "class_word",
        class_word=None,
        instance_data_dir=photos(write("class.txt", b"\n")),
    ),
    trains("mask folder missing", MISSING, mask_dir=missing),
    trains("mask folder is a file", "plain_file", mask_dir=file()),
    trains("mask is black", "00.png", instance_data_dir=photos(mask(Image.new("L", (96, 72))))),
    trains(
        "mask of another aspect",
        "00.png",
        instance_data_dir=photos(mask(Image.new("L", (72, 96), 255))),
    ),
    trains(
        "mask is text", "00.png", instance_data_dir=photos(write("masks/00.png", b"no picture"))
    ),
    trains("mask vanishes", "00", instance_data_dir=photos(mask(dot())), resolution=32),
    trains(
        "mask for some",
        "00.jpg",
        "--no-auto_masks",
        instance_data_dir=photos(lambda f: (f / "masks/00.png").unlink()),
    ),
    trains("no such detector", MISSING, instance_data_dir=bare_photos, detector_model=missing),
    trains("class images are a file", "plain_file", class_data_dir=file()),
    trains(
        "class image is junk",
        "0.png",
        class_data_dir=lambda w, d: file(b"junk", "0.png")(w, d).parent,
    ),
    trains(
        "class image is a program",
        "0.png",
        class_data_dir=lambda w, d: file(postscript(), "0.png")(w, d).parent,
    ),
    # -- training: base and output
    trains("base missing", MISSING, pretrained_model_name_or_path=missing),
    trains("base folder empty", "empty_folder", pretrained_model_name_or_path=empty),
    trains(
        "base of the hub, offline", "nobody/nothing", pretrained_model_name_or_path="nobody/nothing"
    ),
    trains("base is a pickle", "model.ckpt", pretrained_model_name_or_path=file(name="model.ckpt")),
    trains("base is a LoRA", "LoRA", pretrained_model_name_or_path=lora),
    trains(
        "base is no safetensors",
        "m.safetensors",
        pretrained_model_name_or_path=file(name="m.safetensors"),
    ),
    trains("base is a concept", "concept", pretrained_model_name_or_path=lambda w, d: w.concept),
    trains(
        "base is SDXL",
        "Stable Diffusion XL",
        pretrained_model_name_or_path=base(
            edit("model_index.json", _class_name="StableDiffusionXLPipeline")
        ),
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
    trains(
        "base lacks its VAE",
        "broken_base",
        pretrained_model_name_or_path=base(lambda f: shutil.rmtree(f / "vae")),
    ),
    trains(
        "base of other widths",
        "broken_base",
        pretrained_model_name_or_path=base(edit("unet/config.json", cross_attention_dim=48)),
    ),
    trains(
        "base is a path to nothing",
        "the hub is not asked",
        pretrained_model_name_or_path="models/stable-diffusion-v1-4",
    ),
    trains(
        "base without timesteps",
        "num_train_timesteps is 0",
        pretrained_model_name_or_path=scheduled(num_train_timesteps=0),
    ),
    trains(
        "base with betas beyond 1",
        "betas",
        pretrained_model_name_or_path=scheduled(beta_end=4),
    ),
    trains(
        "base of a flow",
        "flow_prediction",
        pretrained_model_name_or_path=scheduled(prediction_type="flow_prediction"),
    ),
    trains(
        "base with fewer timesteps than steps",
        "--class_inference_steps",
        pretrained_model_name_or_path=scheduled(num_train_timesteps=1),
    ),
    trains(
        "base with a value that is no number",
        "decoder.conv_in.bias",
        pretrained_model_name_or_path=base(not_a_number),
    ),
    trains(
        "base with a scale in words",
        "scaling_factor",
        pretrained_model_name_or_path=base(edit("vae/config.json", scaling_factor="text")),
    ),
    trains(
        "base without a tokenizer",
        "tokenizer",
        pretrained_model_name_or_path=base(lambda f: shutil.rmtree(f / "tokenizer")),
    ),
    trains(
        "class prompt with a token of no embedding",
        "<cat-toy>",
        pretrained_model_name_or_path=orphan,
        class_prompt="a <cat-toy>",
    ),
    trains("output is a file", "plain_file", output_dir=file()),
    trains("output under a file", "plain_file", output_dir=under_a_file),
    trains("output of half characters", "output_dir", output_dir="out\udcff"),
    trains("resume from nothing", MISSING, resume_from_checkpoint=missing),
    trains("resume from a file", "plain_file", resume_from_checkpoint=file()),
    trains("resume from a pipe", "pipe", resume_from_checkpoint=pipe),
    resumes("a state that is a pipe", "state.json", pipe_in("state.json")),
    resumes("a state that is a list", "state.json", write("state.json", b"[1]")),
    resumes("a state of deep brackets", "recursion", write("state.json", b"[" * 100_000)),
    resumes("step -1", "'step'", edit("state.json", step=-1)),
    resumes("step true", "'step'", edit("state.json", step=True)),
    resumes("step in words", "'step'", edit("state.json", step="two")),
    resumes("another step than the concept's", "state.json", edit("state.json", step=2)),
    resumes("no processes", "'processes'", edit("state.json", processes=0)),
    resumes("settings that are text", "'config'", edit("state.json", config="none")),
    resumes("data that is a list", "'data'", edit("state.json", data=[])),
    resumes("a checkpoint of no files", "'files'", edit("state.json", files={})),
    resumes("a file outside the checkpoint", "'files'", edit("state.json", files={"../a": "b"})),
    resumes("a moment without its parameter", "of another training (exp_avg/", moments(renamed)),
    resumes("a moment of another shape", "damaged (exp_avg/", moments(reshaped)),
    resumes("a moment that is not finite", "damaged (exp_avg/", moments(not_finite)),
    trains("resume where nothing is", "latest", resume_from_checkpoint="latest", output_dir=empty),
    Case("finished and no overwrite", "train", lambda w, d: training(w)[:-1], "--overwrite"),
    # -- drawing: the concept
    draws("concept missing", MISSING, concept=missing),
    draws("concept is a pipe", "pipe", concept=pipe),
    draws("prompts are a pipe", "no regular file", prompts=pipe, prompt=None),
    draws("prompts never end", "no regular file", prompts=endless, prompt=None),
    draws(
        "prompts of many megabytes",
        "10,000,000 bytes",
        prompts=file(b"a {} in the snow\n" * 700_000, "many.txt"),
        prompt=None,
    ),
    twice("two concepts of a method that draws one", "of --method eqdiff", prompt="a {1}"),
    twice("two concepts and {}", "{} is none of the 2 concepts"),
    twice("two concepts and the prompts of one", "several concepts", prompt=None),
    draws("two options that add to the UNet's calls", "--dci", "--alignit", "--dci"),
    draws("concept folder empty", "empty_folder", concept=empty),
    draws("concept is text", "plain_file", concept=file(b"no concept at all")),
    draws("concept is empty", "plain_file", concept=file(b"")),
    draws(
        "concept is cut off",
        "torn",
        concept=lambda w, d: file(w.concept.read_bytes()[:-9], "torn")(w, d),
    ),
    draws("concept of no method", "--method 'magic'", concept=concept(method="magic")),
    draws("concept of another method's tag", "method", concept=concept(method=1)),
    draws("concept is a LoRA", "style.safetensors", concept=lora),
    draws(
        "concept of another base",
        "trained on the base",
        pretrained_model_name_or_path=base(other_weights),
    ),
    draws("header longer than the file", "bad.safetensors", concept=raw_header({}, 2**62)),
    draws("header of gigabytes", "header", concept=raw_header(" " * 3_000_000)),
    draws(
        "a terabyte is claimed",
        "bad.safetensors",
        concept=raw_header({"__metadata__": FACTS, "a": HUGE}),
    ),
    draws("header is a list", "bad.safetensors", concept=raw_header([])),
    draws("header nests", "bad.safetensors", concept=raw_header("[" * 100_000)),
    draws("settings nest", "bad.safetensors", concept=metadata("[" * 100_000)),
    draws(
        "settings are a list",
        "bad.safetensors",
        concept=told(lambda facts: facts.update(settings=[])),
    ),
    draws("settings twice", "twice", concept=metadata('{"settings": {}, "settings": {}}')),
    draws("negative resolution", "resolution", concept=concept(resolution=-8)),
    draws("another resolution", "references", concept=concept(resolution=4096)),
    draws("a billion steps", "num_inference_steps", concept=concept(num_inference_steps=10**9)),
    draws(
        "inference steps in words",
        "num_inference_steps",
        concept=concept(num_inference_steps="3; rm"),
    ),
    draws("layers nest", "rra_layers", concept=concept(rra_layers=[["mid_block"]])),
    draws("half a class word", "bad.safetensors", concept=concept(class_word="\ud800")),
    draws("no class word", "class_word", concept=concept(class_word=None)),
    draws("guidance is a list", "guidance_scale", concept=concept(guidance_scale=[1])),
    draws(
        "photos with paths",
        "photos",
        concept=told(lambda facts: facts.update(photos=["../../x.jpg"] * 4)),
    ),
    draws(
        "photos without latents",
        "references",
        concept=told(lambda facts: facts.update(photos=["x.jpg"] * 9)),
    ),
    draws(
        "a value is no number",
        "tokens.rows",
        concept=tensors_with(lambda t: t["tokens.rows"].fill_(torch.nan)),
    ),
    draws(
        "rows are too large to square",
        "tokens.rows",
        concept=tensors_with(lambda t: t["tokens.rows"].fill_(1e38)),
    ),
    draws(
        "latents are too large to square",
        "latents",
        concept=tensors_with(lambda t: t["reference.latents"].fill_(1e30)),
    ),
    draws(
        "identity of the base is a list",
        "identity of its base",
        concept=told(lambda facts: facts.update(base=[])),
    ),
    draws(
        "rows are missing",
        "tokens.rows differs",
        concept=tensors_with(lambda t: t.pop("tokens.rows")),
    ),
    draws(
        "rows of another width",
        "tokens.rows differs",
        concept=tensors_with(lambda t: t.update({"tokens.rows": torch.zeros(2, 9)})),
    ),
    draws(
        "a tensor too many",
        "does not fit",
        concept=tensors_with(lambda t: t.update({"unet.x": torch.zeros(1)})),
    ),
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
    draws("negative prompt with NUL", "--negative_prompt", negative_prompt="red\0"),
    draws("negative prompt too long", "--negative_prompt", negative_prompt="red " * 3000),
    draws("negative subject beyond what is read", "lies beyond", negative_prompt=LONG),
    draws("height is no multiple of 8", "--height 100", height=100),
    draws("width is no multiple of 8", "--width 100", width=100),
    draws("no height", "--height 0", height=0),
    draws("negative width", "--width -64", width=-64),
    draws("width in words", "--width", width="wide"),
    draws("width beyond all use", "--width 8192", width=8192),
    draws("unknown sampler", "scheduler", scheduler="euler"),
    draws("no inference step", "num_inference_steps", num_inference_steps=0),
    draws("too many inference steps", "num_inference_steps", num_inference_steps=1001),
    draws("guidance is nan", "guidance_scale", guidance_scale="nan"),
    draws("no batch", "batch_size", batch_size=0),
    draws("no image", "num_images_per_prompt", num_images_per_prompt=0),
    draws("strength below 0", "from 0 to 4", reference_strength=-1),
    draws("strength of nothing", "no-rra", "--no-rra", reference_strength=0.5),
    draws("rescaled beyond all", "guidance_rescale", guidance_rescale=2),
    draws("window backwards", "attention_window", "--attention_window", "1", "0"),
    draws("second picture of nothing", "dci_noun", "--dci", dci_noun=" "),
    draws("second picture of a slot", "dci_noun", "--dci", dci_noun="a {}"),
    draws("second picture of a plural", "two {}s", "--dci", prompt="two {}s"),
    draws("lambda is nan", "dci_lambda", "--dci", dci_lambda="nan"),
    draws("lambda beyond all use", "dci_lambda", "--dci", dci_lambda=1e9),
    draws("second picture for twice the steps", "dci_share", "--dci", dci_share=2),
    draws("gate of another kind", "dci_gate", "--dci", dci_gate="soft"),
    draws("guidance of another kind", "dci_guidance", "--dci", dci_guidance="none"),
    draws("lambda without a second picture", "without --dci", dci_lambda=1),
    draws("matching beside RRA", "--no-rra", "--dreammatcher"),
    draws(
        "matching without a photo",
        "instance_data_dir",
        "--dreammatcher",
        "--no-rra",
        concept=without_photos,
    ),
    draws(
        "matching nowhere",
        "up_blocks.9",
        "--dreammatcher",
        "--no-rra",
        dreammatcher_layers="up_blocks.9",
    ),
    draws("matching from beyond the end", "dreammatcher_start", dreammatcher_start=1.5),
    draws("matching within a negative limit", "confidence", dreammatcher_confidence=-1),
    draws(
        "masks that are off and sharp",
        "--no-dreammatcher_masks",
        "--dreammatcher",
        "--no-dreammatcher_masks",
        "--no-rra",
        dreammatcher_confidence=0.2,
    ),
    draws("guidance to the photo is nan", "dreammatcher_guidance", dreammatcher_guidance="nan"),
    draws("photos beside RRA", "--no-rra", "--freecustom"),
    draws(
        "photos that are not there",
        "--freecustom",
        "--freecustom",
        "--no-rra",
        concept=without_photos,
    ),
    draws(
        "photos nowhere",
        "up_blocks.9",
        "--freecustom",
        "--no-rra",
        freecustom_layers="up_blocks.9",
    ),
    draws("photos beyond all weight", "freecustom_weight", freecustom_weight=1e6),
    draws("photos in a third half", "freecustom_halves", freecustom_halves="all"),
    draws("no such reference", "99.jpg", reference="99.jpg"),
    draws("reference beyond the last", "--reference 4", reference=4),
    draws("reference is a power", "²", reference="²"),
    draws("too many references", "num_references", num_references=17),
    draws("other photos missing", MISSING, instance_data_dir=missing),
    draws(
        "other masks missing", MISSING, instance_data_dir=lambda w, d: w.subject, mask_dir=missing
    ),
    draws("samples are a file", "plain_file", output_dir=file()),
    draws("samples under a file", "plain_file", output_dir=under_a_file),
    draws("drawing base missing", MISSING, pretrained_model_name_or_path=missing),
    draws(
        "prompt with a token of no embedding",
        "<cat-toy>",
        pretrained_model_name_or_path=orphan,
        prompt="a {} by <cat-toy>",
    ),
    draws("a step beyond the schedule", "timestep 1000", num_inference_steps=1000),
    draws(
        "nothing left at the first step, and noise predicted",
        "rescale_betas_zero_snr",
        pretrained_model_name_or_path=scheduled(
            rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
    ),
    # -- exporting
    exports("export of nothing", MISSING, concept=missing),
    exports("export to nothing", "compress", compress=0),
    exports("export to nan", "compress", compress="nan"),
    exports("export to too little", "--compress 0.001", compress=0.001),
    exports("export under another suffix", "x.bin", output="x.bin"),
    exports("export onto itself", "concept itself", output=lambda w, d: w.concept),
    exports("export onto a file", "there.safetensors", output=file(name="there.safetensors")),
    exports(
        "export under a file",
        "plain_file",
        output=lambda w, d: under_a_file(w, d) / "x.safetensors",
    ),
    exports("compressed inversion", "compress", compress=1, format="textual_inversion"),
    exports("unknown format", "format", format="ckpt"),
    exports("unknown dtype", "dtype", dtype="int8"),
    exports("export of hostile settings", "resolution", concept=concept(resolution=[1])),
    # -- measuring
    measures("samples missing", MISSING, samples=missing),
    measures(
        "manifest is a pipe",
        "no readable manifest",
        samples=samples(pipe_in("samples/manifest.jsonl")),
    ),
    measures(
        "manifest torn", "line 1", samples=samples(write("samples/manifest.jsonl", b'{"file": '))
    ),
    measures(
        "manifest binary",
        "manifest.jsonl",
        samples=samples(write("samples/manifest.jsonl", b"\xff\xfe")),
    ),
    measures(
        "manifest of nothing",
        "manifest.jsonl",
        samples=samples(write("samples/manifest.jsonl", b"")),
    ),
    measures(
        "manifest names a stranger",
        "line 1",
        samples=samples(
            write("samples/manifest.jsonl", b'{"file": "../config.json", "prompt": "a {}"}')
        ),
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
    measures("CLIP is a path to nothing", "models/clip", clip_model="models/clip"),
    measures(
        "LFD without the concept",
        "--latent_fisher",
        "--latent_fisher",
        "2",
        samples=samples(lambda out: None),
    ),
    measures("LFD of no pictures", "latent_fisher", latent_fisher=-1),
    measures("W2 of one picture", "--wasserstein", "--wasserstein"),
    measures("best of one", "--pick", "--pick"),
    measures("no batch of pictures", "batch_size", batch_size=0),
    # -- the page in the browser
    Case("page at no port", "app", lambda w, d: ["--port", "0"], "--port 0"),
    Case("page at a port beyond all", "app", lambda w, d: ["--port", "70000"], "--port 70000"),
    Case("page at a word", "app", lambda w, d: ["--port", "here"], "--port"),
    Case("page at no address", "app", lambda w, d: ["--host", ""], "--host"),
    Case("page at a path", "app", lambda w, d: ["--host", "a/b"], "--host"),
    Case("page at a taken port", "app", lambda w, d: ["--port", taken_port()], "cannot listen"),
    Case("page that is shared", "app", lambda w, d: ["--share"], "--share"),
    # -- the gallery
    Case("gallery of nothing", "gallery", lambda w, d: [], "no run under outputs/"),
    shows("gallery of a missing run", MISSING, runs=missing),
    shows("gallery of an empty folder", "empty_folder", runs=empty),
    shows("gallery of a file", "plain_file", runs=file()),
    shows(
        "gallery of a torn manifest",
        "line 1",
        runs=samples(write("samples/manifest.jsonl", b'{"file": ')),
    ),
    shows("gallery over a stranger's page", "page.html", output=strangers_page),
    shows("gallery into a folder", "empty_folder", output=empty),
    shows("gallery under a file", "plain_file", output=lambda w, d: file()(w, d) / "page.html"),
    # -- making masks
    Case("masks of nothing", "masks", lambda w, d: [], "SUBJECT_DIR"),
    masks("masks of a missing folder", MISSING, instance_data_dir=missing),
    masks("masks of an empty folder", "empty_folder", instance_data_dir=empty),
    masks("masks of junk", "01.jpg", instance_data_dir=photos(write("01.jpg", b"no picture"))),
    masks("masks of nobody knows what", "class_word", class_word=None),
    masks("masks into a file", "plain_file", mask_dir=file()),
    masks("masks by magic", "mask_maker", mask_maker="magic"),
    masks("masks by a missing detector", MISSING, detector_model=missing),
    # -- rebuilding the tables
    rebuilds("a table of no paper", "table9", tables="table9"),
    rebuilds("a method of no table", "Magic", methods="Magic"),
    rebuilds("no seeds", "--seeds", seeds=0),
    rebuilds("no threads", "--threads", threads=0),
    rebuilds("unknown precision of cells", "precision", precision="fp8"),
    rebuilds("no cells at a time", "--processes", processes=0),
    rebuilds("no pictures a prompt", "num_images_per_prompt", num_images_per_prompt=0),
    rebuilds("everything kept", "everything", keep="everything"),
    rebuilds("nothing dropped", "nothing", drop="nothing"),
    rebuilds("verify no table", "table9", verify="table9"),
    rebuilds("engine of magic", "--engine", engine="magic"),
    rebuilds("an address and no Ray", "--engine ray", address="auto"),
    rebuilds("tables of a missing base", MISSING, base=missing, subjects=None),
    rebuilds("no subjects on a base of one's own", "--subjects", subjects=None),
    rebuilds("missing subjects", MISSING, subjects=missing),
    rebuilds("subjects without photos", "empty_folder", subjects=empty),
    rebuilds("subjects of nobody knows what", "class.txt"),
    rebuilds("tables by a missing CLIP", MISSING, clip=missing, subjects=known),
    rebuilds("tables into a file", "plain_file", subjects=known, output_dir=file()),
    rebuilds("tables into a folder of others", "subject", output_dir=lambda w, d: w.subject.parent),
    rebuilds("unknown flags of a training", "no_such", train_flags="--no_such 1"),
    rebuilds("torn flags of a training", "--train_flags", train_flags="--seed '1"),
]
AS_PROCESSES = (
    "no steps", "photos missing", "base is SDXL", "a terabyte is claimed", "prompt without slot",
    "compressed inversion",
    "samples missing", "masks of a missing folder",
)  # fmt: skip
