"""What makes a base the same base: all its weights, its noise schedule, its tokenizer. A concept
notices a change of each, and no difference of precision, place or added parts."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import concept_of, flags, refused, run_test, run_train, tiny_objective, training_words
from safetensors.torch import load_file, save_file
from schedules import ZERO_SNR, copied, edit

from eqdiff.base.identity import PLACES, Identity, changes
from eqdiff.base.load import Base, load_base
from eqdiff.concept.concept import Concept, capture_concept
from eqdiff.concept.file import load_concept, save_concept
from eqdiff.errors import UserError
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.train import TrainConfig
from eqdiff.training.class_images import cache_folder

pytestmark = pytest.mark.usefixtures("own_caches")
SCHEDULE = Path("scheduler") / "scheduler_config.json"


@pytest.fixture(scope="module")
def learned(tiny_base: Path, tiny_subject: Path) -> Concept:
    return concept_of(*tiny_objective(tiny_base, tiny_subject))


@pytest.fixture
def old(learned: Concept) -> Concept:
    """As a version wrote it that knew of a base nothing but some of its weights."""
    return dataclasses.replace(learned, identity=None)


def identity_of(folder: Path) -> Identity:
    return load_base(str(folder)).identity


def retrained_row(folder: Path) -> None:
    """One row of the embedding table, between the values that a fingerprint looks at."""
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("token_embedding.weight"))
    step = max(1, tensors[name].numel() // 64)
    flat = tensors[name].view(-1)
    flat[step // 2] += 1
    save_file(tensors, file, {"format": "pt"})


def other_tokenizer(folder: Path) -> None:
    """Two words change their places in the vocabulary."""
    file = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    cat = vocabulary["cat</w>"]
    vocabulary["cat</w>"] = vocabulary["dog</w>"]
    vocabulary["dog</w>"] = cat
    file.write_text(json.dumps(content))


Change = Callable[[Path], Any]
SCHEDULES: dict[str, tuple[Change, str]] = {
    "prediction": (
        lambda folder: edit(folder / SCHEDULE, prediction_type="v_prediction"),
        "its UNet predicted epsilon, and predicts v_prediction now",
    ),
    "end of the betas": (
        lambda folder: edit(folder / SCHEDULE, beta_end=0.0125),
        "its noise schedule had alpha_bar",
    ),
    "zero terminal SNR": (
        lambda folder: edit(folder / SCHEDULE, **{**ZERO_SNR, "prediction_type": "epsilon"}),
        "its noise schedule had alpha_bar",
    ),
    "timesteps": (
        lambda folder: edit(folder / SCHEDULE, num_train_timesteps=500),
        "its noise schedule had 1000 timesteps, and has 500",
    ),
    "tokenizer": (other_tokenizer, "its tokenizer read words differently"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_changed_schedule_or_tokenizer_gets_a_word_where_a_concept_is_drawn(
    name: str, learned: Concept, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, word = SCHEDULES[name]
    folder = copied(tiny_base, tmp_path / "base")
    change(folder)
    EqDiffPipeline.of(load_base(str(folder))).load_concept(learned)
    (record,) = caplog.records
    assert "has changed since this concept was trained on it" in record.getMessage()
    assert word in record.getMessage()


def test_the_base_itself_gets_no_word(
    learned: Concept, tiny_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    EqDiffPipeline.of(load_base(str(tiny_base))).load_concept(learned)
    assert not caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prediction", "tokenizer"])
def test_a_training_does_not_go_on_with_another_schedule_or_tokenizer(
    name: str, tiny_base: Path, tiny_subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    change, word = SCHEDULES[name]
    folder = copied(tiny_base, tmp_path / "base")
    out = tmp_path / "out"
    given = {"report_to": "none", "checkpointing_steps": 1, "max_train_steps": 1}
    run_train(training_words(folder, tiny_subject, out, **given))

    before = (out / "concept.safetensors").read_bytes()
    given |= {"max_train_steps": 2, "resume_from_checkpoint": "latest"}
    change(folder)
    line = refused(capsys, run_train, training_words(folder, tiny_subject, out, **given))
    assert "the base base has changed since: " in line
    assert word in line
    assert (out / "concept.safetensors").read_bytes() == before


@pytest.mark.slow
def test_drawing_says_so_on_the_command_line_and_draws(
    learned: Concept, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(tiny_base, tmp_path / "base")
    edit(folder / SCHEDULE, prediction_type="v_prediction")
    save_concept(learned, tmp_path / "c.safetensors")
    words = {"concept": tmp_path / "c.safetensors", "pretrained_model_name_or_path": folder}
    words |= {"prompt": "a {}", "num_inference_steps": 1, "output_dir": tmp_path / "out"}
    run_test(flags(words))
    assert "predicts v_prediction now" in caplog.text
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1


# -- weights ---------------------------------------------------------------------------------------


def test_a_change_between_the_values_of_the_fingerprint_is_another_base(
    learned: Concept, tiny_base: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_base, tmp_path / "base")
    retrained_row(folder)
    base = load_base(str(folder))
    assert base.fingerprint == learned.base_fingerprint
    with pytest.raises(UserError, match="a few of its weights have changed since"):
        EqDiffPipeline.of(base).load_concept(learned)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_base_loaded_in_less_precision_is_the_same_base(
    dtype: torch.dtype, learned: Concept, tiny_base: Path
) -> None:
    pipe = EqDiffPipeline.from_pretrained(tiny_base, torch_dtype=dtype)
    pipe.load_concept(learned).unload_concept()
    next(pipe.unet.parameters()).data.add_(1)
    with pytest.raises(UserError, match=f"not on .*, loaded in {str(dtype)[6:]}, which rounds it"):
        pipe.load_concept(learned)


def test_a_copy_in_half_precision_is_the_same_base_both_ways(
    learned: Concept, tiny_base: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_base, tmp_path / "base")
    for file in folder.rglob("*.safetensors"):
        tensors = {name: value.half() for name, value in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    half = load_base(str(folder))
    whole = load_base(str(tiny_base))
    assert half.fingerprint != whole.fingerprint
    assert half.identity == whole.identity

    EqDiffPipeline.of(half).load_concept(learned).unload_concept()
    theirs = dataclasses.replace(learned, base_fingerprint=half.fingerprint)
    EqDiffPipeline.of(whole).load_concept(theirs)


def test_a_concept_of_an_older_version_loads_by_its_fingerprint_alone(
    old: Concept, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_concept(old, tmp_path / "old.safetensors")
    read = load_concept(tmp_path / "old.safetensors")
    assert read.identity is None
    folder = copied(tiny_base, tmp_path / "base")
    retrained_row(folder)
    edit(folder / SCHEDULE, prediction_type="v_prediction")
    EqDiffPipeline.of(load_base(str(folder))).load_concept(read)
    assert not caplog.text


def test_a_concept_of_an_older_version_in_half_precision_is_told_what_differs(
    old: Concept, tiny_base: Path
) -> None:
    pipe = EqDiffPipeline.from_pretrained(tiny_base, torch_dtype=torch.float16)
    with pytest.raises(UserError, match="loaded in float16, which rounds it: .* without a dtype"):
        pipe.load_concept(old)


def test_what_users_put_onto_a_base_does_not_make_it_another(tiny_base: Path) -> None:
    """A LoRA, added tokens with rows of their own, another sampler, another precision."""
    from diffusers import EulerDiscreteScheduler
    from peft import LoraConfig

    base = load_base(str(tiny_base))
    before = base.identity
    base.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"]))
    base.tokenizer.add_tokens(["<cat-toy>", "<mine>"])
    base.text_encoder.resize_token_embeddings(len(base.tokenizer))
    scheduler = EulerDiscreteScheduler.from_config(base.scheduler.config)

    parts = (base.vae, base.text_encoder.half(), base.tokenizer, base.unet.half(), scheduler)
    now = Base(*parts, name="x", fingerprint="").identity
    assert now == before
    assert changes(before, now) == []


def test_the_steps_of_a_training_do_not_change_what_its_base_was(
    tiny_base: Path, tiny_subject: Path
) -> None:
    objective, latents = tiny_objective(tiny_base, tiny_subject)
    for parameter in objective.model.concept_parameters().values():
        parameter.data.add_(1)
    taken = capture_concept(
        objective.model, concept_of(objective, latents).references, {}, 1
    ).identity
    assert taken == identity_of(tiny_base)


@pytest.mark.parametrize("name", ["prediction", "end of the betas", "tokenizer", "a row", "steps"])
def test_class_images_are_kept_apart_by_all_that_draws_them(
    name: str, tiny_base: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_base, tmp_path / "base")
    config = TrainConfig(class_word="dog")
    before = cache_folder(load_base(str(folder)), config)
    assert before == cache_folder(load_base(str(tiny_base)), config)

    other = {
        "a row": retrained_row,
        "steps": lambda folder: edit(folder / SCHEDULE, timestep_spacing="trailing"),
    }
    change = other[name] if name in other else SCHEDULES[name][0]
    change(folder)
    assert cache_folder(load_base(str(folder)), config) != before


# -- in a stranger's file --------------------------------------------------------------------------

HOSTILE: dict[str, Any] = {
    "a list": [],
    "nothing in it": {},
    "weights of a megabyte": {"weights": "x" * 10**5},
    "timesteps in words": {"timesteps": "many"},
    "true timesteps": {"timesteps": True},
    "too few numbers": {"alpha_bar": [0.5]},
    "words for numbers": {"alpha_bar": ["x"] * PLACES},
    "numbers nested": {"alpha_bar": [[0.5]] * PLACES},
    "no prediction": {"prediction": None},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_identity_that_is_none_is_refused(name: str, learned: Concept) -> None:
    good = json.loads(json.dumps(dataclasses.asdict(learned.identity)))
    assert Identity.parsed(good) == learned.identity
    bad = HOSTILE[name]
    facts = {**good, **bad} if isinstance(bad, dict) and bad else bad
    with pytest.raises(ValueError, match="identity of its base"):
        Identity.parsed(facts)
