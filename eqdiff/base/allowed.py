"""What a downloaded base may load: a short list of classes, and no code of its own.

diffusers imports whatever library and class a model_index.json names, and runs the .py files in
some folders. So the names are checked against the list in here before any library reads them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eqdiff.errors import UserError

SCHEDULERS = """
DDIM DDPM PNDM LMSDiscrete EulerDiscrete EulerAncestralDiscrete HeunDiscrete DEISMultistep
UniPCMultistep LCM TCD KDPM2Discrete KDPM2AncestralDiscrete DPMSolverMultistep DPMSolverSinglestep
DPMSolverSDE IPNDM
""".split()
# Part of a Stable Diffusion -> (library, class) that its model_index.json may name for it. The
# library of the safety checker is a folder of diffusers' own.
CLASSES: dict[str, set[tuple[str, str]]] = {
    "vae": {("diffusers", "AutoencoderKL")},
    "unet": {("diffusers", "UNet2DConditionModel")},
    "text_encoder": {("transformers", "CLIPTextModel")},
    "tokenizer": {("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast")},
    "scheduler": {("diffusers", f"{name}Scheduler") for name in SCHEDULERS},
    "safety_checker": {("stable_diffusion", "StableDiffusionSafetyChecker")},
    "feature_extractor": {
        ("transformers", "CLIPImageProcessor"),
        ("transformers", "CLIPFeatureExtractor"),
    },
    "image_encoder": {("transformers", "CLIPVisionModelWithProjection")},
}
# keys that have code run, and keys whose value can name code to fetch from the hub
CODE = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")
KERNELS = ("attn_implementation", "experts_implementation")


def require_allowed(folder: Path, name: str) -> None:
    """Checks the index and all parts of a base's folder; messages call it `name`.

    Raises UserError if one names a class that is not on the list, or code. A file that cannot be
    read raises what reading raises.
    """
    index = (folder / "model_index.json").read_text(encoding="utf-8")
    require_index(json.loads(index), name)

    for part in CLASSES:
        for path in sorted((folder / part).glob("*")):
            where = f"{part}/{path.name}"
            if path.suffix == ".py":  # a file named like a library runs in place of the library
                raise _refusal(name, where)
            if path.name.endswith("config.json"):
                config = json.loads(path.read_text(encoding="utf-8"))
                _require_part(config, part, where, name)


def require_index(index: Any, name: str) -> None:
    """Checks the content of a model_index.json.

    Raises UserError if it names a class that is not on the list, or code.
    """
    for part, value in index.items():
        named = isinstance(value, list) and value != [None, None]
        if named and tuple(map(str, value)) not in CLASSES.get(part, ()):
            raise _refusal(name, f"model_index.json, {part}: {json.dumps(value)[:80]}")

    _require_part(index, None, "model_index.json", name)


def hidden_code(config: Any) -> str | None:
    """The first key anywhere in a configuration that has code fetched or run, with its value."""
    for key, value in _entries(config):
        names_code = key in CODE and value
        names_kernel = any(kernel in key for kernel in KERNELS) and "/" in json.dumps(value)
        if names_code or names_kernel:
            return f"{key}: {json.dumps(value)[:80]}"

    return None


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested objects and lists."""
    if isinstance(config, Mapping):
        yield from config.items()
        for value in config.values():
            yield from _entries(value)

    if isinstance(config, list):
        for value in config:
            yield from _entries(value)


def _require_part(config: Any, part: str | None, where: str, name: str) -> None:
    """Checks the configuration of one part; None: of the index, which may have any class.

    Raises UserError if it names code or a class that is not on the part's list.
    """
    kind = config.get("_class_name", "")
    known = {cls for _, cls in CLASSES.get(part or "", ())} | {""}
    if not isinstance(kind, str) or (part and kind not in known):
        raise _refusal(name, f"{where}, _class_name: {json.dumps(kind)[:80]}")

    code = hidden_code(config)
    if code:
        raise _refusal(name, f"{where}, {code}")


def _refusal(name: str, what: str) -> UserError:
    return UserError(
        f"base {name}: it wants code of its own ({what}), and only the classes of Stable Diffusion "
        "itself are loaded; name another base, or remove that if you know that it is not needed"
    )
