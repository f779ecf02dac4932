"""What several tests need: tiny trainings, root scripts as functions, an environment for
processes.
"""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from eqdiff.base.load import Base, load_base
from eqdiff.batch import draw_batch
from eqdiff.concept.concept import Concept, References, capture_concept
from eqdiff.data.latents import TrainingLatents, prepare
from eqdiff.data.vae import vae_encoder
from eqdiff.methods.registry import METHODS
from eqdiff.model import new_model
from eqdiff.objective import Objective
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.presets import preset_config
from studies.scripts import run_script

ROOT = Path(__file__).resolve().parent.parent
TINY: dict[str, Any] = {
    "resolution": 64,
    "max_train_steps": 5,
    "num_class_images": 4,
    "class_inference_steps": 2,
    "num_inference_steps": 3,
    "reference_pool": 8,
    "validation_steps": 0,
    "log_steps": 5,
    "learning_rate": 1e-3,
    "token_learning_rate": 1e-3,
}


def long_after(count: int, values: Iterable[Any]) -> list[Any]:
    """Values for `parametrize`; those after the first `count` are left to the long lane."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    marks = [()] * count + [(pytest.mark.long,)] * (len(rows) - count)
    return [pytest.param(*row, marks=mark) for row, mark in zip(rows, marks, strict=True)]


def script(name: str) -> Callable[[Sequence[str]], None]:
    """A root script as a function of its words."""
    return partial(run_script, name)


run_train = script("train_eqdiff.py")
run_test = script("test_eqdiff.py")
run_eval = script("eval_eqdiff.py")
run_masks = script("make_masks.py")
run_export = script("export_concept.py")


class Server:
    """A process that answers each line of JSON with another: tests/kills.py, tests/forks.py.

    One serves many tests, since most of a start is imports.
    """

    def __init__(self, name: str) -> None:
        command = [sys.executable, str(ROOT / "tests" / name)]
        pipes: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, env=environment(), **pipes)

    def ask(self, question: Any) -> Any:
        """The answer to a question."""
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"{self.process.args} has ended with status {self.process.wait()}"
        return json.loads(answer)

    def end(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as command-line words."""
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def training_words(base: Path, subject: Path, out: Path, **changes: Any) -> list[str]:
    """The command line of a tiny training into the folder `out`."""
    given = {"pretrained_model_name_or_path": base, "instance_data_dir": subject}
    given |= {"class_word": "dog toy", "output_dir": out}
    return flags({**TINY, **given, **changes})


def refused(
    capsys: pytest.CaptureFixture, main: Callable[[list[str]], Any], words: list[str]
) -> str:
    """The one line of a refusal with exit status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(words)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def environment(**changes: str) -> dict[str, str]:
    """For a process that a test starts: it imports this repository, and sees no GPU and no hub."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    own |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, **changes}


def tiny_config(base: Path, subject: Path, *, preset: str = "paper", **changes: Any) -> Any:
    given = {
        "class_word": "dog toy",
        "pretrained_model_name_or_path": str(base),
        "instance_data_dir": str(subject),
    }
    return preset_config(preset, **{**TINY, **given, **changes})


@cache
def _read(load: Callable[[str], Any], folder: str) -> Any:
    return load(folder)


def copy_of(load: Callable[[str], Any], folder: Path) -> Any:
    """What `load` reads from a folder, read once and copied: reading takes three times as long."""
    return copy.deepcopy(_read(load, str(folder)))


def base_at(folder: Path) -> Base:
    return copy_of(load_base, folder)


def tiny_objective(base: Path, subject: Path, **changes: Any) -> tuple[Objective, TrainingLatents]:
    """An objective on the tiny base with class images of noise, and the latents of the tiny
    subject."""
    from eqdiff.data.subject import load_subject

    config = tiny_config(base, subject, **changes)
    loaded = base_at(base)
    photos = load_subject(
        subject, class_word="dog toy", resolution=64, binary_masks=config.binary_masks
    )
    generator = torch.Generator().manual_seed(0)
    classes = (
        torch.rand(4, 3, 64, 64, generator=generator) * 2 - 1 if config.needs_class_images else None
    )
    latents = prepare(photos, classes, config, vae_encoder(loaded.vae), generator)
    return Objective(new_model(config, loaded), config), latents


def train(
    objective: Objective, latents: TrainingLatents, steps: int, rate: float = 1e-2
) -> list[float]:
    """Plain AdamW steps over the one list; the losses."""
    parameters = list(objective.model.concept_parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    losses = []
    for step in range(steps):
        batch = draw_batch(latents, objective.config, 1000, torch.Generator().manual_seed(step))
        loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def trained_concept(base: Path, subject: Path, steps: int = 3, **changes: Any) -> Concept:
    """The concept of a tiny training."""
    objective, latents = tiny_objective(base, subject, **changes)
    train(objective, latents, steps)
    return concept_of(objective, latents)


def moved_model(base: Base, method: str, learned: float, **changes: Any) -> tuple[Any, Any]:
    """A method's model whose parameters are moved by noise of that size, and its settings."""
    config = tiny_config(Path("base"), Path("photos"), method=method, **changes)
    model = new_model(config, base, METHODS[method].model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.concept_parameters().values():
            value.add_(learned * torch.randn(value.shape, generator=generator))
    return model, config


def loaded(base: Path, concept: Concept) -> EqDiffPipeline:
    """A pipeline of the base with the concept in it."""
    pipe = EqDiffPipeline.of(base_at(base))
    pipe.set_progress_bar_config(disable=True)
    return pipe.load_concept(concept)


def make_lora(base: Path, folder: Path) -> Path:
    """A LoRA of the base's UNet, of K and V too, in the files that diffusers writes."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = load_base(str(base)).unet
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=layers))
    generator = torch.Generator().manual_seed(1)
    for name, weight in unet.named_parameters():
        if ".lora_" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)

    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=weights)
    return folder


def own_weights(pipe: Any) -> list[torch.Tensor]:
    """What a concept adds to a pipeline: what it learned, and the reference UNet."""
    model = pipe._carried.model
    parts = [model.tokens, model.reference_unet, *model.installed.processors.values()]
    weights = [weight for part in parts for weight in part.parameters()]
    return [*weights, *model.learned.values()]


def concept_of(objective: Objective, latents: TrainingLatents) -> Concept:
    """The concept of a tiny training."""
    import dataclasses

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    names = tuple(f"{i:02}.jpg" for i in range(len(latents.subject_masks)))
    references = References(latents.targets.mean[:, -1], latents.subject_masks, noise, names)
    return capture_concept(objective.model, references, dataclasses.asdict(objective.config), 5)
