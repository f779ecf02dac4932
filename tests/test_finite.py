"""What is not finite, or black where it would be kept, is never written, kept or shown, and the
message says which file or setting is to blame."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    concept_of,
    flags,
    long_after,
    refused,
    run_export,
    run_test,
    run_train,
    tiny_config,
    tiny_objective,
    training_words,
)
from safetensors.torch import load_file, save_file
from schedules import copied

from eqdiff.base.load import load_base
from eqdiff.concept.concept import Concept
from eqdiff.concept.file import load_concept, save_concept
from eqdiff.data.vae import cached_encoder, decode, vae_encoder
from eqdiff.errors import UserError
from eqdiff.finite import NotFinite, first_broken, is_finite, require_usable, without_nan
from eqdiff.model import Customized
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.training.class_images import class_images
from eqdiff.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("own_caches")
WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.fixture(scope="module")
def learned(tiny_base: Path, tiny_subject: Path) -> Concept:
    return concept_of(*tiny_objective(tiny_base, tiny_subject))


@pytest.fixture
def pipe(tiny_base: Path, learned: Concept) -> EqDiffPipeline:
    return EqDiffPipeline.of(load_base(str(tiny_base))).load_concept(learned)


def draw(pipe: EqDiffPipeline, **how: Any) -> Any:
    return pipe(["a {}"], seeds=[0], num_inference_steps=2, **how).images


# -- the rule itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_value_that_is_not_finite_is_found_and_large_ones_are_not_taken_for_it(
    dtype: torch.dtype,
) -> None:
    large = torch.full((300, 300), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(large)
    assert is_finite(torch.ones(3, dtype=torch.int8))
    for value in BAD:
        broken = large.clone()
        broken[7, 9] = value
        assert first_broken({"good": large, "bad": broken}.items()) == "bad"


@pytest.mark.parametrize(
    ("value", "word"), [(1e38, "up to 1e"), (1e30, "up to 1e"), (BAD[0], "not")]
)
def test_what_cannot_be_squared_is_of_no_use(value: float, word: str) -> None:
    require_usable({"fine": torch.full((2, 768), 7e4)})
    with pytest.raises(ValueError, match=f"rows holds values {word}|rows .*not finite"):
        require_usable({"rows": torch.full((2, 768), value)})


def test_json_gets_null_for_what_it_does_not_have() -> None:
    row = {"a": [1.0, BAD[0]], "b": (BAD[1], {"c": 2}), "d": "x"}
    assert without_nan(row) == {"a": [1.0, None], "b": [None, {"c": 2}], "d": "x"}


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", long_after(1, ["pil", "np", "latent"]))
@pytest.mark.parametrize(
    ("part", "word"),
    [
        ("unet", "the base's UNet has values in conv_in.weight"),
        ("text_encoder", "the base's text encoder has values in"),
        ("vae", "the base's VAE has values in"),
    ],
)
def test_no_black_picture_is_shown_and_the_part_is_named(
    part: str, word: str, output: str, pipe: EqDiffPipeline
) -> None:
    module = pipe.vae.decoder if part == "vae" else getattr(pipe, part)
    weight = dict(module.named_parameters()).get("conv_in.weight")
    weight = next(module.parameters()) if weight is None else weight
    weight.data.fill_(torch.nan)
    if (part, output) == ("vae", "latent"):
        assert torch.isfinite(draw(pipe, output_type=output)).all()
        return
    with pytest.raises(NotFinite, match=f"none is shown or kept: {word}"):
        draw(pipe, output_type=output)


def test_the_concepts_own_values_are_named(pipe: EqDiffPipeline) -> None:
    pipe.learned()["tokens.rows"].fill_(torch.inf)
    with pytest.raises(NotFinite, match=r"the concept has values in tokens\.rows .* float32"):
        draw(pipe)


def test_a_decoder_that_overflows_and_a_concept_that_is_too_large_are_told_apart(
    pipe: EqDiffPipeline,
) -> None:
    for weight in pipe.vae.decoder.parameters():
        weight.data.mul_(1e25)
    with pytest.raises(NotFinite, match="the VAE's decoder is too much for float32"):
        draw(pipe)

    name = next(name for name in pipe.learned() if name.endswith("to_v.weight"))
    pipe.learned()[name].fill_(1e19)
    with pytest.raises(NotFinite, match=f"the concept's {name} reaches 1e.19"):
        draw(pipe)


def test_watching_leaves_no_hook_and_moves_no_bit(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    pipe = EqDiffPipeline.of(base)
    once, twice = (pipe(["a cat"], seeds=[1], num_inference_steps=2).images[0] for _ in range(2))
    assert once.tobytes() == twice.tobytes()
    assert not base.vae.decoder._forward_hooks


def test_a_drawing_run_that_is_not_finite_is_one_line_and_leaves_no_picture(
    pipe: EqDiffPipeline,
    learned: Concept,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    rows = {
        **learned.parameters,
        "tokens.rows": torch.full_like(learned.parameters["tokens.rows"], 1e17),
    }
    save_concept(dataclasses.replace(learned, parameters=rows), tmp_path / "c.safetensors")
    encode = Customized.encode
    monkeypatch.setattr(Customized, "encode", lambda *args: encode(*args) * 1e30)
    words = {"concept": tmp_path / "c.safetensors", "pretrained_model_name_or_path": tiny_base}
    words |= {"prompt": "a {}", "num_inference_steps": 1, "output_dir": tmp_path / "out"}
    line = refused(capsys, run_test, flags(words))
    assert "none is shown or kept: the concept's tokens.rows reaches 1e+17" in line
    assert not list((tmp_path / "out").rglob("*.png"))


# -- bases and the VAE's latents -------------------------------------------------------------------


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("value", BAD)
def test_a_base_with_one_weight_that_is_not_finite_is_refused_by_the_weights_name(
    part: str, value: float, tiny_base: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_base, tmp_path / "base")
    file = folder / WEIGHTS[part]
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=f"its {part} is damaged, .*{name.rpartition('.')[0]}"):
        load_base(str(folder))


def test_pictures_that_the_vae_cannot_take_are_refused_and_not_cached(
    tiny_base: Path, tmp_path: Path
) -> None:
    vae = load_base(str(tiny_base)).vae
    encode = cached_encoder(vae_encoder(vae), tmp_path / "cache", "key")
    vae.encoder.conv_in.weight.data.fill_(1e38)
    with pytest.raises(NotFinite, match="the base's VAE .* too much for float32"):
        encode(torch.ones(1, 3, 64, 64))
    assert not list(tmp_path.rglob("*.safetensors"))

    vae.decoder.conv_in.weight.data.fill_(torch.nan)
    with pytest.raises(NotFinite, match=r"decoder\.conv_in\.weight is damaged"):
        decode(vae, torch.ones(1, 4, 8, 8))


def test_a_cache_that_an_older_version_poisoned_is_no_cache(tmp_path: Path) -> None:
    calls = []

    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(images))
        return torch.zeros(len(images), 4, 8, 8), torch.ones(len(images), 4, 8, 8)

    cached = cached_encoder(encode, tmp_path, "key")
    cached(torch.zeros(2, 3, 64, 64))
    (file,) = tmp_path.glob("*.safetensors")
    save_file({"mean": torch.full((2, 4, 8, 8), torch.nan), "std": torch.ones(2, 4, 8, 8)}, file)
    mean, _ = cached(torch.zeros(2, 3, 64, 64))
    assert calls == [2, 2]
    assert mean.isfinite().all()
    assert load_file(file)["mean"].isfinite().all()


# -- class images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["black", "nan"])
def test_class_images_that_are_black_or_not_finite_are_not_kept(
    broken: str, tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    base = load_base(str(tiny_base))
    last = base.vae.decoder.conv_out
    last.weight.data.fill_(0 if broken == "black" else torch.nan)
    last.bias.data.fill_(-1)
    config = tiny_config(tiny_base, tiny_subject)
    word = "nothing but black for 'photo of a dog toy'" if broken == "black" else "the base's VAE"
    with pytest.raises(UserError, match=word):
        class_images(base, config, torch.device("cpu"), quiet=True)
    assert not list((tmp_path / "cache").rglob("*.png"))


# -- training --------------------------------------------------------------------------------------


def test_token_rows_beyond_half_precision_end_in_a_concept_that_draws(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"token_learning_rate": 70000, "concept_dtype": "fp16", "max_train_steps": 1}
    run_train(training_words(tiny_base, tiny_subject, tmp_path, report_to="none", **changes))
    assert "too large for fp16" in caplog.text
    concept = load_concept(tmp_path / "concept.safetensors")
    assert concept.parameters["tokens.rows"].abs().max() > torch.finfo(torch.float16).max
    images = draw(
        EqDiffPipeline.of(load_base(str(tiny_base))).load_concept(concept), output_type="np"
    )
    assert np.isfinite(images).all()


@pytest.fixture
def runaway(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step throws the token rows far out, as an absurd rate would."""
    descend = Trainer.descend

    def thrown(run: Trainer, step: int) -> Any:
        means = descend(run, step)
        run.trained["tokens.rows"].data.fill_(1e38)
        return means

    monkeypatch.setattr(Trainer, "descend", thrown)


@pytest.mark.usefixtures("runaway")
def test_a_concept_that_could_not_be_drawn_is_not_written_and_the_rate_is_named(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    changes = {"max_train_steps": 1, "report_to": "none"}
    line = refused(capsys, run_train, training_words(tiny_base, tiny_subject, tmp_path, **changes))
    assert "not written, tokens.rows holds values up to 1e+38" in line
    assert line.endswith("train it again with a lower --token_learning_rate")
    assert not (tmp_path / "concept.safetensors").exists()


@pytest.mark.usefixtures("runaway")
def test_a_training_whose_rows_leave_all_bounds_names_the_rate_that_moved_them(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    changes = {"max_train_steps": 3, "report_to": "none"}
    line = refused(capsys, run_train, training_words(tiny_base, tiny_subject, tmp_path, **changes))
    assert "step 2: the loss or its gradient is not finite" in line
    assert line.endswith("; lower --token_learning_rate")


def test_before_any_weight_has_moved_no_rate_is_blamed(
    tiny_base: Path,
    tiny_subject: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    losses = Trainer.losses
    broken = lambda run, batch: {k: v * torch.nan for k, v in losses(run, batch).items()}  # noqa: E731
    monkeypatch.setattr(Trainer, "losses", broken)
    line = refused(
        capsys, run_train, training_words(tiny_base, tiny_subject, tmp_path, report_to="none")
    )
    assert "step 1: " in line
    assert "no weight had moved yet" in line
    assert "learning_rate" not in line


def test_a_preview_that_is_not_finite_is_not_shown_and_ends_no_training(
    tiny_base: Path,
    tiny_subject: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> None:
        raise NotFinite("the pictures are no finite numbers")

    monkeypatch.setattr("eqdiff.training.preview._draw", broken)
    changes = {"validation_steps": 1, "max_train_steps": 2, "report_to": "none"}
    run_train(training_words(tiny_base, tiny_subject, tmp_path, **changes))
    assert "step 1: no preview, the pictures are no finite numbers" in caplog.text
    assert not list(tmp_path.rglob("step-*.png"))
    assert (tmp_path / "concept.safetensors").is_file()


def test_a_log_holds_no_number_that_json_does_not_have(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    """A subject that fills the picture has no gate outside it."""
    whole = copied(tiny_subject, tmp_path / "photos")
    for mask in (whole / "masks").iterdir():
        from PIL import Image

        with Image.open(mask) as picture:
            Image.new("L", picture.size, 255).save(mask)
    out = tmp_path / "out"
    run_train(training_words(tiny_base, whole, out, max_train_steps=1, report_to="none"))

    def no_constant(name: str) -> None:
        pytest.fail(f"{name} in log.jsonl")

    for line in (out / "log.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=no_constant)
        assert None in next(iter(row["gate"].values()))


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("tokens.rows", 1e38), ("reference.latents", 1e30)])
def test_a_concept_with_values_too_large_to_draw_with_is_refused_by_their_name(
    name: str, value: float, learned: Concept, tmp_path: Path
) -> None:
    save_concept(learned, tmp_path / "c.safetensors")
    raw = (tmp_path / "c.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    tensors = load_file(tmp_path / "c.safetensors")
    tensors[name].fill_(value)
    save_file(tensors, tmp_path / "c.safetensors", header["__metadata__"])
    word = name.removeprefix("reference.")
    with pytest.raises(UserError, match=f"{word} holds values up to 1e.3., too large to draw with"):
        load_concept(tmp_path / "c.safetensors")


@pytest.mark.parametrize("format", ["textual_inversion", "kv_patch"])
def test_an_export_that_half_precision_cannot_hold_is_refused_by_name(
    format: str, learned: Concept, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    large = {name: torch.full_like(value, 7e4) for name, value in learned.parameters.items()}
    save_concept(dataclasses.replace(learned, parameters=large), tmp_path / "concept.safetensors")
    words = {"concept": tmp_path / "concept.safetensors", "format": format, "dtype": "fp16"}
    line = refused(capsys, run_export, flags(words))
    assert "not written" in line
    assert "not finite in fp16; write it in fp32" in line
    assert not list((tmp_path / "export").glob("*.safetensors"))
