"""EqDiffPipeline: a Stable Diffusion pipeline that draws a learned subject. The reference's rule for guidance is here.

pipe = EqDiffPipeline.from_pretrained(BASE)
pipe.load_concept("outputs/mug/concept.safetensors")
image = pipe("a watercolor painting of a {} in the snow", seeds=[0]).images[0]
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, UniPCMultistepScheduler
from torch import Tensor

from eqdiff.attention import ReferenceContext
from eqdiff.concept import Concept, load_concept, model_for
from eqdiff.config import UserError
from eqdiff.frequency import Band
from eqdiff.model import Base, EqDiff, fingerprint
from eqdiff.reference import ReferenceSchedule

SCHEDULERS = {"ddim": DDIMScheduler, "dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}


def seed_of(seed: int, prompt: str, number: int) -> int:
    """The seed of image `number` of a prompt: nothing else matters, neither batch nor process nor other prompts."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{prompt}".encode()).digest()[:7], "big")


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """z_T (N, *shape), each row drawn on the CPU from its own seed."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


class EqDiffPipeline(StableDiffusionPipeline):
    """`StableDiffusionPipeline` plus `load_concept` / `unload_concept`; prompts then say {} for the subject."""

    _model: EqDiff | None = None
    _concept: Concept | None = None
    _schedules: dict[tuple, ReferenceSchedule]

    @classmethod
    def of(cls, parts: Base | EqDiff, scheduler: Any = None) -> "EqDiffPipeline":
        """A pipeline around what is loaded already, without a progress bar of its own; `scheduler`: instead of its."""
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

    def load_concept(self, concept: str | Concept) -> "EqDiffPipeline":
        """Put a subject in. UserError: not a concept, or one of another base."""
        self.unload_concept()
        found = concept if isinstance(concept, Concept) else load_concept(concept)
        mark = fingerprint(self.unet, self.text_encoder)
        parts = (self.vae, self.text_encoder, self.tokenizer, self.unet, self.scheduler)
        name = str(self.config.get("_name_or_path") or "this pipeline's base")
        self.attach(model_for(found, Base(*parts, name=name, fingerprint=mark)), found)
        return self

    def attach(self, model: EqDiff, concept: Concept) -> None:
        """Use a model that carries the subject already (the one in training, for its previews)."""
        self._model, self._concept, self._schedules = model, concept, {}
        self._model.to(self.device)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Everything, the subject's parts too, on a device and in a precision."""
        self.to(device)
        if self._model is not None:
            self._model.to(device)
            self._model.to_dtype(dtype, dtype)

    def unload_concept(self) -> None:
        """Take the subject out: the pipeline is as it was before, bit for bit."""
        if self._model is not None:
            self._model.detach()
        self._model = self._concept = None
        self._schedules = {}

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        rra: bool = True,
        reference: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Draws prompts, each from its seed. rra: attend to reference photo number `reference` of the concept.

        Steps and guidance default to the concept's. Without a concept: `StableDiffusionPipeline`'s own call.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        defaults = self._concept.settings if self._concept else {"num_inference_steps": 50, "guidance_scale": 7.5}
        kwargs["num_inference_steps"] = steps = num_inference_steps or defaults["num_inference_steps"]
        kwargs["guidance_scale"] = scale = defaults["guidance_scale"] if guidance_scale is None else guidance_scale
        if seeds is not None:
            side = kwargs.get("height", 0) // self.vae_scale_factor or self._latent_side()
            noise = initial_noise(seeds, (self.unet.config.in_channels, side, side))
            kwargs["latents"] = noise.to(self._execution_device, self.unet.dtype)
        if self._model is None:
            return super().__call__(prompts, **kwargs)
        model, side = self._model, self._latent_side()
        kwargs.setdefault("height", side * self.vae_scale_factor)
        kwargs.setdefault("width", side * self.vae_scale_factor)
        ids, slots = model.tokenize(prompts, self._concept.settings["class_word"])
        full = torch.full((len(prompts),), Band.FULL, device=ids.device)
        text = model.encode(ids, slots, full)  # S_ori: at sampling always the sum
        nothing = model.encode_plain([kwargs.pop("negative_prompt", None) or ""]).expand(len(prompts), -1, -1)
        context = ReferenceContext({})
        hook = self.unet.register_forward_pre_hook(self._refresh(context, steps, rra, reference), with_kwargs=True)
        try:
            return super().__call__(
                prompt_embeds=text.to(self.unet.dtype),
                negative_prompt_embeds=nothing.to(self.unet.dtype) if scale > 1 else None,
                cross_attention_kwargs={"reference": context},
                **kwargs,
            )
        finally:
            hook.remove()

    def _latent_side(self) -> int:
        pixels = self._concept.settings["resolution"] if self._concept else 0
        return pixels // self.vae_scale_factor or self.unet.config.sample_size

    def _refresh(self, context: ReferenceContext, steps: int, rra: bool, reference: int) -> Any:
        """A hook on the UNet that puts the reference's features at the timestep of this very call into `context`.

        The rule: guided calls are [uncond..., cond...]; both halves see the reference, under the empty text and under
        the reference's own (as the release does); unguided calls see the latter.
        """
        schedule = self.schedule(steps, reference) if rra and self._model.sites else None

        def before(_: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            z, t = args[0] if args else kwargs["sample"], args[1] if len(args) > 1 else kwargs["timestep"]
            guided = self.do_classifier_free_guidance
            batch = len(z) // 2 if guided else len(z)
            context.features = schedule.for_batch(t, batch, guided=guided) if schedule else {}

        return before

    def schedule(self, steps: int, reference: int) -> ReferenceSchedule:
        """Reference features for a number of steps: computed once, shared by all prompts, seeds and batches."""
        model, references = self._model, self._concept.references
        if not 0 <= reference < len(references.latents):
            raise UserError(f"--reference {reference}: the concept has photos 0 to {len(references.latents) - 1}")
        key = (steps, reference, type(self.scheduler).__name__)
        if key not in self._schedules:
            self.scheduler.set_timesteps(steps)
            settings = self._concept.settings
            device = self._execution_device
            texts = model.encode_plain(["", settings["reference_prompt"].replace("{}", settings["class_word"])])
            self._schedules[key] = ReferenceSchedule(
                model.reference_unet,
                model.sites,
                references.latents[reference : reference + 1].to(device),
                references.noise.to(device),
                model.alphas_cumprod,
                texts,
                self.scheduler.timesteps,
                clean=settings["reference_at_sampling"] == "clean",
            )
        return self._schedules[key]
