"""The benchmarks measure what they say: the counter refuses a wrong UNet, results name their
origin, commands run."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import (
    class_images,
    common,
    compiling,
    count,
    counting,
    counting_options,
    memory,
    sample,
    soak,
    step,
)
from eqdiff.settings.presets import preset_config

pytestmark = pytest.mark.slow


def test_the_counter_knows_the_unet_of_stable_diffusion_and_refuses_another(monkeypatch):
    with torch.device("meta"):
        whole = common.UNet2DConditionModel(**common.UNET)
        other = common.UNet2DConditionModel(**{**common.UNET, "cross_attention_dim": 1024})
    assert abs(counting.check_unit(whole) / 1e9 - 803) <= 1
    with pytest.raises(SystemExit, match="GFLOP, not 803"):
        counting.check_unit(other)
    # plain attention without a count of its own, as a torch that does not know it
    monkeypatch.setattr(counting.F, "scaled_dot_product_attention", lambda q, k, v, **_: q)
    with pytest.raises(SystemExit, match="does not count attention"):
        counting.check_unit(whole)


def test_a_missed_limit_is_named():
    good = {
        "training_step_u": 13.7,
        "ablation_a_step_u": 8.4,
        "sampling_u_per_image": {"1": 213.0, "16": 123.0},
        "dci_u_per_image": {"ratio": 1.151},
        "dreammatcher_u": {"picture": 106.9},
    }
    assert count.missed(good) == []
    assert (
        len(
            count.missed(
                good | {"training_step_u": 14.1, "sampling_u_per_image": {"1": 215.0, "16": 125.0}}
            )
        )
        == 3
    )

    dear = {"dci_u_per_image": {"ratio": 1.3}, "dreammatcher_u": {"picture": 200.0}}
    assert len(count.missed(good | dear)) == 2


def test_options_are_counted_from_their_calls(monkeypatch):
    """A plain call is 2; DCI adds a row or two; the photo's call is 2, inversion 1 a timestep."""
    counted = {"DCI shared": 3, "DCI own": 4, "FreeCustom": 5}

    def calls(objective, side, option, few):
        kind = type(option).__name__
        if kind == "DreamMatcher":
            return [few * 1 + 2 + 2, 2 + 2 + 0.1]
        guidance = getattr(option, "guidance", None)
        return [counted.get(f"{kind} {guidance}" if guidance else kind, 2)] * few

    shapes = SimpleNamespace(resnets=[SimpleNamespace(out_channels=10)])
    unet = SimpleNamespace(get_submodule=lambda name: shapes)
    built = SimpleNamespace(model=SimpleNamespace(unet=unet))
    monkeypatch.setattr(counting_options, "build", lambda config: built)
    monkeypatch.setattr(counting_options, "calls", calls)
    monkeypatch.setattr(counting_options, "_photo_parts", lambda *_: (1, 4))
    lines = counting_options.option_lines(preset_config("paper", class_word="mug"), 1)
    figures, _ = count.parted(lines)

    assert figures["dci_u_per_image"] == {
        "shared": 115, "own": 130, "plain": 100, "ratio": pytest.approx(1.15)
    }  # fmt: skip
    matching = figures["dreammatcher_u"]
    assert matching["picture"] == pytest.approx(100 + 46 * 0.1)
    assert matching["once"] == 50 + 47 * 2
    assert matching["eigenvectors"] == 2 * 46 * 2 * 9000
    assert figures["freecustom_u"] == {"picture": 200, "once": 50}


@pytest.mark.long
def test_options_cost_what_they_are_said_to_at_stable_diffusions_sizes():
    u = counting.check_unit(common.random_base("meta").unet)
    config = preset_config("paper", class_word="mug", rra=False, fdte=False, masking="none")
    figures, _ = count.parted(counting_options.option_lines(config, u))
    assert figures["dci_u_per_image"]["ratio"] == pytest.approx(1.15, abs=0.005)
    assert figures["dreammatcher_u"]["picture"] == pytest.approx(106.9, abs=0.1)
    assert figures["dreammatcher_u"]["once"] == pytest.approx(144, abs=0.1)


def test_results_are_recorded_with_their_origin_and_without_paths(tmp_path, monkeypatch, capsys):
    words = ["--json", str(tmp_path / "a.json"), f"--base={tmp_path}/base", "--rounds", "3"]
    monkeypatch.setattr(sys, "argv", ["step.py", *words])
    figures = {"step_ratio": 1.5, "seconds": {"ours": 0.25}, "step_ratio_interval": [1.4, 1.6]}
    for _ in range(2):
        common.report(
            "step",
            figures,
            tmp_path / "a.json",
            notes={"step_ratio": "why"},
            results=tmp_path / "r.jsonl",
        )
    assert json.loads((tmp_path / "a.json").read_text()) == figures
    first, second = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    assert first["figures"] == second["figures"] == figures
    assert first["benchmark"] == "step"
    assert first["arguments"] == ["--json", "a.json", "--base=base", "--rounds", "3"]
    assert first["versions"]["torch"] == torch.__version__
    assert first["commit"]
    assert first["machine"]["cores"] >= 1
    assert str(tmp_path) not in json.dumps(first)
    shown = capsys.readouterr().out
    assert "seconds ours                  0.250\n" in shown
    assert "1.500  why" in shown


def test_ratios_pair_the_rounds_and_bound_the_ratio_of_medians():
    other = [1.0, 2.0, 3.0, 4.0, 5.0] * 4
    ratio, (low, high) = common.paired_ratio([1.5 * seconds for seconds in other], other)
    assert ratio == pytest.approx(1.5)
    assert low == pytest.approx(1.5)  # what slows both alike in a round does not widen the bounds
    assert high == pytest.approx(1.5)
    order: list[str] = []
    times = common.interleaved({name: lambda name=name: order.append(name) for name in "abc"}, 3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3, "c": 3}


def main_of(benchmark: ModuleType, base: Path, tmp_path: Path, *words: str) -> dict[str, Any]:
    """Figures of a benchmark on the tiny base. In this process: imports take longer than the
    work.
    """
    out, record = tmp_path / "figures.json", tmp_path / "results.jsonl"
    given = ["--base", str(base), "--json", str(out), "--results", str(record), "--rounds", "1"]
    assert benchmark.main([*given, *words]) == 0
    return json.loads(out.read_text())


@pytest.mark.long
def test_step_gives_ratios(tiny_base, tmp_path):
    figures = main_of(step, tiny_base, tmp_path, "--steps", "1", "--batch", "1", "--channels_last")
    ratios = ("step_ratio", "step_ratio_live_vae", "live_vae_ratio", "channels_last_ratio")
    assert all(math.isfinite(figures[name]) and figures[name] > 0 for name in ratios)


@pytest.mark.long
def test_class_images_are_timed_beside_the_default_and_so_are_the_priors(
    tiny_base, tmp_path, monkeypatch
):
    monkeypatch.setattr(class_images, "TIMED", (("ddim", 3), ("dpm++", 2)))
    words = ["--no-count", "--pictures", "2", "--steps", "1"]
    figures = main_of(class_images, tiny_base, tmp_path, *words)
    ratios = [figures["class_image_ratio"]["dpm++ 2"], figures["step_ratio"]["prediction"]]
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios)
    assert set(figures["seconds_per_step"]) == {"images", "prediction", "none"}


@pytest.mark.parametrize(("compiled", "pays"), [(1.6, 200), (2.0, "never"), (2.4, "never")])
def test_compiling_pays_when_what_it_saves_has_paid_for_its_start(monkeypatch, compiled, pays):
    """Calls of four steps that take 2 s eager, and `compiled` s once compiled."""
    usual = {"eager": [2.0] * 3, "compiled": [compiled] * 3}
    starts = iter([2.5, compiled + 20, compiled + 5])  # eager, compiled, compiled once more
    monkeypatch.setattr(compiling, "seconds_of", lambda act: next(starts))
    monkeypatch.setattr(compiling, "interleaved", lambda acts, rounds: usual)
    found = compiling.measured(dict.fromkeys(usual), SimpleNamespace(rounds=3, steps=4))
    assert found["start"] == pytest.approx(20) and found["start again"] == pytest.approx(5)
    assert found["start eager"] == pytest.approx(0.5)
    assert found["seconds a step"] == {"eager": 0.5, "compiled": compiled / 4}
    assert found["ratio"] == pytest.approx(compiled / 2) and found["pays from"] == pays


def test_sample_gives_a_ratio_for_each_count(tiny_base, tmp_path):
    words = ["--prompts_count", "3", "1", "--batch_size", "2", "--steps", "2"]
    figures = main_of(sample, tiny_base, tmp_path, *words)
    assert figures["sample_ratio"] == figures["sample_ratio_by_n"]["3"]["ratio"]
    assert math.isfinite(figures["sample_ratio_by_n"]["1"]["ratio"])


def test_memory_measures_a_training_and_drawing(tiny_base, capsys):
    words = [
        "--base",
        str(tiny_base),
        "--steps",
        "1",
        "--batch_size",
        "1",
        "--denoising_steps",
        "1",
        "--measure",
    ]
    for what in ("imports", "train_1_1_checkpointing", "sample"):
        assert memory.main([*words, what]) == 0
        assert 0.1 < json.loads(capsys.readouterr().out.splitlines()[-1]) < 20


def test_a_leak_is_told_from_noise_and_from_the_warm_up():
    numbers = list(range(1, 201))
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    flat = [900 + min(n, 30) + 0.5 * e for n, e in zip(numbers, noise, strict=True)]
    leaking = [mb + 0.2 * n for n, mb in zip(numbers, flat, strict=True)]
    growth, (low, high) = soak.slope(numbers, leaking)
    assert low < 0.2 < high < 0.22
    assert growth == pytest.approx(0.2, abs=0.01)
    parts = [
        soak.summary("customization", numbers, mb, [4, tensors], 0.0)
        for mb, tensors in ((flat, 4), (leaking, 4))
    ]
    libraries = soak.summary("load", numbers, flat, [4, 4], 0.0)
    parts = [part | soak.of_ours(part, libraries) for part in parts]
    assert [len(soak.failures({"training": part})) for part in parts] == [0, 1]
    libraries = soak.summary("load", numbers, leaking, [4, 4], 0.0)
    ours = soak.of_ours(parts[1], libraries)  # no more than the libraries' own
    assert ours["ours_mb_per_customization"] == pytest.approx(0)
    low, high = ours["ours_interval"]
    assert high - low > parts[1]["interval"][1] - parts[1]["interval"][0]
    assert not soak.failures({"training": parts[1] | ours})
    assert len(soak.failures({"training": parts[0] | {"tensors_last": 5}})) == 1
