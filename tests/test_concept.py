"""Concept files and the pipeline: the same picture again, nothing left behind, wrong files
refused.
"""

import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import concept_of, own_weights, tiny_objective, train
from safetensors.torch import load_file, save_file

from eqdiff.base.compiled import LIMITS, compile_blocks
from eqdiff.base.load import Base
from eqdiff.concept.concept import Concept, References
from eqdiff.concept.file import load_concept, safe_dtype, save_concept
from eqdiff.errors import UserError
from eqdiff.frequency import Band
from eqdiff.pipeline import EqDiffPipeline, initial_noise, seed_of

NOISE = torch.zeros(1, 4, 8, 8)
PROMPT = "a mosaic of a {} on the beach"


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tiny_subject: Path) -> tuple[object, Concept]:
    """A tiny training whose gates are open, and its concept."""
    objective, latents = tiny_objective(tiny_base, tiny_subject, gate_init="identity")
    train(objective, latents, 3)
    return objective, concept_of(objective, latents)


def fresh(base: Path) -> EqDiffPipeline:
    pipe = EqDiffPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: EqDiffPipeline, prompt: str = PROMPT, **changes: object) -> np.ndarray:
    return pipe(
        prompt, seeds=[1], output_type="np", **{"num_inference_steps": 3, **changes}
    ).images[0]


def test_saved_in_fp32_and_loaded_elsewhere_draws_the_same_picture(
    tiny_base: Path, trained: tuple, tmp_path: Path
) -> None:
    objective, concept = trained
    save_concept(concept, tmp_path / "c.safetensors")
    one, two = fresh(tiny_base), fresh(tiny_base)
    one.load_concept(concept)
    two.load_concept(str(tmp_path / "c.safetensors"))
    assert np.array_equal(picture(one), picture(two))
    live = fresh(tiny_base)
    live.vae, live.text_encoder, live.unet = (
        objective.model.vae,
        objective.model.text_encoder,
        objective.model.unet,
    )
    live.attach(objective.model, concept)
    assert np.array_equal(picture(live), picture(two))


def test_saved_in_bf16_draws_nearly_the_same_picture(
    tiny_base: Path, trained: tuple, tmp_path: Path
) -> None:
    save_concept(trained[1], tmp_path / "c.safetensors", dtype="bf16")
    exact, rounded = fresh(tiny_base), fresh(tiny_base)
    exact.load_concept(trained[1])
    rounded.load_concept(str(tmp_path / "c.safetensors"))
    assert np.abs(picture(exact) - picture(rounded)).max() <= 4 / 255
    sizes = load_file(tmp_path / "c.safetensors")
    assert all(
        v.dtype == torch.bfloat16 for n, v in sizes.items() if not n.startswith("reference.")
    )


def everything_of(pipe: EqDiffPipeline) -> dict[str, object]:
    """Weights and buffers (those that are not saved too), processors, hooks, modes and vocabulary
    of a pipeline."""
    found: dict[str, object] = {
        "vocabulary": pipe.tokenizer.get_vocab(),
        "configuration": dict(pipe.config),
    }
    found["processors"] = [
        (name, id(processor)) for name, processor in pipe.unet.attn_processors.items()
    ]
    for part in ("unet", "text_encoder", "vae"):
        for name, module in getattr(pipe, part).named_modules():
            hooks = [len(hooks) for kind, hooks in vars(module).items() if kind.endswith("_hooks")]
            found[f"{part} {name}"] = (type(module), module.training, hooks)
        tensors = [*getattr(pipe, part).named_parameters(), *getattr(pipe, part).named_buffers()]
        found |= {
            f"{part} {name} values": (
                str(v.dtype),
                v.requires_grad,
                v.detach().numpy().tobytes(),
            )
            for name, v in tensors
        }
    return found


def test_between_calls_and_after_unloading_every_part_is_the_bases_own(
    tiny_base: Path, trained: tuple
) -> None:
    """Whoever else uses a part, saves it or adds to it has nothing of the subject."""
    pipe = fresh(tiny_base)
    picture(pipe, "a mosaic of a dog toy", guidance_scale=7.5)
    before = everything_of(pipe)

    def changed(*_: object) -> list[str]:
        after = everything_of(pipe)
        return [name for name in {**before, **after} if after.get(name) != before.get(name)]

    within: list[list[str]] = []
    for concept in (trained[1], trained[1]):  # the second takes the place of the first
        pipe.load_concept(concept)
        assert not changed()
        picture(
            pipe,
            guidance_scale=7.5,
            callback_on_step_end=lambda *given: within.append(changed()) or given[-1],
        )
        assert not changed()
    assert len(within) == 6 and all(within)

    pipe.unload_concept()
    assert not changed()


def test_what_fails_while_a_picture_is_drawn_leaves_the_base_as_it_was(
    tiny_base: Path, trained: tuple
) -> None:
    pipe = fresh(tiny_base)
    before = everything_of(pipe)
    pipe.load_concept(trained[1])

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        picture(pipe, callback_on_step_end=stop)
    after = everything_of(pipe)
    assert not [name for name in before if after[name] != before[name]]


def test_a_concept_changes_the_picture_and_unloading_restores_it(
    tiny_base: Path, trained: tuple
) -> None:
    pipe = fresh(tiny_base)
    weights = {n: v.clone() for n, v in pipe.unet.state_dict().items()}
    plain = picture(pipe, "a mosaic of a dog toy on the beach", guidance_scale=7.5)
    processors = dict(pipe.unet.attn_processors)
    pipe.load_concept(trained[1])
    with_subject = picture(pipe, guidance_scale=7.5)
    without_rra = picture(pipe, guidance_scale=7.5, rra=False)
    assert not np.array_equal(with_subject, without_rra)
    assert not np.array_equal(without_rra, plain)
    pipe.unload_concept()
    assert np.array_equal(
        picture(pipe, "a mosaic of a dog toy on the beach", guidance_scale=7.5), plain
    )
    assert all(torch.equal(v, weights[n]) for n, v in pipe.unet.state_dict().items())
    assert set(pipe.unet.state_dict()) == set(weights)
    assert all(pipe.unet.attn_processors[n] is p for n, p in processors.items())


def test_a_concept_of_another_base_is_refused(
    tiny_base: Path, trained: tuple, tmp_path: Path
) -> None:
    pipe = fresh(tiny_base)
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] += 1
    with pytest.raises(UserError, match="trained on the base"):
        pipe.load_concept(trained[1])


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_a_file_with_other_keys_or_shapes_is_refused(
    tiny_base: Path, trained: tuple, change: str
) -> None:
    parameters = dict(trained[1].parameters)
    name = next(n for n in parameters if n.endswith("to_k.weight"))
    if change == "missing":
        del parameters[name]
    elif change == "extra":
        parameters["unet.more.attn2.to_k.weight"] = parameters[name]
    else:
        parameters[name] = parameters[name][:-1]
    with pytest.raises(UserError, match="does not fit"):
        fresh(tiny_base).load_concept(dataclasses.replace(trained[1], parameters=parameters))


def test_files_that_are_no_concepts_get_one_line(tmp_path: Path) -> None:
    torn, other = tmp_path / "torn.safetensors", tmp_path / "other.safetensors"
    torn.write_bytes(b"\x10\x00\x00")
    save_file({"a": torch.zeros(1)}, other)
    for path in (torn, other, tmp_path / "none.safetensors"):
        with pytest.raises(UserError) as caught:
            load_concept(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", [".", "..", "here/..", "/", "models/sd-1.4", "models/sd-1.4/", "some/hub-id"]
)
def test_a_base_of_any_name_has_a_label_that_is_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "home" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home" / "inner")
    wanted = {".": "inner", "..": "home", "here/..": "inner", "/": "base"}
    base = Base(*[None] * 5, name=name, fingerprint="0")
    assert base.label == wanted.get(name, name.rstrip("/").split("/")[-1])


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"base_name": ""}, None),
        ({"base_name": "."}, None),
        ({"base_name": "x" * 300}, "base_name"),
        ({"base_fingerprint": ""}, "base_fingerprint"),
        ({"step": -1}, "number of steps"),
        (
            {
                "references": References(
                    torch.zeros(1, 4, 8, 8), torch.ones(1, 1, 8, 8), NOISE, ("a/b.jpg",)
                )
            },
            "photos",
        ),
        ({"settings": {"guidance_scale": 1e9}}, "guidance_scale"),
        ({"settings": {"resolution": None}}, "resolution"),
        ({"parameters": {"tokens.rows": torch.full((2, 32), 1e38)}}, "tokens.rows"),
        ({"parameters": {"tokens.rows": torch.full((2, 32), torch.nan)}}, "tokens.rows"),
    ],
)
def test_nothing_is_saved_that_loading_refuses(
    trained: tuple, tmp_path: Path, changes: dict[str, Any], culprit: str | None
) -> None:
    """And the file that was there stays."""
    concept, path = trained[1], tmp_path / "c.safetensors"
    save_concept(concept, path)
    before = path.read_bytes()
    parts = {
        name: getattr(concept, name) | more
        for name, more in changes.items()
        if isinstance(more, dict)
    }
    odd = dataclasses.replace(concept, **{**changes, **parts})
    if culprit is None:
        save_concept(odd, path, dtype="fp16")
        assert load_concept(path).base_name == "base"
        return
    with pytest.raises(UserError, match=culprit) as caught:
        save_concept(odd, path, dtype="fp16")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_half_precision_cannot_hold_is_kept_in_full(
    trained: tuple, caplog: pytest.LogCaptureFixture
) -> None:
    large = {**trained[1].parameters, "tokens.rows": torch.full((2, 32), 70_000.0)}
    assert safe_dtype(trained[1], "fp16") == "fp16" and not caplog.text
    assert safe_dtype(dataclasses.replace(trained[1], parameters=large), "fp16") == "fp32"
    assert "written in fp32" in caplog.text
    assert safe_dtype(dataclasses.replace(trained[1], parameters=large), "bf16") == "bf16"


def test_initial_noise_depends_on_the_seed_alone() -> None:
    alone = initial_noise([5], (4, 8, 8))
    among = initial_noise([9, 5, 7], (4, 8, 8))
    assert torch.equal(alone[0], among[1])
    assert seed_of(0, "a {}", 0) != seed_of(0, "a {}", 1) != seed_of(0, "b {}", 1)


def test_a_picture_is_the_same_in_any_batch(tiny_base: Path, trained: tuple) -> None:
    pipe = fresh(tiny_base)
    pipe.load_concept(trained[1])
    prompts = [PROMPT, "a photo of a {}", "two {} in the snow"]
    together = pipe(prompts, seeds=[1, 2, 3], output_type="np", num_inference_steps=3).images
    for i, prompt in enumerate(prompts):
        alone = pipe(prompt, seeds=[i + 1], output_type="np", num_inference_steps=3).images[0]
        assert np.abs(alone - together[i]).max() <= 2 / 255


def test_a_pipeline_in_bf16_keeps_its_noise_schedule(tiny_base: Path, trained: tuple) -> None:
    exact, rounded = fresh(tiny_base), fresh(tiny_base)
    for pipe in (exact, rounded):
        pipe.load_concept(trained[1])
    rounded.place(torch.device("cpu"), torch.bfloat16)
    assert {weight.dtype for weight in own_weights(rounded)} == {torch.bfloat16}
    assert torch.equal(rounded._carried.model.alphas_cumprod, exact._carried.model.alphas_cumprod)
    assert np.abs(picture(exact) - picture(rounded)).mean() < 0.02


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_reference_features_are_computed_once_a_timestep(
    tiny_base: Path, trained: tuple, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = fresh(tiny_base)
    pipe.load_concept(trained[1])
    calls = []
    forward = pipe._carried.model.reference_unet.forward
    monkeypatch.setattr(
        pipe._carried.model.reference_unet,
        "forward",
        lambda *a, **k: calls.append(1) or forward(*a, **k),
    )
    for seed in range(3):
        pipe(
            [PROMPT, PROMPT],
            seeds=[seed, seed + 10],
            num_inference_steps=3,
            guidance_scale=guidance,
        )
    assert len(calls) == 3


@pytest.mark.parametrize("reference_for", ["both", "conditional"])
def test_a_cached_reference_draws_the_same_picture_as_a_live_one_bit_for_bit(
    tiny_base: Path, trained: tuple, reference_for: str
) -> None:
    pipe = fresh(tiny_base)
    pipe.load_concept(trained[1])
    use = {"guidance_scale": 5.0, "reference_for": reference_for}
    live = picture(pipe, reference_cache_gb=0.0, **use)
    first, again = picture(pipe, **use), picture(pipe, **use)
    assert np.array_equal(live, first)
    assert np.array_equal(live, again)


def test_within_the_attention_window_alone_the_reference_is_seen(
    tiny_base: Path, trained: tuple
) -> None:
    pipe = fresh(tiny_base)
    pipe.load_concept(trained[1])
    whole, without = picture(pipe), picture(pipe, rra=False)
    assert np.array_equal(picture(pipe, attention_window=(0.0, 1.0)), whole)
    assert np.array_equal(picture(pipe, attention_window=(0.5, 0.5)), without)
    halves = [picture(pipe, attention_window=window) for window in ((0.0, 0.5), (0.5, 1.0))]
    for half in halves:
        assert not np.array_equal(half, whole)
        assert not np.array_equal(half, without)
    assert not np.array_equal(*halves)


def test_the_reference_can_be_kept_from_the_unconditional_half(
    tiny_base: Path, trained: tuple
) -> None:
    pipe = fresh(tiny_base)
    pipe.load_concept(trained[1])
    predictions = []
    pipe.unet.register_forward_hook(lambda *given: predictions.append(given[-1][0]))
    for use in ({"reference_for": "conditional"}, {"reference_for": "both"}, {"rra": False}):
        picture(pipe, num_inference_steps=1, guidance_scale=5.0, **use)
    some, both, none = predictions  # each [unconditional, conditional]
    assert torch.allclose(some[0], none[0], atol=1e-6)
    assert torch.allclose(some[1], both[1], atol=1e-6)
    assert not torch.allclose(both[0], none[0], atol=1e-4)
    assert not torch.allclose(both[1], none[1], atol=1e-4)
    alone = {"guidance_scale": 1.0}  # no unconditional half: the same thing
    assert np.allclose(
        picture(pipe, reference_for="conditional", **alone), picture(pipe, **alone), atol=1e-5
    )


def test_several_references_are_looked_at_side_by_side(tiny_base: Path, trained: tuple) -> None:
    pipe = fresh(tiny_base)
    pipe.load_concept(trained[1])
    one, same, other, both = (picture(pipe, reference=which) for which in (0, (0, 0), 1, (0, 1)))
    assert np.allclose(one, same, atol=1e-5)
    assert not np.allclose(both, one, atol=1e-5)
    assert not np.allclose(both, other, atol=1e-5)
    assert np.allclose(both, picture(pipe, reference=(1, 0)), atol=1e-5)
    last = len(trained[1].references.names) - 1
    assert pipe.chosen(last, 2) == (last, 0)
    for wrong in (last + 1, (), (0, -1)):
        with pytest.raises(UserError, match="--reference"):
            picture(pipe, reference=wrong)


def test_each_embedding_can_stand_for_the_subject(tiny_base: Path, trained: tuple) -> None:
    pipe = fresh(tiny_base)
    pipe.load_concept(trained[1])
    low, high, full = (picture(pipe, band=band) for band in Band)
    assert np.array_equal(full, picture(pipe))
    assert not np.array_equal(low, full)
    assert not np.array_equal(high, full)
    assert not np.array_equal(low, high)


def test_a_concept_without_the_finest_level_draws_and_knows_its_layers(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    layers = ("mid_block", "up_blocks.1", "up_blocks.2")
    objective, latents = tiny_objective(
        tiny_base, tiny_subject, gate_init="identity", rra_layers=layers
    )
    assert len(objective.model.sites) == 5
    train(objective, latents, 1)
    save_concept(concept_of(objective, latents), tmp_path / "c.safetensors")
    pipe = fresh(tiny_base)
    pipe.load_concept(str(tmp_path / "c.safetensors"))
    assert pipe._carried.model.sites == objective.model.sites
    assert not np.array_equal(picture(pipe), picture(pipe, rra=False))


def test_compiling_lets_torch_keep_a_graph_for_each_block() -> None:
    config = torch._dynamo.config
    limit = next(name for name in LIMITS if hasattr(config, name))
    unet = Mock()
    with config.patch({limit: 8}):  # torch's own
        compile_blocks(unet, backend="eager")
        assert getattr(config, limit) >= 16 * 2 * 2
    unet.compile_repeated_blocks.assert_called_once_with(backend="eager")


@pytest.mark.long
def test_compiled_blocks_draw_the_same_picture_and_none_is_left_uncompiled(
    tiny_base: Path, trained: tuple
) -> None:
    pipe = fresh(tiny_base)
    pipe.load_concept(trained[1])
    plain = picture(pipe)

    torch._dynamo.reset()
    config = torch._dynamo.config
    failing = (f"fail_on_{name.replace('size_', '')}_hit" for name in LIMITS)
    failing = next(name for name in failing if hasattr(config, name))
    compile_blocks(pipe.unet, backend="aot_eager")
    with config.patch({failing: True}):
        assert np.abs(picture(pipe) - plain).max() < 1e-5
        pipe("a photo of a {}", seeds=[0, 1, 2], num_images_per_prompt=3, num_inference_steps=2)


def test_a_prompt_whose_subject_is_cut_off_is_refused(tiny_base: Path, trained: tuple) -> None:
    pipe = fresh(tiny_base)
    pipe.load_concept(trained[1])
    with pytest.raises(UserError, match="beyond"):
        picture(pipe, "very " * 90 + "big {}")
