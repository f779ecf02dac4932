"""The settings of `export_concept.py`."""

import dataclasses
from typing import Literal

from eqdiff.errors import require
from eqdiff.settings.options import check_fields, opt
from eqdiff.settings.places import BASE_HELP


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Write a learned subject smaller, without its photos' latents, or as files for other tools."""

    concept: str | None = opt(None, "concept file (default: the newest under outputs/)")
    pretrained_model_name_or_path: str | None = opt(None, BASE_HELP)
    format: Literal["concept", "textual_inversion", "kv_patch"] = opt(
        "concept",
        "a concept file; S_ori for diffusers, A1111 and ComfyUI; "
        "cross-attention's K/V for a plain UNet",
    )
    compress: float | None = opt(
        None, "low-rank, the whole file at most this large [MB of 10^6 bytes]", 1e-3, 1e5
    )
    dtype: Literal["fp32", "bf16", "fp16"] | None = opt(
        None, "precision (default: fp32, of compressed weights fp16)"
    )
    embed_reference: bool = opt(True, "keep the photos' latents; off: sampling needs the photos")
    output: str | None = opt(None, "file to write (default: in export/ beside the concept)")
    overwrite: bool = opt(False, "replace a file that is there already")

    def __post_init__(self) -> None:
        check_fields(self)

        fits = self.compress is None or self.format == "concept"
        hint = f"of concept files alone; leave out --format {self.format}"
        require(fits, f"--compress {self.compress}: {hint}")

        named = self.output is None or self.output.endswith(".safetensors")
        require(named, f"--output {self.output}: must end in .safetensors")
