"""DCI: two branches, a gate per head, columns by ids; without it every picture is what it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import loaded, refused, run_test, run_train, training_words
from torch import Tensor

from eqdiff.concept.concept import Concept
from eqdiff.errors import UserError
from eqdiff.pipeline import EqDiffPipeline, initial_noise, seed_of
from eqdiff.sampling.dci import (
    DCI,
    DciStep,
    gate,
    gate_scale,
    noun_words,
    subject_weight,
    subject_words,
)

PROMPT = "a mosaic of a {} on the beach"
NEVER = DCI(strength=-1e9)  # the second picture is there and lends nothing


@pytest.fixture(scope="module")
def pipe(tiny_base: Path, plain: Concept) -> EqDiffPipeline:
    return loaded(tiny_base, plain)


def latent(
    pipe: EqDiffPipeline,
    *options: DCI,
    prompts: Any = PROMPT,
    steps: int = 4,
    guidance: float = 3.0,
    **how: Any,
) -> Tensor:
    """Latents (N,4,8,8) of a few steps."""
    given = {"seeds": [1], **how}
    return pipe(
        prompts,
        sampling_options=options,
        output_type="latent",
        num_inference_steps=steps,
        guidance_scale=guidance,
        **given,
    ).images


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def rows_of(pipe: EqDiffPipeline, option: DCI, **how: Any) -> list[int]:
    """The rows of each call once the option has added its own."""
    rows: list[int] = []
    seen = pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        latent(pipe, option, **how)
    finally:
        seen.remove()
    return rows


def spied(monkeypatch: pytest.MonkeyPatch) -> list[DciStep]:
    """The steps that are made from now on."""
    steps: list[DciStep] = []
    start: Callable[..., None] = DciStep.__init__

    def init(self: DciStep, *args: Any) -> None:
        start(self, *args)
        steps.append(self)

    monkeypatch.setattr(DciStep, "__init__", init)
    return steps


# -- what it must leave alone ----------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_share_0_is_plain_sampling_bit_for_bit(pipe: EqDiffPipeline, guidance: float) -> None:
    wanted = latent(pipe, guidance=guidance)
    assert torch.equal(latent(pipe, DCI(share=0.0, strength=5.0), guidance=guidance), wanted)
    assert not torch.equal(latent(pipe, DCI(share=0.5), guidance=guidance), wanted)


def test_a_gate_that_lends_nothing_is_plain_sampling(pipe: EqDiffPipeline) -> None:
    close(latent(pipe, NEVER), latent(pipe))


def test_the_second_pictures_noise_does_not_move_the_first_ones(pipe: EqDiffPipeline) -> None:
    for how in ({"seeds": None, "generator": torch.Generator().manual_seed(3)}, {"eta": 1.0}):
        drawn = []
        for options in ((), (NEVER,)):
            if how.get("generator"):
                how["generator"].manual_seed(3)
            drawn.append(latent(pipe, *options, **how))
        close(*drawn)
    torch.manual_seed(5)
    wanted = latent(pipe, seeds=None)
    torch.manual_seed(5)
    close(latent(pipe, NEVER, seeds=None), wanted)


def test_afterwards_no_layer_has_a_guest_and_the_unet_no_hook(pipe: EqDiffPipeline) -> None:
    latent(pipe, DCI())
    processors = pipe.carried.model.installed
    every = [*processors.processors.values(), *processors.plain.values()]
    assert every and not any(processor.attending for processor in every)
    assert not pipe.unet._forward_hooks and not pipe.unet._forward_pre_hooks


# -- the two branches ------------------------------------------------------------------------------


def test_both_pictures_are_drawn_in_the_first_share_of_the_schedule(pipe: EqDiffPipeline) -> None:
    assert rows_of(pipe, DCI(share=0.3), steps=10) == [3] * 3 + [2] * 7
    assert rows_of(pipe, DCI(share=0.5, guidance="own"), steps=4) == [4, 4, 2, 2]
    assert rows_of(pipe, DCI(share=0.5), steps=4, guidance=1.0) == [2, 2, 1, 1]


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_the_second_picture_is_a_plain_run_of_its_own_prompt(
    pipe: EqDiffPipeline, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    steps = spied(monkeypatch)
    latent(pipe, DCI(noun="cat", share=1.0, guidance="own"), guidance=guidance)
    noise = initial_noise([seed_of(1, "dci", 0)], (4, 8, 8))
    alone = latent(
        pipe, prompts="a mosaic of a cat on the beach", seeds=None, latents=noise, guidance=guidance
    )
    close(steps[0].z_a, alone)


def test_shared_guidance_takes_the_first_pictures_unconditional_half(
    pipe: EqDiffPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = spied(monkeypatch)
    outputs: list[Tensor] = []
    seen = pipe.unet.conv_out.register_forward_hook(lambda _, args, out: outputs.append(out))
    latent(pipe, DCI(share=1.0), steps=1)
    seen.remove()
    u, _, a = outputs[0]
    scheduler = steps[0].scheduler
    wanted = scheduler.step((u + 3.0 * (a - u))[None], scheduler.timesteps[0], steps[0].noise)[0]
    close(steps[0].z_a, wanted)


def test_two_images_in_a_batch_are_what_they_are_alone(pipe: EqDiffPipeline) -> None:
    prompts = [PROMPT, "a photo of a {}"]
    together = latent(pipe, DCI(share=0.6), prompts=prompts, seeds=[1, 2])
    for number, prompt in enumerate(prompts):
        alone = latent(pipe, DCI(share=0.6), prompts=prompt, seeds=[number + 1])
        close(together[number : number + 1], alone)
    twice = latent(pipe, DCI(share=0.6), seeds=[1, 2], num_images_per_prompt=2)
    close(twice[:1], together[:1])


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_other_samplers_take_both_pictures_on(
    tiny_base: Path, plain: Concept, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    import diffusers

    pipe = loaded(tiny_base, plain)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    steps = spied(monkeypatch)
    close(latent(pipe, DCI(strength=-1e9, share=1.0, noun="cat", guidance="own")), latent(pipe))
    noise = initial_noise([seed_of(1, "dci", 0)], (4, 8, 8))
    close(
        steps[0].z_a, latent(pipe, prompts=PROMPT.replace("{}", "cat"), seeds=None, latents=noise)
    )


# -- with EqDiff -----------------------------------------------------------------------------------


def test_the_second_picture_does_not_attend_to_the_photo(
    tiny_base: Path, attending: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = loaded(tiny_base, attending)
    steps = spied(monkeypatch)
    option = DCI(noun="cat", share=1.0)
    latent(pipe, option)
    assert steps[0].own  # the shared half would have brought the photo
    noise = initial_noise([seed_of(1, "dci", 0)], (4, 8, 8))
    text = "a mosaic of a cat on the beach"
    alone, attended = (
        latent(pipe, prompts=text, seeds=None, latents=noise, rra=rra) for rra in (False, True)
    )
    close(steps[0].z_a, alone)
    assert not torch.allclose(alone, attended, atol=1e-3)

    assert rows_of(pipe, option) == [4] * 4
    assert rows_of(pipe, option, rra=False) == [3] * 4
    assert rows_of(pipe, option, reference_for="conditional") == [3] * 4


def test_the_first_picture_attends_to_the_photo_as_without_it(
    tiny_base: Path, attending: Concept
) -> None:
    pipe = loaded(tiny_base, attending)
    for halves in ("both", "conditional"):
        close(latent(pipe, NEVER, reference_for=halves), latent(pipe, reference_for=halves))


# -- the gate --------------------------------------------------------------------------------------


def maps() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    w_c, w_a = torch.rand(2, 1, 2, 16, generator=generator)
    return w_c, w_a


def test_the_gates_share_out_everything_and_the_subject_gets_half_at_lambda_0() -> None:
    w_c, w_a = maps()
    g = gate(w_c, w_a, 0.0, 30.0)
    assert ((g >= 0.5) & (g <= 1)).all()
    p_c, p_a = (30.0 * torch.softmax(10 * w, -1) for w in (w_c, w_a))
    torch.testing.assert_close(g, p_c.exp() / (p_c.exp() + 1))
    other = p_a.exp() / (p_a.exp() + p_c.exp())
    torch.testing.assert_close(gate(w_c, w_a, 1.0, 30.0) + other, torch.ones_like(g))


def test_raising_lambda_lowers_the_gate_at_every_cell() -> None:
    w_c, w_a = maps()
    gates = [gate(w_c, w_a, strength, 8.0) for strength in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    for higher, lower in zip(gates, gates[1:], strict=False):
        assert (lower < higher).all()


@pytest.mark.parametrize(("level", "inside", "outside"), [(0, 0.62, 0.46), (2, 1.0, 0.07)])
def test_each_level_has_stable_diffusions_gates_at_any_size(
    level: int, inside: float, outside: float
) -> None:
    """A subject on a quarter of the picture, w 0.6 on it and 0.1 beside it, at lambda 1."""
    for side in (64, 16):
        n = (side // 2**level) ** 2
        w_c = torch.full((n,), 0.1)
        w_c[: n // 4] = 0.6
        g = gate(w_c, 1 - w_c, 1.0, gate_scale(side * side, "level"))
        assert g[0] == pytest.approx(inside, abs=0.011)
        assert g[-1] == pytest.approx(outside, abs=0.011)
    assert gate_scale(64 * 64, "level") == gate_scale(16 * 16, "flat") == 500


def test_a_cells_weight_is_what_the_word_gets_of_the_prompts_own_tokens() -> None:
    probs = torch.tensor([0.9, 0.05, 0.02, 0.02, 0.01])[None, None, None]
    content = torch.tensor([[False, True, True, True, False]])
    columns = torch.tensor([[False, False, True, False, False]])
    sharp = torch.softmax(10 * torch.tensor([0.05, 0.02, 0.02]), 0)
    torch.testing.assert_close(subject_weight(probs, content, columns)[0, 0, 0], sharp[1])


# -- columns ---------------------------------------------------------------------------------------


def words_at(pipe: EqDiffPipeline, words: Any) -> list[str]:
    return pipe.carried.model.tokenizer.convert_ids_to_tokens(words.ids[0][words.columns[0]])


def test_columns_are_found_by_ids_behind_words_of_several_pieces(pipe: EqDiffPipeline) -> None:
    noun = "xylophone"
    tokenizer = pipe.carried.model.tokenizer
    pieces = tokenizer(noun, add_special_tokens=False).input_ids
    assert len(pieces) >= 3
    prompt = "a pointillism-inspired {} beside a xylophone"
    words = noun_words(pipe.carried, [prompt], noun)
    plain = tokenizer(prompt.replace("{}", noun), padding="max_length").input_ids
    assert words.ids[0].tolist() == plain
    first = words.columns[0].int().argmax()
    assert words.columns[0].nonzero().flatten().tolist() == list(range(first, first + len(pieces)))
    assert words.ids[0][words.columns[0]].tolist() == pieces
    assert words.content[0].sum() == len(tokenizer(prompt.replace("{}", noun)).input_ids) - 2
    assert not words.content[0, 0]

    subject = subject_words(pipe.carried, [prompt])
    assert words_at(pipe, subject) == ["<new1>", "dog</w>", "toy</w>"]


def test_every_place_of_the_subject_gets_the_noun(pipe: EqDiffPipeline) -> None:
    words = noun_words(pipe.carried, ["a {} and <new1> dog toy, a cat"], "cat")
    tokens = pipe.carried.model.tokenizer.convert_ids_to_tokens(words.ids[0])
    assert tokens[1:8] == ["a</w>", "cat</w>", "and</w>", "cat</w>", ",</w>", "a</w>", "cat</w>"]
    assert words.columns[0].nonzero().flatten().tolist() == [2, 4]


def test_a_noun_that_is_no_word_of_its_own_is_refused(pipe: EqDiffPipeline) -> None:
    with pytest.raises(UserError, match="no word of its own"):
        DCI().check(pipe.carried, [PROMPT, "two {}s"], frozenset())
    with pytest.raises(UserError, match="reads nothing"):
        DCI(noun=" ").check(pipe.carried, [PROMPT], frozenset())
    with pytest.raises(UserError, match="not prompt_embeds"):
        latent(pipe, DCI(), prompts=None, prompt_embeds=torch.zeros(1, 77, 32))


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.slow
def test_prompt_files_are_drawn_and_the_manifest_says_how(
    tiny_base: Path,
    tiny_subject: Path,
    tmp_path: Path,
    own_caches: None,
    capsys: pytest.CaptureFixture,
) -> None:
    run_train(training_words(tiny_base, tiny_subject, tmp_path / "out", max_train_steps=1))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a {}\na mosaic of a {} on a beach\n")
    where = ["--pretrained_model_name_or_path", str(tiny_base), "--concept", str(tmp_path / "out")]
    run_test([*where, "--prompts", str(prompts), "--dci", "--dci_noun", "cat", "--dci_lambda", "1"])
    manifest = tmp_path / "out" / "samples" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["dci"]["noun"] == "cat" and row["dci"]["strength"] == 1 for row in rows)
    told = refused(capsys, run_test, [*where, "--prompt", "two {}s", "--dci"])
    assert "two {}s" in told
    assert manifest.read_text().count("\n") == 2
