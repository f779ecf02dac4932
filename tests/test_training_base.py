"""The base's long training.

Its draws depend on the step alone, it goes on after a kill, and it makes room when told.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTokenizer

from eqdiff.settings.places import BUNDLED_BASE
from toybox import train_base, trials
from toybox.base_model import BaseLoss, Recipe, band_losses, text_model, unet_model
from toybox.dataset import labels_of, training_scene
from toybox.latents import Batch, Latents, batch_at, load
from toybox.loop import MATRIX_RATE, average_of, descend
from toybox.muon import Muon, shares_of
from toybox.run import Cores, Run
from toybox.schedule import constant_then_fall, cosine, linear_fall, warm_up
from toybox.trials import BANDS, NAMED, take_weights

SMALL = Recipe(widths=(16, 16, 16, 16), batch=4)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(BUNDLED_BASE / "tokenizer")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards with latents of noise: nothing here looks at pictures."""
    folder = tmp_path_factory.mktemp("latents")
    rng = np.random.default_rng(0)
    masks = np.zeros((20, 16, 16), np.uint8)

    for number in range(2):
        labels = np.array([labels_of(training_scene(20 * number + i)) for i in range(20)])
        latents = rng.normal(size=(20, 4, 16, 16)).astype(np.float16)
        np.savez(folder / f"{number:05}.npz", latents=latents, masks=masks, labels=labels)

    return folder


@pytest.fixture
def data(shards: Path) -> Latents:
    return load(shards)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder."""
    (tmp_path / "assets" / "base").mkdir(parents=True)
    for part in ("vae", "tokenizer"):
        os.symlink(BUNDLED_BASE / part, tmp_path / "assets" / "base" / part)
    return tmp_path


def test_a_batch_depends_on_its_position_alone(data: Latents, tokenizer: CLIPTokenizer) -> None:
    first = batch_at(data, tokenizer, 6, (1, 5, 0))
    again = batch_at(data, tokenizer, 6, (1, 5, 0))
    other = batch_at(data, tokenizer, 6, (1, 6, 0))

    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.latents, other.latents)
    assert first.latents.shape == (6, 4, 16, 16)
    assert first.masks.shape == (6, 1, 16, 16)


def test_a_share_of_captions_is_empty(data: Latents, tokenizer: CLIPTokenizer) -> None:
    nothing = tokenizer("", padding="max_length", return_tensors="pt").input_ids
    ids = torch.cat([batch_at(data, tokenizer, 20, (3, step)).ids for step in range(30)])
    empty = (ids == nothing).all(1).float().mean()
    assert 0.05 < float(empty) < 0.16


def test_timesteps_look_at_both_ends_and_weights_at_the_noisy_one() -> None:
    recipe = Recipe(high_share=0.5, high_power=0.5, high_cap=12.0)
    module = BaseLoss(nn.Identity(), nn.Identity(), recipe)
    t = module.timesteps(4000, torch.Generator().manual_seed(0))
    assert float((t >= 750).float().mean()) == pytest.approx(0.625, abs=0.03)

    module.recipe = Recipe(high_share=0.2, low_share=0.5, low_below=450)
    t = module.timesteps(4000, torch.Generator().manual_seed(0))
    assert float((t >= 750).float().mean()) == pytest.approx(0.2 + 0.3 * 0.25, abs=0.03)
    assert float((t < 450).float().mean()) == pytest.approx(0.5 + 0.3 * 0.45, abs=0.03)

    weights = module.weights(torch.tensor([10, 400, 800, 999]))
    assert weights[0] < 0.1
    assert weights[1] == pytest.approx(1.0, abs=0.2)
    assert 1 < weights[2] < weights[3] <= 12.0001


def weights_of(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.module.parameters()])


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(folder: Path, shards: Path) -> None:
    whole = Run(folder, shards, SMALL)
    for _ in range(2):
        whole.advance()
    whole.save()
    for _ in range(2):
        whole.advance()

    again = Run(folder, shards)
    assert again.recipe == SMALL
    assert (again.step, again.samples) == (2, 8)
    for _ in range(2):
        again.advance()

    assert torch.equal(weights_of(again), weights_of(whole))
    for ours, theirs in zip(again.average.shadow_params, whole.average.shadow_params, strict=True):
        assert torch.equal(ours, theirs)


def test_from_committed_weights_a_run_counts_on_and_warms_its_optimizer_up(
    folder: Path, shards: Path
) -> None:
    """Marks over samples stay one curve, though optimizer and average begin anew."""
    row = {"step": 900, "samples": 57_600, "seconds": 12}
    (folder / "progress.jsonl").write_text(json.dumps(row) + "\n")
    run = Run(folder, shards, SMALL)
    assert (run.step, run.samples, run.seconds) == (900, 57_600, 12)

    before = weights_of(run)
    run.advance()
    slow = (weights_of(run) - before).abs().max()
    run.warm_from = 0
    between = weights_of(run)
    run.advance()
    assert (weights_of(run) - between).abs().max() > 10 * slow

    run.save()
    again = Run(folder, shards)
    assert (again.step, again.samples, again.warm_from) == (902, run.samples, 0)
    assert again.recipe == SMALL


def test_the_state_of_a_matrix_is_that_of_the_process_which_moves_it(
    folder: Path, shards: Path
) -> None:
    """Of two processes, each knows the other's momenta only as they were when it started."""
    run = Run(folder, shards, SMALL)
    run.advance()
    run.save()
    file = folder / "checkpoint" / "optimizer-0.safetensors"
    whole = load_file(file)

    matrices = run.optimizer.param_groups[0]["params"]
    names = {p: name for name, p in run.module.named_parameters()}
    for rank in range(2):
        run.optimizer.rank = rank
        run.optimizer.owners = shares_of(matrices, 2)
        elsewhere = {f"{names[p]}:momentum" for p in run.optimizer.elsewhere()}
        assert elsewhere
        assert set(run._optimizer_tensors()) == set(whole) - elsewhere

        old = {name: torch.zeros_like(x) if name in elsewhere else x for name, x in whole.items()}
        save_file(old, file.with_name(f"optimizer-{rank}.safetensors"))

    again = Run(folder, shards, SMALL)._optimizer_tensors()
    assert set(again) == set(whole)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_a_kill_while_a_checkpoint_is_written_leaves_the_former_one(
    folder: Path, shards: Path
) -> None:
    run = Run(folder, shards, SMALL)
    run.advance()
    run.save()

    (folder / "checkpoint").rename(folder / "checkpoint.former")  # killed between the two renames
    (folder / "checkpoint.partial").mkdir()
    (folder / "checkpoint.partial" / "weights.safetensors").write_bytes(b"torn")
    assert Run(folder, shards, SMALL).step == 1

    run.save()
    assert json.loads((folder / "checkpoint" / "state.json").read_text())["step"] == 1


# -- rates and the step -------------------------------------------------------------------------


def test_the_base_rate_is_constant_until_the_fall_which_takes_a_ninth() -> None:
    assert constant_then_fall(10**9, None) == 1.0
    assert constant_then_fall(900, 900) == 1.0
    assert constant_then_fall(950, 900) == pytest.approx(0.5)
    assert constant_then_fall(1000, 900) == 0.0


def test_the_other_rates_begin_and_end_where_they_say() -> None:
    assert [warm_up(step, 4) for step in (0, 1, 3, 100)] == [0.25, 0.5, 1.0, 1.0]
    assert [cosine(progress) for progress in (0, 0.5, 1)] == pytest.approx([1, 0.51, 0.02])
    falling = [linear_fall(progress, 0.3) for progress in (0, 0.7, 0.85, 1)]
    assert falling == pytest.approx([1, 1, 0.5, 0])


def test_a_step_moves_matrices_at_their_own_rate_and_clears_the_gradients() -> None:
    module = nn.Linear(32, 64)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = Muon(module, lr=1.0, weight_decay=0.0)
    average: EMAModel = average_of(module, 0.9)

    module(torch.randn(8, 32)).square().sum().backward()
    descend(module, optimizer, average, 0.01)

    assert [group["lr"] for group in optimizer.param_groups] == [0.01 * MATRIX_RATE, 0.01]
    assert all(p.grad is None for p in module.parameters())
    assert all(not torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert average.optimization_step == 1


def test_a_large_gradient_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(32, 64)
    optimizer = Muon(module, lr=1.0, weight_decay=0.0)
    norms: list[float] = []

    def step() -> None:
        squares = [p.grad.square().sum() for p in module.parameters()]
        norms.append(float(torch.stack(squares).sum().sqrt()))

    monkeypatch.setattr(optimizer, "step", step)
    (1000 * module(torch.ones(8, 32)).square().sum()).backward()
    descend(module, optimizer, average_of(module, 0.9), 0.01)
    assert norms == pytest.approx([1.0], abs=1e-3)


# -- the command --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_ends_after_its_fall_and_leaves_a_checkpoint_and_marks(
    folder: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked: list[int] = []
    monkeypatch.setattr(Run, "mark", lambda run: marked.append(run.samples))
    before = os.sched_getaffinity(0)
    try:
        train_base.train(folder, shards, total=40, recipe=SMALL)
    finally:
        os.sched_setaffinity(0, before)

    state = json.loads((folder / "checkpoint" / "state.json").read_text())
    assert (state["fall_from"], state["samples"], state["step"]) == (36, 40, 10)
    assert marked == [40]


def test_start_takes_a_copy_of_the_code_along_and_status_shows_the_logs_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    started: list[list[str]] = []

    def popen(command: list[str], **_: object) -> SimpleNamespace:
        started.append(command)
        return SimpleNamespace(pid=123)

    monkeypatch.setattr(train_base.subprocess, "Popen", popen)
    monkeypatch.setenv("EQDIFF_CACHE", str(tmp_path))
    run = tmp_path / "toybox" / "run"
    run.mkdir(parents=True)
    (run / "log.txt").write_text("1\n2\n3\n4\n")

    monkeypatch.setattr("sys.argv", ["train_base", "start", "--assets", str(BUNDLED_BASE.parent)])
    train_base.main()
    assert (run / "pid").read_text() == "123"
    assert "toybox.train_base" in started[0]
    assert {path.name for path in Path(train_base.__file__).parent.glob("*.py")} <= {
        path.name for path in (run / "toybox").iterdir()
    }
    assert (run / "assets" / "base" / "vae").is_dir()
    assert not (run / "assets" / "base" / "unet").exists()

    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["train_base", "status"])
    train_base.main()
    assert capsys.readouterr().out == "2\n3\n4\n"


def test_a_run_makes_room_when_it_is_told(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    cores = Cores(tmp_path / "cores", rank=1)
    try:
        cores.obey()
        both = os.sched_getaffinity(0)
        (tmp_path / "cores").write_text("1")
        cores.obey()
        one = os.sched_getaffinity(0)
        assert len(both) == len(one) == 1
        assert len(cores.all) < 2 or both != one

        other = Cores(tmp_path / "cores", rank=0)
        other.all = cores.all
        other.obey()
        assert os.sched_getaffinity(0) == one
    finally:
        os.sched_setaffinity(0, before)


def test_the_loss_in_bands_is_the_same_at_every_call(tokenizer: CLIPTokenizer) -> None:
    torch.manual_seed(0)
    module = BaseLoss(unet_model(SMALL.widths), text_model(tokenizer), replace(SMALL, offset=0.1))
    batch = Batch(
        torch.randn(4, 4, 16, 16),
        tokenizer(["a"] * 4, padding="max_length", return_tensors="pt").input_ids,
        torch.ones(4, 1, 16, 16),
    )

    first = band_losses(module, batch)
    assert first == band_losses(module, batch)
    assert set(first) == {"loss_0", "loss_250", "loss_500", "loss_750"}


def test_a_trial_goes_on_from_the_weights_of_a_checkpoint(
    folder: Path, shards: Path, tokenizer: CLIPTokenizer
) -> None:
    run = Run(folder, shards, SMALL)
    run.advance()
    run.save()
    module = BaseLoss(unet_model(SMALL.widths), text_model(tokenizer), SMALL)

    assert take_weights(module, folder / "checkpoint") == SMALL.batch
    trained = dict(run.module.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in module.named_parameters())

    wider = BaseLoss(unet_model((16, 16, 16, 32)), text_model(tokenizer), SMALL)
    with pytest.raises((KeyError, RuntimeError)):
        take_weights(wider, folder / "checkpoint")


def test_trials_are_told_against_the_first_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def row(trial: str, loss: float, right: float, distance: float) -> dict[str, Any]:
        figures = dict.fromkeys(BANDS.values(), loss) | dict.fromkeys(NAMED.values(), right)
        return {"trial": trial, "samples": 18368, "frechet": distance, "frechet_floor": 0.01} | (
            figures
        )

    rows = [row("high", 0.2, 0.5, 0.03), row("wide", 1, 1, 1) | {"note": "of other latents"}]
    rows.append(row("uniform", 0.19, 0.25, 0.055))
    (tmp_path / "log").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    trials.main(["--table", "--log", str(tmp_path / "log")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| `high` | 18,368 |" + " 100.0 |" * 4 + " 50 |" * 7 + " 3.0 |"
    assert lines[3] == "| `uniform` | 18,368 |" + " 95.0 |" * 4 + " 25 |" * 7 + " 5.5 |"
    with pytest.raises(SystemExit):
        trials.main(["no_such_trial"])
    assert "must be one of uniform, high" in capsys.readouterr().err
