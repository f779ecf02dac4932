"""While it runs: the curves and pictures that trackers get, checkpoints, previews, the memory
estimate."""

import dataclasses
import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, concept_of, run_test, run_train, tiny_objective, training_words
from PIL import Image

from benchmarks.counting import build
from eqdiff.settings.places import ASSETS
from eqdiff.settings.presets import MEMORY, parse, preset_config
from eqdiff.settings.prompts import read_prompts
from eqdiff.settings.train import TrainConfig
from eqdiff.training.likeness import Likeness
from eqdiff.training.memory import PER_LEARNED, estimate_lines, estimate_memory
from eqdiff.training.running import KEPT, RunningMeans
from eqdiff.training.trackers import scalars
from eqdiff.training.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("filled_caches")]


@pytest.fixture(autouse=True)
def prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of a {}\na mosaic of a {}\n")


def train(base: Path, subject: Path, tmp_path: Path, *more: str, **changes: object) -> Path:
    """A tiny training's output folder."""
    given = {"validation_prompts": tmp_path / "prompts.txt", **changes}
    run_train([*training_words(base, subject, tmp_path / "out", **given), *more])
    return tmp_path / "out"


# -- curves ----------------------------------------------------------------------------------------


def test_tensorboard_gets_what_the_log_has_and_the_previews(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"max_train_steps": 2, "validation_steps": 1, "report_to": "tensorboard"}
    out = train(tiny_base, tiny_subject, tmp_path, **changes)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(out / "curves"))
    events.Reload()
    curves = {
        name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]
    }
    losses = {"loss", "diffusion", "prior", "reference_attention"}
    assert [step for step, _ in curves.pop("preview/likeness")] == [1, 2]
    means = {f"mean/{name}" for name in losses}
    bands = {f"by_t/{name}" for row in rows for name in row["by_t"]}
    assert set(curves) == losses | means | bands | {
        "lr",
        "seconds",
        "mass",
        "gate/inside",
        "gate/outside",
        "gate/dead",
    }
    for name in ("loss", "lr", "mass"):
        assert curves[name] == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]
    dead = [sum(gate[2] for gate in row["gate"].values()) / len(row["gate"]) for row in rows]
    assert [value for _, value in curves["gate/dead"]] == pytest.approx(dead, rel=1e-6)
    pictures = events.Images("preview")
    assert [picture.step for picture in pictures] == [1, 2]
    assert pictures[1].encoded_image_string.startswith(b"\x89PNG")


def test_the_bar_and_the_curves_show_running_means_by_timestep(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One batch's loss depends on its t above all. The log's own fields stay one batch's."""
    out = train(tiny_base, tiny_subject, tmp_path, max_train_steps=6, log_steps=1)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    sums = 0.0
    weights = 0.0
    for row in rows:
        sums = sums * KEPT + row["loss"]
        weights = weights * KEPT + 1
        assert row["mean"]["loss"] == pytest.approx(sums / weights, abs=2e-5)
        assert set(row["mean"]) == {"loss", "diffusion", "prior", "reference_attention"}

    assert set(rows[-1]["by_t"]) <= {"0-249", "250-499", "500-749", "750-999"}
    assert rows[-1]["by_t"]
    shown = capsys.readouterr().err
    assert f"loss={rows[-1]['mean']['loss']:.4f}" in shown


def test_a_running_mean_takes_each_sample_in_its_band_and_what_is_finite() -> None:
    running = RunningMeans(1000)
    assert running.read() == {"mean": {}, "by_t": {}}
    running.add_by_time(torch.tensor([0, 249, 999]), torch.tensor([1.0, 3.0, 5.0]))
    running.add_by_time(torch.tensor([750, 400]), torch.tensor([math.nan, math.inf]))
    assert running.read()["by_t"] == {"0-249": 2.0, "750-999": 5.0}
    running.add({"loss": torch.tensor(1.0)})
    running.add({"loss": torch.tensor(math.nan)})
    running.add({"loss": torch.tensor(2.0)})
    assert running.read()["mean"]["loss"] == pytest.approx((KEPT + 2) / (KEPT + 1), abs=1e-5)


def test_curves_of_an_overwritten_training_are_its_own(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    for more in ([], ["--overwrite"]):
        out = train(
            tiny_base, tiny_subject, tmp_path, *more, max_train_steps=1, report_to="tensorboard"
        )
    assert len(list(out.rglob("events.out.tfevents.*"))) == 1


def test_gate_curves_leave_out_layers_without_a_place_outside() -> None:
    row = {"step": 3, "loss": 0.5, "gate": {"a": (0.25, math.nan, 0.0), "b": (0.75, 0.5, 1.0)}}
    assert scalars(row) == {"loss": 0.5, "gate/inside": 0.5, "gate/outside": 0.5, "gate/dead": 0.5}
    assert scalars({"step": 1, "loss": 1.0}) == {"loss": 1.0}


def test_a_tracker_that_is_not_installed_is_told_of_first(
    tiny_subject: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the base is looked for, and with nothing written."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else find(name, *a)
    )
    with pytest.raises(SystemExit) as stop:
        train(Path("no/base"), tiny_subject, tmp_path, report_to="wandb")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "pip install wandb" in line
    assert not (tmp_path / "out").exists()


# -- checkpoints and previews ----------------------------------------------------------------------


def test_every_checkpoint_draws(tiny_base: Path, tiny_subject: Path, tmp_path: Path) -> None:
    out = train(
        tiny_base,
        tiny_subject,
        tmp_path,
        max_train_steps=2,
        checkpointing_steps=1,
        learning_rate=0.05,
    )
    drawn = []
    for step in (1, 2):
        where = ["--concept", out / f"checkpoints/step-{step:06d}/concept.safetensors"]
        where += [
            "--pretrained_model_name_or_path",
            tiny_base,
            "--output_dir",
            tmp_path / f"drawn{step}",
        ]
        run_test([*map(str, where), "--prompt", "a {}", "--seed", "3"])
        (file,) = (tmp_path / f"drawn{step}" / "images").iterdir()
        drawn.append(Image.open(file).tobytes())
    assert drawn[0] != drawn[1]


def test_the_bundled_previews_show_places_and_styles() -> None:
    prompts = {
        name: read_prompts(ASSETS / "prompts" / f"{name}.txt")
        for name in ("preview", "toybox_preview")
    }
    for name, lines in prompts.items():
        assert sum(line.startswith("a photo of a {}") for line in lines) == len(lines) / 2, name
    toybox = {
        kind: read_prompts(ASSETS / "prompts" / f"toybox_{kind}.txt") for kind in ("plain", "style")
    }
    assert [len(set(lines) & set(prompts["toybox_preview"])) for lines in toybox.values()] == [2, 2]


@pytest.mark.parametrize("embed", [True, False])
def test_a_preview_begins_with_the_photos_unless_they_are_kept_back(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, embed: bool
) -> None:
    from eqdiff.data.sheets import to_pil
    from eqdiff.data.vae import decode
    from eqdiff.training.preview import preview

    (tmp_path / "prompts.txt").write_text("a photo of a {}\na mosaic of a {}\n")
    changes = {"validation_prompts": str(tmp_path / "prompts.txt"), "embed_reference": embed}
    objective, latents = tiny_objective(tiny_base, tiny_subject, **changes)
    concept = concept_of(objective, latents)
    likeness = Likeness(objective.config)
    preview(objective.model, concept, objective.config, tmp_path / "grid.png", likeness)
    grid, gap, side = Image.open(tmp_path / "grid.png"), 4, 64
    assert grid.width == gap + (4 if embed else 2) * (side + gap)
    row = [grid.crop((x, gap, x + side, gap + side)) for x in range(gap, grid.width, side + gap)]
    photos = [
        to_pil(picture) for picture in decode(objective.model.vae, concept.references.latents)
    ]
    assert [picture.tobytes() for picture in row] == [p.tobytes() for p in photos] or not embed
    assert (grid.height > 3 * side) == embed  # with captions of up to four lines


def test_decoding_undoes_encoding(tiny_base: Path) -> None:
    from eqdiff.base.load import load_base
    from eqdiff.data.vae import decode, vae_encoder

    vae, image = load_base(str(tiny_base)).vae, torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        wanted = vae(image).sample
    assert torch.allclose(decode(vae, vae_encoder(vae)(image)[0]), wanted, atol=1e-5)


# -- memory ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd14() -> Any:
    """Our model at SD 1.4's sizes as a GPU holds it, frozen weights in bf16; shapes alone."""
    return build(preset_config("paper", class_word="mug")).model.to_dtype(torch.bfloat16)


def test_the_estimate_counts_weights_gradients_and_moments(
    tiny_base: Path, tiny_subject: Path
) -> None:
    objective, _ = tiny_objective(tiny_base, tiny_subject)
    model, config = objective.model, objective.config
    parts = estimate_memory(model, config, "no")
    parts_of = (model.unet, model.text_encoder, model.tokens)
    numbers = sum(p.numel() for part in parts_of for p in part.parameters())
    # the reference UNet: what it does not share
    numbers += sum(value.numel() for value in model.base_values.values())
    assert parts.weights == 4 * numbers
    assert parts.learning == PER_LEARNED * sum(
        p.numel() for p in model.concept_parameters().values()
    )
    assert parts.total == parts.weights + parts.learning + parts.activations


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"train_batch_size": 4}, 2),
        ({"resolution": 128}, 4),
        ({"with_prior_preservation": False}, 0.5),
    ],
)
def test_the_estimate_grows_with_samples_and_pixels(
    tiny_base: Path, tiny_subject: Path, changes: dict[str, Any], factor: float
) -> None:
    objective, _ = tiny_objective(tiny_base, tiny_subject)
    before = estimate_memory(objective.model, objective.config, "no").activations
    after = estimate_memory(
        objective.model, dataclasses.replace(objective.config, **changes), "no"
    ).activations
    assert after == factor * before


@pytest.mark.parametrize("card", MEMORY)
def test_each_card_has_room_at_the_sizes_of_stable_diffusion(sd14: Any, card: str) -> None:
    """By the estimate, with a gigabyte left for the driver and what the allocator does not get
    back."""
    config = preset_config("paper", class_word="mug", memory=card)
    assert estimate_memory(sd14, config, "bf16").total < (int(card) - 1) * 1e9
    assert config.train_batch_size * config.gradient_accumulation_steps == 2


@pytest.mark.parametrize("card", MEMORY)
def test_the_documents_table_of_memory_is_the_estimates(sd14: Any, card: str) -> None:
    memory = estimate_memory(sd14, preset_config("paper", class_word="mug", memory=card), "bf16")
    page = (ROOT / "docs" / "training.md").read_text()
    (row,) = re.findall(rf"^\| `{card}`.*", page, re.MULTILINE)
    parts = (memory.weights, memory.learning, memory.activations, memory.total)
    assert re.findall(r"[\d.]+(?= GB)", row) == [f"{part / 1e9:.1f}" for part in parts]


def test_a_flag_beats_memory_and_memory_keeps_the_method() -> None:
    base = ["--pretrained_model_name_or_path", "some/base"]
    config = parse(
        TrainConfig, [*base, "--preset", "official", "--memory", "8", "--no-gradient_checkpointing"]
    )
    changed = {"memory": "8", "train_batch_size": 1, "gradient_accumulation_steps": 2}
    assert config == dataclasses.replace(
        preset_config("official"), pretrained_model_name_or_path="some/base", **changed
    )
    assert {name for values in MEMORY.values() for name in values} == {
        "train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"
    }  # fmt: skip


def test_too_little_memory_gets_one_warning_with_what_helps() -> None:
    assert estimate_lines(3e9, 8e9, "memory") == ["about 3.0 GB of memory wanted, 8.0 GB free"]
    _, warning = estimate_lines(9e9, 8e9, "GPU memory")
    words = set(re.findall(r"--(\w+)", warning))
    assert warning.startswith("warning: ") and len(words) == 4
    assert words <= {field.name for field in dataclasses.fields(TrainConfig)}


def test_the_estimate_comes_before_the_first_step(
    tiny_base: Path,
    tiny_subject: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    step = Trainer.descend

    def noted(run: Any, number: int) -> Any:
        said.append(capsys.readouterr().out)
        return step(run, number)

    monkeypatch.setattr(Trainer, "descend", noted)
    train(tiny_base, tiny_subject, tmp_path, max_train_steps=1)
    assert re.search(r"about \d+\.\d GB of memory wanted, \d+\.\d GB free", said[0])
