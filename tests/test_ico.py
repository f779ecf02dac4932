"""ICO: while it trains each photo has words of its own; what is kept knows nothing of them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import tiny_config
from torch import Tensor

from eqdiff.base.load import Base, load_base
from eqdiff.batch import Batch
from eqdiff.concept.concept import model_for
from eqdiff.concept.file import load_concept, save_concept
from eqdiff.concept.plain import textual_inversion
from eqdiff.errors import UserError
from eqdiff.methods.ico import RARE, Ico, IcoObjective, in_slots
from eqdiff.model import new_model
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.presets import METHOD_PRESETS
from eqdiff.tokens import rare_ids
from eqdiff.training.checkpoint import load_checkpoint, save_checkpoint
from eqdiff.training.trainer import Trainer

GIVEN = METHOD_PRESETS["ico"]["paper"] | {"train_batch_size": 2, "class_word": "dog toy"}


def objective_of(base: Base, photos: int = 3, **changes: Any) -> IcoObjective:
    config = tiny_config(Path("b"), Path("p"), method="ico", **{**GIVEN, "rra": False, **changes})
    objective = IcoObjective(new_model(config, base, Ico), config)
    objective.make_aids(photos)
    return objective


def batch_of(photos: list[int], bands: list[int] | None = None, classes: int = 0) -> Batch:
    """A batch of these photos, of noise."""
    n = len(photos) + classes
    z = torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    own = len(photos)
    return Batch(
        photo=torch.tensor(photos),
        class_image=torch.arange(classes),
        z0=z,
        noise=z.flip(0),
        t=torch.full((n,), 400),
        mask=torch.ones(n, 1, 8, 8),
        noised=torch.ones(n, 1, 8, 8),
        subject_mask=torch.ones(own, 1, 8, 8),
        bands=torch.tensor((bands or [2] * own) + [2] * classes),
        caption=torch.zeros(own, dtype=torch.long),
        z_r=z[:0],
        noise_r=z[:0],
        t_r=torch.zeros(0, dtype=torch.long),
        mask_r=z[:0, :1],
    )


def trainer_of(base: Path, subject: Path, out: Path, **changes: Any) -> Trainer:
    given = {**GIVEN, "output_dir": str(out), **changes}
    config = tiny_config(base, subject, method="ico", **given)
    return Trainer(config, Accelerator(cpu=True), load_base(str(base)))


def step(trainer: Trainer, number: int) -> None:
    trainer.backward(trainer.losses(trainer.draw(number)))
    trainer.descend(number)


# -- the caption -----------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["dog toy", "teapottoy", "cat"])
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_at_first_the_caption_is_the_plain_one_bit_for_bit(
    tiny_base: Path, word: str, tasks: int
) -> None:
    base = load_base(str(tiny_base))
    objective = objective_of(base, class_word=word, task_tokens=tasks)
    model = objective.model
    found = objective.caption(batch_of([0, 2], classes=1))

    ids, slots = model.tokenize(["photo of a {} ."], word)
    assert slots.sum() == tasks
    plain = model.encode(ids, slots, torch.tensor([2]))
    assert torch.equal(found[:2], plain.expand(2, -1, -1))
    assert torch.equal(found[2:], objective.class_text)


@pytest.mark.parametrize("word", ["dog toy", "teapottoy", "toy"])
def test_the_words_are_those_round_the_tasks_and_the_noun_of_as_many_pieces_as_it_has(
    tiny_base: Path, word: str
) -> None:
    base = load_base(str(tiny_base))
    objective = objective_of(base, class_word=word, task_tokens=2)
    pieces = base.tokenizer(word, add_special_tokens=False).input_ids
    words = objective.words.nonzero()[:, 0].tolist()
    assert words == [1, 2, 3, 6 + len(pieces)]  # photo of a, two tasks and the noun, full stop
    assert objective.noun.sum() == len(pieces)
    assert objective.contexts.shape == (3, 4, 32)


def test_a_noun_that_the_caption_says_too_is_a_word_there(tiny_base: Path) -> None:
    objective = objective_of(
        load_base(str(tiny_base)), class_word="toy", instance_prompt="a toy , a {}", task_tokens=1
    )
    assert objective.words.nonzero()[:, 0].tolist() == [1, 2, 3, 4]
    assert objective.noun.nonzero()[:, 0].tolist() == [6]


def test_only_the_photos_of_the_batch_teach_their_words(tiny_base: Path) -> None:
    objective = objective_of(load_base(str(tiny_base)))
    objective(batch_of([1, 1]))["loss"].backward()
    moved = objective.contexts.grad.abs().sum((1, 2)) > 0
    assert moved.tolist() == [False, True, False]


def test_photos_in_another_order_only_move_their_words(tiny_base: Path) -> None:
    objective = objective_of(load_base(str(tiny_base)))
    with torch.no_grad():
        objective.contexts.add_(torch.randn(objective.contexts.shape))
    wanted = objective.caption(batch_of([0, 1]))
    with torch.no_grad():
        objective.contexts.copy_(objective.contexts.flip(0).clone())
    assert torch.equal(objective.caption(batch_of([2, 1])), wanted)
    assert not torch.equal(objective.caption(batch_of([0, 1])), wanted)


def test_as_released_tasks_noun_and_closing_words_count_from_one(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    true = objective_of(base)
    assert true.positions() is None
    true.model.detach()

    objective = objective_of(base, context_positions="release", task_tokens=3)
    pieces = objective.noun.sum()
    assert pieces == 2
    #        start photo of a | three tasks | dog toy | . | end, padding
    wanted = [0, 1, 2, 3, 1, 2, 3, 4, 5, 1, 10, 11]
    assert objective.positions()[0, :12].tolist() == wanted
    own = true.caption(batch_of([0]))
    assert not torch.allclose(objective.caption(batch_of([0])), own, atol=1e-3)


# -- the tasks -------------------------------------------------------------------------------------


def test_each_run_of_slots_takes_the_tasks_in_turn() -> None:
    tasks = torch.tensor([[[1.0], [2.0]]])
    slots = torch.tensor([[0, 1, 1, 0, 1, 1, 0, 1, 0, 1, 1, 1]]).bool()
    found = in_slots(tasks, slots)[0, :, 0].tolist()
    assert found == [0, 1, 2, 0, 1, 2, 0, 1, 0, 1, 2, 2]


def test_with_eqdiff_the_first_task_is_the_bands_embedding(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    objective = objective_of(base, fdte=True)
    rows = objective.model.tokens.rows
    with torch.no_grad():
        rows[1] += 1.0
    low, high, full = objective.model.tokens(torch.tensor([0, 1, 2]))
    assert low.shape == (2, 32)
    assert torch.equal(low[0], rows[0]) and torch.equal(high[0], rows[1])
    assert torch.equal(full[0], rows.sum(0))
    assert torch.equal(low[1], full[1])
    captions = objective.caption(batch_of([0, 0, 0], [0, 1, 2]))
    assert not torch.equal(captions[0], captions[1])


@pytest.mark.parametrize(("start", "words"), [("rare", RARE), ("class", ["dog toy"] * 3)])
def test_the_tasks_start_from_the_releases_rare_tokens_or_the_class(
    tiny_base: Path, start: str, words: Sequence[str]
) -> None:
    base = load_base(str(tiny_base))
    tokens = objective_of(base, token_init=start, task_tokens=3).model.tokens
    table = base.text_encoder.get_input_embeddings().weight
    for row, word in zip((tokens.rows[0], *tokens.rest), words, strict=True):
        ids = rare_ids(base.tokenizer, word)
        torch.testing.assert_close(row, table[ids].mean(0))


# -- what is trained and kept ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("parts", [{}, {"fdte": True, "rra": True, "masking": "noise"}])
def test_a_concept_knows_no_context_and_is_drawn_without_one(
    tiny_base: Path, tiny_subject: Path, own_caches: None, tmp_path: Path, parts: dict[str, Any]
) -> None:
    trainer = trainer_of(tiny_base, tiny_subject, tmp_path, **parts)
    assert "contexts" in trainer.trained
    before = trainer.trained["contexts"].detach().clone()
    table = trainer.model.text_encoder.get_input_embeddings().weight.detach().clone()
    for number in (1, 2):
        step(trainer, number)
    assert not torch.equal(trainer.trained["contexts"], before)
    assert torch.equal(trainer.model.text_encoder.get_input_embeddings().weight, table)

    concept = trainer.concept(2)
    assert not [name for name in concept.parameters if "context" in name]
    assert {"tokens.rows", "tokens.rest"} <= concept.parameters.keys()
    save_concept(concept, tmp_path / "c.safetensors")
    with torch.no_grad():
        trainer.trained["contexts"].zero_()
    drawn = []
    for model in (trainer.model, None):
        base = load_base(str(tiny_base))
        loaded = load_concept(tmp_path / "c.safetensors")
        model = model_for(loaded, base) if model is None else model
        model.unet.eval()
        pipe = EqDiffPipeline.of(model)
        pipe.attach(model, loaded)
        drawn.append(pipe("a {}", seeds=[1], num_inference_steps=2, output_type="pt").images[0])
    assert torch.equal(*drawn)
    assert type(model) is Ico


@pytest.mark.slow
def test_the_contexts_move_ten_times_as_fast_and_a_checkpoint_has_them(
    tiny_base: Path, tiny_subject: Path, own_caches: None, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny_base, tiny_subject, tmp_path)
    rates = {group["flag"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates["--context_rate"] == pytest.approx(10 * rates["--learning_rate"])
    step(trainer, 1)
    facts = {"config": {}, "processes": 1, "data": {}}
    save_checkpoint(
        tmp_path / "kept", trainer.concept(1), trainer.optimizer, trainer.trained, facts
    )
    step(trainer, 2)

    again = trainer_of(tiny_base, tiny_subject, tmp_path)
    load_checkpoint(
        tmp_path / "kept" / "step-000001", 1, again.model, again.optimizer, again.trained
    )
    step(again, 2)
    assert trainer.trained.keys() == again.trained.keys()
    for name, value in trainer.trained.items():
        assert torch.equal(again.trained[name], value), name


def test_what_does_not_go_with_learned_captions_is_refused(tiny_base: Path) -> None:
    for changes, says in (
        ({"size_prefixes": True}, "size_prefixes"),
        ({"slot_by": "whitespace"}, "slot_by whitespace"),
        ({"instance_prompt": "{}"}, "needs words"),
    ):
        with pytest.raises(UserError, match=says):
            objective_of(load_base(str(tiny_base)), **changes)


def test_an_export_has_all_tasks(tiny_base: Path) -> None:
    objective = objective_of(load_base(str(tiny_base)), task_tokens=3)
    values: dict[str, Tensor] = objective.model.learned_values()
    concept: Any = dataclasses.make_dataclass("C", ["parameters", "recipe"])(
        values, objective.model.recipe
    )
    assert textual_inversion(concept)["emb_params"].shape == (3, 32)
