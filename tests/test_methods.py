"""The door: every method is chosen by its name, is what its flags were, and tags its file."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from accelerate import Accelerator
from helpers import flags, long_after, tiny_config

from eqdiff.base.load import load_base
from eqdiff.concept.concept import Concept, References, capture_concept, model_for
from eqdiff.concept.file import load_concept, save_concept
from eqdiff.errors import UserError
from eqdiff.method import Method
from eqdiff.methods.registry import METHODS
from eqdiff.model import Customized, new_model
from eqdiff.objective import Objective
from eqdiff.settings.groups import MethodName
from eqdiff.settings.presets import METHOD_PRESETS, PRESETS, parse, preset_config
from eqdiff.settings.train import TrainConfig
from eqdiff.start import start_rows
from eqdiff.training.trainer import Trainer

# what each baseline is, said by the flags of EqDiff's own trainer
OFF = "--no-rra --no-fdte --masking none --train_batch_size 2"
BASELINES = {
    "custom_diffusion": f"{OFF} --unet_weights kv --learning_rate 2e-3 --token_learning_rate 2e-3",
    "dreambooth": f"{OFF} --unet_weights all --token_init rare --token_learning_rate 0 "
    "--learning_rate 6e-4",
    "textual_inversion": f"{OFF} --unet_weights none --no-with_prior_preservation "
    "--max_train_steps 600 --token_learning_rate 2e-2",
}


def trained(config: TrainConfig, folder: Path, steps: int = 2) -> Concept:
    """The concept of a few steps through the project's own trainer."""
    config = dataclasses.replace(config, output_dir=str(folder / "out"))
    base = load_base(config.pretrained_model_name_or_path)
    trainer = Trainer(config, Accelerator(cpu=True), base)
    for step in range(1, steps + 1):
        trainer.backward(trainer.losses(trainer.draw(step)))
        trainer.descend(step)
    return trainer.concept(steps)


def named(method: str, *words: str, preset: str = "toybox", **changes: Any) -> TrainConfig:
    given = ["--method", method, "--preset", preset, *words]
    return parse(TrainConfig, [*given, *flags(changes)])


def test_the_names_are_the_same_in_settings_presets_and_registry() -> None:
    names = set(get_args(MethodName))
    assert names == set(METHODS) == set(METHOD_PRESETS)
    for presets in METHOD_PRESETS.values():
        assert {"paper", "toybox"} <= set(presets) <= set(PRESETS)


def test_every_preset_of_every_method_is_settings_that_training_takes() -> None:
    for method, presets in METHOD_PRESETS.items():
        for preset in presets:
            config = preset_config(preset, method=method)
            assert (config.method, config.preset) == (method, preset)


def test_without_a_method_it_is_eqdiff() -> None:
    assert parse(TrainConfig, ["--preset", "official"]) == named("eqdiff", preset="official")


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_is_eqdiffs_trainer_with_parts_of_it_off(method: str) -> None:
    wanted = parse(TrainConfig, ["--preset", "toybox", *BASELINES[method].split()])
    assert dataclasses.replace(named(method), method="eqdiff") == wanted


@pytest.mark.slow
@pytest.mark.parametrize("method", long_after(1, BASELINES))
def test_a_baseline_trains_what_its_flags_train_bit_for_bit(
    method: str, tiny_base: Path, tiny_subject: Path, own_caches: None, tmp_path: Path
) -> None:
    tiny = dataclasses.asdict(tiny_config(tiny_base, tiny_subject))
    size = {name: tiny[name] for name in ("resolution", "num_class_images", "reference_pool")}
    size |= {name: tiny[name] for name in ("class_inference_steps", "class_word")}
    size |= {name: tiny[name] for name in ("pretrained_model_name_or_path", "instance_data_dir")}

    old = trained(
        parse(TrainConfig, ["--preset", "toybox", *BASELINES[method].split(), *flags(size)]),
        tmp_path,
    )
    new = trained(named(method, **size), tmp_path)
    assert old.parameters.keys() == new.parameters.keys()
    assert all(torch.equal(new.parameters[name], old.parameters[name]) for name in old.parameters)


def test_a_flag_beats_the_methods_preset() -> None:
    assert named("custom_diffusion", learning_rate=1e-3).learning_rate == 1e-3


def test_a_preset_that_the_method_has_not_is_refused_with_those_it_has() -> None:
    with pytest.raises(UserError, match="paper, toybox for --method dreambooth"):
        named("dreambooth", preset="official")
    with pytest.raises(UserError, match="--method magic: must be one of eqdiff"):
        preset_config("paper", method="magic")


def test_the_file_is_tagged_and_one_without_a_tag_is_eqdiffs(
    tiny_base: Path, tiny_subject: Path, own_caches: None, tmp_path: Path
) -> None:
    words = {"method": "textual_inversion", "unet_weights": "none", "rra": False}
    concept = trained(tiny_config(tiny_base, tiny_subject, **words), tmp_path, steps=1)
    save_concept(concept, tmp_path / "new.safetensors")
    assert load_concept(tmp_path / "new.safetensors").recipe.method == "textual_inversion"

    settings = {name: value for name, value in concept.settings.items() if name != "method"}
    old = dataclasses.replace(concept, settings=settings)
    save_concept(old, tmp_path / "old.safetensors")
    loaded = load_concept(tmp_path / "old.safetensors")
    assert loaded.recipe.method == "eqdiff"
    assert type(model_for(loaded, load_base(str(tiny_base)))) is METHODS["eqdiff"].model


def test_a_concept_is_drawn_by_its_own_method(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(Customized):
        """A method of its own."""

    monkeypatch.setitem(METHODS, "textual_inversion", Method(Own, Objective))
    base = load_base(str(tiny_base))
    config = tiny_config(tiny_base, tiny_subject, method="textual_inversion", rra=False)
    noise = torch.zeros(1, 4, 8, 8)
    references = References(noise[:0], noise[:0, :1], noise, ())
    model = new_model(config, base, Own)
    concept = capture_concept(model, references, dataclasses.asdict(config), 1)
    model.detach()
    assert type(model_for(concept, base)) is Own


def test_rows_may_start_from_the_text_encoders_output_for_the_word(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    config = tiny_config(Path("b"), Path("p"), class_word="teapottoy", token_init="output")
    ids = base.tokenizer("teapottoy", padding="max_length", return_tensors="pt").input_ids
    pieces = len(base.tokenizer("teapottoy", add_special_tokens=False).input_ids)
    assert pieces > 1
    with torch.no_grad():
        outputs = base.text_encoder(ids).last_hidden_state[0, 1 : 1 + pieces]
    found = start_rows(base, config)
    torch.testing.assert_close(found.sum(0), outputs.mean(0))
    torch.testing.assert_close(found[0], found[1])


def test_a_training_leaves_cudnns_attention_which_gave_nan_in_bf16(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    config = tiny_config(tiny_base, tiny_subject, output_dir=str(tmp_path))
    config = dataclasses.replace(config, num_class_images=1, class_inference_steps=1)
    Trainer(config, Accelerator(cpu=True), load_base(str(tiny_base)))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
