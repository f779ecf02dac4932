"""The Python that README and model card print, run as it is printed there, on the bundled base and
on halves."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY, flags, long_after, own_weights, run_export, run_train
from safetensors.torch import load_file, save_file

from eqdiff.base.load import load_base
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.places import BUNDLED_BASE

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent


def blocks(markdown: Path) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", markdown.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def run(code: str, **names: object) -> dict[str, Any]:
    """The names that a printed example leaves, its stand-ins replaced by what is here."""
    for stand_in, real in names.items():
        assert stand_in in code
        code = code.replace(stand_in, str(real))
    scope: dict[str, Any] = {}
    exec(code, scope)
    return scope


def a_step(base: Path, out: Path, *more: str) -> Path:
    """The folder of a training of one step on the bundled subject."""
    changes = {
        "max_train_steps": 1,
        "pretrained_model_name_or_path": base,
        "output_dir": out,
        "report_to": "none",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQDIFF_CACHE", str(out.parent / "cache"))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        run_train([*flags({**TINY, **changes}), *more])
    return out


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A concept of the bundled base."""
    return a_step(BUNDLED_BASE, tmp_path_factory.mktemp("bundled") / "out", "--preset", "toybox")


@pytest.fixture(scope="module")
def half_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base in half precision, as most are passed on."""
    folder = Path(shutil.copytree(tiny_base, tmp_path_factory.mktemp("half") / "base"))
    for file in folder.rglob("*.safetensors"):
        save_file({name: x.half() for name, x in load_file(file).items()}, file, {"format": "pt"})
    return folder


def fp16_alone(base: Path, folder: Path) -> Path:
    """A copy of a base whose weights have the names of the variant fp16."""
    for file in Path(shutil.copytree(base, folder)).rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    return folder


def test_the_readmes_example_draws_on_the_bundled_base(bundled: Path) -> None:
    (code,) = [block for block in blocks(ROOT / "README.md") if "EqDiffPipeline" in block]
    scope = run(code, **{"models/stable-diffusion-v1-4": BUNDLED_BASE, "outputs/my_mug": bundled})
    assert np.asarray(scope["image"]).std() > 1


def test_the_cards_example_draws_on_the_bundled_base(bundled: Path) -> None:
    (code,) = blocks(bundled / "README.md")
    scope = run(code, BASE=BUNDLED_BASE, FOLDER=bundled)
    assert np.asarray(scope["image"]).std() > 1


def test_the_cards_example_for_plain_diffusers_draws_on_the_bundled_base(
    bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form in ("textual_inversion", "kv_patch"):
        output = bundled / "plain" / f"{form}.safetensors"
        run_export(flags({"concept": bundled, "format": form, "output": output}))
    monkeypatch.chdir(bundled / "plain")
    (code,) = blocks(bundled / "plain" / "README.md")
    pipe = run(code, BASE=BUNDLED_BASE)["pipe"]
    assert np.asarray(pipe("a photo of a <new1> mug", num_inference_steps=2).images[0]).std() > 1


@pytest.mark.parametrize("alone", [False, True])
def test_a_base_in_half_precision_comes_in_full_and_draws_what_its_base_draws(
    half_base: Path, tmp_path: Path, alone: bool
) -> None:
    folder = fp16_alone(half_base, tmp_path / "alone") if alone else half_base
    pipe = EqDiffPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.float32}
    how = {"seeds": [3], "num_inference_steps": 2, "output_type": "np"}
    wanted = EqDiffPipeline.of(load_base(str(half_base)))("a cat", **how).images
    assert np.array_equal(pipe("a cat", **how).images, wanted)


def test_a_precision_that_is_asked_for_is_given_to_all_parts(
    half_base: Path, tiny_base: Path
) -> None:
    for base in (half_base, tiny_base):
        pipe = EqDiffPipeline.from_pretrained(str(base), torch_dtype=torch.bfloat16)
        parts = (pipe.unet, pipe.vae, pipe.text_encoder)
        assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("first", long_after(1, ["loaded", "moved"]))
def test_a_pipeline_moved_to_another_precision_draws_and_gives_the_base_back_in_it(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, first: str
) -> None:
    """A subject loaded before or after: its parts, K/V and reference UNet go along."""
    words = flags({"instance_data_dir": tiny_subject, "class_word": "dog toy"})
    out, pipe = (
        a_step(tiny_base, tmp_path / "out", *words),
        EqDiffPipeline.from_pretrained(str(tiny_base)),
    )
    pipe.set_progress_bar_config(disable=True)
    steps = [
        lambda: pipe.load_concept(str(out / "concept.safetensors")),
        lambda: pipe.to(torch.bfloat16),
    ]
    if first == "moved":
        steps.reverse()  # the fingerprint is of values rounded to bf16: the concept still fits
    for step in steps:
        step()
    assert {weight.dtype for weight in own_weights(pipe)} == {torch.bfloat16}
    assert np.isfinite(
        pipe("a {}", seeds=[0], num_inference_steps=2, output_type="np").images
    ).all()
    pipe.unload_concept()
    assert {weight.dtype for weight in pipe.unet.parameters()} == {torch.bfloat16}
    plain = EqDiffPipeline.from_pretrained(str(tiny_base)).to(torch.bfloat16)
    for name, weight in plain.unet.state_dict().items():
        assert torch.equal(weight, pipe.unet.state_dict()[name]), name


@pytest.fixture(scope="module")
def of_infusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A concept of Infusion on the bundled base."""
    folder = tmp_path_factory.mktemp("infusion") / "out"
    return a_step(BUNDLED_BASE, folder, "--preset", "toybox", "--method", "infusion")


PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_from_its_top_to_its_end(
    page: Path, bundled: Path, request: pytest.FixtureRequest
) -> None:
    """The blocks of a page share their names, as a reader would type them one after another."""
    stand_ins = {"models/stable-diffusion-v1-4": BUNDLED_BASE, "outputs/my_mug": bundled}
    if page.stem == "methods":  # the page's concepts are Infusion's
        concept = request.getfixturevalue("of_infusion")
        stand_ins |= {"outputs/my_mug": concept, "outputs/my_cat": concept}

    scope: dict[str, Any] = {"__name__": page.stem}
    for code in blocks(page):
        for stand_in, real in stand_ins.items():
            code = code.replace(stand_in, str(real))
        exec(code, scope)
