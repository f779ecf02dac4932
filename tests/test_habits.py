"""What diffusers users do to a pipeline: without a concept ours is the stock one, with one too.

docs/python.md lists the habits, what happens, and the test that shows it.
"""

import copy
import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from helpers import copy_of, long_after, make_lora, trained_concept
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from eqdiff.base.load import load_base
from eqdiff.concept.concept import Concept
from eqdiff.concept.file import save_concept
from eqdiff.errors import UserError
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.prompts import foreign_syntax

pytestmark = pytest.mark.slow
PLAIN = "a mosaic of a dog toy on the beach"
PROMPT = "a mosaic of a {} on the beach"
Deed = Callable[[Any], Any]


@pytest.fixture(scope="module")
def concept(tiny_base: Path, tiny_subject: Path) -> Concept:
    """Of a tiny training whose gates are open."""
    return trained_concept(tiny_base, tiny_subject, gate_init="identity")


@pytest.fixture(scope="module")
def lora(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lora(tiny_base, tmp_path_factory.mktemp("lora"))


def stock(base: Path, kind: type = StableDiffusionPipeline, **options: Any) -> Any:
    pipe = kind.from_pretrained(base, **options) if options else copy_of(kind.from_pretrained, base)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fresh(base: Path, **options: Any) -> EqDiffPipeline:
    return stock(base, EqDiffPipeline, **options)


@pytest.fixture(scope="module")
def carrying(tiny_base: Path, concept: Concept) -> EqDiffPipeline:
    """A pipeline with the concept. To draw with, and nothing else."""
    return fresh(tiny_base).load_concept(concept)


def draw(pipe: Any, *args: Any, **options: Any) -> np.ndarray:
    """Pictures (N,H,W,3) in [0,1] from a fixed noise."""
    given: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "np"}
    if "generator" not in options and "seeds" not in options and "latents" not in options:
        given["generator"] = torch.Generator().manual_seed(1)
    return pipe(*args, **{**given, **options}).images


def refusal(deed: Callable[[], Any]) -> str:
    """The one line that a deed is refused with."""
    with pytest.raises(UserError) as caught:
        deed()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- without a concept: the stock pipeline ---------------------------------------------------------


def embeds(pipe: Any, prompt: str, **options: Any) -> tuple[Tensor, Tensor]:
    return pipe.encode_prompt(prompt, torch.device("cpu"), 1, True, **options)


CALLS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "a text": lambda pipe: {"prompt": "a cat"},
    "a list": lambda pipe: {"prompt": ["a cat", "a dog"]},
    "height and width": lambda pipe: {"prompt": "a cat", "height": 96, "width": 64},
    "width alone": lambda pipe: {"prompt": "a cat", "width": 96},
    "a negative text": lambda pipe: {"prompt": "a cat", "negative_prompt": "a dog"},
    "negative texts": lambda pipe: {"prompt": ["a cat"] * 2, "negative_prompt": ["a dog", "red"]},
    "images a prompt": lambda pipe: {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2},
    "no guidance": lambda pipe: {"prompt": "a cat", "guidance_scale": 1.0},
    "embeds": lambda pipe: dict(
        zip(("prompt_embeds", "negative_prompt_embeds"), embeds(pipe, "a cat"), strict=True)
    ),
    "embeds alone": lambda pipe: {"prompt_embeds": embeds(pipe, "a cat")[0]},
    "negative embeds": lambda pipe: {
        "prompt": "a cat",
        "negative_prompt_embeds": embeds(pipe, "a cat", negative_prompt="a dog")[1],
    },
    "embeds and a negative list": lambda pipe: {
        "prompt_embeds": embeds(pipe, "a cat")[0],
        "negative_prompt": ["a dog"],
    },
    "attention kwargs": lambda pipe: {"prompt": "a cat", "cross_attention_kwargs": {"scale": 0.5}},
    "rescaled guidance": lambda pipe: {"prompt": "a cat", "guidance_rescale": 0.7, "eta": 1.0},
    "own timesteps": lambda pipe: {"prompt": "a cat", "timesteps": [900, 500, 100]},
    "latents": lambda pipe: {
        "prompt": "a cat",
        "latents": torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3)),
    },
    "generators": lambda pipe: {
        "prompt": ["a cat", "a dog"],
        "generator": [torch.Generator().manual_seed(n) for n in (5, 6)],
    },
}


@pytest.mark.parametrize("call", long_after(11, CALLS))
def test_without_a_concept_a_call_is_the_stock_pipelines_bit_for_bit(
    tiny_base: Path, call: str
) -> None:
    theirs, ours = stock(tiny_base), fresh(tiny_base)
    if call == "own timesteps":
        for pipe in (theirs, ours):
            pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert np.array_equal(draw(ours, **CALLS[call](ours)), draw(theirs, **CALLS[call](theirs)))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"prompt": ("a cat",)},
        {"prompt": "a cat", "height": 63, "width": 64},
        {"prompt": "a cat", "prompt_embeds": torch.zeros(1, 77, 32)},
        {"prompt": "a cat", "negative_prompt": ["a dog"]},
        {"prompt": ["a cat"], "negative_prompt": "a dog"},
        {"prompt": "a cat", "callback_on_step_end_tensor_inputs": ["noise"]},
    ],
    ids=str,
)
def test_without_a_concept_the_stock_pipeline_refuses(
    tiny_base: Path, wrong: dict[str, Any]
) -> None:
    errors = []
    for pipe in (stock(tiny_base), fresh(tiny_base)):
        with pytest.raises((TypeError, ValueError)) as caught:
            draw(pipe, **wrong)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def test_the_signature_is_the_stock_pipelines_and_then_our_own() -> None:
    for name in ("__call__", "encode_prompt"):
        theirs = inspect.signature(getattr(StableDiffusionPipeline, name)).parameters
        ours = inspect.signature(getattr(EqDiffPipeline, name)).parameters
        named = [p for p in theirs if p != "kwargs"]
        assert list(ours)[: len(named)] == named
        assert all(ours[p].default == theirs[p].default for p in named)
        assert all(ours[p].kind is theirs[p].kind for p in named)
    more = inspect.signature(EqDiffPipeline.__call__).parameters
    assert all(
        more[p].kind is inspect.Parameter.KEYWORD_ONLY
        for p in ("seeds", "rra", "reference", "attention_window", "band", "sampling_steps")
    )


def test_arguments_may_be_given_by_position(tiny_base: Path, concept: Concept) -> None:
    theirs, ours = stock(tiny_base), fresh(tiny_base)
    given = {"latents": torch.ones(1, 4, 8, 12), "output_type": "np"}
    drawn = [pipe("a cat", 64, 96, 2, **given).images for pipe in (theirs, ours)]
    assert np.array_equal(*drawn)
    ours.load_concept(concept)
    assert ours(PROMPT, 96, 64, 2, output_type="np").images.shape == (1, 96, 64, 3)


def test_encode_prompt_on_its_own_is_the_stock_pipelines(tiny_base: Path) -> None:
    theirs, ours = stock(tiny_base), fresh(tiny_base)
    for options in ({}, {"negative_prompt": "a dog"}):
        for one, other in zip(
            embeds(theirs, "a cat", **options), embeds(ours, "a cat", **options), strict=True
        ):
            assert torch.equal(one, other)


def test_clip_skip_leaves_out_layers_with_and_without_a_concept(
    tiny_base: Path, concept: Concept
) -> None:
    """The encoder cut short by a layer is what leaving one out means; diffusers fails at it with
    today's transformers."""
    pipe, cut = fresh(tiny_base), fresh(tiny_base)
    del cut.text_encoder.encoder.layers[-1:]
    for prompt in (PLAIN, PROMPT):
        if prompt is PROMPT:
            pipe.load_concept(concept)
            whole = fresh(tiny_base).load_concept(concept)
            whole._carried.model.text_encoder = cut.text_encoder
            whole._carried.model.injector._text_encoder = cut.text_encoder
            skipped = whole._carried.encode([prompt], torch.device("cpu"))
        else:
            skipped = embeds(cut, prompt)[0]
        text, nothing = embeds(pipe, prompt, clip_skip=1)
        assert torch.allclose(text, skipped, atol=1e-6)
        assert torch.equal(nothing, embeds(pipe, prompt)[1])
        assert not np.array_equal(draw(pipe, prompt, clip_skip=1), draw(pipe, prompt))
    assert "clip_skip 2" in refusal(lambda: draw(pipe, PROMPT, clip_skip=2))


def test_a_pipeline_without_a_text_encoder_draws_embeds_and_takes_no_concept(
    tiny_base: Path, concept: Concept
) -> None:
    text, nothing = embeds(stock(tiny_base), "a cat")
    given = {"prompt_embeds": text, "negative_prompt_embeds": nothing}
    parts = {"text_encoder": None, "tokenizer": None}
    theirs, ours = stock(tiny_base, **parts), fresh(tiny_base, **parts)
    assert np.array_equal(draw(ours, **given), draw(theirs, **given))
    assert "text encoder" in refusal(lambda: ours.load_concept(concept))


def test_a_place_for_a_subject_without_a_subject_is_told_of(
    tiny_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert np.array_equal(draw(fresh(tiny_base), PROMPT), draw(stock(tiny_base), PROMPT))
    assert caplog.text.count("no concept is loaded") == 1


# -- with a concept: arguments keep their meaning --------------------------------------------------


@pytest.mark.parametrize("loaded", [False, True], ids=["stock", "concept"])
@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, (64, 64)),
        ({"height": 96, "width": 64}, (96, 64)),
        ({"height": 64, "width": 96}, (64, 96)),
        ({"width": 96}, (64, 96)),
        ({"height": 40}, (40, 64)),
        ({"height": 128, "width": 128}, (128, 128)),
    ],
    ids=str,
)
def test_seeds_go_with_any_size(
    tiny_base: Path,
    carrying: EqDiffPipeline,
    loaded: bool,
    given: dict[str, int],
    size: tuple[int, int],
) -> None:
    pipe = carrying if loaded else fresh(tiny_base)
    prompt = PROMPT if loaded else PLAIN
    pictures = draw(pipe, prompt, seeds=[0], **given)
    assert pictures.shape == (1, *size, 3)
    assert np.array_equal(pictures, draw(pipe, [prompt], seeds=0, **given))
    if loaded:
        assert draw(pipe, prompt, **given).shape == (1, *size, 3)


def test_each_image_of_each_prompt_has_its_seed(tiny_base: Path, concept: Concept) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    prompts = [PROMPT, "a photo of a {}"]
    together = draw(pipe, prompts, num_images_per_prompt=2, seeds=np.arange(4))
    for number in range(4):
        alone = draw(pipe, prompts[number // 2], seeds=[number])[0]
        assert np.abs(together[number] - alone).max() <= 2 / 255
    assert not np.allclose(together[0], together[1], atol=0.01)


def test_negative_prompts_are_one_for_all_or_one_a_prompt(
    tiny_base: Path, concept: Concept
) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    prompts, negatives = [PROMPT, "a photo of a {}"], ["a red cat", "a {} in the snow"]
    listed = draw(pipe, prompts, negative_prompt=negatives, seeds=[1, 2])
    for number in range(2):
        alone = draw(pipe, prompts[number], negative_prompt=negatives[number], seeds=[number + 1])
        assert np.abs(listed[number] - alone[0]).max() <= 2 / 255

    none = draw(pipe, prompts, seeds=[1, 2])
    assert np.array_equal(none, draw(pipe, prompts, negative_prompt="", seeds=[1, 2]))
    assert np.abs(listed - none).max(axis=(1, 2, 3)).min() > 1e-3
    for_all = draw(pipe, prompts, negative_prompt="a red cat", seeds=[1, 2])
    assert np.abs(for_all[0] - listed[0]).max() <= 2 / 255


def test_embeds_are_those_of_encode_prompt_with_the_subject_in_them(
    tiny_base: Path, concept: Concept
) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    text, nothing = embeds(pipe, PROMPT, negative_prompt="a red cat")
    wanted = draw(pipe, PROMPT, negative_prompt="a red cat", num_images_per_prompt=2)
    given = {"prompt_embeds": text, "num_images_per_prompt": 2}
    assert np.array_equal(draw(pipe, negative_prompt_embeds=nothing, **given), wanted)
    assert np.array_equal(draw(pipe, negative_prompt="a red cat", **given), wanted)
    assert not torch.equal(text, embeds(stock(tiny_base), PLAIN)[0])
    long = torch.cat([text, text], dim=1)
    assert "negative_prompt_embeds" in refusal(lambda: draw(pipe, prompt_embeds=long))
    given = {"prompt_embeds": long, "negative_prompt_embeds": long}
    assert np.isfinite(draw(pipe, **given)).all()


def test_a_callback_may_change_guidance_latents_and_text_on_the_way(
    tiny_base: Path, concept: Concept
) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    rows: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))

    def end_guidance(pipe: Any, step: int, t: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._guidance_scale = 0.0
        halves = tensors["prompt_embeds"]
        return {**tensors, "prompt_embeds": halves.chunk(2)[-1] if step == 0 else halves}

    how: dict[str, Any] = {
        "num_inference_steps": 3,
        "callback_on_step_end": end_guidance,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    drawn = draw(pipe, [PROMPT, "a photo of a {}"], seeds=[0, 1], **how)
    assert rows == [4, 2, 2] and np.isfinite(drawn).all()
    alone = draw(pipe, PROMPT, seeds=[0], **how)  # both see what the conditional half sees
    assert np.abs(drawn[:1] - alone).max() < 1e-5

    def stop(pipe: Any, step: int, t: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = True
        return tensors

    rows.clear()
    draw(pipe, PROMPT, num_inference_steps=3, callback_on_step_end=stop)
    assert rows == [2]


def test_what_a_call_returns_is_what_the_stock_call_returns(
    tiny_base: Path, concept: Concept
) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    latents = draw(pipe, PROMPT, output_type="latent")
    assert latents.shape == (1, 4, 8, 8)
    (image,) = draw(pipe, PROMPT, output_type="pil")
    assert image.size == (64, 64)
    given = {"num_inference_steps": 2, "output_type": "pt", "return_dict": False}
    images, unsafe = pipe(PROMPT, **given)
    assert images.shape == (1, 3, 64, 64) and unsafe is None


@pytest.mark.parametrize(
    ("kind", "options"),
    long_after(
        2,
        [
            (HeunDiscreteScheduler, {}),
            (DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}),
            (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
            (EulerAncestralDiscreteScheduler, {}),
            (PNDMScheduler, {"skip_prk_steps": True}),
        ],
    ),
    ids=str,
)
def test_a_scheduler_may_be_changed_between_calls(
    tiny_base: Path, concept: Concept, kind: Any, options: dict[str, Any]
) -> None:
    pipe, other = fresh(tiny_base).load_concept(concept), fresh(tiny_base).load_concept(concept)
    draw(pipe, PROMPT)
    for each in (pipe, other):
        each.scheduler = kind.from_config(each.scheduler.config, **options)
    wanted = draw(other, PROMPT)
    assert np.array_equal(draw(pipe, PROMPT), wanted)
    assert not np.array_equal(draw(pipe, PROMPT, rra=False), wanted)


def test_own_timesteps_have_their_own_reference(tiny_base: Path, concept: Concept) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    given = {"num_inference_steps": None, "timesteps": [900, 500, 100]}
    drawn = draw(pipe, PROMPT, **given)
    assert np.isfinite(drawn).all()
    assert not np.array_equal(drawn, draw(pipe, PROMPT, rra=False, **given))


# -- with a concept: refused in one line -----------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "fewer seeds than prompts": ({"prompt": [PROMPT] * 3, "seeds": [0, 1]}, "2 for 3 images"),
    "fewer seeds than images": (
        {"prompt": PROMPT, "num_images_per_prompt": 2, "seeds": [0]},
        "1 for 2 images",
    ),
    "more seeds than images": ({"prompt": PROMPT, "seeds": [0, 1]}, "2 for 1 images"),
    "seeds are words": ({"prompt": PROMPT, "seeds": ["one"]}, "'one'"),
    "seeds are large": ({"prompt": PROMPT, "seeds": [2**64]}, str(2**64)),
    "seeds and latents": (
        {"prompt": PROMPT, "seeds": [0], "latents": torch.zeros(1, 4, 8, 8)},
        "seeds and latents",
    ),
    "height of 63": ({"prompt": PROMPT, "height": 63}, "height 63"),
    "negative width": ({"prompt": PROMPT, "width": -64, "seeds": [0]}, "width -64"),
    "width in words": ({"prompt": PROMPT, "width": "64"}, "width '64'"),
    "too few negatives": (
        {"prompt": [PROMPT] * 3, "negative_prompt": ["a cat", "a dog"]},
        "2 for 3 prompts",
    ),
    "negatives that are no text": ({"prompt": PROMPT, "negative_prompt": [1]}, "not 1"),
    "a prompt that is no text": ({"prompt": [3]}, "not 3"),
    "a prompt that is a number": ({"prompt": 3}, "not 3"),
    "an argument of another name": ({"prompt": PROMPT, "seed": 0}, "argument seed"),
    "clip_skip of too many": ({"prompt": PROMPT, "clip_skip": 9}, "clip_skip 9"),
    "negative clip_skip": ({"prompt": PROMPT, "clip_skip": -1}, "clip_skip -1"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_argument_that_does_not_fit_is_refused_in_one_line(
    carrying: EqDiffPipeline, wrong: str
) -> None:
    given, words = WRONG[wrong]
    assert words in refusal(lambda: draw(carrying, **given))
    assert np.isfinite(draw(carrying, PROMPT, num_inference_steps=1)).all()


# -- what is done to a pipeline, before the concept is loaded or after -----------------------------


def with_inversion(pipe: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(3, pipe.text_encoder.config.hidden_size, generator=generator)
    pipe.load_textual_inversion(vectors, token="<style>")


def with_text_lora(pipe: Any) -> None:
    """A LoRA of the text encoder."""
    layers = ["q_proj", "v_proj"]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=layers), pipe.text_encoder)
    generator = torch.Generator().manual_seed(4)
    for name, weight in pipe.text_encoder.named_parameters():
        if ".lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator)


def layer_by_layer(pipe: Any) -> None:
    """As `enable_sequential_cpu_offload` does it, which cannot run on a CPU."""
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        accelerate.cpu_offload(part, torch.device("cpu"), offload_buffers=bool(part._parameters))


def in_groups(kind: str) -> Deed:
    here = torch.device("cpu")
    options: dict[str, Any] = {"onload_device": here, "offload_type": kind}
    return lambda pipe: pipe.enable_group_offload(**options, num_blocks_per_group=1)


def compiled(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def stored_in_bf16(pipe: Any) -> None:
    pipe.unet.enable_layerwise_casting(torch.bfloat16, torch.float32)


# what it is called, what it is, and how far a picture may differ from that of the other order
DEEDS: dict[str, tuple[Deed, float]] = {
    "LoRA": (lambda pipe: pipe.load_lora_weights(pipe.lora), 0),
    "text encoder's LoRA": (with_text_lora, 0),
    "inversion": (with_inversion, 0),
    "attention slicing": (lambda pipe: pipe.enable_attention_slicing(), 0),
    "finest attention slicing": (lambda pipe: pipe.unet.set_attention_slice("max"), 0),
    "other processors": (lambda pipe: pipe.unet.set_default_attn_processor(), 0),
    "VAE slicing and tiling": (
        lambda pipe: (pipe.vae.enable_slicing(), pipe.vae.enable_tiling()),
        0,
    ),
    "fused projections": (lambda pipe: pipe.fuse_qkv_projections(), 0),
    "fused and unfused": (
        lambda pipe: (pipe.fuse_qkv_projections(), pipe.unfuse_qkv_projections()),
        0,
    ),
    "FreeU": (lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4), 1e-5),
    "model offload": (lambda pipe: pipe.enable_model_cpu_offload(device="cpu"), 0),
    "sequential offload": (layer_by_layer, 0),
    "block offload": (in_groups("block_level"), 0),
    "leaf offload": (in_groups("leaf_level"), 0),
    "bf16": (lambda pipe: pipe.to(torch.bfloat16), 0),
    "fp16": (lambda pipe: pipe.to(torch.float16), 0),
    "bf16 part by part": (
        lambda pipe: [part.to(torch.bfloat16) for part in (pipe.unet, pipe.text_encoder, pipe.vae)],
        0,
    ),
    "stored in bf16": (stored_in_bf16, 1e-3),  # it rounds what is in the UNet by then
    "compiled": (compiled, 1e-5),
    "channels last": (lambda pipe: pipe.unet.to(memory_format=torch.channels_last), 1e-5),
    "training mode": (lambda pipe: pipe.unet.train(), 0),
    "other schedule": (
        lambda pipe: setattr(
            pipe, "scheduler", PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
        ),
        0,
    ),
}


# Each of these is much like another deed in the list.
ALIKE = (
    "finest attention slicing",
    "fused and unfused",
    "sequential offload",
    "leaf offload",
    "fp16",
    "bf16 part by part",
    "channels last",
    "training mode",
    "text encoder's LoRA",
    "VAE slicing and tiling",
    "stored in bf16",
)


def prompts_for(deed: str) -> tuple[str, str]:
    """A prompt with the subject and one without."""
    style = " in <style>" if deed == "inversion" else ""
    return PROMPT + style, PLAIN + style


@pytest.fixture
def stance(request: pytest.FixtureRequest) -> Iterator[None]:
    """Within: what is compiled is wrapped as ever, and traced only if the test asks for it.

    Tracing the UNet thrice takes half a minute. That compiled blocks draw the same, traced, is a
    test of test_concept.py.
    """
    with torch.compiler.set_stance(request.param):
        yield


@pytest.mark.parametrize(
    ("name", "stance"),
    [
        *((name, "force_eager") for name in DEEDS if name not in ALIKE),
        *(pytest.param(name, "default", marks=pytest.mark.long) for name in (*ALIKE, "compiled")),
    ],
    indirect=["stance"],
)
@pytest.mark.usefixtures("stance")
def test_before_or_after_loading_a_concept_it_is_the_same_and_stays_when_that_is_unloaded(
    tiny_base: Path, concept: Concept, lora: Path, name: str
) -> None:
    deed, tolerance = DEEDS[name]
    with_subject, without = prompts_for(name)
    before, after, plain = fresh(tiny_base), fresh(tiny_base), stock(tiny_base)
    for pipe in (before, after, plain):
        vars(pipe)["lora"] = lora

    deed(before)
    deed(plain)
    before.load_concept(concept)
    after.load_concept(concept)
    draw(after, PROMPT)
    deed(after)

    pictures = draw(before, with_subject), draw(after, with_subject)
    assert np.isfinite(pictures[0]).all()
    assert np.abs(pictures[0] - pictures[1]).max() <= tolerance
    assert np.array_equal(draw(after, with_subject), pictures[1])
    assert not np.array_equal(draw(after, with_subject, rra=False), pictures[1])

    wanted = draw(plain, without)
    assert np.abs(wanted - pictures[0]).max() > 1e-3
    for pipe in (before, after):
        pipe.unload_concept()
        assert np.array_equal(draw(pipe, without), wanted)


@pytest.mark.parametrize("name", ["LoRA", "text encoder's LoRA", "inversion", "FreeU"])
def test_what_is_loaded_beside_a_concept_changes_its_pictures(
    tiny_base: Path, concept: Concept, lora: Path, name: str
) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    vars(pipe)["lora"] = lora
    prompt = prompts_for(name)[0]
    plain = draw(pipe, prompt)
    DEEDS[name][0](pipe)
    assert np.abs(draw(pipe, prompt) - plain).max() > 1e-3


def test_a_lora_is_scaled_switched_off_fused_and_taken_out_as_without_a_concept(
    tiny_base: Path, concept: Concept, lora: Path
) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    without = draw(pipe, PROMPT)
    pipe.load_lora_weights(lora)
    whole = draw(pipe, PROMPT)

    def scaled(scale: float) -> np.ndarray:
        return draw(pipe, PROMPT, cross_attention_kwargs={"scale": scale})

    assert np.array_equal(scaled(1.0), whole)
    assert np.abs(scaled(0.0) - without).max() < 1e-6
    assert 1e-3 < np.abs(scaled(0.3) - without).max() < np.abs(whole - without).max()
    pipe.disable_lora()
    assert np.array_equal(draw(pipe, PROMPT), without)
    pipe.enable_lora()

    pipe.fuse_lora()
    assert np.abs(draw(pipe, PROMPT) - whole).max() < 1e-4
    pipe.unfuse_lora()
    assert np.abs(draw(pipe, PROMPT) - whole).max() < 1e-4
    pipe.unload_lora_weights()
    assert np.abs(draw(pipe, PROMPT) - without).max() < 1e-4


def test_a_fused_lora_is_no_base_to_load_a_concept_into(
    tiny_base: Path, concept: Concept, lora: Path
) -> None:
    pipe = fresh(tiny_base)
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    assert "fuse_lora" in refusal(lambda: pipe.load_concept(concept))


def test_an_inversion_goes_as_it_came(tiny_base: Path, concept: Concept) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    without = draw(pipe, PROMPT)
    with_inversion(pipe)
    assert np.array_equal(draw(pipe, PROMPT), without)
    pipe.unload_textual_inversion()
    assert np.array_equal(draw(pipe, PROMPT), without)
    assert "<style>" not in pipe._carried.model.tokenizer.get_vocab()


def test_the_users_slicing_stays_and_ours_goes(tiny_base: Path, concept: Concept) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    seen: list[bool] = []
    pipe.vae.post_quant_conv.register_forward_hook(lambda *_: seen.append(pipe.vae.use_slicing))
    many = {"num_images_per_prompt": 129, "output_type": "np", "num_inference_steps": 1}
    for own in (False, True):
        if own:
            pipe.vae.enable_slicing()
        draw(pipe, PROMPT)
        assert set(seen) == {own}
        seen.clear()
        pipe("a {}", **many)
        assert set(seen) == {True} and len(seen) == 129
        seen.clear()
        assert pipe.vae.use_slicing == own


def test_a_precision_that_is_there_is_not_asked_for(
    tiny_base: Path, concept: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers warns of each such wish, in every drawing run."""
    asked: list[tuple[Any, ...]] = []
    pipe = fresh(tiny_base).load_concept(concept)
    stock_to = StableDiffusionPipeline.to
    monkeypatch.setattr(
        StableDiffusionPipeline,
        "to",
        lambda self, *how: (asked.append(how), stock_to(self, *how))[1],
    )
    here = torch.device("cpu")
    pipe.place(here, torch.float32)
    assert asked == [(here,)]
    pipe.place(here, torch.bfloat16)
    assert pipe.unet.dtype == pipe.vae.dtype == torch.bfloat16


def test_a_vae_in_another_precision_is_left_in_it(tiny_base: Path, concept: Concept) -> None:
    """So is every part that the user has put somewhere."""
    pipe = fresh(tiny_base)
    pipe.vae.double()
    pipe.load_concept(concept)
    pipe.to(torch.device("cpu"))
    assert pipe.vae.dtype == torch.float64
    other = AutoencoderKL.from_config(pipe.vae.config)
    pipe.vae = other
    assert np.isfinite(draw(pipe, PROMPT)).all() and pipe.vae is other


def test_a_base_loaded_in_half_precision_takes_its_concept(
    tiny_base: Path, concept: Concept
) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        pipe = fresh(tiny_base, torch_dtype=dtype)
        with_inversion(pipe)
        pipe.load_concept(concept)
        moved = fresh(tiny_base).load_concept(concept)
        moved.to(dtype)
        assert np.abs(draw(pipe, PROMPT) - draw(moved, PROMPT)).max() <= 2 / 255
    with torch.no_grad():
        pipe = fresh(tiny_base, torch_dtype=torch.float16)
        pipe.unet.conv_in.weight[0, 0, 0, 0] += 1
    assert "trained on the base" in refusal(lambda: pipe.load_concept(concept))


# -- other pipelines, copies, folders --------------------------------------------------------------


def test_pipelines_made_of_its_parts_know_nothing_of_the_subject(
    tiny_base: Path, concept: Concept
) -> None:
    ours, theirs = fresh(tiny_base).load_concept(concept), stock(tiny_base)
    draw(ours, PROMPT)
    image = Image.new("RGB", (64, 64), "red")
    for make in (
        StableDiffusionImg2ImgPipeline.from_pipe,
        lambda pipe: StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=0),
    ):
        pictures = []
        for pipe in (ours, theirs):
            other = make(pipe)
            other.set_progress_bar_config(disable=True)
            pictures.append(draw(other, PLAIN, image=image, strength=0.9, num_inference_steps=4))
        assert np.array_equal(*pictures)

    plain = StableDiffusionPipeline.from_pipe(ours)
    plain.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(plain, PLAIN), draw(theirs, PLAIN))


def test_from_pipe_takes_a_stock_pipeline_and_one_with_its_concept(
    tiny_base: Path, concept: Concept, lora: Path
) -> None:
    base = stock(tiny_base)
    base.load_lora_weights(lora)
    with_inversion(base)
    pipe = EqDiffPipeline.from_pipe(base)
    pipe.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(pipe, PLAIN), draw(base, PLAIN))
    pipe.load_concept(concept)
    wanted = draw(pipe, PROMPT)

    again = EqDiffPipeline.from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(again, PROMPT), wanted)
    again.unload_concept()
    assert np.array_equal(draw(again, PLAIN), draw(base, PLAIN))
    assert np.array_equal(draw(pipe, PROMPT), wanted)

    other = EqDiffPipeline.from_pipe(pipe, unet=copy.deepcopy(pipe.unet))
    other.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(other, PROMPT), wanted)


def test_a_replaced_part_is_named(tiny_base: Path, concept: Concept) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    pipe.unet = copy.deepcopy(pipe.unet)
    assert "unet was replaced" in refusal(lambda: draw(pipe, PROMPT))
    assert np.isfinite(draw(pipe.load_concept(concept), PROMPT)).all()


def test_what_save_pretrained_writes_is_the_base_that_any_tool_opens(
    tiny_base: Path, concept: Concept, tmp_path: Path
) -> None:
    ours, theirs = fresh(tiny_base), stock(tiny_base)
    ours.load_concept(concept)
    draw(ours, PROMPT)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    names = {path.relative_to(tmp_path / "theirs") for path in (tmp_path / "theirs").rglob("*.*")}
    assert names == {
        path.relative_to(tmp_path / "ours") for path in (tmp_path / "ours").rglob("*.*")
    }
    for name in names:
        one, other = tmp_path / "ours" / name, tmp_path / "theirs" / name
        if name.suffix == ".safetensors":
            weights = load_file(one)
            assert all(torch.equal(weights[k], v) for k, v in load_file(other).items())
            assert len(weights) == len(load_file(other))
        else:
            assert one.read_bytes() == other.read_bytes(), name

    index = json.loads((tmp_path / "ours" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    again = fresh(tmp_path / "ours").load_concept(concept)
    assert np.array_equal(draw(again, PROMPT), draw(ours, PROMPT))
    assert load_base(str(tmp_path / "ours")).fingerprint == concept.base_fingerprint


def test_a_copy_draws_the_same_and_is_its_own(tiny_base: Path, concept: Concept) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    wanted = draw(pipe, PROMPT)
    copied = copy.deepcopy(pipe)
    copied.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(copied, PROMPT), wanted)
    copied.unload_concept()
    assert np.array_equal(draw(copied, PLAIN), draw(stock(tiny_base), PLAIN))
    assert np.array_equal(draw(pipe, PROMPT), wanted)


# -- loading ---------------------------------------------------------------------------------------


def test_a_trainings_folder_is_taken_as_on_the_command_line(
    tiny_base: Path, concept: Concept, tmp_path: Path
) -> None:
    save_concept(concept, tmp_path / "mug" / "concept.safetensors")
    wanted = draw(fresh(tiny_base).load_concept(concept), PROMPT)
    for named in (
        tmp_path / "mug",
        str(tmp_path / "mug"),
        tmp_path / "mug" / "concept.safetensors",
    ):
        assert np.array_equal(draw(fresh(tiny_base).load_concept(named), PROMPT), wanted)
    assert "empty" in refusal(lambda: fresh(tiny_base).load_concept(tmp_path / "empty"))


def test_a_concept_that_does_not_load_leaves_the_one_that_is_there(
    tiny_base: Path, concept: Concept, tmp_path: Path
) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    wanted = draw(pipe, PROMPT)
    foreign = dataclasses.replace(concept, base_fingerprint="0" * 16, identity=None)
    for wrong in (foreign, tmp_path / "none.safetensors"):
        refusal(lambda wrong=wrong: pipe.load_concept(wrong))
        assert np.array_equal(draw(pipe, PROMPT), wanted)


def test_two_pipelines_may_share_their_parts_and_carry_two_concepts(
    tiny_base: Path, concept: Concept
) -> None:
    doubled = {name: value * 2 for name, value in concept.parameters.items()}
    other = dataclasses.replace(concept, parameters=doubled)
    one = fresh(tiny_base)
    two = EqDiffPipeline(**one.components, requires_safety_checker=False)
    two.set_progress_bar_config(disable=True)
    one.load_concept(concept)
    two.load_concept(other)
    wanted = [draw(fresh(tiny_base).load_concept(each), PROMPT) for each in (concept, other)]
    for _ in range(2):
        assert np.array_equal(draw(one, PROMPT), wanted[0])
        assert np.array_equal(draw(two, PROMPT), wanted[1])


def test_an_ip_adapter_and_a_concept_are_not_used_together(
    tiny_base: Path, concept: Concept
) -> None:
    class IPAdapter(torch.nn.Module):
        """Stands for diffusers' processors with weights."""

    pipe = fresh(tiny_base)
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    former = layer.processor
    pipe.load_concept(concept)
    layer.set_processor(IPAdapter())
    assert "unload_ip_adapter" in refusal(lambda: draw(pipe, PROMPT))
    pipe.unload_concept()
    assert "unload_ip_adapter" in refusal(lambda: pipe.load_concept(concept))
    layer.set_processor(former)
    assert np.isfinite(draw(pipe.load_concept(concept), PROMPT)).all()


def test_offloading_that_keeps_a_second_copy_is_refused(tiny_base: Path, concept: Concept) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    in_groups("leaf_level")(pipe)
    hook = pipe.unet.conv_in._diffusers_hook.get_hook("group_offloading")
    hook.group.stream = object()  # a CPU has none
    assert "use_stream" in refusal(lambda: draw(pipe, PROMPT))


# -- the syntax of other programs ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a photo of a {}", []),
        ("a {} (old, worn) at 5:30, [sic], C++, well-known -- this", []),
        ("A PHOTO OF A CAT AND A {}", []),
        ("a ({}:1.3) photo", ["({}:1.3)"]),
        ("a (red cat: 0.8) and a {}", ["(red cat: 0.8)"]),
        ("a {red|blue} {}", ["{red|blue}"]),
        ("a ((very)) big {}", ["((very))"]),
        ("a [cat:{}:0.5] and [red|blue]", ["[cat:{}:0.5]", "[red|blue]"]),
        ("a {}, <lora:style:0.8>", ["<lora:style:0.8>"]),
        ("a red++ {}", ["red++"]),
        ("a {} in __colour__ paint", ["__colour__"]),
        ("a cat BREAK a {}", ["BREAK"]),
    ],
)
def test_what_other_programs_read_in_a_prompt_is_known(prompt: str, parts: list[str]) -> None:
    assert foreign_syntax(prompt) == parts


def test_a_prompt_for_another_program_is_told_of_once(
    tiny_base: Path, concept: Concept, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = fresh(tiny_base).load_concept(concept)
    for _ in range(2):
        draw(pipe, "a ({}:1.3) of {red|blue}")
    (line,) = [record.message for record in caplog.records if "plain text" in record.message]
    assert "({}:1.3) and {red|blue}" in line and "\n" not in line
