"""Measure drawn pictures: a samples folder and the subject's photos -> CLIP-T, CLIP-I, DINO-I; metrics.json, a table.

python eval_eqdiff.py --samples outputs/mug/samples [--help]
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from eqdiff.config import UserError, is_bundled, main_guard, parse
from eqdiff.evaluation import EvalConfig, Samples, find_samples, judge_names, read_samples, require_same_prompts


def features_of(files: Sequence[Path], clip: Any, dino: Any, batch: int, title: str) -> tuple[Any, Any]:
    """CLIP's and DINO's unit features of picture files, each read once: (N, D) and (N, E)."""
    import torch
    from tqdm import tqdm

    from eqdiff.photos import load_photo

    found = []
    for first in tqdm(range(0, len(files), batch), desc=title, unit="batch", leave=False):
        images = [load_photo(path).image for path in files[first : first + batch]]
        found.append((clip.images(images), dino.images(images)))
    return tuple(torch.cat(part) for part in zip(*found, strict=True))


def add_truth(rows: list[dict[str, Any]], features: Any, samples: Samples, dino: Any) -> None:
    """On the toybox: truth_i, identity against drawn pictures of the very subject in the prompt's style and context,
    and truth_ceiling, those pictures' own agreement. Other rows stay as they are.

    UserError: the subject's instance.json is broken.
    """
    about = samples.photos / "instance.json"
    if not (is_bundled(samples.base) and about.is_file()):
        return
    from eqdiff.metrics import agreement, pair_scores
    from toybox.truth import truths

    try:
        drawn = truths(about, dict.fromkeys(samples.prompts))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{about}: not a subject of the toybox ({error}); restore or remove it") from None
    truth = {prompt: dino.images(pictures) for prompt, pictures in drawn.items()}
    for row, feature in zip(rows, features, strict=True):
        if row["prompt"] in truth:
            right = truth[row["prompt"]]
            row["truth_i"], row["truth_ceiling"] = float(pair_scores(feature[None], right)), agreement(right)


def measure(samples: Samples, clip: Any, dino: Any, batch: int) -> dict[str, Any]:
    """Everything about one folder, ready for JSON. UserError: no photos, a picture that cannot be read."""
    import torch

    from eqdiff.metrics import caption, pair_scores, scaled, text_scores
    from eqdiff.photos import find_photos
    from eqdiff.report import by_prompt, summarize

    photos = find_photos(samples.photos)
    clip_photos, dino_photos = features_of(photos, clip, dino, batch, "photos")
    clip_drawn, dino_drawn = features_of(samples.files, clip, dino, batch, str(samples.folder))
    texts = {prompt: caption(prompt, samples.class_word) for prompt in samples.prompts}
    known = dict(zip(texts, clip.texts(list(texts.values())), strict=True))
    cosines = text_scores(clip_drawn, torch.stack([known[prompt] for prompt in samples.prompts]))
    scores = {
        "clip_t_cos": cosines,
        "clip_t_2.5": scaled(cosines),
        "clip_i": pair_scores(clip_drawn, clip_photos),
        "dino_i": pair_scores(dino_drawn, dino_photos),
    }
    columns = {name: values.tolist() for name, values in scores.items()}
    rows = [
        {"file": row["file"], "prompt": row["prompt"], "text": texts[row["prompt"]]}
        | {name: values[i] for name, values in columns.items()}
        for i, row in enumerate(samples.rows)
    ]
    add_truth(rows, dino_drawn, samples, dino)
    return {
        "samples": str(samples.folder),
        "concept": samples.rows[0].get("concept"),
        "step": samples.step,
        "class_word": samples.class_word,
        "photos": [path.name for path in photos],
        "overall": summarize(rows),
        "prompts": by_prompt(rows),
        "images": rows,
    }


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Gives the block a file beside `path` to write, which then takes its place. UserError: it cannot be written."""
    beside = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); free some space or move the samples") from None


def pick(config: EvalConfig, reports: list[dict[str, Any]]) -> str:
    """Draws curve.png beside the JSON, else in the folder that holds all samples; names the best: its folder."""
    from eqdiff.report import best_of, curve, product

    best = best_of(reports)
    common = os.path.commonpath([Path(report["samples"]).resolve() for report in reports])
    picture = (Path(config.json).parent if config.json else Path(common)) / "curve.png"
    with writing(picture) as beside:
        curve(reports, best).save(beside)
    value = product(reports[best]["overall"])
    print(f"best: {reports[best]['samples']} (clip_t_cos x dino_i {value:.4f}); look at {picture}")
    return reports[best]["samples"]


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(EvalConfig, argv)
    folders = [read_samples(folder, config) for folder in find_samples(config.samples)]
    if config.pick:
        require_same_prompts(folders)
    import torch

    from eqdiff.metrics import load_clip, load_dino
    from eqdiff.report import over_subjects, table

    torch.backends.cudnn.allow_tf32 = False  # the first layer is a convolution: TF32 moves the fourth digit
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = judge_names(config, folders)
    clip, dino = load_clip(names[0], device), load_dino(names[1], device)
    judges = {"clip_model": Path(names[0]).name, "dino_model": Path(names[1]).name}
    reports = []
    for samples in folders:
        report = judges | measure(samples, clip, dino, config.batch_size)
        reports.append(report)
        file = samples.folder / "metrics.json"
        with writing(file) as beside:
            beside.write_text(json.dumps(report, indent=1))
        counts = f"{len(report['images'])} images, {len(report['prompts'])} prompts, {len(report['photos'])} photos"
        print(table(f"{samples.folder}: {samples.class_word}, {counts}", report["overall"], report["prompts"]))
    together: dict[str, Any] = {"reports": reports}
    if config.pick:
        together["best"] = pick(config, reports)
    elif len(reports) > 1:
        together["overall"] = over_subjects(reports)
        print(table(f"over {len(reports)} subjects", together["overall"]))
    if config.json:
        with writing(Path(config.json)) as beside:
            beside.write_text(json.dumps(together, indent=1))
    print(f"done: {', '.join(str(samples.folder / 'metrics.json') for samples in folders)}")


if __name__ == "__main__":
    main(sys.argv[1:])
