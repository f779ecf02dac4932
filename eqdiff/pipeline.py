"""EqDiffPipeline: a Stable Diffusion pipeline that draws a learned subject. The reference's rule for guidance is here.

pipe = EqDiffPipeline.from_pretrained(BASE)
pipe.load_concept("outputs/mug/concept.safetensors")
image = pipe("a watercolor painting of a {} in the snow", seeds=[0]).images[0]
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, UniPCMultistepScheduler
from torch import Tensor

from eqdiff.attention import ReferenceContext
from eqdiff.base import Base, fingerprint
from eqdiff.concept import Concept, load_concept, model_for
from eqdiff.config import UserError
from eqdiff.frequency import Band
from eqdiff.model import EqDiff
from eqdiff.reference import ReferenceSchedule

SLICED = 2 * 512 * 512  # pixels of a batch from which the VAE decodes its images one by one, to save memory
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
    def from_pretrained(cls, name: Any, **how: Any) -> "EqDiffPipeline":
        """As `StableDiffusionPipeline`'s, but pickles are not opened."""
        return super().from_pretrained(name, **{"use_safetensors": True, **how})

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
        """Everything, the subject's parts too, in a precision and on a device."""
        if self._model is not None:
            self._model.to_dtype(dtype, dtype).to(device)  # smaller before it moves
        self.to(device)

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
        reference: int | Sequence[int] = 0,
        attention_window: tuple[float, float] = (0.0, 1.0),
        reference_for: Literal["both", "conditional"] = "both",
        reference_cache_gb: float = 2.0,
        band: Band = Band.FULL,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Draws prompts, each from its seed. rra: attend to photo number `reference` (see `chosen`), within
        attention_window [share of the steps], in both halves of guidance or the conditional one alone. band: which
        embedding stands for the subject: S_ori, their sum, or to look inside S_LF or S_HF.

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
        text, nothing = self._embed(prompts, band, kwargs.pop("negative_prompt", None) or "")
        self._slice(len(prompts) * kwargs["height"] * kwargs["width"])
        attend = rra and model.sites
        schedule = self.schedule(steps, self.chosen(reference), reference_for, reference_cache_gb) if attend else None
        context = ReferenceContext({})
        refresh = self._refresh(context, schedule, attention_window)
        hook = self.unet.register_forward_pre_hook(refresh, with_kwargs=True)
        try:
            return super().__call__(
                prompt_embeds=text,
                negative_prompt_embeds=nothing if scale > 1 else None,
                cross_attention_kwargs={"reference": context},
                **kwargs,
            )
        finally:
            hook.remove()

    def require_room(self, prompts: Sequence[str]) -> None:
        """Says what of the prompts lies beyond what the base reads. UserError: a subject does."""
        self._model.tokenize(list(dict.fromkeys(prompts)), self._concept.settings["class_word"])

    def _slice(self, pixels: int) -> None:
        (self.vae.enable_slicing if pixels >= SLICED else self.vae.disable_slicing)()

    def _embed(self, prompts: list[str], band: Band, negative: str) -> tuple[Tensor, Tensor]:
        """tau of the prompts with the subject in them, and of the negative prompt: (N,Ntok,D) each."""
        ids, slots = self._model.tokenize(prompts, self._concept.settings["class_word"])
        text = self._model.encode(ids, slots, torch.full((len(prompts),), band, device=ids.device))
        nothing = self._model.encode_plain([negative]).expand(len(prompts), -1, -1)
        return text.to(self.unet.dtype), nothing.to(self.unet.dtype)

    def _latent_side(self) -> int:
        pixels = self._concept.settings["resolution"] if self._concept else 0
        return pixels // self.vae_scale_factor or self.unet.config.sample_size

    def _refresh(
        self, context: ReferenceContext, schedule: ReferenceSchedule | None, window: tuple[float, float]
    ) -> Any:
        """A hook on the UNet that puts the reference's features at the timestep of this very call into `context`.

        The rule: guided calls are [uncond..., cond...]; both halves see the reference, under the empty text and under
        the reference's own (as the release does), or the conditional half alone, as unguided calls, under the latter.
        """

        def before(_: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            z, t = args[0] if args else kwargs["sample"], args[1] if len(args) > 1 else kwargs["timestep"]
            context.features = {}
            if schedule is None or not window[0] <= schedule.progress(t) < window[1]:
                return
            features, context.count = schedule.features(t), schedule.count
            halves = 2 if self.do_classifier_free_guidance else 1
            rows = min(halves, len(next(iter(features.values()))) // context.count)
            context.features = {site: x[-rows * context.count :] for site, x in features.items()}
            context.samples = len(z) // halves * rows
            context.first = len(z) - context.samples

        return before

    def chosen(self, reference: int | Sequence[int], count: int | None = None) -> tuple[int, ...]:
        """The numbers of the photos to attend to: those named, or `count` from that number on (default: as many as in
        training), beyond the last from the first again."""
        photos = len(self._concept.references.latents)
        if not photos:
            raise UserError(
                "this concept carries no photos to attend to: give it some (photo_references), or rra=False"
            )
        named = (reference,) if isinstance(reference, int) else tuple(reference)
        wrong = [number for number in named if not 0 <= number < photos]
        if wrong or not named:
            raise UserError(f"--reference {(wrong or [named])[0]}: the concept has photos 0 to {photos - 1}")
        if not isinstance(reference, int):
            return named
        count = count or self._concept.settings.get("num_references", 1)
        return tuple((reference + step) % photos for step in range(count))

    def schedule(
        self, steps: int, chosen: Sequence[int] = (0,), reference_for: str = "both", cache_gb: float = 2.0
    ) -> ReferenceSchedule:
        """Features of the chosen photos for a number of steps: computed once, shared by all prompts and batches."""
        model, references = self._model, self._concept.references
        key = (steps, tuple(chosen), reference_for, cache_gb, type(self.scheduler).__name__)
        if key not in self._schedules:
            self.scheduler.set_timesteps(steps)
            settings = self._concept.settings
            device = self._execution_device
            own = settings["reference_prompt"].replace("{}", settings["class_word"])
            self._schedules[key] = ReferenceSchedule(
                model.reference_unet,
                model.sites,
                references.latents[list(chosen)].to(device),
                references.noise.to(device),
                model.alphas_cumprod,
                model.encode_plain(["", own] if reference_for == "both" else [own]),
                self.scheduler.timesteps,
                clean=settings["reference_at_sampling"] == "clean",
                cache_gb=cache_gb,
            )
        return self._schedules[key]
