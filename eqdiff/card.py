"""The model card: README.md of a folder with a concept, what its files are, how to use them, what they give away."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from eqdiff.concept import Concept
from eqdiff.concept_file import FORMAT, read_facts
from eqdiff.config import UserError
from eqdiff.export import KIND, KV_PATCH, TEXTUAL_INVERSION

MARK = "written by EqDiff"  # a README.md without these words is somebody's own and stays
SHOWN = (
    "preset", "resolution", "max_train_steps", "train_batch_size", "learning_rate", "token_learning_rate", "fdte",
    "masking", "rra", "rra_layers", "unet_weights", "num_inference_steps", "guidance_scale",
)  # fmt: skip
# by the width of the text encoder: 768 is Stable Diffusion 1.x, 1024 is 2.x
LICENCES = {
    768: ("creativeml-openrail-m", " Stable Diffusion 1.x and its fine-tunes are under CreativeML OpenRAIL-M."),
    1024: ("openrail++", " Stable Diffusion 2.x and its fine-tunes are under CreativeML Open RAIL++-M."),
}
PRIVACY = {
    True: "**`{file}` carries latents of the subject's reference photos: whoever has the file can decode the photos "
    "from it.** Pass it on only if you would pass on the photos; `--no_embed_reference` leaves them out.",
    False: "`{file}` carries no latents of the photos: sampling with reference attention asks for the photos "
    "(`--instance_data_dir`). What was learned from them is in the weights all the same.",
}
WITHOUT_RRA = (
    "What is missing without EqDiff's pipeline: Residual Reference Attention, the second attention over a photo's "
    "features. What remains is the learned word and the cross-attention weights, so the subject is kept less well, "
    "above all its markings and exact shape. (diffusers' own loader for Custom Diffusion, `unet.load_attn_procs`, "
    "does nothing with such a file and says nothing; the lines above load it.)"
)


def write_card(folder: Path, concept: Concept, *, picture: str | None = None, metrics: Path | None = None) -> bool:
    """Writes folder/README.md about the files that lie there. picture: a sample grid's path from the folder; metrics: a
    metrics.json. False: a README.md of somebody's own is there and stays. UserError: it cannot be written."""
    card = folder / "README.md"
    try:
        if card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
            return False
        beside = card.with_name("README.md.partial")
        beside.write_text(_text(folder, concept, picture, metrics), encoding="utf-8")
        beside.replace(card)
    except OSError as error:
        raise UserError(f"{card}: cannot be written ({error.strerror}); free some space") from None
    return True


def kinds_in(folder: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """What a folder's safetensors files are: kind (FORMAT: a concept) -> file name and metadata, the last of each;
    damaged ones are left out."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
            kind = about.get(KIND) or about.get("format")
            if kind == FORMAT:
                read_facts(path)
        except (OSError, SafetensorError, UserError):
            continue
        if kind in (FORMAT, TEXTUAL_INVERSION, KV_PATCH):
            found[kind] = (path.name, about)
    return found


def _text(folder: Path, concept: Concept, picture: str | None, metrics: Path | None) -> str:
    files, settings = kinds_in(folder), concept.settings
    word, width = settings["class_word"], concept.parameters["tokens.rows"].shape[1]
    tag, licence = LICENCES.get(width, ("other", ""))
    parts = [
        f"---\nlicense: {tag}\ntags: [text-to-image, stable-diffusion, eqdiff]\n---",
        f"# A learned subject: {word}\n\nThis card was {MARK} (Equilibrated Diffusion), which taught a Stable "
        "Diffusion base one subject from a few photos. In prompts `{}` stands for it.",
    ]
    parts += [f"![Samples]({picture})"] if picture else []
    parts += [_facts(files, concept), *_metrics(metrics), *_use(files, concept), *_plain(files, word)]
    parts.append(
        f"## Licence\n\nA concept is a derivative of its base, so the base's licence holds for it too.{licence} Its "
        "restrictions on use pass on with this file, and must be passed on by you. The rights in the photos are "
        "another matter, and yours to see to."
    )
    return "\n\n".join(parts) + "\n"


def _facts(files: dict[str, tuple[str, dict[str, str]]], concept: Concept) -> str:
    settings = concept.settings
    name, about = files.get(FORMAT, ("", {"concept": "{}"}))
    kept = json.loads(about["concept"]).get("kept_energy")
    rows: dict[str, Any] = {
        "base": f"{Path(concept.base_name).name}, fingerprint `{concept.base_fingerprint}` (no other base fits)",
        "class word": settings["class_word"],
        "steps trained": concept.step,
        **{f"`{name}`": settings[name] for name in SHOWN if name in settings},
    }
    if kept is not None:
        rows[f"`{name}`"] = f"compressed, low-rank: {100 * kept:.1f} % of the change's energy kept"
    lines = [f"| {name} | {_shown(value)} |" for name, value in rows.items()]
    return "\n".join(["| what | value |", "| --- | --- |", *lines])


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(value) if isinstance(value, list | tuple) else str(value)


def _metrics(path: Path | None) -> list[str]:
    """The means of a metrics.json as a table; [] without one."""
    try:
        report = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        report = {}
    overall = report.get("overall", {})
    if not overall:
        return []
    rows = [f"| {name} | {figure['mean']:.4f} | {figure['n']} |" for name, figure in overall.items()]
    head = f"Measured by `scripts/eval.sh` with {report['clip_model']} and {report['dino_model']}:"
    return [head, "\n".join(["| metric | mean | pictures |", "| --- | --- | --- |", *rows])]


def _use(files: dict[str, tuple[str, dict[str, str]]], concept: Concept) -> list[str]:
    """How to draw with the folder's concept file, and what it gives away."""
    if FORMAT not in files:
        return []
    name, about = files[FORMAT]
    prompt = "a watercolor painting of a {} in the snow"
    python = [
        "from eqdiff.pipeline import EqDiffPipeline",
        "",
        'pipe = EqDiffPipeline.from_pretrained("BASE")',
        f'pipe.load_concept("FOLDER/{name}")',
        f'image = pipe("{prompt}", seeds=[0]).images[0]',
    ]
    photos = bool(json.loads(about["concept"])["photos"])
    whole = photos or not concept.rra
    shell = f'bash scripts/test.sh FOLDER/{name} --pretrained_model_name_or_path BASE --prompt "{prompt}"'
    shell += "" if whole else " --instance_data_dir PHOTOS"
    blocks = [f"```bash\n{shell}\n```", *(["```python\n" + "\n".join(python) + "\n```"] if whole else [])]
    return [
        "## With EqDiff",
        *blocks,
        f"## Privacy\n\n{PRIVACY[photos].format(file=name)}",
    ]


def _plain(files: dict[str, tuple[str, dict[str, str]]], word: str) -> list[str]:
    """How plain diffusers loads what was exported; of a folder without exports, how to export."""
    if not {TEXTUAL_INVERSION, KV_PATCH} & set(files):
        how = "`bash scripts/export.sh CONCEPT --format textual_inversion`, and `--format kv_patch`"
        return [f"## With plain diffusers, A1111, ComfyUI\n\nFirst export the files that they read: {how}."]
    lines = ["from diffusers import StableDiffusionPipeline", "from safetensors.torch import load_file"]
    lines.append('pipe = StableDiffusionPipeline.from_pretrained("BASE")')
    notes = []
    if KV_PATCH in files:
        lines.append(f'found = pipe.unet.load_state_dict(load_file("{files[KV_PATCH][0]}"), strict=False)')
        lines.append("assert not found.unexpected_keys")
    if TEXTUAL_INVERSION in files:
        file = files[TEXTUAL_INVERSION][0]
        lines.append(f'pipe.load_textual_inversion("{file}", token="<new1>")')
        stem = Path(file).stem
        notes.append(
            f"`{file}` works in other tools too, in their folder of embeddings: A1111 knows it by its file name "
            f"(`a photo of a {stem} {word}`), ComfyUI as `embedding:{stem}`. The class word belongs behind it."
        )
    code = "```python\n" + "\n".join(lines) + "\n```"
    call = f'Then `pipe("a photo of a <new1> {word}")`.' if TEXTUAL_INVERSION in files else ""
    return [f"## With plain diffusers\n\n{code}", *([call] if call else []), *notes, WITHOUT_RRA]
