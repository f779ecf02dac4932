"""Is RRA alive? Gate and reference attention at step 0 and at the end, over the same held-out (t, noise) draws.

    python benchmarks/gate.py CONCEPT [--picture FILE] [--json FILE]

Prints the mean gate M_f inside and outside the subject and the share of the subject's reference attention that falls on
the reference's subject (chance: the share of the reference that is subject); draws M_f beside its pictures (Fig. 5).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eqdiff.base import load_base  # noqa: E402
from eqdiff.concept import apply, load_concept  # noqa: E402
from eqdiff.config import TrainConfig, from_json, resolve_base  # noqa: E402
from eqdiff.data import Subject, image_grid, load_subject, to_pil  # noqa: E402
from eqdiff.encoding import vae_encoder  # noqa: E402
from eqdiff.latents import Batch, TrainingLatents, draw_batch, prepare  # noqa: E402
from eqdiff.objective import Objective  # noqa: E402
from eqdiff.setup import new_model  # noqa: E402

DRAWS = 16  # held-out batches: their seeds are not those of training steps
FIRST_SEED = 2**40
TIMESTEPS = (100, 300, 500, 700)  # of the picture


def build(config: TrainConfig) -> tuple[Objective, TrainingLatents, Subject]:
    """The objective as training starts it, without class images, and the subject's latents."""
    base = load_base(resolve_base(config.pretrained_model_name_or_path))
    subject = load_subject(config.instance_data_dir, class_word=config.class_word, resolution=config.resolution)
    latents = prepare(subject, None, config, vae_encoder(base.vae), torch.Generator().manual_seed(FIRST_SEED))
    return Objective(new_model(config, base), config), latents, subject


def measure(objective: Objective, latents: TrainingLatents) -> dict[str, float]:
    """Means over DRAWS held-out batches and all RRA layers."""
    sums = torch.zeros(4)
    for number in range(DRAWS):
        generator = torch.Generator().manual_seed(FIRST_SEED + number)
        batch = draw_batch(latents, objective.config, 1000, generator)
        seen = objective.inspect(batch)
        sums += torch.tensor([*torch.tensor(list(seen["gate"].values())).mean(0), seen["mass"]])
    names = ("gate_inside", "gate_outside", "dead_share", "mass_on_subject")
    return dict(zip(names, (sums / DRAWS).tolist(), strict=True))


@torch.no_grad()
def picture(objective: Objective, latents: TrainingLatents, subject: Subject, path: Path) -> None:
    """A row a photo: the photo, then the mean gate of the finest level at several timesteps, white = 1."""
    cells, captions = [], []
    side = latents.subject_masks.shape[-1]
    for photo in range(len(subject.images)):
        cells.append(to_pil(subject.images[photo]))
        captions.append(subject.names[photo])
        for t in TIMESTEPS:
            generator = torch.Generator().manual_seed(FIRST_SEED)
            batch = draw_batch(latents, objective.config, 1000, generator)
            one = {name: value[:1] for name, value in vars(batch).items()}
            one |= {"z0": latents.targets.mean[photo, -1:], "mask": latents.noise_masks[photo : photo + 1]}
            one |= {"t": torch.tensor([t]), "t_r": torch.tensor([t])}
            batch = Batch(**one)
            context = objective.context(batch, record_gates=True)
            objective.predict(batch, context)
            finest = [gate for gate in context.gates.values() if gate.shape[1] == side**2]
            gate = torch.stack(finest).mean(0).reshape(1, 1, side, side)
            shown = F.interpolate(gate, size=subject.images.shape[-2:], mode="nearest")[0]
            cells.append(to_pil(shown.expand(3, -1, -1) * 2 - 1))
            captions.append(f"M_f, t = {t}")
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(cells, columns=1 + len(TIMESTEPS), captions=captions).save(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concept", type=Path)
    parser.add_argument("--picture", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    concept = load_concept(args.concept)
    objective, latents, subject = build(from_json(TrainConfig, (args.concept.parent / "config.json").read_text()))
    figures = {"start": measure(objective, latents)}
    apply(concept, objective.model)
    figures["end"] = measure(objective, latents)
    figures["chance_mass"] = float(latents.reference_masks.mean())
    for name, value in figures.items():
        print(name, value)
    if args.picture:
        picture(objective, latents, subject, args.picture)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
