"""Bases as they come: folder, single file, hub id; what is refused; velocity prediction; offline; the fingerprint."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY, flags, tiny_objective
from ldm import original_layout, write_single_file
from safetensors.torch import load_file, save_file

from eqdiff.base import Base, fingerprint, load_base
from eqdiff.config import ASSETS, BUNDLED_BASE, UserError
from eqdiff.layouts import other_pipeline, variant_of, weights_of
from eqdiff.pipeline import EqDiffPipeline

ROOT = Path(__file__).resolve().parent.parent
DEAD = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
OFFLINE = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **DEAD}


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base to spoil."""
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


@pytest.fixture
def configuration(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny base without its weights, named by EQDIFF_BASE_CONFIG."""
    return only_configuration(tiny_base, tmp_path, monkeypatch)


def only_configuration(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = shutil.copytree(base, tmp_path / "configuration", ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setenv("EQDIFF_BASE_CONFIG", str(folder))
    return Path(folder)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def retensor(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file({name: x.contiguous() for name, x in change(load_file(path)).items()}, path)


def refusal(name: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        load_base(str(name))
    assert str(name) in str(caught.value)
    return str(caught.value)


def assert_same(one: Base, two: Base) -> None:
    """All weights, and what is drawn with them."""
    for part in ("unet", "vae", "text_encoder"):
        left, right = getattr(one, part).state_dict(), getattr(two, part).state_dict()
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left), part
    assert one.fingerprint == two.fingerprint
    assert np.array_equal(drawn(one), drawn(two))


def drawn(base: Base) -> np.ndarray:
    pipe = EqDiffPipeline.of(base)
    return pipe(["a photo of a cat"], seeds=[3], num_inference_steps=2, output_type="np").images


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the network is found out, also where the asker would swallow the refusal."""

    def refuse(*_: Any) -> None:
        asked.append(1)
        raise OSError("no network in this test")

    asked: list[int] = []
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not asked


@pytest.mark.usefixtures("configuration", "deaf")
def test_a_single_file_is_its_folder_bit_for_bit(tiny_base: Path, tmp_path: Path) -> None:
    file = write_single_file(tiny_base, tmp_path / "tiny.safetensors")
    assert_same(load_base(str(tiny_base)), load_base(str(file)))


@pytest.mark.usefixtures("configuration")
def test_a_single_file_may_name_clips_layers_without_their_prefix(tiny_base: Path, tmp_path: Path) -> None:
    tensors = original_layout(tiny_base)
    save_file({name.replace(".text_model.", "."): x for name, x in tensors.items()}, tmp_path / "flat.safetensors")
    assert load_base(str(tmp_path / "flat.safetensors")).fingerprint == load_base(str(tiny_base)).fingerprint


def test_the_shipped_configuration_has_the_sizes_of_sd_1() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = ASSETS / "sd1"
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder"))
    counts = [sum(x.numel() for x in module.parameters()) for module in (unet, vae, text)]
    assert counts == [859_520_964, 83_653_863, 123_060_480]
    assert unet.config.attention_head_dim == 8 and text.config.hidden_act == "quick_gelu"


def test_the_shipped_tokenizer_is_clips() -> None:
    from transformers import CLIPTokenizer

    folder = ASSETS / "sd1" / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.model_max_length == 77 and tokenizer.pad_token_id == 49407
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert list(vocabulary.values()) == list(range(49408))
    assert list(vocabulary)[512:-2] == [merge.replace(" ", "") for merge in merges]
    assert "Copyright (c) 2021 OpenAI" in (folder / "LICENSE").read_text()


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_both_names_of_clips_layers_give_the_same_embeddings(tiny_base: Path, copy: Path, prefix: str) -> None:
    renamed = copy / "text_encoder" / "model.safetensors"
    retensor(renamed, lambda tensors: {prefix + name.removeprefix("text_model."): x for name, x in tensors.items()})
    whole, other = load_base(str(tiny_base)), load_base(str(copy))
    ids = torch.arange(40)[None]
    assert torch.equal(whole.text_encoder(ids).last_hidden_state, other.text_encoder(ids).last_hidden_state)
    assert whole.fingerprint == other.fingerprint


@pytest.mark.usefixtures("deaf")
def test_a_fine_tune_without_safety_checker_and_with_half_precision_alone_loads(tiny_base: Path, copy: Path) -> None:
    edit(
        copy / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (copy / part).glob("*.safetensors")
        retensor(file, lambda tensors: {name: x.half() for name, x in tensors.items()})
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    whole, half = load_base(str(tiny_base)), load_base(str(copy))
    assert {x.dtype for x in [*half.unet.parameters(), *half.vae.parameters()]} == {torch.float32}
    for part in ("unet", "vae", "text_encoder"):
        pairs = zip(getattr(whole, part).parameters(), getattr(half, part).parameters(), strict=True)
        assert all(torch.equal(one.half().float(), two) for one, two in pairs), part


def test_the_plain_weights_are_taken_and_shards_belong_together(tmp_path: Path) -> None:
    def chosen(*names: str) -> tuple[list[str], str | None]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name in names:
            (folder / f"{name}.safetensors").touch()
        files = weights_of(folder)
        return [file.name.removesuffix(".safetensors") for file in files], variant_of(files)

    assert chosen("model.fp16", "model") == (["model"], None)
    assert chosen("model.fp16", "model.non_ema") == (["model.fp16"], "fp16")
    assert chosen("model-00001-of-00002", "model-00002-of-00002", "model.fp16")[0][1] == "model-00002-of-00002"
    shards = ["model.fp16-00001-of-00002", "model.fp16-00002-of-00002"]
    assert chosen(*shards) == (shards, "fp16")


@pytest.mark.parametrize(
    ("index", "kind"),
    [
        ({"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["transformers", "X"]}, "Stable Diffusion XL"),
        ({"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "X"]}, "Stable Diffusion 3"),
        ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}, "FLUX"),
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "an inpainting model"),
        ({"_class_name": "PixArtAlphaPipeline", "transformer": ["diffusers", "X"]}, "a PixArtAlphaPipeline"),
    ],
)
def test_a_folder_of_another_kind_is_told_by_name(copy: Path, index: dict[str, Any], kind: str) -> None:
    edit(copy / "model_index.json", **index)
    assert f"this is {kind}; name a Stable Diffusion 1.x or 2.x" in refusal(copy)


def test_other_pipelines_of_stable_diffusion_are_not_refused() -> None:
    index = json.loads((ASSETS / "sd1" / "model_index.json").read_text())
    for name in ("StableDiffusionPipeline", "EqDiffPipeline", "StableDiffusionImg2ImgPipeline"):
        assert other_pipeline(index | {"_class_name": name, "text_encoder_2": [None, None]}) is None


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["conditioner.embedders.1.model.ln_final.bias", "model.diffusion_model.x"], "Stable Diffusion XL"),
        (["model.diffusion_model.joint_blocks.0.x"], "Stable Diffusion 3"),
        (["double_blocks.0.img_attn.x"], "FLUX"),
        (["model.diffusion_model.double_blocks.0.x"], "FLUX"),
        (["lora_unet_down_blocks_0.lora_up.weight"], "a LoRA"),
        (["unet.down_blocks.0.lora_A.weight"], "a LoRA"),
        (["tokens.rows"], "a concept of EqDiff"),
        (["model.diffusion_model.x", "cond_stage_model.transformer.x"], "a model without VAE"),
        (["anything"], "not a model"),
        (
            ["model.diffusion_model.x", "first_stage_model.x", "cond_stage_model.model.x"],
            "Stable Diffusion 2.x, .* EQDIFF_BASE_CONFIG=FOLDER",
        ),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_tensors(tmp_path: Path, names: list[str], kind: str) -> None:
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "what.safetensors")
    with pytest.raises(UserError, match=f"this is {kind}"):
        load_base(str(tmp_path / "what.safetensors"))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".CKPT"])
def test_pickles_are_not_opened(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"model{suffix}").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert "convert it to .safetensors" in refusal(tmp_path / f"model{suffix}")


def test_a_folder_of_pickles_is_not_opened(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(copy / "unet" / "diffusion_pytorch_model.bin")
    assert "pickles alone" in refusal(copy)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_that_lacks_a_weight_is_refused(copy: Path, part: str) -> None:
    (file,) = (copy / part).glob("*.safetensors")
    retensor(file, lambda tensors: dict(sorted(tensors.items())[1:]))
    assert "get it again" in refusal(copy)


@pytest.mark.usefixtures("configuration")
@pytest.mark.parametrize("start", ["model.diffusion_model.out.2", "first_stage_model.quant", "cond_stage_model"])
def test_a_file_that_lacks_weights_is_refused(tiny_base: Path, tmp_path: Path, start: str) -> None:
    tensors = original_layout(tiny_base)
    lost = [name for name in tensors if name.startswith(start)][0]
    del tensors[lost]
    save_file(tensors, tmp_path / "torn.safetensors")
    assert "get it again" in refusal(tmp_path / "torn.safetensors")


def test_what_cannot_be_a_base_is_one_line(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "models").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "models" / "dream.safetensors")
    assert "cannot be loaded" in refusal(tmp_path / "torn.safetensors")
    assert "neither a folder nor a .safetensors file" in refusal(tmp_path / "notes.txt")
    assert "dream.safetensors" in refusal(tmp_path / "models")
    assert "no such folder or file" in refusal(tmp_path / "nowhere")
    shutil.rmtree(copy / "unet")
    assert "no weights" in str(pytest.raises(UserError, load_base, str(copy)).value)
    monkeypatch.setenv("EQDIFF_BASE_CONFIG", str(tmp_path / "nothing"))
    assert "EQDIFF_BASE_CONFIG" in str(pytest.raises(UserError, load_base, str(tmp_path / "torn.safetensors")).value)


def test_nine_input_channels_are_an_inpainting_model(copy: Path) -> None:
    edit(copy / "unet" / "config.json", in_channels=9)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    retensor(weights, lambda tensors: tensors | {"conv_in.weight": torch.zeros(16, 9, 3, 3)})
    assert "an inpainting model, 9 input channels" in refusal(copy)


@pytest.fixture(scope="module")
def velocity_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as SD 2.x has it: v-prediction, linear projections, heads by level, another text width."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = Path(shutil.copytree(tiny_base, tmp_path_factory.mktemp("velocity") / "tiny"))
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    changes = {"attention_head_dim": [2, 2, 4, 4], "use_linear_projection": True, "cross_attention_dim": 48}
    config = {**UNet2DConditionModel.load_config(tiny_base, subfolder="unet"), **changes}
    text = CLIPTextConfig.from_pretrained(tiny_base, subfolder="text_encoder")
    text.hidden_size, text.projection_dim, text.hidden_act = 48, 48, "gelu"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
        CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    return folder


def test_a_single_file_of_sd_2_needs_its_configuration_and_is_then_its_folder(
    velocity_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_single_file(velocity_base, tmp_path / "v2.safetensors", open_clip=True)
    assert "EQDIFF_BASE_CONFIG=FOLDER" in refusal(file)
    only_configuration(velocity_base, tmp_path, monkeypatch)
    assert load_base(str(file)).scheduler.config.prediction_type == "v_prediction"
    assert_same(load_base(str(velocity_base)), load_base(str(file)))


def test_where_the_scheduler_says_so_the_target_is_the_velocity(velocity_base: Path, tiny_subject: Path) -> None:
    """The loss is zero for a model that answers with v, and the reference is noised as ever."""
    from eqdiff.latents import draw_batch

    objective, latents = tiny_objective(velocity_base, tiny_subject, ra_loss_weight=0.0)
    batch = draw_batch(latents, objective.config, 1000, torch.Generator().manual_seed(0))
    share = objective.model.alphas_cumprod[batch.t].view(-1, 1, 1, 1)
    v = share.sqrt() * batch.noise - (1 - share).sqrt() * batch.z0
    losses = objective(batch)
    assert losses["loss"].isfinite() and losses["diffusion"] > 0.1
    objective.predict = lambda *_: v
    assert objective(batch)["loss"] < 1e-12
    # what a scheduler makes of v: the clean latent and the noise, so that sampling and training agree
    z_t = share.sqrt() * batch.z0 + (1 - share).sqrt() * batch.noise
    assert torch.allclose(share.sqrt() * z_t - (1 - share).sqrt() * v, batch.z0, atol=1e-5)


def test_a_velocity_base_is_sampled_as_its_scheduler_says(velocity_base: Path, tmp_path: Path) -> None:
    base = load_base(str(velocity_base))
    right = drawn(base)
    edit(
        Path(shutil.copytree(velocity_base, tmp_path / "e")) / "scheduler/scheduler_config.json",
        prediction_type="epsilon",
    )
    wrong = drawn(load_base(str(tmp_path / "e")))
    assert np.isfinite(right).all() and not np.allclose(right, wrong)


def test_a_hub_id_comes_from_the_cache_and_is_refused_in_one_line_without(tiny_base: Path, tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--some--base"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    shutil.copytree(tiny_base, cached / "snapshots" / "abc")
    code = (
        "from eqdiff.base import load_base\nfor name in ('some/base', 'other/base'): print(load_base(name).fingerprint)"
    )
    here = {**os.environ, **OFFLINE, "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=here, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [load_base(str(tiny_base)).fingerprint]
    last = done.stderr.strip().splitlines()[-1]
    assert "base other/base: no folder or file here, and not to be had from the hub" in last


def test_everything_runs_offline_from_a_single_file(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, configuration: Path
) -> None:
    """The real programs, no hub, a dead proxy."""
    file = write_single_file(tiny_base, tmp_path / "tiny.safetensors")
    here = {**os.environ, **OFFLINE, "EQDIFF_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "empty")}
    base = {"pretrained_model_name_or_path": file}
    short = {"max_train_steps": 1, "num_class_images": 1, "reference_pool": 4, "class_inference_steps": 1}
    training = {**TINY, **base, **short, "instance_data_dir": tiny_subject, "output_dir": tmp_path / "out"}
    drawing = {**base, "concept": tmp_path / "out", "prompt": "a {}", "num_inference_steps": 1}
    runs = [("train_eqdiff.py", {**training, "class_word": "dog toy"}), ("test_eqdiff.py", drawing)]
    for script, settings in runs:
        command = [sys.executable, str(ROOT / script), *flags(settings)]
        done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "out" / "samples" / "images").iterdir())) == 1


def test_the_fingerprint_of_the_bundled_base_stays() -> None:
    """It is written in the studies' rows and in every concept of the bundled base."""
    assert load_base(str(BUNDLED_BASE)).fingerprint == "9d7a172765a0ee67"


@pytest.mark.parametrize("layer", ["unet", "text_encoder"])
def test_the_fingerprint_notices_a_merged_lora(tiny_base: Path, layer: str) -> None:
    """Of rank one, in a single matrix, a thousandth of its size; the VAE is not asked."""
    base = load_base(str(tiny_base))
    name = {"unet": "attn2.to_q.weight", "text_encoder": "q_proj.weight"}[layer]
    matrix = next(x for key, x in getattr(base, layer).named_parameters() if key.endswith(name))
    change = torch.outer(*(torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in matrix.shape))
    with torch.no_grad():
        matrix += 1e-3 * change * matrix.norm() / change.norm()
    assert fingerprint(base.unet, base.text_encoder) != base.fingerprint
