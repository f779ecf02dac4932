"""What a concept does to its base: latent Fisher divergence and the Wasserstein metric."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    base_at,
    long_after,
    moved_model,
    refused,
    run_eval,
    run_test,
    run_train,
    training_words,
)
from test_metrics import judges as judges

from eqdiff.concept.concept import References, capture_concept
from eqdiff.evaluation.divergence import _as_eps, latent_fisher, rings_of
from eqdiff.evaluation.gaussians import principal_axes, shrunk_covariance, wasserstein
from eqdiff.masking import velocity
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.presets import METHOD_PRESETS

# -- W2 --------------------------------------------------------------------------------------------


def features(count: int, seed: int = 0, width: int = 12) -> torch.Tensor:
    scale = torch.linspace(2, 0.5, width)
    return scale * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_a_set_is_at_no_distance_from_itself() -> None:
    x = features(300)
    assert wasserstein(x, x).total == pytest.approx(0, abs=1e-9)


def test_the_trace_grows_as_the_set_collapses_onto_one_picture_and_the_mean_as_it_moves() -> None:
    base = features(300)
    traces = []
    for copies in (0, 150, 290):
        drawn = features(300, 1)
        drawn[:copies] = base.mean(0).float()
        traces.append(wasserstein(drawn, base).trace)
    assert 3 * traces[0] < traces[1] and 2 * traces[1] < traces[2]

    moved = wasserstein(base + 3, base)
    assert moved.mean == pytest.approx(9 * 12, rel=1e-6)
    assert moved.trace == pytest.approx(0, abs=1e-9)


def test_it_is_the_closed_form_of_two_gaussians() -> None:
    base, drawn = features(400, 0, 3), features(400, 1, 3) * torch.tensor([1.0, 3.0, 1.0])
    centre, axes = principal_axes(base)
    torch.testing.assert_close(axes.T @ axes, torch.eye(3, dtype=torch.float64))
    a, b = ((x.double() - centre) @ axes for x in (drawn, base))
    first, second = shrunk_covariance(a), shrunk_covariance(b)
    product = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    wanted = first.trace() + second.trace() - 2 * product
    assert wasserstein(drawn, base).trace == pytest.approx(float(wanted), rel=1e-6)


def test_too_few_pictures_have_no_covariance() -> None:
    with pytest.raises(ValueError, match="three pictures"):
        wasserstein(features(2), features(10))


# -- LFD -------------------------------------------------------------------------------------------


def with_concept(tiny_base: Path, method: str, learned: float, **changes: Any) -> EqDiffPipeline:
    """A pipeline with a concept of a method, its parameters moved by noise of that size."""
    base = base_at(tiny_base)
    preset = METHOD_PRESETS[method]["toybox"] if method != "eqdiff" else {}
    keep = {n: v for n, v in preset.items() if n in ("fdte", "rra", "unet_weights", "masking")}
    given = {**keep, "num_inference_steps": 2, **changes}
    model, config = moved_model(base, method, learned, **given)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    references = References(noise, torch.ones(1, 1, 8, 8), noise, ("a.jpg",))
    concept = capture_concept(model, references, dataclasses.asdict(config), 1)
    model.detach()
    return EqDiffPipeline.of(base).load_concept(concept)


RINGS = {"others": ("a photo of a cat",), "style": ("an oil painting of a dog toy",)}


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("textual_inversion", {}),
        ("infusion", {"infusion_streams": "single"}),
        ("infusion", {"infusion_streams": "single", "infusion_keys": True}),
    ],
)
def test_a_method_that_leaves_other_prompts_alone_has_exactly_none(
    tiny_base: Path, method: str, changes: dict[str, Any]
) -> None:
    pipe = with_concept(tiny_base, method, 0.5, **changes)
    found = latent_fisher(pipe, RINGS, 2)
    assert found == {ring: {"eps": 0.0, "score": 0.0} for ring in (*RINGS, "all")}


def test_two_streams_have_none_up_to_rounding(tiny_base: Path) -> None:
    pipe = with_concept(tiny_base, "infusion", 0.5, infusion_streams="dual")
    assert latent_fisher(pipe, RINGS, 2)["all"]["eps"] < 1e-12


@pytest.mark.parametrize(
    "method",
    long_after(1, ["custom_diffusion", "eqdiff", "dreambooth", "ico"]),
)
def test_a_method_that_changes_the_weights_has_some(tiny_base: Path, method: str) -> None:
    pipe = with_concept(tiny_base, method, 0.02)
    found = latent_fisher(pipe, RINGS, 2)
    assert all(found[ring]["eps"] > 1e-9 for ring in RINGS)
    assert found["all"]["eps"] == pytest.approx(sum(found[r]["eps"] for r in RINGS) / 2)
    assert found["all"]["score"] > found["all"]["eps"]  # sigma < 1
    assert found == latent_fisher(pipe, RINGS, 2)


def test_a_prompts_draws_do_not_depend_on_the_other_prompts_of_its_ring(tiny_base: Path) -> None:
    pipe = with_concept(tiny_base, "custom_diffusion", 0.02)
    prompts = ("a photo of a cat", "an oil painting of a dog toy")
    together = latent_fisher(pipe, {"both": prompts}, 2)["both"]["eps"]
    alone = [latent_fisher(pipe, {"one": (prompt,)}, 2)["one"]["eps"] for prompt in prompts]
    assert together == pytest.approx(sum(alone) / 2, rel=1e-4) and min(alone) > 0


def test_it_grows_with_what_was_learned(tiny_base: Path) -> None:
    small, large = (
        latent_fisher(with_concept(tiny_base, "custom_diffusion", size), RINGS, 2)["all"]["eps"]
        for size in (0.01, 0.04)
    )
    assert small < large


def test_a_change_of_any_prediction_is_told_as_one_of_eps() -> None:
    alpha_bar = torch.tensor([0.3, 0.9])
    z0, other, noise = torch.randn(3, 2, 4, 8, 8)
    a = alpha_bar.view(-1, 1, 1, 1)
    z_t = a.sqrt() * z0 + (1 - a).sqrt() * noise
    # another guess of z0 for the same z_t, and what follows for eps and v
    eps = (z_t - a.sqrt() * other) / (1 - a).sqrt()
    change = (eps - noise).square().mean((1, 2, 3))
    v = velocity(other, eps, alpha_bar) - velocity(z0, noise, alpha_bar)
    for kind, moved in (("sample", other - z0), ("v_prediction", v), ("epsilon", eps - noise)):
        found = moved.square().mean((1, 2, 3)) * _as_eps(kind, alpha_bar)
        torch.testing.assert_close(found, change)


def test_no_prompt_names_the_subject_and_each_ring_has_some() -> None:
    rings = rings_of("cat", ("cat", "owl", "dog", "car", "tree"))
    assert set(rings) == {"others", "class", "style"}
    assert rings["others"] == ("a photo of an owl", "a photo of a dog", "a photo of a car")
    assert not any("{}" in prompt for ring in rings.values() for prompt in ring)
    assert all("a cat" in prompt for prompt in (*rings["class"], *rings["style"]))


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line_measures_both_and_says_whose_definition_it_is(
    tiny_base: Path,
    tiny_subject: Path,
    judges: tuple[Path, Path],
    own_caches: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "out"
    words = training_words(tiny_base, tiny_subject, out, method="textual_inversion", preset="paper")
    words += ["--train_batch_size", "1", "--max_train_steps", "2", "--report_to", "none"]
    run_train(words)
    base = ["--pretrained_model_name_or_path", str(tiny_base)]
    how = ["--num_images_per_prompt", "2", "--num_inference_steps", "1"]
    run_test(["--concept", str(out), *base, *how, "--prompt", "a {}", "--prompt", "two {}"])

    eval_words = ["--samples", str(out), "--latent_fisher", "1", "--wasserstein"]
    eval_words += ["--clip_model", str(judges[0]), "--dino_model", str(judges[1])]
    run_eval(eval_words)
    said = capsys.readouterr().out
    assert "LFD (ours), others: 0; over sigma^2 0" in said and "W2^2 (ours), dino: mean" in said
    report = json.loads((out / "samples" / "metrics.json").read_text())
    assert report["latent_fisher"]["all"] == {"eps": 0.0, "score": 0.0}
    assert set(report["wasserstein"]["clip"]) == {"mean", "trace", "floor_mean", "floor_trace"}

    manifest = out / "samples" / "manifest.jsonl"
    whole = manifest.read_text()
    for name, value in (("seed", "one"), ("scheduler", "magic"), ("steps", 0), ("guidance", None)):
        rows = [json.loads(line) | {name: value} for line in whole.splitlines()]
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert "does not say how" in refused(capsys, run_eval, eval_words), name
    manifest.write_text(whole)

    (out / "concept.safetensors").unlink()
    assert "--latent_fisher needs" in refused(capsys, run_eval, eval_words)
