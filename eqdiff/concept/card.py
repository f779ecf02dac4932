"""The model card: the README.md beside a concept, from the parts of card.md.

It says what the folder's files are, how to use them and what they give away.
"""

import json
import re
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from eqdiff.concept.checks import FORMAT, read_facts
from eqdiff.concept.concept import Concept
from eqdiff.concept.plain import KIND, KV_PATCH, TEXTUAL_INVERSION
from eqdiff.errors import UserError
from eqdiff.files import replacing
from eqdiff.settings.groups import CARD
from eqdiff.settings.options import names_of
from eqdiff.settings.train import TrainConfig
from eqdiff.wording import clean

MARK = "written by EqDiff"  # a README.md without these words is somebody's own and stays
PARTS = Path(__file__).with_name("card.md")
PROMPT = "a watercolor painting of a {} in the snow"
# by the width of the text encoder: 768 is Stable Diffusion 1.x, 1024 is 2.x
LICENCES = {
    768: (
        "creativeml-openrail-m",
        " Stable Diffusion 1.x and its fine-tunes are under CreativeML OpenRAIL-M.",
    ),
    1024: (
        "openrail++",
        " Stable Diffusion 2.x and its fine-tunes are under CreativeML Open RAIL++-M.",
    ),
}


class File(NamedTuple):
    """A safetensors file of the folder: its name and its metadata."""

    name: str
    metadata: dict[str, str]


def write_card(
    folder: Path, concept: Concept, *, picture: str | None = None, metrics: Path | None = None
) -> bool:
    """Writes folder/README.md about the files that lie there.

    picture: the path of a grid of samples, from the folder. metrics: a metrics.json. Returns False
    if a README.md of somebody's own is there, which stays. Raises UserError if the card cannot be
    written.
    """
    card = folder / "README.md"
    try:
        if card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
            return False

        text = _text(kinds_in(folder), concept, picture, metrics)
        with replacing(card) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{card}: cannot be written ({error.strerror}); free some space") from None

    return True


def kinds_in(folder: Path) -> dict[str, File]:
    """The folder's safetensors files by kind (FORMAT: a concept), the last one of each kind.

    Damaged files are left out.
    """
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            kind = metadata.get(KIND) or metadata.get("format")
            if kind == FORMAT:
                read_facts(path)
        except (OSError, SafetensorError, UserError):
            continue

        if kind in (FORMAT, TEXTUAL_INVERSION, KV_PATCH):
            found[kind] = File(path.name, metadata)

    return found


def _text(
    files: dict[str, File], concept: Concept, picture: str | None, metrics: Path | None
) -> str:
    """The whole card: which parts of card.md it has, and what fills their fields."""
    rows = concept.parameters.get("tokens.rows")
    width = 0 if rows is None else rows.shape[1]
    licence, base_licence = LICENCES.get(width, ("other", ""))
    fields = {
        "licence": licence,
        "base_licence": base_licence,
        "word": clean(concept.recipe.class_word, "markdown"),
        "code_word": clean(concept.recipe.class_word, "code"),
        "picture": picture,
        "prompt": PROMPT,
        "facts": _rows(_facts(files, concept)),
    }
    names = ["head", *(["picture"] if picture else []), "facts"]

    plain = _plain(files) if rows is not None else ([], {})  # plain tools read rows and weights
    for more_names, more_fields in (_metrics(metrics), _use(files, concept), plain):
        names += more_names
        fields |= more_fields

    return "\n\n".join(_filled(name, fields) for name in [*names, "licence"]) + "\n"


@cache
def _parts() -> dict[str, Template]:
    """The parts of card.md by their names."""
    text = PARTS.read_text(encoding="utf-8")
    _, *pieces = re.split(r"^<!-- (\w+) -->\n", text, flags=re.MULTILINE)
    templates = (Template(part.strip()) for part in pieces[1::2])
    return dict(zip(pieces[::2], templates, strict=True))


def _filled(name: str, fields: dict[str, Any]) -> str:
    """A part of card.md with its fields. What a field holds is never searched for fields."""
    return _parts()[name].substitute(fields)


def _rows(cells: dict[str, Any]) -> str:
    """The rows of a table with two columns."""
    return "\n".join(f"| {name} | {value} |" for name, value in cells.items())


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return clean(text, "markdown")


def _facts(files: dict[str, File], concept: Concept) -> dict[str, Any]:
    """What the card tells of the base, the training and the file."""
    base_name = clean(Path(concept.base_name).name, "markdown")
    base = f"{base_name}, fingerprint `{clean(concept.base_fingerprint, 'code')}`"
    settings = concept.settings
    shown = [name for name in names_of(TrainConfig, CARD) if name in settings]
    rows = {
        "base": f"{base} (no other base fits)",
        "class word": _shown(concept.recipe.class_word),
        "steps trained": _shown(concept.step),
        **{f"`{name}`": _shown(settings[name]) for name in shown},
    }

    if FORMAT in files:
        kept = _about(files).get("kept_energy")
        if kept is not None:
            share = f"{100 * kept:.1f} % of the change's energy kept"
            rows[f"`{clean(files[FORMAT].name, 'code')}`"] = f"compressed, low-rank: {share}"

    return rows


def _about(files: dict[str, File]) -> dict[str, Any]:
    """What the folder's concept file says of itself."""
    return json.loads(files[FORMAT].metadata["concept"])


def _metrics(path: Path | None) -> tuple[list[str], dict[str, str]]:
    """The part with the means of a metrics.json, and its fields; neither without such a file."""
    try:
        report = json.loads(path.read_text(encoding="utf-8")) if path else {}
        rows = {
            _shown(name): f"{float(figure['mean']):.4f} | {int(figure['n'])}"
            for name, figure in report["overall"].items()
        }
        judges = {name: _shown(report[name]) for name in ("clip_model", "dino_model")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or no report
        return [], {}

    return ["metrics"], {"metrics": _rows(rows), **judges}


def _use(files: dict[str, File], concept: Concept) -> tuple[list[str], dict[str, str]]:
    """The parts on how to draw with the folder's concept file and on what it gives away."""
    if FORMAT not in files:
        return [], {}

    photos = bool(_about(files)["photos"])
    whole = photos or not concept.recipe.rra  # it draws without the photos
    privacy = "privacy_with_photos" if photos else "privacy_without_photos"
    names = ["shell", *(["python"] if whole else []), privacy]
    flag = "" if whole else " --instance_data_dir PHOTOS"
    return names, {"concept": clean(files[FORMAT].name, "code"), "photos": flag}


def _plain(files: dict[str, File]) -> tuple[list[str], dict[str, str]]:
    """The parts on how plain diffusers loads what was exported, or on how to export it."""
    fields = {}
    load = []
    names = ["plain"]

    if KV_PATCH in files:
        fields["patch"] = clean(files[KV_PATCH].name, "code")
        load.append("load_patch")
    if TEXTUAL_INVERSION in files:
        fields["embedding"] = clean(files[TEXTUAL_INVERSION].name, "code")
        fields["stem"] = Path(fields["embedding"]).stem
        load.append("load_embedding")
        names.append("embedding")

    if not load:
        return ["export_first"], {}

    fields["load"] = "\n".join(_filled(name, fields) for name in load)
    return [*names, "without_rra"], fields
