"""The pictures of the insides: one command each, on a tiny concept, and what the figures in them
are."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, flags, long_after, run_train
from PIL import Image

from eqdiff.concept.file import load_concept
from eqdiff.pipeline import EqDiffPipeline
from studies.insides import warp
from studies.insides.concepts import base_of, settings_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def concept(tiny_base: Path, tiny_subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("insides")
    given = {
        "pretrained_model_name_or_path": tiny_base,
        "instance_data_dir": tiny_subject,
        "class_word": "dog toy",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQDIFF_CACHE", str(folder / "cache"))
        run_train(flags({**TINY, **given, "output_dir": folder / "out"}))
    return folder / "out" / "concept.safetensors"


def run(name: str, concept: Path, picture: Path, *words: str) -> tuple[Any, tuple]:
    module = importlib.import_module(f"studies.insides.{name}")
    module.main([str(concept), "--picture", str(picture), *words])
    return module, Image.open(picture).size


@pytest.mark.parametrize("name", long_after(1, ["gate", "warp"]))
def test_one_command_draws_each(concept: Path, tmp_path: Path, name: str) -> None:
    _, size = run(name, concept, tmp_path / f"{name}.png")
    assert min(size) > 64


def test_bands_draws_each_embedding_of_each_prompt(
    concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of a {}\na mosaic of a {}\n")
    words = ("--prompts", str(tmp_path / "prompts.txt"))
    _, size = run("bands", concept, tmp_path / "bands.png", *words)
    assert size[0] < size[1]  # three columns, a row of bands and one a prompt
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-3:]] == [
        "S_ori",
        "S_LF",
        "S_HF",
    ]


def test_the_gate_is_seen_at_every_layer_and_step_and_the_pipeline_is_left_alone(
    concept: Path, tmp_path: Path
) -> None:
    module, _ = run("gate_steps", concept, tmp_path / "gate_steps.png", "--columns", "2")
    pipe = EqDiffPipeline.of(base_of(settings_of(concept)))
    pipe.load_concept(load_concept(concept))
    tape = module.GateTape(pipe.unet)
    seen = pipe("a photo of a {}", seeds=[0], num_inference_steps=3, output_type="pt").images
    tape.stop()
    assert [t for t, _ in tape.steps] == pipe.scheduler.timesteps.tolist()
    for _, gates in tape.steps:
        assert list(gates) == pipe._carried.model.sites
        assert all(
            gate.ndim == 1 and 0 <= gate.min() and gate.max() <= 1 for gate in gates.values()
        )
    plain = pipe("a photo of a {}", seeds=[0], num_inference_steps=3, output_type="pt").images
    assert torch.equal(seen, plain)
    assert len(tape.steps) == 3


def test_dci_says_how_far_each_share_and_strength_moves_a_picture(
    concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of a {} on the beach\n")
    words = ("--prompts", str(tmp_path / "prompts.txt"), "--shares", "0", "1", "--strengths", "2")
    _, size = run("dci", concept, tmp_path / "dci.png", *words)
    assert size[0] > size[1]  # one prompt: plain, and the strength beside it
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[-3:]]
    changes = [float(row[2]) for row in rows]
    assert changes[:2] == [0, 0] and changes[2] > 0
    assert rows[0][3:] == rows[1][3:]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["no/concept.safetensors"], "no/config.json: not there; name a concept file"),
        (["", "--target", "9"], "--target 9: give a number from 0 to 3"),
        (["", "--reference", "-1"], "--reference -1: give a number from 0 to 3"),
    ],
)
def test_a_wrong_word_gets_one_line(
    concept: Path, capsys: pytest.CaptureFixture, words: list[str], line: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        warp.main([words[0] or str(concept), *words[1:]])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {line}")
