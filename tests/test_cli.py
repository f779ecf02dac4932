"""The real command lines on a tiny base: files written, errors in one line, resuming, several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, flags
from PIL import Image
from safetensors.torch import load_file

import test_eqdiff
import train_eqdiff

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "prompts.txt").write_text("# two\na photo of a {}\na mosaic of a {}\n")


def words(base: Path, subject: Path, tmp_path: Path, out: str = "out", **changes: object) -> list[str]:
    given = {
        "pretrained_model_name_or_path": base,
        "instance_data_dir": subject,
        "class_word": "dog toy",
        "output_dir": tmp_path / out,
        "validation_prompts": tmp_path / "prompts.txt",
    }
    return flags({**TINY, **given, **changes})


def refused(capsys: pytest.CaptureFixture, main: object, argv: list[str]) -> str:
    """The one line of a refusal with exit status 2."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_training_and_drawing_write_what_the_contract_says(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    train_eqdiff.main(words(tiny_base, tiny_subject, tmp_path, validation_steps=5, checkpointing_steps=2))
    assert "scripts/test.sh" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {
        "concept.safetensors", "config.json", "log.jsonl", "curves", "checkpoints", "preview", "masks.png", "README.md"
    }  # fmt: skip
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 4, 5]
    assert {"loss", "diffusion", "prior", "reference_attention", "lr", "seconds", "gate", "mass"} <= set(rows[0])
    assert len(rows[0]["gate"]) == 10
    assert json.loads((out / "config.json").read_text())["max_train_steps"] == 5
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    assert Image.open(out / "preview" / "step-000005.png").width > 64

    where = ["--pretrained_model_name_or_path", str(tiny_base), "--concept", str(out)]
    what = ["--prompts", str(tmp_path / "prompts.txt"), "--num_images_per_prompt", "2", "--batch_size", "3"]
    test_eqdiff.main(where + what)
    rows = [json.loads(line) for line in (out / "samples" / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    keys = {"file", "prompt", "seed", "reference", "steps", "guidance", "scheduler", "concept"}
    assert all(keys <= set(row) and (out / "samples" / row["file"]).is_file() for row in rows)
    assert (out / "samples" / "grid.png").is_file()
    assert not list((out / "samples").glob(".*"))


@pytest.mark.parametrize("scheduler", ["dpm++", "unipc"])
def test_other_samplers_and_no_rra_draw(tiny_base: Path, tiny_subject: Path, tmp_path: Path, scheduler: str) -> None:
    train_eqdiff.main(words(tiny_base, tiny_subject, tmp_path, max_train_steps=1))
    where = ["--pretrained_model_name_or_path", str(tiny_base), "--concept", str(tmp_path / "out")]
    for rra in ("--rra", "--no-rra"):
        test_eqdiff.main([*where, "--prompt", "a {}", "--scheduler", scheduler, rra, "--reference", "01.jpg"])
        assert len(list((tmp_path / "out" / "samples" / "images").iterdir())) == 1


def test_several_references_train_and_draw(tiny_base: Path, tiny_subject: Path, tmp_path: Path) -> None:
    train_eqdiff.main(words(tiny_base, tiny_subject, tmp_path, num_references=2, gate_init="identity"))
    given = flags({"concept": tmp_path / "out", "pretrained_model_name_or_path": tiny_base, "prompt": "a {}"})
    for number in ([], ["--num_references", "1"]):
        test_eqdiff.main([*given, *number, "--output_dir", str(tmp_path / f"drawn{len(number)}")])
    rows = [json.loads((tmp_path / f"drawn{n}" / "manifest.jsonl").read_text()) for n in (0, 2)]
    assert [row["num_references"] for row in rows] == [2, 1]
    images = [np.asarray(Image.open(tmp_path / f"drawn{n}" / row["file"])) for n, row in zip((0, 2), rows, strict=True)]
    assert not np.array_equal(*images)


def test_accumulated_batches_are_averaged(tiny_base: Path, tiny_subject: Path, tmp_path: Path) -> None:
    train_eqdiff.main(words(tiny_base, tiny_subject, tmp_path, max_train_steps=1, gradient_accumulation_steps=2))
    row = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[0])
    assert 0.5 < row["prior"] < 2


def test_class_images_are_drawn_once(tiny_base: Path, tiny_subject: Path, tmp_path: Path) -> None:
    train_eqdiff.main(words(tiny_base, tiny_subject, tmp_path, max_train_steps=1))
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.png")}
    assert len(made) == 4
    train_eqdiff.main(words(tiny_base, tiny_subject, tmp_path, out="again", max_train_steps=1))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.png")} == made


def test_resuming_gives_the_uninterrupted_concept_bit_for_bit(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    train_eqdiff.main(words(tiny_base, tiny_subject, tmp_path, out="whole", checkpointing_steps=2))
    first = tmp_path / "whole" / "checkpoints" / "step-000002"
    again = words(tiny_base, tiny_subject, tmp_path, out="resumed", resume_from_checkpoint=first)
    train_eqdiff.main(again)
    whole, resumed = (load_file(tmp_path / name / "concept.safetensors") for name in ("whole", "resumed"))
    assert all(np.array_equal(whole[name].numpy(), resumed[name].numpy()) for name in whole)


def test_one_photo_trains_with_a_warning(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "one"
    (folder / "masks").mkdir(parents=True)
    for name in ("00.jpg", "masks/00.png"):
        (folder / name).write_bytes((tiny_subject / name).read_bytes())
    train_eqdiff.main(words(tiny_base, folder, tmp_path, max_train_steps=1))
    assert "one photo only" in caplog.text


def test_a_finished_concept_is_not_overwritten_unasked(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "concept.safetensors").write_bytes(b"precious")
    assert "--overwrite" in refused(capsys, train_eqdiff.main, words(tiny_base, tiny_subject, tmp_path))
    assert (tmp_path / "out" / "concept.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"instance_data_dir": "/nowhere"}, "/nowhere"),
        ({"pretrained_model_name_or_path": "/no/base"}, "/no/base"),
        ({"max_train_steps": 0}, "max_train_steps"),
        ({"instance_prompt": "a photo"}, "instance_prompt"),
        ({"ra_loss_layers": "nowhere"}, "nowhere"),
        ({"mask_dir": "/no/masks"}, "/no/masks"),
    ],
)
def test_what_a_user_gets_wrong_gets_one_line(
    tiny_base: Path,
    tiny_subject: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    changes: dict[str, object],
    culprit: str,
) -> None:
    assert culprit in refused(capsys, train_eqdiff.main, words(tiny_base, tiny_subject, tmp_path, **changes))


def test_a_missing_concept_and_a_prompt_without_slot_are_refused(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    where = ["--pretrained_model_name_or_path", str(tiny_base)]
    assert "nothing.safetensors" in refused(
        capsys, test_eqdiff.main, [*where, "--concept", str(tmp_path / "nothing.safetensors"), "--prompt", "a {}"]
    )
    assert "{}" in refused(capsys, test_eqdiff.main, [*where, "--concept", "x", "--prompt", "a mug"])


def torchrun(argv: list[str], tmp_path: Path, port: int) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(port),
        *argv,
    ]
    here = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=here, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_train_in_step(tiny_base: Path, tiny_subject: Path, tmp_path: Path) -> None:
    """Both ranks end with the same weights, other ones than a single process's: each drew a batch of its own."""
    argv = words(tiny_base, tiny_subject, tmp_path, out="two", max_train_steps=3)
    torchrun([str(ROOT / "tests" / "ranks.py"), str(tmp_path), *argv], tmp_path, 29611)
    ranks = [load_file(tmp_path / f"rank{i}.safetensors") for i in range(2)]
    assert all(np.array_equal(ranks[0][name].numpy(), ranks[1][name].numpy()) for name in ranks[0])
    train_eqdiff.main(words(tiny_base, tiny_subject, tmp_path, out="one", max_train_steps=3))
    one = load_file(tmp_path / "one" / "concept.safetensors")
    assert any(not np.array_equal(one[name].numpy(), value.numpy()) for name, value in ranks[0].items())


def test_two_processes_draw_what_one_draws(tiny_base: Path, tiny_subject: Path, tmp_path: Path) -> None:
    """Trained so hard that reference features other than the right ones would show."""
    hard = {"max_train_steps": 3, "gate_init": "identity", "learning_rate": 0.03}
    train_eqdiff.main(words(tiny_base, tiny_subject, tmp_path, **hard))
    argv = ["--pretrained_model_name_or_path", str(tiny_base), "--concept", str(tmp_path / "out")]
    argv += ["--prompts", str(tmp_path / "prompts.txt"), "--num_images_per_prompt", "2"]
    test_eqdiff.main([*argv, "--output_dir", str(tmp_path / "alone")])
    torchrun([str(ROOT / "test_eqdiff.py"), *argv, "--output_dir", str(tmp_path / "both")], tmp_path, 29612)
    names = sorted(p.name for p in (tmp_path / "alone" / "images").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "both" / "images").iterdir())
    for name in names:
        one, two = (np.asarray(Image.open(tmp_path / k / "images" / name), int) for k in ("alone", "both"))
        assert np.abs(one - two).max() <= 2
    manifests = [(tmp_path / k / "manifest.jsonl").read_text() for k in ("alone", "both")]
    assert manifests[0] == manifests[1]
