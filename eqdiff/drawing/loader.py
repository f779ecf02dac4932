"""A pipeline's concept: loaded and unloaded, and what diffusers' own methods mean with it.

Between two calls every part of the pipeline is the base's own. So whatever is made of its parts or
done to them (other pipelines, saving, adapters, inversions, attention processors) knows nothing of
the subject, and the order of such things does not matter.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import StableDiffusionPipeline

from eqdiff.base.adapters import is_fused, unwrapped
from eqdiff.base.identity import fingerprint_like
from eqdiff.base.load import Base, admitted
from eqdiff.base.offload import marks_kept, weights_at_hand
from eqdiff.concept.concept import Concept, model_for
from eqdiff.concept.several import load_together
from eqdiff.drawing.carried import Carried
from eqdiff.errors import require
from eqdiff.model import Customized

Pipe = TypeVar("Pipe", bound="ConceptLoader")


class ConceptLoader(StableDiffusionPipeline):
    """`StableDiffusionPipeline` with `load_concept` and `unload_concept`."""

    _carried: Carried | None = None

    @classmethod
    def from_pretrained(cls: type[Pipe], name: Any, **options: Any) -> Pipe:
        """As `StableDiffusionPipeline`'s, but opens no pickles and runs no code of the base's own.

        A base that is stored in half precision is loaded in full precision, all of it, unless a
        dtype is given. Raises UserError if the base has nothing but pickles, or code of its own.
        """
        options = admitted(name, options, cls.load_config)
        pipe = super().from_pretrained(name, **{"use_safetensors": True, **options})
        if {"torch_dtype", "dtype"} & options.keys():
            return pipe

        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.float()  # transformers keeps a file's precision, diffusers does not
        return pipe

    @classmethod
    def from_pipe(cls: type[Pipe], pipeline: Any, **options: Any) -> Pipe:
        """As `StableDiffusionPipeline`'s. A concept that the other pipeline carries comes along."""
        pipe = super().from_pipe(pipeline, **options)
        carried = getattr(pipeline, "_carried", None)
        if carried is None:
            return pipe
        if (pipe.unet, pipe.text_encoder) != (pipeline.unet, pipeline.text_encoder):
            return pipe.load_concept(carried.concept)
        pipe.attach(carried.model, carried.concept)
        return pipe

    @classmethod
    def of(cls: type[Pipe], parts: Base | Customized, scheduler: Any = None) -> Pipe:
        """A pipeline around loaded parts, without a progress bar; `scheduler` replaces theirs."""
        pipe = cls(
            vae=parts.vae,
            text_encoder=parts.text_encoder,
            tokenizer=parts.tokenizer,
            unet=parts.unet,
            scheduler=scheduler or parts.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def to_json_string(self) -> str:
        """The configuration as the stock pipeline's: any tool opens what `save_pretrained` wrote.

        A concept is not in it: it is a file of its own.
        """
        ours = f'"_class_name": "{type(self).__name__}"'
        return super().to_json_string().replace(ours, '"_class_name": "StableDiffusionPipeline"')

    def to(self: Pipe, *args: Any, **options: Any) -> Pipe:
        """As `StableDiffusionPipeline`'s; the subject's parts and the reference UNet go along."""
        super().to(*args, **options)
        if self._carried is not None:
            self._carried.follow()
        return self

    def fuse_lora(self, *args: Any, **options: Any) -> None:
        """As `StableDiffusionPipeline`'s. It does not reach the reference UNet."""
        if self._carried is not None:
            self._carried.own_reference()
        super().fuse_lora(*args, **options)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves everything, the subject's parts too, to a precision and a device."""
        if all(part.dtype == dtype for part in (self.unet, self.text_encoder, self.vae)):
            self.to(device)  # diffusers warns of any precision that is asked for, the same one too
        else:
            self.to(device, dtype)

    def maybe_free_model_hooks(self) -> None:
        """As `StableDiffusionPipeline`'s, which each call ends with: what is cached stays."""
        kept = self._carried.schedules if self._carried else {}
        super().maybe_free_model_hooks()
        if self._carried is not None:
            self._carried.schedules = kept

    def load_concept(
        self: Pipe, concept: str | Path | Concept | Sequence[str | Path | Concept]
    ) -> Pipe:
        """Puts a subject in: a concept file, the folder of a training, or a concept as it is.

        A list of them is drawn together, where prompts say {1}, {2} or {folder}. Raises UserError
        if it is no concept, one of another base, or several that cannot be drawn together. A former
        one then stays.
        """
        found = load_together(concept if isinstance(concept, list | tuple) else [concept])
        unet = unwrapped(self.unet)
        parts = (unet, self.text_encoder)
        require(None not in parts, "a concept needs a base with UNet and text encoder")
        require(
            not is_fused(*parts),
            "a LoRA is fused into this base; load the concept first, and fuse_lora after it",
        )

        device = self._execution_device
        with ExitStack() as stack:
            stack.enter_context(marks_kept(*parts, self.vae))
            for part in parts:
                stack.enter_context(weights_at_hand(part, device))
            base = Base(
                vae=self.vae,
                text_encoder=self.text_encoder,
                tokenizer=self.tokenizer,
                unet=unet,
                scheduler=self.scheduler,
                name=str(self.config.get("_name_or_path") or "this pipeline's base"),
                fingerprint=fingerprint_like(found.base_fingerprint, *parts, self.tokenizer),
            )
            model = model_for(found, base)
            model.detach()

        self.unload_concept()
        self.attach(model, found)
        return self

    def attach(self, model: Customized, concept: Concept) -> None:
        """Uses a model that carries the subject already (the one in training, for its previews)."""
        self._carried = Carried(model, concept)
        self._carried.require_parts(self)
        if not model.attached:
            self._carried.follow()

    def unload_concept(self) -> None:
        """Takes the subject out: the pipeline is as it was before, bit for bit."""
        if self._carried is not None:
            self._carried.model.detach()
        self._carried = None
