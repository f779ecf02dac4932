"""Bases with broken parts are refused in one line when they are loaded, and by what is wrong; a
path where nothing is is never asked of the hub."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from helpers import flags, long_after, refused, run_test, run_train, training_words
from schedules import copied, edit
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from eqdiff.base.load import load_base
from eqdiff.base.trial import tokenizer_problem
from eqdiff.errors import UserError
from eqdiff.evaluation.metrics import load_clip, load_dino
from eqdiff.masks.segment import load_segmenter
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.places import ASSETS, BUNDLED_BASE, MODEL_FOLDERS, is_hub_id

pytestmark = pytest.mark.usefixtures("own_caches")
Change = Callable[[Path], Any]


def many_words(folder: Path) -> None:
    """A tokenizer with ids far beyond the embedding table: Stable Diffusion's own."""
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(ASSETS / "sd1" / "tokenizer", folder / "tokenizer")


def others_merges(folder: Path) -> None:
    lines = (folder / "tokenizer" / "merges.txt").read_text().splitlines()
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(lines[:9]) + "\n")


def narrow_text(folder: Path) -> None:
    """A text encoder of another width than the UNet reads."""
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.hidden_size = 64
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


# what is broken, and the word that the one line has for it
BROKEN: dict[str, tuple[Change, str]] = {
    "scale in words": (
        lambda base: edit(base / "vae/config.json", scaling_factor="text"),
        "scaling_factor 'text'",
    ),
    "no scale": (
        lambda base: edit(base / "vae/config.json", scaling_factor=None),
        "scaling_factor None",
    ),
    "scale of nothing": (
        lambda base: edit(base / "vae/config.json", scaling_factor=0),
        "scaling_factor 0",
    ),
    "no tokenizer": (lambda base: shutil.rmtree(base / "tokenizer"), "vocabulary has 2 entries"),
    "no vocabulary": (lambda base: (base / "tokenizer/vocab.json").unlink(), "vocab"),
    "no merges": (lambda base: (base / "tokenizer/merges.txt").unlink(), "merges"),
    "empty merges": (
        lambda base: (base / "tokenizer/merges.txt").write_text("#version: 0.2\n"),
        "merges do not belong to its vocabulary",
    ),
    "another's merges": (others_merges, "merges do not belong to its vocabulary"),
    "torn vocabulary": (lambda base: (base / "tokenizer/vocab.json").write_text("{"), "EOF"),
    "vocabulary is a list": (lambda base: (base / "tokenizer/vocab.json").write_text("[]"), "json"),
    "ids beyond the embedding": (many_words, "parts do not work together"),
    "another width of text": (narrow_text, "parts do not work together"),
    "heads that do not fit": (
        lambda base: edit(base / "text_encoder/config.json", num_attention_heads=7),
        "attention heads",
    ),
    "index is a list": (lambda base: (base / "model_index.json").write_text("[]"), "base"),
    "no schedule": (lambda base: shutil.rmtree(base / "scheduler"), "scheduler_config.json"),
    "schedule is a list": (
        lambda base: (base / "scheduler/scheduler_config.json").write_text("[]"),
        "base",
    ),  # fmt: skip
}
# what only looks broken
WHOLE: dict[str, Change] = {
    "a prior of nothing": lambda base: edit(base / "model_index.json", prior={}),
    "a prior that is an object": lambda base: edit(base / "model_index.json", prior={"a": 1}),
    "a prior that is a number": lambda base: edit(base / "model_index.json", prior=5),
    "a tokenizer of any length": lambda base: (base / "tokenizer/tokenizer_config.json").unlink(),
    "a tokenizer of a length in words": lambda base: edit(
        base / "tokenizer/tokenizer_config.json", model_max_length="x"
    ),
    "a tokenizer of more than is read": lambda base: edit(
        base / "tokenizer/tokenizer_config.json", model_max_length=2000
    ),
    "an added token without an embedding": lambda base: (
        base / "tokenizer/added_tokens.json"
    ).write_text(json.dumps({"<cat-toy>": 5000})),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_base_with_a_broken_part_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    change, word = BROKEN[name]
    folder = copied(BUNDLED_BASE, tmp_path / "base")
    change(folder)
    with pytest.raises(UserError, match="^base ") as stop:
        load_base(str(folder))
    assert word in str(stop.value)
    assert str(folder) in str(stop.value)


@pytest.mark.parametrize("name", long_after(3, WHOLE))
def test_a_base_that_only_looks_broken_draws(name: str, tmp_path: Path) -> None:
    folder = copied(BUNDLED_BASE, tmp_path / "base")
    WHOLE[name](folder)
    pipe = EqDiffPipeline.of(load_base(str(folder)))
    size = {"height": 64, "width": 64}
    image = pipe(["a photo of a cat"], seeds=[0], num_inference_steps=1, **size).images[0]
    assert len(image.getcolors(maxcolors=2**24)) > 1


@pytest.mark.parametrize("tokenizer", [BUNDLED_BASE / "tokenizer", ASSETS / "sd1" / "tokenizer"])
def test_whole_tokenizers_have_no_problem(tokenizer: Path) -> None:
    assert tokenizer_problem(CLIPTokenizer.from_pretrained(tokenizer)) is None


@pytest.fixture
def orphan(tiny_base: Path, tmp_path: Path) -> Path:
    """A base whose tokenizer has a token that was never given an embedding."""
    folder = copied(tiny_base, tmp_path / "base")
    WHOLE["an added token without an embedding"](folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"class_prompt": "a <cat-toy>"},
        {"instance_prompt": "a {} by <cat-toy>"},
        {"reference_prompt": "a <cat-toy>"},
        {"class_word": "<cat-toy>"},
    ],
)
def test_a_token_without_an_embedding_is_named_where_a_training_uses_it(
    changes: dict[str, str],
    orphan: Path,
    tiny_subject: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    words = training_words(orphan, tiny_subject, tmp_path / "out", report_to="none", **changes)
    line = refused(capsys, run_train, words)
    assert "a token '<cat-toy>' that its text encoder has no embedding for" in line


def test_a_token_without_an_embedding_is_named_where_a_prompt_uses_it(
    orphan: Path, tiny_subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    run_train(training_words(orphan, tiny_subject, out, max_train_steps=1, report_to="none"))
    words = {"concept": out, "pretrained_model_name_or_path": orphan, "prompt": "a {} by <cat-toy>"}
    assert "a token '<cat-toy>'" in refused(capsys, run_test, flags(words))


# -- paths and hub ids -----------------------------------------------------------------------------

PATHS = [
    "models/stable-diffusion-v1-4",
    "Models/sd15",
    "checkpoints/dream",
    "weights/v1-5.safetensors",
    "somebody/model.safetensors",
    "./owner/model",
    "../owner/model",
    "/owner/model",
    "~/model",
    "owner/model/unet",
    "owner/",
    "model",
    "",
    "-owner/model",
    "here/model",
    "a file/model",
    "dead/model",
]
IDS = ["CompVis/stable-diffusion-v1-4", "stable-diffusion-v1-5/stable-diffusion-v1-5", "a/b.c-d_e"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder, a file and a dead link; asking the hub fails the test."""
    (tmp_path / "here").mkdir()
    (tmp_path / "a file").touch()
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)

    def asked(*_: Any, **__: Any) -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    monkeypatch.setattr(EqDiffPipeline, "load_config", asked)
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", PATHS)
def test_a_path_where_nothing_is_is_not_asked_of_the_hub(name: str) -> None:
    assert not is_hub_id(name)
    with pytest.raises(UserError, match="no such folder or file"):
        load_base(name or "nowhere")
    with pytest.raises(UserError, match="no such folder or file"):
        EqDiffPipeline.from_pretrained(name or "nowhere")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["models/clip", "here/clip", "clip"])
def test_nor_is_one_of_a_judge_or_a_mask_maker(name: str) -> None:
    for load, flag in ((load_clip, "clip_model"), (load_dino, "dino_model")):
        with pytest.raises(UserError, match=f"--{flag} {name}: no config.json there"):
            load(name)
    with pytest.raises(UserError, match=f"--detector_model {name}: there is no such folder"):
        load_segmenter(name, name)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", IDS)
def test_the_names_of_the_hubs_models_are_ids(name: str) -> None:
    assert is_hub_id(name)
    assert name.partition("/")[0].lower() not in MODEL_FOLDERS


@pytest.mark.usefixtures("here")
def test_the_reason_says_that_the_hub_was_not_asked() -> None:
    with pytest.raises(UserError, match=r"models/ is a folder here or would be: the hub is not"):
        load_base("models/stable-diffusion-v1-4")
