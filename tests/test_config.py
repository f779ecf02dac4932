"""config.py and options.py: the presets as a table, the flags, the checks, the files."""

import dataclasses
import errno
import json
import math
import re

import pytest

from eqdiff.errors import UserError, main_guard
from eqdiff.settings import presets as config_module
from eqdiff.settings.options import build_parser, from_json, to_json
from eqdiff.settings.places import BUNDLED_BASE, default_preset, is_bundled, resolve_base
from eqdiff.settings.presets import PRESETS, parse, preset_config, resolve
from eqdiff.settings.prompts import SLOTS, read_prompts
from eqdiff.settings.sample import SampleConfig
from eqdiff.settings.train import TrainConfig

NO_BASE = ["--pretrained_model_name_or_path", "some/base"]

# DESIGN.md's table of presets: (paper, official, toybox); ... = to be measured, any value will do
TABLE = {
    "filter_shape": ("circle", "square", "circle"),
    "filter_colour": (True, False, True),
    "filter_rectify": (False, True, False),
    "low_cutoff": (16, 50, ...),
    "high_cutoff": (16, 5, ...),
    "band_probs": ((0.1, 0.1, 0.8), (0.1, 0.1, 0.8), (0, 0, 1)),
    "filter_prior": (False, True, False),
    "token_init": ("class", "rare", ...),
    "token_init_scale": (1, 2, ...),
    "size_prefixes": (False, True, False),
    "slot_by": ("token_id", "whitespace", "token_id"),
    "masking": ("noise", "noise", ...),
    "mask_dilation": (0, 10 / 64, ...),
    "binary_masks": (True, False, True),
    "reference_time_gap": (0, 2, 0),
    "reference_noise": ("independent", "target", "independent"),
    "reference_at_sampling": ("noised", "clean", "noised"),
    "reference_augmentation": ("crop_rotate_flip", "scale", "crop_rotate_flip"),
    "ra_loss_form": ("all", "masked", ...),
    "ra_loss_layers": (("up_blocks.1",), ("up_blocks.1",), ("up_blocks.2", "up_blocks.3")),
    "ra_loss_weight": (0.1, 0.1 / 4, ...),
    "cross_loss_weight": (0, 0.1 / 4, ...),
    "prior_loss_weight": (1, 1 / 4, 1),
    "max_grad_norm": (1, 1 / 4, 1),
    "learning_rate": (4e-5, 4e-5, ...),
    "token_learning_rate": (4e-5, 4e-5, ...),
    "token_weight_decay": (0, 0.01, 0),
    "gate_init": ("zero", "zero", ...),
    "gate_clamp": ("inward", "closed", "inward"),
    "max_train_steps": (600, 600, ...),
    "train_batch_size": (2, 2, 4),
    "num_class_images": (200, 200, 32),
    "class_inference_steps": (50, 50, 20),
    "class_prompt": ("photo of a {}", "{}", ...),
    "guidance_scale": (12.5, 7.5, ...),
    "num_inference_steps": (50, 50, ...),
    "resolution": (512, 512, 128),
}


@pytest.mark.parametrize("field", TABLE)
def test_presets_hold_the_table_of_the_design(field):
    for preset, wanted in zip(("paper", "official", "toybox"), TABLE[field], strict=True):
        value = getattr(preset_config(preset), field)
        assert wanted is ... or value == wanted, preset


def test_paper_is_the_plain_default_and_presets_only_hold_what_differs():
    assert preset_config("paper") == TrainConfig()
    for preset in ("official", "toybox", "plus"):
        same = [
            name for name, value in PRESETS[preset].items() if getattr(TrainConfig(), name) == value
        ]
        assert not same, preset
    assert preset_config("toybox").max_train_steps <= 600


def test_official_totals_agree_with_the_release_up_to_one_factor():
    # the release: 1 per-channel-summed instance loss (= 4 of ours) + 1 prior + 0.1 L_ra + 0.1 L_x,
    # clipped at 1
    ours = preset_config("official")
    theirs = {
        "prior_loss_weight": 1.0,
        "ra_loss_weight": 0.1,
        "cross_loss_weight": 0.1,
        "max_grad_norm": 1.0,
    }
    assert {name: 4 * getattr(ours, name) for name in theirs} == pytest.approx(theirs)


def test_toybox_low_and_high_bands_are_complementary():
    assert preset_config("toybox").low_cutoff == preset_config("toybox").high_cutoff


def test_a_flag_beats_the_preset_and_the_preset_beats_the_default():
    config = parse(
        TrainConfig, ["--preset", "official", "--low_cutoff", "7", "--no-size_prefixes", *NO_BASE]
    )
    assert (config.preset, config.low_cutoff, config.size_prefixes) == ("official", 7.0, False)
    assert config.high_cutoff == 5.0
    # also when the flag asks for the default's own value
    assert parse(TrainConfig, ["--preset", "toybox", "--resolution", "512"]).resolution == 512


def test_the_spelling_of_the_design(tmp_path):
    flags = """--pretrained_model_name_or_path b --instance_data_dir d --output_dir o
        --resolution 64
        --train_batch_size 1 --max_train_steps 3 --learning_rate 1e-3 --seed 7 --mixed_precision no
        --gradient_checkpointing --checkpointing_steps 2 --resume_from_checkpoint latest
        --no-with_prior_preservation --class_data_dir c
        --num_class_images 4 --validation_steps 0 --report_to none --class_word dog --mask_dir m
        --preset paper
        --band_probs 0.2 0.3 0.5 --filter_shape square --low_cutoff 3 --high_cutoff 4
        --masking loss --no-rra --no-fdte
        --ra_loss_weight 0 --mask_dilation 0.1""".split()
    config = parse(TrainConfig, flags)
    assert config.band_probs == (0.2, 0.3, 0.5)
    assert (config.rra, config.fdte, config.masking, config.mask_dilation) == (
        False,
        False,
        "loss",
        0.1,
    )
    assert config.gradient_checkpointing and not config.with_prior_preservation
    assert parse(TrainConfig, ["--rra", "--fdte", "--with_prior_preservation"]).rra
    flags = """--concept x --no-rra --prompts p --num_images_per_prompt 2 --num_inference_steps 5
        --guidance_scale 3
        --scheduler dpm++ --batch_size 4 --reference r --output_dir o""".split()
    sample = parse(SampleConfig, [*flags, "--prompt", "a {}", "--prompt", "b {}", "a <new1> dog"])
    assert sample.prompt == ("a {}", "b {}", "a <new1> dog")
    assert (sample.scheduler, sample.guidance_scale, sample.rra) == ("dpm++", 3.0, False)


BAD = [
    ["--resolution", "100"],
    ["--resolution", "0"],
    ["--resolution", "big"],
    ["--max_train_steps", "0"],
    ["--learning_rate", "nan"],
    ["--learning_rate", "inf"],
    ["--learning_rate", "-1"],
    ["--band_probs", "0.5", "0.5", "0.5"],
    ["--band_probs", "-0.1", "0.3", "0.8"],
    ["--band_probs", "0.5", "0.5"],
    ["--masking", "some"],
    ["--preset", "ours"],
    ["--instance_prompt", "photo of a dog"],
    ["--class_word", " "],
    ["--class_word", "a {}"],
    ["--mask_dilation", "1.5"],
    ["--seed", "-1"],
    ["--ra_loss_layers", ""],
    ["--ra_loss_layers"],
    ["--max_train"],
    ["--max_train", "3"],
    ["stray"],
]


@pytest.mark.parametrize("flags", BAD, ids=" ".join)
def test_bad_values_are_user_errors_of_one_line_that_name_the_flag(flags):
    with pytest.raises(UserError) as caught:
        parse(TrainConfig, [*flags, *NO_BASE])
    message = str(caught.value)
    assert "\n" not in message and flags[0].lstrip("-") in message


@pytest.mark.parametrize(
    "given",
    [
        {"resolution": "512"},
        {"resolution": 512.0},
        {"rra": 1},
        {"seed": True},
        {"band_probs": "abc"},
        {"band_probs": [0.1, 0.9]},
        {"ra_loss_layers": "up_blocks.1"},
        {"ra_loss_layers": []},
        {"mixed_precision": "fp8"},
        {"max_train_steps": None},
    ],
    ids=str,
)
def test_wrong_types_are_user_errors_too(given):
    with pytest.raises(UserError, match=f"--{next(iter(given))} "):
        TrainConfig(**given)


def test_an_empty_layer_choice_is_fine_where_its_loss_is_off():
    assert TrainConfig(ra_loss_layers=(), ra_loss_weight=0.0).ra_loss_layers == ()


def test_an_int_may_stand_for_a_float_and_a_path_for_text(tmp_path):
    config = TrainConfig(low_cutoff=9, instance_data_dir=tmp_path, band_probs=[0, 0, 1])
    assert (type(config.low_cutoff), config.instance_data_dir) == (float, str(tmp_path))
    assert config.band_probs == (0.0, 0.0, 1.0)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().seed = 1


@pytest.mark.parametrize("preset", PRESETS)
def test_json_gives_back_the_same_settings(preset):
    config = preset_config(
        preset, class_word="größe", instance_data_dir="a b", mixed_precision="bf16", seed=2**62
    )
    assert from_json(TrainConfig, to_json(config)) == config
    assert json.loads(to_json(config)).keys() == {
        field.name for field in dataclasses.fields(TrainConfig)
    } | {"written_by"}


def test_json_of_sampling_and_broken_json():
    config = SampleConfig(prompt=("a {}",))
    assert from_json(SampleConfig, to_json(config)) == config
    for text, culprit in (
        ("{", "JSON"),
        ("[1]", "object"),
        ('{"speed": 1}', "speed"),
        ('{"seed": "1"}', "--seed"),
    ):
        with pytest.raises(UserError, match=culprit):
            from_json(TrainConfig, text)


@pytest.mark.parametrize("cls", [TrainConfig, SampleConfig])
def test_every_field_has_a_help_text_and_shows_in_help(cls):
    shown = build_parser(cls, PRESETS if cls is TrainConfig else None).format_help()
    for field in dataclasses.fields(cls):
        assert len(field.metadata["help"]) > 5, field.name
        assert f"--{field.name}" in shown
    flat = " ".join(shown.split())
    assert cls is SampleConfig or "(default: 16; official: 50; toybox: 8)" in flat


def test_base_named_then_environment_then_bundled(monkeypatch):
    monkeypatch.setenv("EQDIFF_BASE", "from/environment")
    assert resolve_base("named") == "named"
    assert resolve_base(None) == "from/environment"
    monkeypatch.setenv("EQDIFF_BASE", "")
    assert resolve_base(None) == str(BUNDLED_BASE)
    assert BUNDLED_BASE.parts[-3:] == ("assets", "toybox", "base")
    assert (BUNDLED_BASE.parents[2] / "eqdiff" / "model.py").is_file()


def test_preset_toybox_on_the_bundled_base_however_spelled_else_paper(monkeypatch):
    monkeypatch.delenv("EQDIFF_BASE", raising=False)
    assert parse(TrainConfig, []).preset == "toybox"
    assert parse(TrainConfig, []).resolution == 128
    assert parse(TrainConfig, NO_BASE).preset == "paper"
    assert parse(TrainConfig, ["--preset", "official"]).preset == "official"
    monkeypatch.chdir(BUNDLED_BASE.parents[2])
    assert default_preset("assets/toybox/base/") == "toybox"
    assert default_preset("CompVis/stable-diffusion-v1-4") == "paper"
    monkeypatch.setenv("EQDIFF_BASE", "some/base")
    assert parse(TrainConfig, []).preset == "paper"
    assert is_bundled("assets/subjects/x") and not is_bundled("photos/x")


def test_resolve_fills_in_what_was_not_given(tmp_path, monkeypatch):
    monkeypatch.setenv("EQDIFF_BASE", "some/base")
    folder = tmp_path / "my_cat"
    folder.mkdir()
    with pytest.raises(UserError, match=r"my_cat.*--class_word"):
        resolve(TrainConfig(instance_data_dir=folder))
    (folder / "class.txt").write_text("cat toy\n")
    config = resolve(TrainConfig(instance_data_dir=folder))
    assert (config.class_word, config.output_dir) == ("cat toy", "outputs/my_cat")
    assert config.pretrained_model_name_or_path == "some/base"
    config = resolve(TrainConfig(instance_data_dir=folder, class_word="dog", output_dir="here"))
    assert (config.class_word, config.output_dir) == ("dog", "here")
    monkeypatch.chdir(folder)
    assert resolve(TrainConfig(instance_data_dir=".")).output_dir == "outputs/my_cat"
    with pytest.raises(UserError, match="nowhere"):
        resolve(TrainConfig(instance_data_dir="nowhere", class_word="dog"))


def test_the_first_bundled_subject_when_no_photos_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(config_module, "ASSETS", tmp_path)
    with pytest.raises(UserError, match="--instance_data_dir"):
        resolve(TrainConfig())
    for name in ("zebra", "apple"):
        (tmp_path / "subjects" / name).mkdir(parents=True)
        (tmp_path / "subjects" / name / "class.txt").write_text(name)
    (tmp_path / "subjects" / "README.md").write_text("about")
    assert resolve(TrainConfig()).class_word == "apple"


def test_prompt_files(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# ours\n\na {} on a beach\n  a <new1> dog  \n")
    assert read_prompts(file) == ("a {} on a beach", "a <new1> dog")
    file.write_text("a {}\n# note\na dog\n")
    with pytest.raises(UserError, match=r"prompts\.txt, line 3"):
        read_prompts(file)
    file.write_text("# nothing\n")
    with pytest.raises(UserError, match="no prompts"):
        read_prompts(file)
    with pytest.raises(UserError, match="missing"):
        read_prompts(tmp_path / "missing.txt")
    with pytest.raises(UserError, match="--prompt"):
        SampleConfig(prompt=("a dog",))


def test_the_placeholder_is_that_of_tokens():
    from eqdiff.tokens import PLACEHOLDER

    assert PLACEHOLDER in SLOTS


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "error", [UserError("photo x: bad,\nremove it"), OSError(errno.ENOSPC, "No space", "out.png")]
)
def test_what_the_user_got_wrong_is_one_line_and_status_2(error, capsys):
    with pytest.raises(SystemExit) as caught:
        main_guard(_raise)(error)
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", shown.err) and not shown.out


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EACCES, "no")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        main_guard(_raise)(error)


def test_bad_flags_too_end_in_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        main_guard(parse)(TrainConfig, ["--nonsense"])
    assert caught.value.code == 2
    assert re.fullmatch(r"error: [^\n]+--nonsense[^\n]*\n", capsys.readouterr().err)


def test_strangers_are_not_taken_for_processes_that_run_together(monkeypatch):
    from eqdiff.processes import join_processes

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started but 1 run together"):
        join_processes()
    monkeypatch.delenv("WORLD_SIZE")
    assert join_processes().num_processes == 1


def numeric_fields() -> list[tuple[type, dataclasses.Field]]:
    """Every number among the settings of training and drawing, with the settings it is in."""
    found = []
    for cls in (TrainConfig, SampleConfig):
        for field in dataclasses.fields(cls):
            if "int" in str(field.type) or "float" in str(field.type):
                found.append((cls, field))
    return found


def number(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)


@pytest.mark.parametrize(
    ("cls", "field"), numeric_fields(), ids=lambda value: getattr(value, "name", None)
)
def test_what_a_refused_number_must_be_is_not_what_it_is(cls, field):
    """`1e30: must be 0 or more` would be no help."""
    kind = float if "float" in str(field.type) else int
    low, high = field.metadata["low"], field.metadata["high"]
    values = [kind(value) for value in (low - 1, high + 1, 1e30, -1e30) if not low <= value <= high]
    values += [float("nan"), float("inf"), -float("inf")] if kind is float else []
    for value in values:
        given = (value,) * len(field.default) if isinstance(field.default, tuple) else value
        with pytest.raises(UserError) as caught:
            cls(**{field.name: given})
        says = str(caught.value).partition("must be ")[2]
        if match := re.fullmatch(r"(\S+) or more", says):
            assert not value >= number(match[1]), says
        elif match := re.fullmatch(r"(\S+) or less", says):
            assert not value <= number(match[1]), says
        elif match := re.fullmatch(r"from (\S+) to (\S+)", says):
            assert not number(match[1]) <= value <= number(match[2]), says
        else:
            assert says == "finite" and not math.isfinite(value), says


def test_an_own_base_is_saved_every_hundred_steps_and_the_bundled_one_when_it_is_stopped(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("EQDIFF_BASE", raising=False)
    own = ["--pretrained_model_name_or_path", str(tmp_path)]
    for argv in (own, [*own, "--preset", "toybox"], [*own, "--preset", "official"]):
        config = parse(TrainConfig, argv)
        assert (config.checkpointing_steps, config.checkpoints_total_limit) == (100, 2)
    assert parse(TrainConfig, [*own, "--checkpointing_steps", "0"]).checkpointing_steps == 0
    assert parse(TrainConfig, []).checkpointing_steps == 0


def test_plus_is_e_with_matched_predictions_and_on_the_bundled_base_has_its_sizes_too():
    changed = {"masking": "loss", "prior_kind": "prediction"}
    own = parse(TrainConfig, ["--preset", "plus", *NO_BASE])
    assert own == dataclasses.replace(parse(TrainConfig, NO_BASE), preset="plus", **changed)

    bundled = parse(TrainConfig, ["--preset", "plus", "--seed", "3"])
    wanted = dataclasses.replace(preset_config("toybox", seed=3), preset="plus", **changed)
    assert bundled == wanted
    assert own.band_probs == (0.1, 0.1, 0.8)  # no photos filtered is of the bundled base alone
    assert parse(TrainConfig, ["--preset", "plus", "--masking", "noise"]).masking == "noise"
    for base in ([], NO_BASE):
        with pytest.raises(UserError, match="--preset 'plus': must be one of"):
            parse(TrainConfig, ["--preset", "plus", "--method", "dreambooth", *base])


MATCHING = (["--preset", "plus", *NO_BASE], ["--preset", "plus"], [])  # the last is the toybox's


@pytest.mark.parametrize("words", MATCHING, ids=["plus", "plus on the toybox", "toybox"])
@pytest.mark.parametrize("without", ["--no-rra", "--no-with_prior_preservation"])
def test_where_no_predictions_can_be_matched_a_preset_does_not_ask_for_them(words, without):
    assert parse(TrainConfig, words).prior_kind == "prediction"
    assert parse(TrainConfig, [*words, without]).prior_kind == "images"
    assert parse(TrainConfig, [*words, "--prior_kind", "images"]).needs_class_images


@pytest.mark.parametrize("words", MATCHING, ids=["plus", "plus on the toybox", "toybox"])
@pytest.mark.parametrize(
    "flag",
    [
        "--class_data_dir pictures",
        "--class_prompts prompts.txt",
        "--num_class_images 50",
        "--class_inference_steps 20",
        "--class_scheduler dpm++",
        "--class_guidance_scale 2",
    ],
)
def test_who_says_which_class_images_gets_class_images(words, flag):
    assert parse(TrainConfig, [*words, *flag.split()]).needs_class_images
    asked = [*words, "--num_class_images", "50", "--prior_kind", "prediction"]
    assert not parse(TrainConfig, asked).needs_class_images


@pytest.mark.parametrize("method", ["custom_diffusion", "dreambooth", "ico"])
def test_other_methods_keep_class_images_on_the_toybox(method):
    assert parse(TrainConfig, ["--method", method]).needs_class_images
