"""What a plan will take: hours by the counted work and a timed unit, and disk."""

from collections.abc import Sequence
from statistics import median

from eqdiff.settings.train import TrainConfig
from studies.reproduce import cost
from studies.reproduce.cell import Cell, Row
from studies.reproduce.plan import Plan, settings_of

BYTES_A_PIXEL = 1.6  # of a picture's PNG
SD_PARAMETERS = {"kv": 19.2e6, "all": 859.5e6, "none": 0.0}  # at Stable Diffusion 1.4's sizes
SD_RRA = 32.4e6
SD_SIDE = 512  # of its pictures [pixels]
ENOUGH = 3  # finished cells whose times are believed


def seconds_of(cell: Cell, speeds: cost.Speeds, photos: int) -> float:
    """Seconds of a cell by counting, its class images apart."""
    train, draw = settings_of(cell)
    images = len(cell.prompts) * cell.images
    return cost.cell_seconds(train, draw, images, photos, speeds)


def total_seconds(plan: Plan, cells: Sequence[Cell], speeds: cost.Speeds) -> float:
    """Seconds of cells one after another, each class word's pictures once."""
    photos = {subject.name: _photo_count(subject.folder) for subject in plan.subjects}
    total = sum(seconds_of(cell, speeds, photos[cell.subject]) for cell in cells)
    firsts = {cell.class_word: cell for cell in reversed(cells)}
    return total + sum(cost.class_seconds(settings_of(cell)[0], speeds) for cell in firsts.values())


def correction(
    cells: Sequence[Cell], rows: Sequence[Row], plan: Plan, speeds: cost.Speeds
) -> float:
    """What finished cells like these took, in counted seconds; 1 while there are too few."""
    photos = {subject.name: _photo_count(subject.folder) for subject in plan.subjects}
    known = {row["key"]: sum(row["seconds"].values()) for row in rows}
    ratios = [
        known[cell.key] / seconds_of(cell, speeds, photos[cell.subject])
        for cell in cells
        if cell.key in known
    ]
    return median(ratios) if len(ratios) >= ENOUGH else 1.0


def forecast(
    plan: Plan, missing: Sequence[Cell], rows: Sequence[Row], speeds: cost.Speeds, gpus: int = 0
) -> list[str]:
    """Hours and disk of the missing cells, in lines."""
    factor = correction(list(plan.cells.values()), rows, plan, speeds)
    seconds = factor * total_seconds(plan, missing, speeds)
    processes = plan.processes(gpus)
    how = "counted, and one forward of the base timed" if factor == 1.0 else "by finished cells"
    lines = [f"plan: about {spelled(seconds)} of one process here ({how})"]
    if processes > 1:
        lines[0] += f", {spelled(seconds / processes)} in {processes}"
    if plan.ground.resolution >= SD_SIDE:
        lines.append(f"plan: about {on_h100(missing):.1f} hours on one H100 (counted)")
    lines.append(f"plan: about {disk(plan, missing) / 1e6:,.0f} MB of disk")
    return lines


def on_h100(cells: Sequence[Cell]) -> float:
    """Hours at Stable Diffusion 1.4's sizes on one H100, by counting alone."""
    work = 0.0
    for cell in cells:
        train, draw = settings_of(cell)
        work += cost.cell_units(train, draw, len(cell.prompts) * cell.images)
    classes = {cell.class_word: settings_of(cell)[0] for cell in reversed(cells)}
    work += sum(cost.class_units(train) for train in classes.values())
    return work * cost.SD_UNIT / cost.H100 / 3600


def disk(plan: Plan, cells: Sequence[Cell]) -> float:
    """Bytes of what is kept of cells."""
    total = 0.0
    for cell in cells:
        train, _ = settings_of(cell)
        total += 20_000.0
        if "pictures" in plan.config.kept:
            total += BYTES_A_PIXEL * train.resolution**2 * len(cell.prompts) * cell.images
        if "concepts" in plan.config.kept:
            total += concept_bytes(train) * (plan.ground.resolution / SD_SIDE) ** 2
    return total


def concept_bytes(config: TrainConfig) -> float:
    """Bytes of a concept file at Stable Diffusion 1.4's sizes."""
    width = {"fp32": 4, "bf16": 2, "fp16": 2}[config.concept_dtype]
    return width * (SD_PARAMETERS[config.unet_weights] + (SD_RRA if config.rra else 0.0))


def spelled(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _photo_count(folder: object) -> int:
    from eqdiff.data.folder import pictures_in

    return len(pictures_in(folder))  # type: ignore[arg-type]
