"""Bases as they come: folder, single file, hub id; precision; offline; the fingerprint."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import assert_same, edit, retensor
from helpers import TINY, flags
from ldm import original_layout, write_single_file
from safetensors.torch import save_file

from eqdiff.base.formats import variant_of, weights_of
from eqdiff.base.load import fingerprint, load_base
from eqdiff.settings.places import ASSETS, BUNDLED_BASE

ROOT = Path(__file__).resolve().parent.parent
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
DEAD = dict.fromkeys(PROXIES, "http://127.0.0.1:9")
OFFLINE = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **DEAD}


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test fails if anything asks the network, even if the refusal is swallowed."""
    calls: list[int] = []

    def refuse(*_: Any) -> None:
        calls.append(1)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    yield
    assert not calls


@pytest.mark.usefixtures("configuration", "deaf")
def test_a_single_file_is_its_folder_bit_for_bit(tiny_base: Path, tmp_path: Path) -> None:
    file = write_single_file(tiny_base, tmp_path / "tiny.safetensors")
    assert_same(load_base(str(tiny_base)), load_base(str(file)))


@pytest.mark.usefixtures("configuration")
def test_a_single_file_may_name_clips_layers_without_their_prefix(
    tiny_base: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat.safetensors"
    layout = original_layout(tiny_base).items()
    save_file({name.replace(".text_model.", "."): x for name, x in layout}, flat)
    assert load_base(str(flat)).fingerprint == load_base(str(tiny_base)).fingerprint


def test_the_shipped_configuration_has_the_sizes_of_sd_1() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = ASSETS / "sd1"
    with torch.device("meta"):
        config = UNet2DConditionModel.load_config(folder, subfolder="unet")
        unet = UNet2DConditionModel.from_config(config)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder"))

    counts = [sum(x.numel() for x in module.parameters()) for module in (unet, vae, text)]
    assert counts == [859_520_964, 83_653_863, 123_060_480]
    assert unet.config.attention_head_dim == 8
    assert text.config.hidden_act == "quick_gelu"


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
def test_both_names_of_clips_layers_give_the_same_embeddings(
    tiny_base: Path, base_copy: Path, prefix: str
) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {prefix + name.removeprefix("text_model."): x for name, x in tensors.items()}

    retensor(base_copy / "text_encoder" / "model.safetensors", rename)
    whole = load_base(str(tiny_base))
    renamed = load_base(str(base_copy))
    ids = torch.arange(40)[None]

    embedded = [base.text_encoder(ids).last_hidden_state for base in (whole, renamed)]
    assert torch.equal(*embedded)
    assert whole.fingerprint == renamed.fingerprint


@pytest.mark.usefixtures("deaf")
def test_a_fine_tune_without_safety_checker_and_with_half_precision_alone_loads(
    tiny_base: Path, base_copy: Path
) -> None:
    parts = ("unet", "vae", "text_encoder")
    edit(
        base_copy / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    for part in parts:
        (file,) = (base_copy / part).glob("*.safetensors")
        retensor(file, lambda tensors: {name: x.half() for name, x in tensors.items()})
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))

    whole = load_base(str(tiny_base))
    half = load_base(str(base_copy))
    assert {x.dtype for x in [*half.unet.parameters(), *half.vae.parameters()]} == {torch.float32}
    for part in parts:
        weights = (getattr(base, part).parameters() for base in (whole, half))
        pairs = zip(*weights, strict=True)
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
    both = chosen("model-00001-of-00002", "model-00002-of-00002", "model.fp16")
    assert both[0][1] == "model-00002-of-00002"
    shards = ["model.fp16-00001-of-00002", "model.fp16-00002-of-00002"]
    assert chosen(*shards) == (shards, "fp16")


@pytest.mark.long
def test_a_hub_id_comes_from_the_cache_and_is_refused_in_one_line_without(
    tiny_base: Path, tmp_path: Path
) -> None:
    cached = tmp_path / "hub" / "models--some--base"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    shutil.copytree(tiny_base, cached / "snapshots" / "abc")

    code = "from eqdiff.base.load import load_base\n"
    code += "for name in ('some/base', 'other/base'): print(load_base(name).fingerprint)"
    here = {**os.environ, **OFFLINE, "HF_HUB_CACHE": str(tmp_path / "hub")}
    settings = dict(cwd=ROOT, env=here, capture_output=True, text=True, timeout=300)
    done = subprocess.run([sys.executable, "-c", code], **settings)

    assert done.stdout.split() == [load_base(str(tiny_base)).fingerprint]
    last = done.stderr.strip().splitlines()[-1]
    assert "base other/base: no folder or file here, and not to be had from the hub" in last


@pytest.mark.long
def test_everything_runs_offline_from_a_single_file(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, configuration: Path
) -> None:
    """The real programs, no hub, a dead proxy."""
    file = write_single_file(tiny_base, tmp_path / "tiny.safetensors")
    places = {"EQDIFF_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "empty")}
    here = {**os.environ, **OFFLINE, **places}
    base = {"pretrained_model_name_or_path": file}
    training = {
        **TINY,
        **base,
        "instance_data_dir": tiny_subject,
        "output_dir": tmp_path / "out",
        "max_train_steps": 1,
        "num_class_images": 1,
        "reference_pool": 4,
        "class_inference_steps": 1,
    }
    drawing = {**base, "concept": tmp_path / "out", "prompt": "a {}", "num_inference_steps": 1}

    runs = [("train_eqdiff.py", {**training, "class_word": "dog toy"}), ("test_eqdiff.py", drawing)]

    for script, settings in runs:
        command = [sys.executable, str(ROOT / script), *flags(settings)]
        done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]

    assert len(list((tmp_path / "out" / "samples" / "images").iterdir())) == 1


def test_the_fingerprint_of_the_bundled_base_stays() -> None:
    """It is written in the studies' rows and in every concept of the bundled base."""
    assert load_base(str(BUNDLED_BASE)).fingerprint == "ab713d7c8f61e213"


@pytest.mark.parametrize("layer", ["unet", "text_encoder"])
def test_the_fingerprint_notices_a_merged_lora(tiny_base: Path, layer: str) -> None:
    """Of rank one, in a single matrix, a thousandth of its size; the VAE is not asked."""
    base = load_base(str(tiny_base))
    name = {"unet": "attn2.to_q.weight", "text_encoder": "q_proj.weight"}[layer]
    matrix = next(x for key, x in getattr(base, layer).named_parameters() if key.endswith(name))
    generators = (torch.Generator().manual_seed(n) for n in matrix.shape)
    sides = zip(matrix.shape, generators, strict=True)
    change = torch.outer(*(torch.randn(n, generator=generator) for n, generator in sides))

    with torch.no_grad():
        matrix += 1e-3 * change * matrix.norm() / change.norm()
    assert fingerprint(base.unet, base.text_encoder) != base.fingerprint
