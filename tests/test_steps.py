"""A step of the training loop: what it draws, and how the batches of one step add up."""

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from helpers import TINY, flags, run_train

from eqdiff.training.checkpoint import step_generator
from eqdiff.training.trainer import Trainer


def test_each_step_and_each_process_draws_its_own() -> None:
    which = [
        (seed, step, process) for seed in (0, 1) for step in (1, 2, 600) for process in (0, 1, 7)
    ]
    first, again = (
        [torch.rand(4, generator=step_generator(*one)).tolist() for one in which] for _ in range(2)
    )
    assert first == again
    assert len(set(map(tuple, first))) == len(which)


def test_accumulated_gradients_are_the_mean_of_different_batches(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    wanted: dict[str, Any] = {}
    descended: list[dict[str, Any]] = []
    draw, clip = Trainer.draw, accelerate.Accelerator.clip_grad_norm_

    def watched(run: Any, number: int, part: int = 0) -> Any:
        if wanted:
            return draw(run, number, part)
        batches = [draw(run, number, each) for each in range(2)]
        assert not torch.equal(batches[0].noise, batches[1].noise)
        for batch in batches:
            run.objective(batch)["loss"].backward()  # they add up
        wanted.update({name: p.grad / 2 for name, p in run.trained.items() if p.grad is not None})
        run.optimizer.zero_grad(set_to_none=True)
        names = {id(p): name for name, p in run.trained.items()}

        def clipped(self: Any, parameters: Any, *more: Any) -> Any:
            parameters = list(parameters)
            descended.append(
                {names[id(p)]: p.grad.clone() for p in parameters if p.grad is not None}
            )
            return clip(self, parameters, *more)

        monkeypatch.setattr(accelerate.Accelerator, "clip_grad_norm_", clipped)
        return draw(run, number, part)

    monkeypatch.setattr(Trainer, "draw", watched)
    given = {
        "pretrained_model_name_or_path": tiny_base,
        "instance_data_dir": tiny_subject,
        "class_word": "dog toy",
    }
    settings = {**TINY, **given, "output_dir": tmp_path / "out", "max_train_steps": 1}
    run_train(flags({**settings, "gradient_accumulation_steps": 2}))
    (got,) = descended
    assert got.keys() == wanted.keys()
    assert sum(float(value.abs().sum()) for value in wanted.values()) > 0
    assert all(
        torch.allclose(got[name], value, rtol=1e-4, atol=1e-7) for name, value in wanted.items()
    )
