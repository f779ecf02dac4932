"""A setting is named in one place: on its field, with its role. Shown on a copy of the package that
has one more."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, Server, flags
from safetensors import safe_open

from eqdiff.errors import UserError
from eqdiff.settings.groups import CARD, FREE, LATER, PLACE, Draws, Recipe
from eqdiff.settings.options import Role, build_parser, names_of
from eqdiff.settings.presets import parse, preset_config
from eqdiff.settings.train import TrainConfig, portable, recipe_in

ROOT = Path(__file__).resolve().parent.parent
LINE = '    new_knob: float = opt(0.25, "turns [share]", 0, 1, role=CARD | LATER)\n'


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with one more line: a field of Recipe."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(
        ROOT / "eqdiff", folder / "eqdiff", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "train_eqdiff.py", folder)
    (folder / "assets").symlink_to(ROOT / "assets")
    file = folder / "eqdiff" / "settings" / "groups.py"
    text, mark = (
        file.read_text(),
        "    def __post_init__(self) -> None:\n        check_fields(self)\n",
    )
    assert text.count(mark) == 1
    file.write_text(text.replace(mark, f"{LINE}\n{mark}"))
    return folder


@pytest.mark.slow
def test_one_line_adds_a_setting_to_help_files_card_and_resume(
    copy: Path, tiny_base: Path, tiny_subject: Path, tmp_path: Path, forks: Server
) -> None:
    def run(*words: str) -> dict[str, Any]:
        job = {"script": str(copy / "train_eqdiff.py"), "argv": words, "path": str(copy)}
        return forks.ask(job | {"environment": {"EQDIFF_CACHE": str(tmp_path / "cache")}})

    assert "--new_knob" in run("--help")["out"]
    out = tmp_path / "out"
    given = {
        **TINY,
        "max_train_steps": 1,
        "class_word": "dog toy",
        "checkpointing_steps": 1,
        "report_to": "none",
        "pretrained_model_name_or_path": tiny_base,
        "instance_data_dir": tiny_subject,
        "output_dir": out,
    }
    done = run(*flags(given), "--new_knob", "0.5")
    assert done["statuses"] == [0], done["err"]
    assert json.loads((out / "config.json").read_text())["new_knob"] == 0.5
    with safe_open(out / "concept.safetensors", "pt") as file:
        assert json.loads(file.metadata()["concept"])["settings"]["new_knob"] == 0.5
    assert "`new_knob`" in (out / "README.md").read_text()
    again = run(*flags(given | {"max_train_steps": 2}), "--resume_from_checkpoint", "latest")
    assert again["statuses"] == [2]
    assert "--new_knob 0.25 differs from the checkpoint's 0.5" in again["err"]


def test_roles_say_what_the_lists_said():
    assert {"output_dir", "mask_dir", "detector_model"} < set(names_of(TrainConfig, PLACE))
    assert {"log_steps", "guidance_scale", "num_inference_steps"} < set(names_of(TrainConfig, FREE))
    assert {"learning_rate", "guidance_scale"} < set(names_of(TrainConfig, CARD))
    of_methods = {"method", "task_tokens", "infusion_streams", "infusion_keys"}
    assert set(names_of(Recipe, LATER)) == {"binary_masks", "num_references"} | of_methods
    assert not set(portable(preset_config("paper", output_dir="x"))) & set(
        names_of(TrainConfig, PLACE)
    )


def test_the_recipe_is_part_of_the_settings_and_comes_back_from_a_concept():
    config = preset_config("official", class_word="dog toy", fdte=False)
    assert isinstance(config, Recipe) and config.recipe.token_rows == 1
    settings = json.loads(json.dumps(portable(config)))
    assert recipe_in(settings) == config.recipe
    old = {name: value for name, value in settings.items() if name != "binary_masks"}
    assert recipe_in(old).binary_masks  # what files of older versions lack has its default
    with pytest.raises(UserError, match="no ..gate_clamp..* in its settings"):
        recipe_in({name: value for name, value in settings.items() if name != "gate_clamp"})


def test_help_shows_the_settings_in_groups():
    shown = subprocess.run(
        [sys.executable, str(ROOT / "train_eqdiff.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    titles = [
        line.rstrip(":")
        for line in shown.splitlines()
        if line.endswith(":") and not line.startswith(" ")
    ]
    assert titles[:3] == ["options", "first", "more"]
    assert len(titles) == 8
    assert len(names_of(TrainConfig, Role.FIRST)) == 11
    assert (
        shown.index("--output_dir")
        < shown.index("more:")
        < shown.index("--seed")
        < shown.index("What a training step draws")
        < shown.index("--band_probs")
    )
    assert shown.index("How the weights move") < shown.index("--token_learning_rate")


def test_a_switch_has_one_spelling_in_the_help_and_others_are_taken():
    shown = build_parser(TrainConfig).format_help()
    assert "--no-rra" in shown
    assert "--no_" not in shown
    assert "MEMORY" not in shown
    for word in ("--no-rra", "--no_rra"):
        assert parse(TrainConfig, [word]).rra is False
    assert parse(TrainConfig, ["--rra"]).rra is True
    with pytest.raises(UserError, match="--no_nonsense"):
        parse(TrainConfig, ["--no_nonsense"])


def test_a_training_step_is_asked_no_more_than_it_needs():
    """A part of the settings serves where a part is asked for, without the rest."""
    draws = Draws(masking="loss", high_noise_share=0.5, train_batch_size=3)
    assert isinstance(preset_config("toybox"), Draws) and not hasattr(draws, "learning_rate")
    with pytest.raises(UserError, match="--high_noise_share 2"):
        Draws(high_noise_share=2.0)
