"""Another method can move in: what it trains, its caption, its terms, its attention and its
sampling are its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import tiny_config
from torch import Tensor

from eqdiff.base.load import Base, load_base
from eqdiff.concept.concept import model_for
from eqdiff.concept.file import load_concept, save_concept
from eqdiff.method import Method
from eqdiff.model import Customized
from eqdiff.objective import Objective
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.processors import PlainProcessor
from eqdiff.sampler import SamplingStep, sample_and_time
from eqdiff.training.trainer import Trainer

PLAIN: dict[str, Any] = {"rra": False, "fdte": False, "masking": "none", "ra_loss_weight": 0.0}


# -- a method in a few lines: only the token row is trained ----------------------------------------


class RowsOnly(Customized):
    """Textual Inversion: `Customized` trains token rows and nothing else."""


class Weighted(Objective):
    """With a term of its own: the row stays near zero."""

    def further_terms(self, batch: Any, context: Any) -> dict[str, tuple[float, Tensor]]:
        return {"row": (0.5, self.model.tokens.rows.square().mean())}


ROWS_ONLY = Method(RowsOnly, Weighted)


# -- what another one may do: its own values in cross-attention, its own rows in the UNet's batch --


class Shifted(PlainProcessor):
    """Shows its delta alone: the values, moved."""

    shift = 0.0

    def keys_and_values(self, attn: Any, context: Tensor, reference: Any) -> tuple[Tensor, Tensor]:
        k, v = super().keys_and_values(attn, context, reference)
        return k, v + self.shift


class WithShift(RowsOnly):
    def processors(self) -> dict[str, PlainProcessor]:
        names = [name for name in self.unet.attn_processors if name.endswith("attn2.processor")]
        layers = {name: self.unet.get_submodule(name.removesuffix(".processor")) for name in names}
        return {name: Shifted(layer, name) for name, layer in layers.items()}


class Companion(SamplingStep):
    """One more row in every call of the UNet, taken out again."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.outputs: list[Tensor] = []

    def before(self, unet: Any, args: Any, kwargs: Any) -> Any:
        z, t = sample_and_time(args, kwargs)
        self.rows.append(len(z))
        text = kwargs["encoder_hidden_states"]
        longer = kwargs | {"encoder_hidden_states": torch.cat([text, text[-1:]])}
        return (torch.cat([z, z[-1:]]), t), longer

    def after(self, unet: Any, args: Any, kwargs: Any, output: Any) -> Any:
        (noise,) = output
        self.outputs.append(noise)
        return (noise[:-1],)


@pytest.fixture
def trained(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Trainer, list[dict[str, Tensor]]]:
    """Three steps of the tiny method through the project's own trainer."""
    monkeypatch.setenv("EQDIFF_CACHE", str(tmp_path / "cache"))
    config = tiny_config(tiny_base, tiny_subject, **PLAIN, output_dir=str(tmp_path / "out"))
    trainer = Trainer(config, Accelerator(cpu=True), load_base(str(tiny_base)), method=ROWS_ONLY)
    losses = []
    for step in (1, 2, 3):
        trainer.backward(trainer.losses(trainer.draw(step)))
        losses.append(trainer.descend(step))
    return trainer, losses


def test_it_says_what_is_trained_and_nothing_else_moves(
    trained: tuple[Trainer, list[dict[str, Tensor]]], tiny_base: Path
) -> None:
    trainer, losses = trained
    assert list(trainer.trained) == ["tokens.rows"]
    assert set(losses[0]) == {"loss", "diffusion", "prior", "row"}
    before = dict(load_base(str(tiny_base)).unet.named_parameters())
    now = dict(trainer.model.unet.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in before.items())


def test_its_concept_is_saved_loaded_and_drawn(
    trained: tuple[Trainer, list[dict[str, Tensor]]], tiny_base: Path, tmp_path: Path
) -> None:
    trainer, _ = trained
    save_concept(trainer.concept(3), tmp_path / "concept.safetensors")
    concept = load_concept(tmp_path / "concept.safetensors")
    assert list(concept.parameters) == ["tokens.rows"]

    base = load_base(str(tiny_base))
    model = model_for(concept, base, RowsOnly)
    pipe = EqDiffPipeline.of(base)
    pipe.attach(model, concept)
    assert pipe("a photo of a {}", seeds=[1], num_inference_steps=2).images[0].size == (64, 64)


def attached(kind: type[Customized], base: Base) -> tuple[EqDiffPipeline, Customized]:
    config = tiny_config(Path("base"), Path("photos"), **PLAIN)
    width = base.text_encoder.get_input_embeddings().embedding_dim
    model = kind(base, config.recipe, torch.zeros(1, width))
    pipe = EqDiffPipeline.of(base)
    concept = type("Concept", (), {"recipe": config.recipe, "references": None})()
    pipe.attach(model, concept)
    return pipe, model


def picture(pipe: EqDiffPipeline, **how: Any) -> Tensor:
    drawn = pipe("a {}", seeds=[1], num_inference_steps=2, output_type="pt", **how)
    return drawn.images[0]


def test_a_processor_changes_attention_by_its_delta_alone(tiny_base: Path) -> None:
    stock, _ = attached(RowsOnly, load_base(str(tiny_base)))
    pipe, model = attached(WithShift, load_base(str(tiny_base)))
    wanted = picture(stock)
    assert torch.equal(picture(pipe), wanted)
    for processor in model.installed.processors.values():
        processor.shift = 1.0
    assert not torch.equal(picture(pipe), wanted)
    model.detach()
    assert not any(isinstance(p, PlainProcessor) for p in model.unet.attn_processors.values())


def test_a_sampling_step_may_add_rows_to_the_unets_call_and_take_them_out_again(
    tiny_base: Path,
) -> None:
    pipe, model = attached(RowsOnly, load_base(str(tiny_base)))
    wanted = picture(pipe)
    companion = Companion()
    drawn = picture(pipe, sampling_steps=[companion])
    torch.testing.assert_close(drawn, wanted, atol=1e-5, rtol=0)
    assert companion.rows == [2, 2]  # the two halves of guidance
    assert [len(output) for output in companion.outputs] == [3, 3]
    assert not model.unet._forward_hooks and not model.unet._forward_pre_hooks
