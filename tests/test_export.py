"""What comes out: compressed concepts, files for plain tools, the card, concepts without photos,
flagged pictures."""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from helpers import (
    TINY,
    concept_of,
    flags,
    refused,
    run_export,
    run_test,
    run_train,
    tiny_objective,
    train,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from eqdiff.concept import card as card_module
from eqdiff.concept.card import write_card
from eqdiff.concept.compress import (
    expand,
    factors,
    kept_energy,
    ranks_within,
    split,
    split_all,
    start_values,
)
from eqdiff.concept.concept import Concept
from eqdiff.concept.file import compress_concept, load_concept, save_concept
from eqdiff.errors import UserError
from eqdiff.pipeline import EqDiffPipeline, initial_noise

pytestmark = pytest.mark.slow
PROMPT = "a mosaic of a {} on the beach"


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tiny_subject: Path) -> tuple[Any, Concept]:
    """A tiny training whose gates are open, and its concept."""
    objective, latents = tiny_objective(tiny_base, tiny_subject, gate_init="identity")
    train(objective, latents, 3)
    return objective.model, concept_of(objective, latents)


@pytest.fixture
def folder(trained: tuple, tmp_path: Path) -> Path:
    """An output folder as training leaves it."""
    out = tmp_path / "disc"
    save_concept(trained[1], out / "concept.safetensors")
    (out / "preview").mkdir()
    for step in (2, 5):
        Image.new("RGB", (8, 8), (step, 0, 0)).save(out / "preview" / f"step-{step:06d}.png")
    return out


def picture(pipe: Any, concept: Any = None, **changes: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    if concept is not None:
        pipe.load_concept(concept)
    return pipe(
        PROMPT, seeds=[1], output_type="np", num_inference_steps=3, guidance_scale=5.0, **changes
    ).images[0]


def plain_picture(pipe: Any) -> np.ndarray:
    """The same, by a pipeline that knows nothing of EqDiff."""
    pipe.set_progress_bar_config(disable=True)
    prompt, noise = PROMPT.replace("{}", "<new1> dog toy"), initial_noise([1], (4, 8, 8))
    return pipe(
        prompt, latents=noise, output_type="np", num_inference_steps=3, guidance_scale=5.0
    ).images[0]


def export(base: Path, source: Path, **changes: Any) -> None:
    run_export(flags({"pretrained_model_name_or_path": base, "concept": source, **changes}))


# -- compression -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate_init", "weights"), [("zero", "kv"), ("identity", "kv"), ("identity", "all")]
)
def test_what_a_concept_started_from_is_known_from_a_trained_model(
    tiny_base: Path, tiny_subject: Path, gate_init: str, weights: str
) -> None:
    objective, latents = tiny_objective(
        tiny_base, tiny_subject, gate_init=gate_init, unet_weights=weights
    )
    fresh = {n: p.detach().clone() for n, p in objective.model.concept_parameters().items()}
    train(objective, latents, 1)
    start = start_values(objective.model)
    assert set(start) == set(fresh) - {"tokens.rows"}
    assert all(torch.equal(start[name], fresh[name]) for name in start)


def test_no_choice_of_ranks_within_the_budget_keeps_more_energy() -> None:
    splits = {str(i): split(torch.randn(4, 6) * scale) for i, scale in enumerate((0.1, 1.0, 2.0))}
    for budget in (0, 13, 14, 50, 90):  # a rank: 4 + 6 + 4 bytes
        ranks = ranks_within(splits, budget)
        assert sum(14 * rank for rank in ranks.values()) <= budget
        every = (
            dict(zip(splits, some, strict=True)) for some in itertools.product(range(5), repeat=3)
        )
        best = max(kept_energy(splits, some) for some in every if 14 * sum(some.values()) <= budget)
        assert kept_energy(splits, ranks) == pytest.approx(best)


def test_energy_counts_by_what_it_costs() -> None:
    wide = split(torch.diag(torch.tensor([3.0, 0.0])) @ torch.eye(2, 40))  # energy 9 for 46 bytes
    narrow = split(torch.diag(torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0, 0.0])))  # 4 and 1 for 16 each
    splits = {"wide": wide, "narrow": narrow}
    assert ranks_within(splits, 47) == {"wide": 0, "narrow": 2}
    assert ranks_within(splits, 64) == {"wide": 1, "narrow": 1}


def test_a_low_rank_change_comes_back_to_eight_bits_and_the_small_is_stored_whole() -> None:
    start = {"a": torch.randn(12, 9), "conv": torch.randn(8, 3, 3, 3), "bias": torch.randn(5)}
    changed = {"a": start["a"] + torch.randn(12, 2) @ torch.randn(2, 9), "bias": torch.randn(5)}
    changed["conv"] = start["conv"] + (torch.randn(8, 1) @ torch.randn(1, 27)).view(8, 3, 3, 3)
    splits = split_all(changed | {"rows": torch.randn(2, 7)}, start)
    assert set(splits) == {"a", "conv"}
    stored = factors(splits, {"a": 2, "conv": 1})
    assert {n for n, v in stored.items() if v.dtype == torch.int8} == {
        "a.up",
        "a.down",
        "conv.up",
        "conv.down",
    }
    again = expand(stored | {"bias": changed["bias"]}, start)
    assert again.keys() == changed.keys()
    assert torch.equal(again["bias"], changed["bias"])
    for name in splits:
        error, change = again[name] - changed[name], changed[name] - start[name]
        assert error.square().sum() < 2e-4 * change.square().sum()


def test_a_file_has_the_size_asked_for_and_what_is_lost_falls_with_it(
    tiny_base: Path, trained: tuple, tmp_path: Path
) -> None:
    model, concept = trained
    wanted, losses, kept = picture(EqDiffPipeline.from_pretrained(tiny_base), concept), [], []
    for megabytes in (0.028, 0.034, 0.05):
        small = compress_concept(concept, model, megabytes)
        save_concept(small, tmp_path / "c.safetensors", dtype="fp16")
        size = (tmp_path / "c.safetensors").stat().st_size
        assert 0.9 * megabytes * 1e6 < size <= megabytes * 1e6
        again = load_concept(tmp_path / "c.safetensors")
        assert again.kept_energy == small.kept_energy
        kept.append(again.kept_energy)
        losses.append(
            np.abs(picture(EqDiffPipeline.from_pretrained(tiny_base), again) - wanted).mean()
        )
    assert 1 / 255 > losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.05 / 255  # from a wrong start it is 0.5 / 255
    assert 0.8 < kept[0] < kept[1] < kept[2] < 1


def test_what_fits_whole_is_left_whole_and_what_never_fits_is_refused(trained: tuple) -> None:
    model, concept = trained
    whole = compress_concept(concept, model, 100)
    assert not whole.compressed
    assert all(
        torch.equal(whole.parameters[name], value) for name, value in concept.parameters.items()
    )
    with pytest.raises(UserError, match=r"--compress 0.01: too little"):
        compress_concept(concept, model, 0.01)


@pytest.mark.parametrize(
    "change", ["no down", "other rank", "whole beside", "extra", "other size", "scales"]
)
def test_a_compressed_file_with_other_keys_or_shapes_is_refused(
    tiny_base: Path, trained: tuple, change: str
) -> None:
    small = compress_concept(trained[1], trained[0], 0.05)
    parameters = dict(small.parameters)
    name = next(n for n in parameters if n.endswith("to_k.weight.up")).removesuffix(".up")
    if change == "no down":
        del parameters[f"{name}.down"]
    elif change == "other rank":
        parameters[f"{name}.down"] = torch.zeros(99, parameters[f"{name}.down"].shape[1])
    elif change == "whole beside":
        parameters[name] = trained[1].parameters[name]
    elif change == "scales":
        parameters["factors.scale"] = parameters["factors.scale"][:-1]
    elif change == "other size":
        parameters[f"{name}.up"] = parameters[f"{name}.up"][:-1]
    else:
        parameters |= {
            "unet.more.weight.up": torch.zeros(2, 1),
            "unet.more.weight.down": torch.zeros(1, 2),
        }
    pipe = EqDiffPipeline.from_pretrained(tiny_base)
    with pytest.raises(UserError, match="does not fit"):
        pipe.load_concept(dataclasses.replace(small, parameters=parameters))


def test_a_concept_in_fp16_draws_nearly_the_same_picture(
    tiny_base: Path, trained: tuple, tmp_path: Path
) -> None:
    save_concept(trained[1], tmp_path / "c.safetensors", dtype="fp16")
    stored = load_file(tmp_path / "c.safetensors")
    assert all(
        v.dtype == torch.float16 for n, v in stored.items() if not n.startswith("reference.")
    )
    exact, rounded = (EqDiffPipeline.from_pretrained(tiny_base) for _ in range(2))
    assert (
        np.abs(picture(exact, trained[1]) - picture(rounded, tmp_path / "c.safetensors")).max()
        <= 1 / 255
    )


# -- files for plain tools -------------------------------------------------------------------------


def test_the_textual_inversion_in_plain_diffusers_draws_what_ours_draws_without_rra_and_kv(
    tiny_base: Path, trained: tuple, folder: Path
) -> None:
    model, concept = trained
    export(tiny_base, folder, format="textual_inversion")
    file = folder / "export" / "disc.safetensors"
    assert {n: tuple(v.shape) for n, v in load_file(file).items()} == {"emb_params": (1, 32)}
    plain = StableDiffusionPipeline.from_pretrained(tiny_base)
    plain.load_textual_inversion(str(file), token="<new1>")
    base_kv = {n: v.clone() for n, v in start_values(model).items() if ".attn2." in n}
    token_alone = dataclasses.replace(concept, parameters=concept.parameters | base_kv)
    ours = picture(EqDiffPipeline.from_pretrained(tiny_base), token_alone, rra=False)
    assert np.array_equal(plain_picture(plain), ours)
    assert not np.array_equal(
        ours, picture(EqDiffPipeline.from_pretrained(tiny_base), concept, rra=False)
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_the_lines_of_the_model_card_draw_what_ours_draws_without_rra(
    tiny_base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool
) -> None:
    source = folder
    if compressed:
        export(tiny_base, folder, compress=0.05)
        source = folder / "export"
    out = folder / "plain"
    for form in ("textual_inversion", "kv_patch"):
        export(tiny_base, source, format=form, output=out / f"{form}.safetensors")
    names = {name.split(".processor")[0] for name in load_file(out / "kv_patch.safetensors")}
    assert all(re.search(r"attn2\.to_[kv]\.weight$", name) for name in names)
    lines = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]
    assert len(lines.splitlines()) == 8
    monkeypatch.chdir(out)
    scope: dict[str, Any] = {}
    exec(lines.replace("BASE", str(tiny_base)), scope)
    ours = picture(
        EqDiffPipeline.from_pretrained(tiny_base), source / "concept.safetensors", rra=False
    )
    assert np.array_equal(plain_picture(scope["pipe"]), ours)


def test_a_concept_without_unet_weights_has_no_patch(
    trained: tuple, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    bare = {n: v for n, v in trained[1].parameters.items() if ".attn2." not in n}
    save_concept(dataclasses.replace(trained[1], parameters=bare), tmp_path / "c.safetensors")
    argv = flags({"concept": tmp_path / "c.safetensors", "format": "kv_patch"})
    assert "textual_inversion" in refused(capsys, run_export, argv)


def test_nothing_that_is_there_is_written_over_unasked(
    tiny_base: Path, folder: Path, capsys: Any
) -> None:
    before = (folder / "concept.safetensors").read_bytes()
    (folder / "own.safetensors").write_bytes(b"precious")
    argv = ["--concept", str(folder), "--output"]
    assert "itself" in refused(
        capsys, run_export, [*argv, str(folder / "concept.safetensors"), "--overwrite"]
    )
    assert "--overwrite" in refused(capsys, run_export, [*argv, str(folder / "own.safetensors")])
    assert "concept files alone" in refused(
        capsys, run_export, ["--concept", str(folder), "--compress", "1", "--format", "kv_patch"]
    )
    assert (folder / "concept.safetensors").read_bytes() == before
    assert (folder / "own.safetensors").read_bytes() == b"precious"


def test_a_picture_of_somebodys_beside_an_export_stays(
    tiny_base: Path, folder: Path, capsys: Any
) -> None:
    out = folder / "elsewhere"
    out.mkdir()
    (out / "preview.png").write_bytes(b"precious")
    for more, kept in (([], True), (["--overwrite"], False)):
        words = ["--concept", str(folder), "--output", str(out / "c.safetensors"), *more]
        run_export(words)
        assert ((out / "preview.png").read_bytes() == b"precious") == kept
        assert ("(preview.png)" in (out / "README.md").read_text()) != kept


# -- the model card --------------------------------------------------------------------------------


def test_the_card_says_what_the_file_is_and_gives_away(
    tiny_base: Path, trained: tuple, folder: Path
) -> None:
    (folder / "samples").mkdir()
    figures = {"clip_t_cos": {"mean": 0.25, "low": 0.2, "high": 0.3, "n": 7}}
    report = {"clip_model": "clip", "dino_model": "dino", "overall": figures}
    (folder / "samples" / "metrics.json").write_text(json.dumps(report))
    export(tiny_base, folder, compress=0.05)
    export(tiny_base, folder, format="textual_inversion")  # beside it: the card tells of both
    card = (folder / "export" / "README.md").read_text()
    assert trained[1].base_fingerprint in card
    assert "embedding:disc" in card
    assert "| class word | dog toy |" in card
    assert "| clip_t_cos | 0.2500 | 7 |" in card
    assert "% of the change's energy kept" in card
    assert "can decode the photos" in card
    assert "restrictions on use pass on" in card
    assert str(folder) not in card
    assert str(tiny_base) not in card
    assert Image.open(folder / "export" / "preview.png").getpixel((0, 0)) == (
        5,
        0,
        0,
    )  # the last one
    assert "(preview.png)" in card
    shutil.rmtree(folder / "export")
    run_export(["--concept", str(folder), "--no_embed_reference"])
    card = (folder / "export" / "README.md").read_text()
    assert "can decode the photos" not in card
    assert "--instance_data_dir PHOTOS" in card


@pytest.mark.parametrize(
    ("width", "words"), [(768, "are under CreativeML OpenRAIL-M"), (32, "license: other")]
)
def test_the_card_names_the_licence_of_the_base(
    trained: tuple, tmp_path: Path, width: int, words: str
) -> None:
    parameters = trained[1].parameters | {"tokens.rows": torch.zeros(2, width)}
    assert write_card(tmp_path, dataclasses.replace(trained[1], parameters=parameters))
    assert words in (tmp_path / "README.md").read_text()


def test_the_card_tells_no_path(trained: tuple, tmp_path: Path) -> None:
    home = dataclasses.replace(trained[1], base_name="some/where/models/sd-1.4", kept_energy=None)
    write_card(tmp_path, home)
    card = (tmp_path / "README.md").read_text()
    assert "| base | sd-1.4, fingerprint" in card
    assert "where" not in card


def test_a_class_word_that_looks_like_a_field_stays_as_it_is(
    trained: tuple, tmp_path: Path
) -> None:
    word = "$prompt ${concept} {} toy"
    named = dataclasses.replace(trained[1], settings={**trained[1].settings, "class_word": word})
    write_card(tmp_path, named)
    assert f"| class word | {word} |" in (tmp_path / "README.md").read_text()


def test_every_part_of_the_template_is_on_some_card() -> None:
    template = Path(card_module.__file__).with_name("card.md").read_text(encoding="utf-8")
    code = Path(card_module.__file__).read_text(encoding="utf-8")
    names = re.findall(r"^<!-- (\w+) -->$", template, re.MULTILINE)
    assert len(names) > 10
    assert [name for name in names if f'"{name}"' not in code] == []


def test_a_readme_of_somebodys_own_stays(trained: tuple, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my notes")
    assert not write_card(tmp_path, trained[1])
    assert (tmp_path / "README.md").read_text() == "my notes"
    (tmp_path / "README.md").unlink()
    assert write_card(tmp_path, trained[1])
    assert write_card(tmp_path, trained[1])  # its own it writes again


# -- without the photos ----------------------------------------------------------------------------


def drawn(samples: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted((samples / "images").iterdir())]


def draw(base: Path, concept: Path, out: Path, *more: str) -> list[np.ndarray]:
    """The pictures that test_eqdiff.py writes."""
    words = flags(
        {
            "pretrained_model_name_or_path": base,
            "concept": concept,
            "output_dir": out,
            "prompt": PROMPT,
        }
    )
    run_test([*words, "--num_inference_steps", "2", *more])
    return drawn(out)


def test_a_concept_without_photos_asks_for_them_and_then_draws_the_same(
    tiny_base: Path, tiny_subject: Path, folder: Path, capsys: Any
) -> None:
    run_export(["--concept", str(folder), "--no_embed_reference"])
    bare = folder / "export" / "concept.safetensors"
    assert [n for n in load_file(bare) if n.startswith("reference.")] == ["reference.noise"]
    assert b"00.jpg" not in bare.read_bytes()
    words = flags({"pretrained_model_name_or_path": tiny_base, "concept": bare, "prompt": PROMPT})
    line = refused(capsys, run_test, words)
    assert "--instance_data_dir" in line
    assert "--no-rra" in line
    third = ("--reference", "02.jpg")
    wanted = draw(tiny_base, folder, folder / "a", *third)
    with_photos = draw(
        tiny_base, bare, folder / "b", "--instance_data_dir", str(tiny_subject), *third
    )
    without = draw(tiny_base, bare, folder / "c", "--no-rra")
    assert np.array_equal(wanted[0], with_photos[0])
    assert not np.array_equal(wanted[0], without[0])
    manifests = [json.loads((folder / k / "manifest.jsonl").read_text()) for k in "bc"]
    assert [row["reference"] for row in manifests] == ["02.jpg", None]


def test_a_training_told_so_leaves_the_photos_out_of_every_file(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQDIFF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "prompts.txt").write_text("a photo of a {}\n")
    out = tmp_path / "out"
    changes = {
        "max_train_steps": 2,
        "checkpointing_steps": 1,
        "validation_steps": 1,
        "output_dir": out,
    }
    given = {
        "pretrained_model_name_or_path": tiny_base,
        "instance_data_dir": tiny_subject,
        "class_word": "dog toy",
    }
    given |= {"validation_prompts": tmp_path / "prompts.txt", "concept_dtype": "fp16"}
    run_train([*flags({**TINY, **given, **changes}), "--no_embed_reference"])
    files = [out / "concept.safetensors", *out.rglob("checkpoints/*/concept.safetensors")]
    assert len(files) == 3
    assert all("reference.latents" not in load_file(file) for file in files)
    assert load_file(files[0])["tokens.rows"].dtype == torch.float16
    card = (out / "README.md").read_text()
    assert "(preview/step-000002.png)" in card
    assert "carries no latents of the photos" in card
    assert not list(out.rglob("*.partial"))


# -- the base's safety checker ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a tiny random safety checker, which flags everything."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    folder = tmp_path_factory.mktemp("checked") / "base"
    shutil.copytree(tiny_base, folder)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = sizes | {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(
        text_config=sizes | {"vocab_size": 10}, vision_config=vision, projection_dim=8
    )
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.fill_(-2.0)  # thresholds of cosines
    checker.save_pretrained(folder / "safety_checker")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size).save_pretrained(folder / "feature_extractor")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def set_threshold(base: Path, value: float) -> None:
    weights = next((base / "safety_checker").glob("*.safetensors"))
    tensors = load_file(weights)
    tensors["concept_embeds_weights"].fill_(value)
    save_file(tensors, weights, {"format": "pt"})


def nsfw(samples: Path) -> list[Any]:
    return [
        json.loads(line).get("nsfw", "absent")
        for line in (samples / "manifest.jsonl").read_text().splitlines()
    ]


def test_flagged_pictures_are_blurred_and_reported_never_black(
    checked_base: Path, folder: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(checked_base, base)
    free = draw(base, folder, folder / "free", "--no-safety_checker")
    assert nsfw(folder / "free") == ["absent"]
    flagged = draw(base, folder, folder / "flagged")
    assert nsfw(folder / "flagged") == [True]
    assert "flagged 1 of 1 images" in caplog.text
    assert "black" not in caplog.text.lower()
    assert flagged[0].mean() == pytest.approx(
        free[0].mean(), abs=3
    )  # its colour on the whole, and no detail
    detail = [np.abs(np.diff(x[0].astype(float), axis=1)).mean() for x in (free, flagged)]
    assert detail[1] < detail[0] / 5
    set_threshold(base, 2.0)
    caplog.clear()
    clean = draw(base, folder, folder / "clean")
    assert nsfw(folder / "clean") == [False]
    assert np.array_equal(clean[0], free[0])
    assert "flagged" not in caplog.text


def test_a_checker_that_is_named_and_missing_or_broken_gets_one_line(
    checked_base: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    base = tmp_path / "base"
    shutil.copytree(checked_base, base)
    next((base / "safety_checker").glob("*.safetensors")).unlink()
    words = flags({"pretrained_model_name_or_path": base, "concept": folder, "prompt": PROMPT})
    assert "--no-safety_checker" in refused(capsys, run_test, words)
    shutil.rmtree(base / "safety_checker")
    draw(base, folder, folder / "out")
    assert "not checked" in caplog.text
    assert nsfw(folder / "out") == ["absent"]
