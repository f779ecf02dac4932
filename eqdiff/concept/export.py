"""Exports a concept: as a smaller concept file, or as a file that plain tools read."""

import dataclasses
import os
import shutil
from pathlib import Path

from eqdiff.base.load import load_base
from eqdiff.concept.card import write_card
from eqdiff.concept.concept import Concept, model_for
from eqdiff.concept.file import (
    DTYPES,
    compress_concept,
    load_concept,
    require_writable,
    save_concept,
)
from eqdiff.concept.plain import (
    KV_PATCH,
    TEXTUAL_INVERSION,
    kv_patch,
    metadata,
    textual_inversion,
)
from eqdiff.errors import UserError
from eqdiff.files import replacing, write_tensors
from eqdiff.model import Customized
from eqdiff.ours import is_picture
from eqdiff.settings.export import ExportConfig
from eqdiff.settings.places import resolve_base
from eqdiff.wording import say

# the file's name by format, unless --output gives one
# A1111 and ComfyUI call an embedding by the name of its file
NAMES = {
    "concept": "concept",
    "textual_inversion": "{subject}",
    "kv_patch": "{subject}-kv",
}


def export(config: ExportConfig, source: Path) -> Path:
    """Exports the concept file `source`, writes the model card beside it, and names the new file.

    Raises UserError if the settings do not fit the concept, or a file is there that stays.
    """
    path = _target(config, source)
    concept = load_concept(source)

    if config.format == "concept":
        _export_concept(config, concept, path)
        concept = load_concept(path)
    else:
        _export_plain(config, concept, path)

    _write_card(source, path, concept, overwrite=config.overwrite)
    return path


def _target(config: ExportConfig, source: Path) -> Path:
    """The file to write.

    Raises UserError if that is the concept itself, or a file that is there already.
    """
    subject = "-".join(source.resolve().parent.name.split()) or "subject"
    name = NAMES[config.format].format(subject=subject)
    default = source.parent / "export" / f"{name}.safetensors"

    path = Path(config.output) if config.output else default
    if path.resolve() == source.resolve():
        raise UserError(
            f"--output {path}: the concept itself, which stays as it is; name another file"
        )
    if path.exists() and not config.overwrite:
        raise UserError(
            f"{path}: there already; add --overwrite to replace it, or give another --output"
        )
    return path


def _on_base(config: ExportConfig, concept: Concept) -> Customized:
    """The base carrying the concept, which compressing and expanding weights needs."""
    base = load_base(resolve_base(config.pretrained_model_name_or_path))
    return model_for(concept, base)


def _export_concept(config: ExportConfig, concept: Concept, path: Path) -> None:
    """Writes a concept file: smaller, in another precision, or without the photos."""
    embed = config.embed_reference and bool(concept.references.names)
    settings = {**concept.settings, "embed_reference": embed}
    concept = dataclasses.replace(concept, settings=settings)
    dtype = config.dtype or ("fp16" if config.compress or concept.compressed else "fp32")

    if config.compress:
        model = _on_base(config, concept)
        concept = compress_concept(concept, model, config.compress, dtype)
        say(_compression(concept, dtype))
    save_concept(concept, path, dtype=dtype)


def _compression(concept: Concept, dtype: str) -> str:
    """One line on what the compression kept."""
    factors = [value for name, value in concept.parameters.items() if name.endswith(".up")]
    if not factors:
        return f"all of it in {dtype} takes no more: nothing was left out"

    ranks = [value.shape[1] for value in factors]
    return (
        f"{len(ranks)} matrices, ranks {min(ranks)} to {max(ranks)}: "
        f"{100 * concept.kept_energy:.1f} % of their change's energy"
    )


def _export_plain(config: ExportConfig, concept: Concept, path: Path) -> None:
    """Writes a file that plain tools read."""
    if config.format == "textual_inversion":
        kind = TEXTUAL_INVERSION
        tensors = textual_inversion(concept)
    else:
        kind = KV_PATCH
        learned = concept.parameters
        if concept.compressed:
            learned = _on_base(config, concept).concept_parameters()
        tensors = kv_patch(learned)

    dtype = config.dtype or "fp32"
    cast = {name: value.detach().to(DTYPES[dtype]) for name, value in tensors.items()}
    require_writable(cast, path, dtype)
    write_tensors(path, cast, metadata(kind, concept))


def _write_card(source: Path, path: Path, concept: Concept, *, overwrite: bool) -> None:
    """Writes the model card beside the exported file, with the last preview of the training."""
    folder = path.parent
    previews = sorted((source.parent / "preview").glob("*.png"))
    picture = None
    if previews and folder.resolve() != source.parent.resolve():
        picture = _copied(previews[-1], folder / "preview.png", overwrite)
    elif previews:
        picture = f"preview/{previews[-1].name}"

    metrics = source.parent / "samples" / "metrics.json"
    measured = metrics if metrics.is_file() else None
    if not write_card(folder, concept, picture=picture, metrics=measured):
        card = folder / "README.md"
        say(f"note: {card} is your own and stays as it is; no model card was written")


def _copied(preview: Path, target: Path, overwrite: bool) -> str | None:
    """Copies the preview and returns its name; None where a stranger's picture is, which stays."""
    same = target.is_file() and target.read_bytes() == preview.read_bytes()
    if os.path.lexists(target) and not (overwrite or same or is_picture(target)):
        say(f"note: {target} is not ours and stays as it is; the model card shows no picture")
        return None

    with replacing(target) as beside:
        shutil.copyfile(preview, beside)
    return target.name
