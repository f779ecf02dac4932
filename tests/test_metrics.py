"""Metrics: transforms, features and scores against independent computations; the command line; what
it refuses."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, refused, run_eval
from PIL import Image
from tiny import make_judges
from torchvision import transforms
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from eqdiff.evaluation import metrics, report
from eqdiff.evaluation.transforms import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Transform
from eqdiff.settings.places import ASSETS, BUNDLED_BASE
from toybox.truth import read_prompt, truths

REAL = ROOT.parent / "shared" / "data" / "can"
SIDE = 32
PROMPTS = (
    "a watercolor painting of a {} in the snow",
    "a photo of a {} on the beach",
    "a {} by a lake",
)
SCORES = ("clip_t_cos", "clip_t_2.5", "clip_i", "dino_i")


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, Path]:
    """Folders of a CLIP and a ViT with small random weights that see 32 pixels."""
    return make_judges(tmp_path_factory.mktemp("judges"), tiny_base)


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    )


def pictures() -> list[Image.Image]:
    """Noise, wide, tall, small, with odd sides."""
    return [
        noise(size, i) for i, size in enumerate([(64, 64), (97, 61), (53, 140), (20, 31), (32, 32)])
    ]


# ---- an independent transform: Pillow's filter in numpy, weights written out as a matrix, 22 bits
# after the point


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -1/2."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def stretched(pixels: np.ndarray, length: int) -> np.ndarray:
    """The first axis resampled to `length`, antialiased, rounded to 8 bits."""
    scale = len(pixels) / length
    centres, places = (np.arange(length) + 0.5) * scale, np.arange(len(pixels)) + 0.5
    weights = cubic((places - centres[:, None]) / max(scale, 1))
    weights *= 2**22 / weights.sum(1, keepdims=True)
    fixed = np.trunc(weights + np.copysign(0.5, weights)).astype(np.int64)
    return (np.tensordot(fixed, pixels, 1) + 2**21 >> 22).clip(0, 255)


def by_hand(image: Image.Image, short: int, crop: int, mean: Any, std: Any) -> torch.Tensor:
    pixels = np.asarray(image, np.int64)
    height, width = (
        math.floor(short * length / min(image.size) + 1e-9) for length in pixels.shape[:2]
    )
    if width != image.width:
        pixels = stretched(pixels.transpose(1, 0, 2), width).transpose(1, 0, 2)
    if height != image.height:
        pixels = stretched(pixels, height)
    top, left = (int(np.rint((length - crop) / 2)) for length in pixels.shape[:2])
    cut = pixels[top : top + crop, left : left + crop]
    return torch.tensor(((cut / 255 - mean) / std).transpose(2, 0, 1), dtype=torch.float32)


@pytest.mark.parametrize(
    ("transform", "short", "mean", "std"),
    [
        (metrics.clip_transform(SIDE), SIDE, CLIP_MEAN, CLIP_STD),
        (metrics.dino_transform(SIDE), 37, IMAGENET_MEAN, IMAGENET_STD),
    ],
)
def test_transforms_are_pillows_filter_and_torchvisions_crop(transform, short, mean, std):
    steps = [
        transforms.Resize(short, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(SIDE),
    ]
    original = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
    made = transform(pictures())
    assert made.shape == (5, 3, SIDE, SIDE)
    assert torch.equal(made, transform(pictures()))
    for image, pixels in zip(pictures(), made, strict=True):
        torch.testing.assert_close(
            pixels, by_hand(image, short, SIDE, mean, std), rtol=0, atol=1e-5
        )
        if (
            image.width >= image.height
        ):  # Pillow 13, in one call, takes tall pictures the other way round
            torch.testing.assert_close(pixels, original(image), rtol=0, atol=1e-6)


def test_sizes_and_normalisation_are_the_protocols_unless_the_models_file_says_to_cut():
    assert metrics.clip_transform() == Transform(224, 224, CLIP_MEAN, CLIP_STD)
    assert metrics.dino_transform() == Transform(256, 224, IMAGENET_MEAN, IMAGENET_STD)
    assert metrics.dino_transform(128).resize == 146
    # as Hugging Face has them for CLIP, and for DINO: squashed to 224 x 224, which is not the
    # protocol
    openai = dict(
        size=224,
        crop_size=224,
        do_center_crop=True,
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
    )
    assert metrics.clip_transform(224, openai) == metrics.clip_transform()
    facebook = dict(size=224, do_resize=True, image_mean=[0.1, 0.2, 0.3], image_std=[0.5] * 3)
    assert metrics.dino_transform(224, facebook) == Transform(
        256, 224, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)
    )
    cut = dict(
        size={"shortest_edge": 300}, crop_size={"height": 224, "width": 224}, do_center_crop=True
    )
    assert metrics.dino_transform(224, cut).resize == 300
    for about in (cut | {"crop_size": 200}, cut | {"size": 200}):
        with pytest.raises(ValueError, match="200"):
            metrics.dino_transform(224, about)


def test_features_from_pixels_agree_with_an_independent_computation(judges):
    clip, dino = metrics.load_clip(str(judges[0])), metrics.load_dino(str(judges[1]))
    model, vit = (
        CLIPModel.from_pretrained(judges[0]).eval(),
        ViTModel.from_pretrained(judges[1]).eval(),
    )
    tokenizer = CLIPTokenizer.from_pretrained(judges[0])
    texts = ["a photo of a dog toy on the beach", "a mosaic of a mug"]
    images = pictures()
    pixels = torch.stack([by_hand(image, SIDE, SIDE, CLIP_MEAN, CLIP_STD) for image in images])
    with torch.no_grad():
        for text in texts:  # one by one, without padding
            both = model(**tokenizer(text, return_tensors="pt"), pixel_values=pixels)
            torch.testing.assert_close(
                clip.texts([texts[0], text])[1:], both.text_embeds, rtol=0, atol=1e-4
            )
        torch.testing.assert_close(clip.images(images), both.image_embeds, rtol=0, atol=1e-4)
        pixels = torch.stack(
            [by_hand(image, 37, SIDE, IMAGENET_MEAN, IMAGENET_STD) for image in images]
        )
        hidden = vit(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(
        dino.images(images), hidden / hidden.norm(dim=1, keepdim=True), rtol=0, atol=1e-4
    )
    assert dino.images(images).dtype == clip.images(images).dtype == torch.float32
    gram = clip.images(images) @ clip.images(images).T
    assert gram.min() < 0.98, "these judges see no difference, and the tests would not either"


def unit(count: int, seed: int, width: int = 16) -> torch.Tensor:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def test_scores_agree_with_numpy_on_the_same_features():
    drawn, texts, photos = unit(7, 1), unit(7, 2), unit(4, 3)
    d, t, p = (part.numpy().astype(float) for part in (drawn, texts, photos))
    cosines = np.array([sum(a * b) for a, b in zip(d, t, strict=True)])
    pairs = np.array([[sum(a * b) for b in p] for a in d])
    np.testing.assert_allclose(metrics.text_scores(drawn, texts), cosines, atol=1e-6)
    np.testing.assert_allclose(
        metrics.scaled(metrics.text_scores(drawn, texts)), 2.5 * cosines.clip(0), atol=1e-6
    )
    np.testing.assert_allclose(metrics.pair_scores(drawn, photos), pairs.mean(1), atol=1e-6)
    assert abs(float(metrics.pair_scores(drawn, photos).mean()) - pairs.mean()) < 1e-6
    assert cosines.min() < 0 < cosines.max()


def test_a_picture_is_itself_a_set_has_its_gram_matrix_and_order_does_not_matter():
    drawn, photos = unit(6, 1), unit(4, 2)
    assert float(metrics.pair_scores(drawn[:1], drawn[:1])) == pytest.approx(1, abs=1e-6)
    gram = (drawn @ drawn.T).numpy().astype(float)
    assert float(metrics.pair_scores(drawn, drawn).mean()) == pytest.approx(gram.mean(), abs=1e-6)
    assert metrics.agreement(drawn) == pytest.approx(gram[~np.eye(6, dtype=bool)].mean(), abs=1e-6)
    turned = metrics.pair_scores(drawn.flip(0), photos.flip(0)).flip(0)
    torch.testing.assert_close(metrics.pair_scores(drawn, photos), turned, rtol=0, atol=1e-12)


def test_clipscore_is_two_and_a_half_cosines_and_never_negative():
    cosines = torch.tensor([-0.2, 0.0, 0.308])
    torch.testing.assert_close(metrics.scaled(cosines), torch.tensor([0.0, 0.0, 0.77]))


def test_the_learned_token_is_removed_and_the_class_word_stays():
    for prompt in ("a photo of a {} on the beach", "a photo of a <new1> cat toy on the beach"):
        assert metrics.caption(prompt, "cat toy") == "a photo of a cat toy on the beach"
    assert metrics.caption("<new1>, painted", "mug") == "mug, painted"


def test_intervals_are_students():
    values = [0.1, 0.4, 0.2, 0.5]
    error = 3.182 * np.std(values, ddof=1) / 2  # 3 degrees of freedom
    assert report.interval(values) == pytest.approx(
        {"mean": 0.3, "low": 0.3 - error, "high": 0.3 + error, "n": 4}
    )
    assert report.interval([0.5]) == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert report.student(2) == 4.303 and report.student(30) == pytest.approx(2.042, abs=0.01)


# ---- the command


def drawn_by(
    folder: Path,
    images: list[Image.Image],
    prompts: tuple[str, ...] = PROMPTS,
    settings: dict[str, Any] | None = None,
) -> Path:
    """A samples folder as test_eqdiff.py writes it, and near it the config.json of a training."""
    (folder / "samples" / "images").mkdir(parents=True)
    rows = []
    for number, image in enumerate(images):
        file = f"images/{number:04}.png"
        image.save(folder / "samples" / file)
        rows.append(
            {
                "file": file,
                "prompt": prompts[number % len(prompts)],
                "seed": number,
                "concept": "ab",
            }
        )
    (folder / "samples" / "manifest.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    if settings:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder / "samples"


def with_judges(judges: tuple[Path, Path]) -> list[str]:
    return ["--clip_model", str(judges[0]), "--dino_model", str(judges[1])]


@pytest.mark.parametrize("real", [False, True])
def test_the_command_measures_a_folder(judges, tiny_subject, tmp_path, capsys, real):
    if real and not REAL.is_dir():
        pytest.skip("no real photos here")
    photos = REAL if real else tiny_subject
    loaded = [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.jpg"))]
    images = [*loaded[:2], *pictures()[:2]]
    settings = {
        "instance_data_dir": str(photos),
        "class_word": "dog toy",
        "pretrained_model_name_or_path": "sd",
    }
    samples = drawn_by(tmp_path / "out", images, settings=settings | {"max_train_steps": 5})
    run_eval(["--samples", str(samples), *with_judges(judges), "--batch_size", "3"])
    found = json.loads((samples / "metrics.json").read_text())

    clip, dino = metrics.load_clip(str(judges[0])), metrics.load_dino(str(judges[1]))
    texts = [prompt.replace("{}", "dog toy") for prompt in (*PROMPTS, PROMPTS[0])]
    expected = (clip.images(images) * clip.texts(texts)).sum(1)
    pairs = {
        name: judge.images(images) @ judge.images(loaded).T
        for name, judge in (("clip", clip), ("dino", dino))
    }
    assert [row["text"] for row in found["images"]] == texts
    assert [row["clip_t_cos"] for row in found["images"]] == pytest.approx(
        expected.tolist(), abs=1e-5
    )
    means = {name: found["overall"][name]["mean"] for name in SCORES}
    wanted = (
        expected.mean(),
        2.5 * expected.clamp(min=0).mean(),
        pairs["clip"].mean(),
        pairs["dino"].mean(),
    )
    assert means == pytest.approx(dict(zip(SCORES, map(float, wanted), strict=True)), abs=1e-5)
    assert set(found["overall"]) == set(SCORES)
    assert {row["prompt"]: row["dino_i"]["n"] for row in found["prompts"]} == dict(
        zip(PROMPTS, (2, 1, 1), strict=True)
    )
    assert (found["step"], found["photos"], found["class_word"]) == (
        5,
        sorted(p.name for p in photos.glob("*.jpg")),
        "dog toy",
    )
    assert f"{means['dino_i']:.4f}" in capsys.readouterr().out


def test_several_folders_are_subjects_and_with_pick_checkpoints(
    judges, tiny_subject, tmp_path, capsys
):
    loaded = [Image.open(path).convert("RGB") for path in sorted(tiny_subject.glob("*.jpg"))]
    settings = {"instance_data_dir": str(tiny_subject), "class_word": "dog toy"}
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "config.json").write_text(json.dumps(settings))
    made = {100: pictures()[:4], 200: loaded, 300: pictures()[1:5]}
    folders = [
        drawn_by(tmp_path / "dog" / "checkpoints" / f"step-{s:06}", images)
        for s, images in made.items()
    ]
    words = [
        "--samples",
        *map(str, folders),
        *with_judges(judges),
        "--json",
        str(tmp_path / "all" / "figures.json"),
    ]
    run_eval(words)
    together = json.loads((tmp_path / "all" / "figures.json").read_text())
    means = [part["overall"]["dino_i"]["mean"] for part in together["reports"]]
    assert together["overall"]["dino_i"] == pytest.approx(report.interval(means))
    assert "over 3 subjects" in capsys.readouterr().out

    run_eval([*words, "--pick"])
    together = json.loads((tmp_path / "all" / "figures.json").read_text())
    assert [part["step"] for part in together["reports"]] == [100, 200, 300]
    # judges of random weights, which differ between versions of torch, may well give a cosine below
    # 0
    products = [report.product(part["overall"]) for part in together["reports"]]
    best = folders[int(np.argmax(products))]
    assert (tmp_path / "all" / together["best"]).samefile(best)
    assert f"best: {best}" in capsys.readouterr().out
    picture = Image.open(tmp_path / "all" / "curve.png")
    assert len(picture.getcolors(100_000)) > 5


def test_a_report_or_curve_of_somebodys_is_replaced_when_asked_alone(
    judges, tiny_subject, tmp_path, capsys
):
    settings = {"instance_data_dir": str(tiny_subject), "class_word": "dog toy"}
    folders = [drawn_by(tmp_path / name, pictures()[:4], settings=settings) for name in "ab"]
    words = ["--samples", *map(str, folders), *with_judges(judges), "--pick"]
    for path in (folders[1] / "metrics.json", tmp_path / "curve.png"):
        path.write_text('{"mine": 1}')
        assert str(path) in refused(capsys, run_eval, words)
        assert path.read_text() == '{"mine": 1}' and not (folders[0] / "metrics.json").exists()
        path.unlink()
        path.symlink_to(path.with_name("nowhere"))
        assert str(path) in refused(capsys, run_eval, words)
        path.unlink()
    for path in (folders[1] / "metrics.json", tmp_path / "curve.png"):
        path.write_text('{"mine": 1}')
    run_eval([*words, "--overwrite"])
    run_eval(words)
    assert Image.open(tmp_path / "curve.png").width > 100


def test_the_toybox_has_its_own_judges_and_its_ground_truth(tmp_path, capsys):
    subject = ASSETS / "subjects" / "dotted_mug"
    prompts = ("a mosaic of a {} in the snow", "a {} of no style known")
    right = truths(subject / "instance.json", prompts)
    assert list(right) == [prompts[0]]
    settings = {
        "instance_data_dir": str(subject),
        "pretrained_model_name_or_path": str(BUNDLED_BASE),
    }
    samples = drawn_by(
        tmp_path / "mug", [right[prompts[0]][0], noise((128, 128))], prompts, settings
    )
    run_eval(["--samples", str(tmp_path / "mug")])
    found = json.loads((samples / "metrics.json").read_text())
    assert (found["clip_model"], found["dino_model"], found["class_word"]) == (
        "clip",
        "dino",
        "yellow mug with purple dots and a green ring",
    )
    drawn, other = found["images"]
    assert drawn["truth_i"] > 0.8
    assert drawn["truth_ceiling"] > 0.8
    assert "truth_i" not in other
    assert "truth_i" in capsys.readouterr().out
    assert read_prompt("a mosaic of a {} in the snow") == ("in the snow", "mosaic")


def test_the_toyboxs_judges_see_pixels_as_they_were_trained():
    from toybox.dataset import to_tensor
    from toybox.judges import Judges, image_features

    theirs = Judges.load(ASSETS / "toybox")
    clip, dino = (
        metrics.load_clip(str(ASSETS / "toybox/clip")),
        metrics.load_dino(str(ASSETS / "toybox/dino")),
    )
    assert clip.transform == dino.transform == Transform(128, 128, (0.5,) * 3, (0.5,) * 3)
    prompt = "a mosaic of a {} in the snow"
    images = truths(ASSETS / "subjects" / "zigzag_robot" / "instance.json", [prompt])[prompt]
    pixels = to_tensor(np.stack([np.asarray(image) for image in images]))
    torch.testing.assert_close(dino.images(images), theirs.identity(pixels), rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            clip.images(images), image_features(theirs.clip, pixels), rtol=0, atol=1e-5
        )


def spoil(kind: str, samples: Path, judges: tuple[Path, Path], tmp_path: Path) -> list[str]:
    """Makes one thing wrong; the command line that meets it."""
    words = {
        "--samples": str(samples),
        "--clip_model": str(judges[0]),
        "--dino_model": str(judges[1]),
    }
    manifest, copy = samples / "manifest.jsonl", tmp_path / "copy"
    if kind == "no folder":
        words["--samples"] = "/nowhere"
    elif kind == "broken manifest":
        manifest.write_text(manifest.read_text() + '{"file": 3}\n')
    elif kind == "empty manifest":
        manifest.write_text("")
    elif kind == "picture gone":
        (samples / "images" / "0001.png").unlink()
    elif kind == "picture broken":
        (samples / "images" / "0001.png").write_bytes(b"no picture")
    elif kind == "no photos":
        copy.mkdir()
        words["--instance_data_dir"] = str(copy)
    elif kind == "unknown photos":
        (samples.parent / "config.json").unlink()
    elif kind == "broken config":
        (samples.parent / "config.json").write_text("{")
    elif kind == "judges swapped":
        words["--dino_model"] = str(judges[0])
    elif kind == "no judge":
        words["--clip_model"] = str(samples)
    else:
        shutil.copytree(judges[0], copy)
        words["--clip_model"] = str(copy)
        if kind == "no tokenizer":
            for path in copy.glob("*token*"):
                path.unlink()
            for name in ("vocab.json", "merges.txt"):
                (copy / name).unlink(missing_ok=True)
        elif kind == "torn weights":
            (copy / "model.safetensors").write_bytes(
                (copy / "model.safetensors").read_bytes()[:5000]
            )
        elif kind == "weights missing":
            from safetensors.torch import load_file, save_file

            tensors = load_file(copy / "model.safetensors")
            tensors.pop("text_projection.weight")
            save_file(tensors, copy / "model.safetensors", {"format": "pt"})
        elif kind == "odd preprocessor":
            about = dict(do_center_crop=True, size=40, crop_size=40)
            (copy / "preprocessor_config.json").write_text(json.dumps(about))
    return [word for pair in words.items() for word in pair]


@pytest.mark.parametrize(
    ("kind", "culprit"),
    [
        ("no folder", "/nowhere/manifest.jsonl: no readable manifest"),
        ("broken manifest", "manifest.jsonl, line 5: broken"),
        ("empty manifest", "names no picture"),
        ("picture gone", "0001.png: the manifest names it"),
        ("picture broken", "0001.png: not readable as a picture"),
        ("no photos", "copy: no photos in it"),
        ("unknown photos", "--instance_data_dir"),
        ("broken config", "config.json: not readable"),
        ("judges swapped", "--dino_model"),
        ("no judge", "--clip_model"),
        ("no tokenizer", "no tokenizer"),
        ("torn weights", "--clip_model"),
        ("weights missing", "text_projection.weight"),
        ("odd preprocessor", "cut to 40"),
    ],
)
def test_what_a_user_gets_wrong_gets_one_line(
    judges, tiny_subject, tmp_path, capsys, kind, culprit
):
    settings = {"instance_data_dir": str(tiny_subject), "class_word": "dog toy"}
    samples = drawn_by(tmp_path / "out", pictures()[:4], settings=settings)
    words = spoil(kind, samples, judges, tmp_path)
    assert culprit in refused(capsys, run_eval, words)
    assert not (samples / "metrics.json").exists()


def test_pick_needs_checkpoints_of_the_same_prompts(
    judges, tiny_subject, tmp_path, capsys, monkeypatch
):
    settings = {"instance_data_dir": str(tiny_subject), "class_word": "dog toy"}
    few, many = (
        drawn_by(tmp_path / name, pictures()[:n], settings=settings)
        for name, n in (("few", 2), ("many", 3))
    )
    assert "different prompts" in refused(
        capsys, run_eval, ["--samples", str(few), str(many), "--pick"]
    )
    assert "two or more" in refused(capsys, run_eval, ["--samples", str(few), "--pick"])
    monkeypatch.chdir(tmp_path)
    assert "no samples under outputs/" in refused(capsys, run_eval, [])
