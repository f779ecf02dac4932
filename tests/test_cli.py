"""The real command lines on a tiny base: files written, errors in one line, resuming, several
processes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    ROOT,
    TINY,
    Server,
    environment,
    flags,
    long_after,
    refused,
    run_test,
    run_train,
    training_words,
)
from PIL import Image
from safetensors.torch import load_file

from eqdiff.gallery.page import is_ours
from eqdiff.pipeline import EqDiffPipeline

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("filled_caches")]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """A file of two prompts."""
    file = tmp_path / "prompts.txt"
    file.write_text("# two\na photo of a {}\na mosaic of a {}\n")
    return str(file)


def test_training_and_drawing_write_what_the_contract_says(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, prompts: str, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    changes = {"validation_steps": 5, "checkpointing_steps": 2, "log_steps": 2}
    changes["validation_prompts"] = prompts
    run_train(training_words(tiny_base, tiny_subject, out, **changes))
    assert "scripts/test.sh" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {
        "concept.safetensors", "config.json", "log.jsonl", "curves", "checkpoints", "preview",
        "masks.png", "README.md"
    }  # fmt: skip
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 4, 5]  # by --log_steps
    assert {
        "loss",
        "diffusion",
        "prior",
        "reference_attention",
        "lr",
        "seconds",
        "gate",
        "mass",
    } <= set(rows[0])
    assert len(rows[0]["gate"]) == 7
    assert json.loads((out / "config.json").read_text())["max_train_steps"] == 5
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    assert Image.open(out / "preview" / "step-000005.png").width > 64

    where = ["--pretrained_model_name_or_path", str(tiny_base), "--concept", str(out)]
    what = ["--prompts", prompts, "--num_images_per_prompt", "2", "--batch_size", "3"]
    run_test(where + what)
    rows = [
        json.loads(line) for line in (out / "samples" / "manifest.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 4
    keys = {"file", "prompt", "seed", "reference", "steps", "guidance", "scheduler", "concept"}
    assert all(keys <= set(row) and (out / "samples" / row["file"]).is_file() for row in rows)
    assert (out / "samples" / "grid.png").is_file()
    assert is_ours(out / "samples" / "gallery.html")
    assert not list((out / "samples").glob(".*"))


@pytest.mark.parametrize("scheduler", long_after(1, ["unipc", "dpm++"]))
def test_other_samplers_and_no_rra_draw(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, scheduler: str
) -> None:
    run_train(training_words(tiny_base, tiny_subject, tmp_path / "out", max_train_steps=1))
    where = ["--pretrained_model_name_or_path", str(tiny_base), "--concept", str(tmp_path / "out")]
    for rra in ("--rra", "--no-rra"):
        run_test(
            [*where, "--prompt", "a {}", "--scheduler", scheduler, rra, "--reference", "01.jpg"]
        )
        assert len(list((tmp_path / "out" / "samples" / "images").iterdir())) == 1


def test_negative_prompt_and_size_are_drawn_and_told(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The pictures are the pipeline's own with the same arguments; RRA's reference keeps its size.
    What was set stands in the manifest, and what was not as it came out."""
    out = tmp_path / "out"
    run_train(training_words(tiny_base, tiny_subject, out, gate_init="identity"))
    where = ["--pretrained_model_name_or_path", str(tiny_base), "--concept", str(out)]
    what = ["--prompt", "a {} on the beach", "--num_inference_steps", "2"]
    size = ["--height", "96", "--width", "64"]
    given = {"plain": [], "all": [*size, "--negative_prompt", "red"], "size": size}
    rows, images = {}, {}
    for name, words in given.items():
        run_test([*where, *what, *words, "--output_dir", str(tmp_path / name)])
        rows[name] = json.loads((tmp_path / name / "manifest.jsonl").read_text())
        images[name] = np.asarray(Image.open(tmp_path / name / rows[name]["file"]))

    told = {
        name: [row[key] for key in ("height", "width", "negative_prompt")]
        for name, row in rows.items()
    }
    assert told == {"plain": [64, 64, ""], "all": [96, 64, "red"], "size": [96, 64, ""]}
    assert images["plain"].shape == (64, 64, 3) and images["size"].shape == (96, 64, 3)
    assert not np.array_equal(images["all"], images["size"])
    pipe = EqDiffPipeline.from_pretrained(tiny_base).load_concept(out / "concept.safetensors")
    drawn = pipe(
        "a {} on the beach",
        height=96,
        width=64,
        negative_prompt="red",
        num_inference_steps=2,
        seeds=[rows["all"]["seed"]],
    ).images[0]
    assert np.array_equal(images["all"], np.asarray(drawn))
    assert "leads away" not in caplog.text
    unguided = ["--guidance_scale", "1", "--negative_prompt", "red"]
    run_test([*where, *what, *unguided, "--output_dir", str(tmp_path / "unguided")])
    assert "leads away" in caplog.text


def test_several_references_train_and_draw(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    changes = {"num_references": 2, "gate_init": "identity"}
    run_train(training_words(tiny_base, tiny_subject, tmp_path / "out", **changes))
    given = flags(
        {"concept": tmp_path / "out", "pretrained_model_name_or_path": tiny_base, "prompt": "a {}"}
    )
    for number in ([], ["--num_references", "1"]):
        run_test([*given, *number, "--output_dir", str(tmp_path / f"drawn{len(number)}")])
    rows = [json.loads((tmp_path / f"drawn{n}" / "manifest.jsonl").read_text()) for n in (0, 2)]
    assert [row["num_references"] for row in rows] == [2, 1]
    images = [
        np.asarray(Image.open(tmp_path / f"drawn{n}" / row["file"]))
        for n, row in zip((0, 2), rows, strict=True)
    ]
    assert not np.array_equal(*images)


@pytest.mark.parametrize("named", long_after(1, ["flag", "environment"]))
def test_a_base_named_by_a_dot_gives_a_concept_that_draws(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(tiny_base)
    monkeypatch.setenv("EQDIFF_BASE", ".")
    base = {"pretrained_model_name_or_path": "."} if named == "flag" else {}
    given = {
        **TINY,
        **base,
        "instance_data_dir": tiny_subject,
        "class_word": "dog toy",
        "output_dir": tmp_path / "out",
    }
    run_train(flags({**given, "max_train_steps": 1, "checkpointing_steps": 1, "report_to": "none"}))
    for concept in (tmp_path / "out", tmp_path / "out" / "checkpoints" / "step-000001"):
        run_test(flags({**base, "concept": concept, "prompt": "a {}", "num_inference_steps": 1}))
        assert (concept / "samples" / "grid.png").is_file()
    assert f"| base | {tiny_base.name}, fingerprint" in (tmp_path / "out" / "README.md").read_text()


def test_accumulated_batches_are_averaged(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    changes = {"max_train_steps": 1, "gradient_accumulation_steps": 2}
    run_train(training_words(tiny_base, tiny_subject, tmp_path / "out", **changes))
    row = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[0])
    assert 0.5 < row["prior"] < 2


def test_class_images_are_drawn_once(tiny_base: Path, tiny_subject: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache")
    run_train(training_words(tiny_base, tiny_subject, tmp_path / "out", max_train_steps=1))
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.png")}
    assert len(made) == 4
    run_train(training_words(tiny_base, tiny_subject, tmp_path / "again", max_train_steps=1))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.png")} == made


def test_resuming_gives_the_uninterrupted_concept_bit_for_bit(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    run_train(training_words(tiny_base, tiny_subject, tmp_path / "whole", checkpointing_steps=2))
    first = tmp_path / "whole" / "checkpoints" / "step-000002"
    again = training_words(
        tiny_base, tiny_subject, tmp_path / "resumed", resume_from_checkpoint=first
    )
    run_train(again)
    whole, resumed = (
        load_file(tmp_path / name / "concept.safetensors") for name in ("whole", "resumed")
    )
    assert all(np.array_equal(whole[name].numpy(), resumed[name].numpy()) for name in whole)


def test_one_photo_trains_with_a_warning(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "one"
    (folder / "masks").mkdir(parents=True)
    for name in ("00.jpg", "masks/00.png"):
        (folder / name).write_bytes((tiny_subject / name).read_bytes())
    run_train(training_words(tiny_base, folder, tmp_path / "out", max_train_steps=1))
    assert "one photo only" in caplog.text


def test_a_finished_concept_is_not_overwritten_unasked(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "concept.safetensors").write_bytes(b"precious")
    argv = training_words(tiny_base, tiny_subject, tmp_path / "out")
    assert "--overwrite" in refused(capsys, run_train, argv)
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
    argv = training_words(tiny_base, tiny_subject, tmp_path / "out", **changes)
    assert culprit in refused(capsys, run_train, argv)


def test_a_missing_concept_and_a_prompt_without_slot_are_refused(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    where = ["--pretrained_model_name_or_path", str(tiny_base)]
    assert "nothing.safetensors" in refused(
        capsys,
        run_test,
        [*where, "--concept", str(tmp_path / "nothing.safetensors"), "--prompt", "a {}"],
    )
    assert "{}" in refused(capsys, run_test, [*where, "--concept", "x", "--prompt", "a mug"])


LAUNCH = [sys.executable, "-m", "eqdiff.training.launch", "2"]


def run_two(forks: Server, script: Path, argv: list[str]) -> None:
    """A script in two processes, to which the environment says what torchrun does."""
    job = {"script": str(script), "argv": argv, "path": str(ROOT), "ranks": 2, "environment": {}}
    done = forks.ask(job)
    assert done["statuses"] == [0, 0], done["err"][-3000:]


@pytest.mark.parametrize("launched", [False, pytest.param(True, marks=pytest.mark.long)])
def test_two_processes_train_in_step(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, forks: Server, launched: bool
) -> None:
    """Both ranks end with the same weights, other ones than a single process's: each drew a batch
    of its own."""
    argv = training_words(tiny_base, tiny_subject, tmp_path / "two", max_train_steps=3)
    if launched:
        command = [*LAUNCH, str(ROOT / "tests" / "ranks.py"), str(tmp_path), *argv]
        subprocess.run(command, cwd=ROOT, env=environment(), check=True, timeout=600)
    else:
        run_two(forks, ROOT / "tests" / "ranks.py", [str(tmp_path), *argv])
    ranks = [load_file(tmp_path / f"rank{i}.safetensors") for i in range(2)]
    assert all(np.array_equal(ranks[0][name].numpy(), ranks[1][name].numpy()) for name in ranks[0])
    run_train(training_words(tiny_base, tiny_subject, tmp_path / "one", max_train_steps=3))
    one = load_file(tmp_path / "one" / "concept.safetensors")
    assert any(
        not np.array_equal(one[name].numpy(), value.numpy()) for name, value in ranks[0].items()
    )


@pytest.mark.long
def test_two_processes_draw_what_one_draws(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, prompts: str, forks: Server
) -> None:
    """Trained so hard that reference features other than the right ones would show."""
    hard = {"max_train_steps": 3, "gate_init": "identity", "learning_rate": 0.03}
    run_train(training_words(tiny_base, tiny_subject, tmp_path / "out", **hard))
    argv = ["--pretrained_model_name_or_path", str(tiny_base), "--concept", str(tmp_path / "out")]
    argv += ["--prompts", prompts, "--num_images_per_prompt", "2"]
    run_test([*argv, "--output_dir", str(tmp_path / "alone")])
    both = [*argv, "--output_dir", str(tmp_path / "both")]
    run_two(forks, ROOT / "test_eqdiff.py", both)
    names = sorted(p.name for p in (tmp_path / "alone" / "images").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "both" / "images").iterdir())
    for name in names:
        one, two = (
            np.asarray(Image.open(tmp_path / k / "images" / name), int) for k in ("alone", "both")
        )
        assert np.abs(one - two).max() <= 2
    manifests = [(tmp_path / k / "manifest.jsonl").read_text() for k in ("alone", "both")]
    assert manifests[0] == manifests[1]
