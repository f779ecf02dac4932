"""Any base draws, whatever scheduler its author configured: by each --scheduler, the same picture
for a seed; what cannot be drawn is refused by name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import long_after, refused, run_test, run_train, tiny_objective, training_words
from ldm import original_layout
from safetensors.torch import save_file
from schedules import BROKEN, POPULAR, SCHEDULES, copied, edit, with_schedule

from eqdiff.base.load import load_base
from eqdiff.base.schedule import SAMPLERS, require_steps, sampler
from eqdiff.batch import draw_batch
from eqdiff.concept.concept import Concept, References, capture_concept
from eqdiff.concept.file import load_concept, save_concept
from eqdiff.errors import UserError
from eqdiff.model import new_model
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.places import BUNDLED_BASE
from eqdiff.settings.presets import preset_config

pytestmark = pytest.mark.usefixtures("own_caches")
SMALL = 64  # pixels
SEEDS = [0, 1]
PROMPTS = ["a photo of a {}", "a watercolor painting of a {}"]


@pytest.fixture(scope="module")
def concept() -> Concept:
    """A concept of the bundled base, small and not trained, whose photos are looked at."""
    config = preset_config(
        "toybox", class_word="mug", resolution=SMALL, gate_init="identity", rra=True
    )
    base = load_base(str(BUNDLED_BASE))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = new_model(config, base)
        latents = torch.randn(2, 4, SMALL // 8, SMALL // 8)

    masks = torch.ones_like(latents[:, :1])
    references = References(latents, masks, latents[:1], ("a.jpg", "b.jpg"))
    return capture_concept(model, references, dataclasses.asdict(config), 1)


def drawn(pipe: EqDiffPipeline, steps: int) -> np.ndarray:
    """A picture of each seed, with the subject in it: (N,H,W,3) in [0,1]."""
    how = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "np"}
    return pipe(PROMPTS, seeds=SEEDS, **how).images


# Popular schedules one of a kind: those like them are long, as is the command with all of them.
UNLIKE = (
    "PNDM, as SD 1.4 and 1.5 have it",
    "Euler",
    "v-prediction with zero terminal SNR",
    "LCM",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [*UNLIKE, *(pytest.param(n, marks=pytest.mark.long) for n in POPULAR if n not in UNLIKE)],
)
def test_a_base_draws_with_each_sampler_the_same_picture_twice(
    name: str, concept: Concept, tmp_path: Path
) -> None:
    base = load_base(str(with_schedule(BUNDLED_BASE, tmp_path / "base", POPULAR[name])))
    pipe = EqDiffPipeline.of(base).load_concept(concept)
    for kind in SAMPLERS:
        pipe.scheduler = sampler(kind, base.scheduler.config)
        first = drawn(pipe, steps=2)
        pipe.scheduler = sampler(kind, base.scheduler.config)
        again = drawn(pipe, steps=2)
        assert np.isfinite(first).all(), kind
        assert first.std() > 0.02, kind
        assert np.array_equal(first, again), kind
        assert not np.array_equal(first[0], first[1]), kind


@pytest.mark.long
@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_command_draws_any_base_with_each_sampler_the_same_picture_twice(
    name: str, kind: str, concept: Concept, tmp_path: Path
) -> None:
    base = with_schedule(BUNDLED_BASE, tmp_path / "base", SCHEDULES[name])
    save_concept(concept, tmp_path / "concept.safetensors")
    words = ["--concept", str(tmp_path / "concept.safetensors"), "--prompt", *PROMPTS]
    words += ["--pretrained_model_name_or_path", str(base), "--scheduler", kind]
    words += ["--num_images_per_prompt", "2", "--num_inference_steps", "10"]

    pictures = []
    for run in ("first", "again"):
        run_test([*words, "--output_dir", str(tmp_path / run)])
        files = sorted((tmp_path / run / "images").iterdir())
        pictures.append([file.read_bytes() for file in files])
    assert len(set(pictures[0])) == 4
    assert pictures[0] == pictures[1]


def has_its_libraries(config: dict[str, Any]) -> bool:
    """Whether diffusers itself can load this scheduler here: some need scipy or torchsde."""
    import diffusers

    return not hasattr(getattr(diffusers, config["_class_name"]), "_backends")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name if name in UNLIKE else pytest.param(name, marks=pytest.mark.long)
        for name, row in POPULAR.items()
        if has_its_libraries(row)
    ],
)
def test_in_python_a_base_draws_with_its_own_scheduler_the_same_picture_for_a_seed(
    name: str, concept: Concept, tmp_path: Path
) -> None:
    """What a scheduler draws itself comes from the image's seed too, and is not z_T again."""
    folder = with_schedule(BUNDLED_BASE, tmp_path / "base", POPULAR[name])
    pipe = EqDiffPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_concept(concept)
    first = drawn(pipe, steps=2)
    torch.manual_seed(123)
    assert np.isfinite(first).all()
    assert np.array_equal(first, drawn(pipe, steps=2))

    how = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    alone = pipe(PROMPTS[1], seeds=SEEDS[1:], **how).images[0]
    assert np.allclose(alone, first[1], atol=1e-3), "an image depends on its batch"


def test_what_a_scheduler_draws_is_not_the_first_noise_again(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: set[int] = set()
    pipe = EqDiffPipeline.of(load_base(str(tiny_base)))
    step = pipe.scheduler.step

    def noted(*args: Any, generator: list[torch.Generator], **kwargs: Any) -> Any:
        seeds.update(one.initial_seed() for one in generator)
        return step(*args, generator=generator, **kwargs)

    monkeypatch.setattr(pipe.scheduler, "step", noted)
    pipe(["a cat", "a cat"], seeds=SEEDS, num_inference_steps=1, output_type="latent")
    assert len(seeds) == 2
    assert not seeds & set(SEEDS)


def test_a_scheduler_of_the_same_class_with_other_timesteps_gets_its_own_references(
    concept: Concept,
) -> None:
    pipe = EqDiffPipeline.of(load_base(str(BUNDLED_BASE))).load_concept(concept)
    drawn(pipe, steps=2)
    config = {**pipe.scheduler.config, "timestep_spacing": "trailing"}
    pipe.scheduler = sampler("ddim", config)
    assert np.isfinite(drawn(pipe, steps=2)).all()


@pytest.mark.parametrize("name", BROKEN)
def test_a_schedule_that_cannot_be_is_refused_by_name(
    name: str, tiny_base: Path, tmp_path: Path
) -> None:
    word, changes = BROKEN[name]
    folder = with_schedule(tiny_base, tmp_path / "base", {**POPULAR["DDIM"], **changes})
    with pytest.raises(
        UserError, match="base .*: its scheduler_config.json cannot be used"
    ) as stop:
        load_base(str(folder))
    assert word in str(stop.value)


@pytest.mark.parametrize("kind", ["dpm++", "unipc"])
def test_what_one_sampler_cannot_do_is_refused_and_another_draws(
    kind: str, tiny_base: Path
) -> None:
    config = {**load_base(str(tiny_base)).scheduler.config}
    config |= {"use_karras_sigmas": True, "use_exponential_sigmas": True}
    with pytest.raises(UserError, match=f"--scheduler {kind.replace('+', '.')}: .*Only one"):
        sampler(kind, config)
    require_steps(sampler("ddim", config), 10, "--num_inference_steps")


def test_zero_terminal_snr_with_noise_predicted_is_refused_where_it_would_be_black(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    row = {**POPULAR["v-prediction with zero terminal SNR"], "prediction_type": "epsilon"}
    folder = with_schedule(tiny_base, tmp_path / "base", row)
    words = training_words(folder, tiny_subject, tmp_path / "out", report_to="none")
    line = refused(capsys, run_train, words)
    assert "--class_inference_steps 2" in line and "rescale_betas_zero_snr" in line
    assert not list((tmp_path / "cache").rglob("*.png"))

    pipe = EqDiffPipeline.of(load_base(str(folder)))
    with pytest.raises(UserError, match="none is shown .* rescale_betas_zero_snr"):
        pipe(["a cat"], seeds=[0], num_inference_steps=2, height=64, width=64)


@pytest.mark.parametrize(("total", "steps"), [(4, 5), (1000, 1000)])
def test_more_steps_than_the_schedule_has_are_refused_by_name(
    total: int, steps: int, tiny_base: Path, tmp_path: Path
) -> None:
    """The stock schedule begins one timestep late, so that a thousand steps end beyond it."""
    row = {**POPULAR["PNDM, as SD 1.4 and 1.5 have it"], "num_train_timesteps": total}
    base = load_base(str(with_schedule(tiny_base, tmp_path / "base", row)))
    with pytest.raises(UserError, match=f"--num_inference_steps {steps}: .*fewer steps"):
        require_steps(base.scheduler, steps, "--num_inference_steps")
    require_steps(base.scheduler, total - 1, "--num_inference_steps")


@pytest.mark.parametrize("name", ["LCM", "TCD"])
def test_a_base_made_for_few_steps_gets_a_word(
    name: str, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_base(str(tiny_base))
    assert not caplog.text
    load_base(str(with_schedule(tiny_base, tmp_path / "base", SCHEDULES[name])))
    assert "distilled to draw in few steps" in caplog.text
    assert caplog.text.count("\n") == 1


# -- single files ----------------------------------------------------------------------------------

Said = Callable[[Path, dict[str, torch.Tensor]], dict[str, str]]


def by_a_tensor(file: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    tensors["v_pred"] = torch.zeros(0)
    return {}


def by_metadata(file: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {"modelspec.prediction_type": "v"}


def by_a_yaml(file: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    text = 'model:\n  params:\n    linear_end: 0.0130\n    parameterization: "v"  # velocity\n'
    file.with_suffix(".yaml").write_text(text)
    return {}


def by_a_yaml_of_noise(file: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    file.with_suffix(".yaml").write_text(
        "model:\n  # parameterization: v\n  parameterization: eps\n"
    )
    return {}


def by_nothing(file: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {}


def by_both_tensors(file: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    tensors |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    return {}


@pytest.mark.parametrize(
    ("says", "prediction"),
    [
        (by_a_tensor, "v_prediction"),
        (by_metadata, "v_prediction"),
        (by_a_yaml, "v_prediction"),
        (by_both_tensors, "v_prediction"),
        (by_a_yaml_of_noise, "epsilon"),
        (by_nothing, "epsilon"),
    ],
)
def test_a_single_file_says_itself_what_it_predicts(
    says: Said,
    prediction: str,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EQDIFF_BASE_CONFIG", str(tiny_base))
    tensors = original_layout(tiny_base)
    file = tmp_path / "tiny.safetensors"
    metadata = says(file, tensors)
    save_file(tensors, file, {"format": "pt", **metadata})

    scheduler = load_base(str(file)).scheduler
    assert scheduler.config.prediction_type == prediction
    assert (scheduler.alphas_cumprod[-1] == 0) == (says is by_both_tensors)
    assert (scheduler.config.beta_end == 0.013) == (says is by_a_yaml)


# -- training --------------------------------------------------------------------------------------


def test_where_the_base_predicts_the_latent_the_target_is_the_latent(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_base, tmp_path / "base")
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")
    objective, latents = tiny_objective(folder, tiny_subject, ra_loss_weight=0.0)
    batch = draw_batch(latents, objective.config, 1000, torch.Generator().manual_seed(0))
    assert objective(batch)["diffusion"] > 1e-3
    objective.predict = lambda *_: batch.z0
    assert objective(batch)["loss"] < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", long_after(1, ["v-prediction with zero terminal SNR", "SDE of torchsde", "LMS"])
)
def test_a_training_ends_with_a_concept_that_draws(
    name: str, tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    folder = with_schedule(tiny_base, tmp_path / "base", SCHEDULES[name])
    out = tmp_path / "out"
    run_train(training_words(folder, tiny_subject, out, max_train_steps=2, report_to="none"))
    pipe = EqDiffPipeline.of(load_base(str(folder)))
    pipe.load_concept(load_concept(out / "concept.safetensors"))
    assert np.isfinite(drawn(pipe, steps=2)).all()
