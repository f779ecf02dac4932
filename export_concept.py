"""Bring a learned subject somewhere else: a smaller concept file, a textual inversion, a patch for a plain UNet.

python export_concept.py --concept outputs/mug --compress 15 [--help]
"""

import dataclasses
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqdiff.config import UserError, main_guard, parse, resolve_base
from eqdiff.export_config import ExportConfig
from eqdiff.sample_config import find_concept

# what each format's file is called where nothing else is said; A1111 and ComfyUI call an embedding by its file's name
NAMES = {"concept": "concept", "textual_inversion": "{subject}", "kv_patch": "{subject}-kv"}


def target(config: ExportConfig, source: Path) -> Path:
    """The file to write. UserError: it is the concept itself, or there already."""
    subject = "-".join(source.resolve().parent.name.split()) or "subject"
    own = source.parent / "export" / f"{NAMES[config.format].format(subject=subject)}.safetensors"
    path = Path(config.output) if config.output else own
    if path.resolve() == source.resolve():
        raise UserError(f"--output {path}: the concept itself, which stays as it is; name another file")
    if path.exists() and not config.overwrite:
        raise UserError(f"{path}: there already; add --overwrite to replace it, or give another --output")
    return path


def on_base(config: ExportConfig, concept: Any) -> Any:
    """The base carrying the concept: what is needed wherever weights are compressed or expanded."""
    from eqdiff.base import load_base
    from eqdiff.concept import model_for

    return model_for(concept, load_base(resolve_base(config.pretrained_model_name_or_path)))


def export_concept(config: ExportConfig, concept: Any, path: Path) -> None:
    """A concept file: smaller, in another precision, without the photos."""
    from eqdiff.concept import compress_concept, save_concept

    embed = config.embed_reference and bool(concept.references.names)
    settings = {**concept.settings, "embed_reference": embed}
    concept = dataclasses.replace(concept, settings=settings)
    dtype = config.dtype or ("fp16" if config.compress or concept.compressed else "fp32")
    if config.compress:
        concept = compress_concept(concept, on_base(config, concept), config.compress, dtype)
        ranks = [value.shape[1] for name, value in concept.parameters.items() if name.endswith(".up")]
        if ranks:
            kept = 100 * concept.kept_energy
            print(f"{len(ranks)} matrices, ranks {min(ranks)} to {max(ranks)}: {kept:.1f} % of their change's energy")
        else:
            print(f"all of it in {dtype} takes no more: nothing was left out")
    save_concept(concept, path, dtype=dtype)


def export_plain(config: ExportConfig, concept: Any, path: Path) -> None:
    """A file that plain tools read."""
    from eqdiff import export
    from eqdiff.concept import DTYPES, write_tensors

    if config.format == "textual_inversion":
        kind, tensors = export.TEXTUAL_INVERSION, export.textual_inversion(concept)
    else:
        learned = on_base(config, concept).concept_parameters() if concept.compressed else concept.parameters
        kind, tensors = export.KV_PATCH, export.kv_patch(learned)
    cast = {name: value.detach().to(DTYPES[config.dtype or "fp32"]).contiguous() for name, value in tensors.items()}
    write_tensors(path, cast, export.about(kind, concept))


def card(source: Path, path: Path, concept: Any) -> None:
    """The model card beside the exported file, with the last preview that training drew."""
    from eqdiff.card import write_card

    folder, previews = path.parent, sorted((source.parent / "preview").glob("*.png"))
    if previews and folder.resolve() != source.parent.resolve():
        shutil.copyfile(previews[-1], folder / "preview.png")
        picture = "preview.png"
    else:
        picture = f"preview/{previews[-1].name}" if previews else None
    metrics = source.parent / "samples" / "metrics.json"
    if not write_card(folder, concept, picture=picture, metrics=metrics if metrics.is_file() else None):
        print(f"note: {folder / 'README.md'} is your own and stays as it is; no model card was written")


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(ExportConfig, argv)
    source = find_concept(config.concept)
    path = target(config, source)
    from eqdiff.concept import load_concept

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    concept = load_concept(source)
    (export_concept if config.format == "concept" else export_plain)(config, concept, path)
    card(source, path, load_concept(path) if config.format == "concept" else concept)
    print(f"done: {path}, {path.stat().st_size:,} bytes; how to use it says {path.parent / 'README.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
