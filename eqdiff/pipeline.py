"""EqDiffPipeline: a Stable Diffusion pipeline that draws a learned subject (Sec. 4, inference).

    pipe = EqDiffPipeline.from_pretrained(BASE)
    pipe.load_concept("outputs/mug/concept.safetensors")
    image = pipe("a watercolor painting of a {} in the snow", seeds=[0]).images[0]

At inference the subject's embedding is S_ori = S_LF + S_HF (Eq. 5), and F^r of a photo enters at
every step (Sec. 4.3). There is no mask: Eq. 6 has no counterpart here, noise is everywhere.

Axes: N images, Ntok text tokens, D text width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from eqdiff.base.adapters import adapters_scaled
from eqdiff.drawing import arguments
from eqdiff.drawing.arguments import initial_noise, with_stock_arguments
from eqdiff.drawing.arguments import seed_of as seed_of  # for those who draw from seeds
from eqdiff.drawing.carried import Carried
from eqdiff.drawing.loader import ConceptLoader
from eqdiff.errors import require
from eqdiff.finite import only_finite
from eqdiff.frequency import Band
from eqdiff.reader import report_slots
from eqdiff.reference import ReferenceSchedule
from eqdiff.sampler import (
    Drawing,
    ReferenceStep,
    SamplingOption,
    SamplingStep,
    around,
    one_by_one,
)
from eqdiff.tokens import features

# pixels of a batch from which the VAE decodes its images one by one, to save memory
SLICED = 2 * 512 * 512


class EqDiffPipeline(ConceptLoader):
    """`StableDiffusionPipeline` plus `load_concept` and `unload_concept`.

    With a concept, prompts say {} for the subject. The subject is in the UNet while a picture is
    drawn, and only then.
    """

    @with_stock_arguments
    @torch.no_grad()
    @only_finite
    def __call__(
        self,
        *args: Any,
        seeds: int | Sequence[int] | None = None,
        rra: bool = True,
        reference: int | Sequence[int] = 0,
        attention_window: tuple[float, float] = (0.0, 1.0),
        reference_for: Literal["both", "conditional"] = "both",
        reference_strength: float = 1.0,
        reference_cache_gb: float = 2.0,
        band: Band = Band.FULL,
        sampling_steps: Sequence[SamplingStep] = (),
        sampling_options: Sequence[SamplingOption] = (),
        **options: Any,
    ) -> Any:
        """Draws prompts. Without a concept, and without seeds, it is the stock pipeline's own call.

        seeds: one an image, in place of a generator. rra: attend to photo number `reference` (see
        `chosen`), within attention_window [share of the steps], in both halves of guidance or in
        the conditional one alone. reference_strength: a factor on RRA's gates, 0 to 4. band: which
        embedding stands for the subject: S_ori or, to look inside, S_LF or S_HF. sampling_steps: of
        other methods, after the model's own. sampling_options: what works over any concept, see
        `eqdiff/sampling`. Steps, guidance and size default to the concept's. Raises UserError if an
        argument does not fit.
        """
        given = arguments.by_name(args, options)
        if seeds is not None:
            self._draw_noise(seeds, given)
        carried = self._carried
        if carried is None:
            report_slots(given.get("prompt"))
            return super().__call__(**given)

        self._fill_in(given)
        arguments.require_strength(reference_strength)
        context = carried.model.context()
        context.strength = reference_strength
        others = given.get("cross_attention_kwargs") or {}
        given["cross_attention_kwargs"] = {**others, "reference": context}

        look = None
        if rra and carried.model.sites:
            photos = self.chosen(reference)
            look = partial(self._schedule_now, photos, reference_for, reference_cache_gb)
        own_step = ReferenceStep(context, look, attention_window, self._halves)
        steps = [own_step, *carried.model.sampling_steps(), *sampling_steps]
        if sampling_options:
            own = arguments.seeds_behind(seeds, given)
            sites = frozenset(carried.model.sites if look else ())
            seen = (reference_for, reference, reference_cache_gb)
            drawing = Drawing(self, carried, given, own, sites, *seen)
            steps += [step for option in sampling_options for step in option.steps(drawing)]

        pixels = arguments.image_count(given) * given["height"] * given["width"]
        with (
            carried.inside(band, self._execution_device),
            around(self.unet, steps),
            one_by_one(self.vae, pixels >= SLICED),
        ):
            return super().__call__(**given)

    def learned(self) -> dict[str, Tensor]:
        """What was learned, by name: the concept's values and latents; {} without a concept."""
        if self._carried is None:
            return {}
        latents = {"reference.latents": self._carried.concept.references.latents}
        return {**self._carried.model.learned_values(), **latents}

    def _draw_noise(self, seeds: int | Sequence[int], given: dict[str, Any]) -> None:
        """Puts z_T of the seeds among the arguments, and the size that it has."""
        require(given.get("latents") is None, "seeds and latents: give one of the two")
        self._fill_in_size(given)
        numbers = arguments.seed_list(seeds, arguments.image_count(given))
        cells = [given[side] // self.vae_scale_factor for side in ("height", "width")]
        noise = initial_noise(numbers, (self.unet.config.in_channels, *cells))
        given["latents"] = noise.to(self._execution_device, self.unet.dtype)
        if given.get("generator") is None:
            own = [seed_of(seed, "steps", 0) for seed in numbers]  # another draw than z_T's
            given["generator"] = [torch.Generator().manual_seed(seed) for seed in own]

    def _fill_in_size(self, given: dict[str, Any]) -> None:
        """Fills in what is left open of height and width [pixels]."""
        cells = self.unet.config.sample_size
        cells = (cells, cells) if isinstance(cells, int) else cells
        usual = [side * self.vae_scale_factor for side in cells]
        if self._carried is not None:
            usual = [self._carried.concept.recipe.resolution] * 2
        given["height"], given["width"] = arguments.size_of(given, usual, self.vae_scale_factor)

    def _fill_in(self, given: dict[str, Any]) -> None:
        """Fills in what the concept says. Raises UserError if an argument is unknown."""
        self._carried.require_parts(self)
        arguments.require_known(given)
        self._fill_in_size(given)
        recipe = self._carried.concept.recipe
        given.setdefault("num_inference_steps", recipe.num_inference_steps)
        given.setdefault("guidance_scale", recipe.guidance_scale)
        if isinstance(given.get("prompt"), tuple):
            given["prompt"] = list(given["prompt"])

    def _halves(self) -> int:
        """2 while calls of the UNet are guided ones, else 1; a callback may end guidance."""
        return 2 if self.do_classifier_free_guidance else 1

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        device: torch.device,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `StableDiffusionPipeline`'s, with the subject where prompts say {}.

        tau of the prompts and of the negative ones: (N,Ntok,D) each, N the number of images.
        """
        # today's text encoders have no `text_model`, where diffusers looks for the last norm
        stuck = clip_skip is not None and not hasattr(self.text_encoder, "text_model")
        if self._carried is not None or stuck:
            with adapters_scaled(self.text_encoder, lora_scale):
                if prompt_embeds is None:
                    prompts = arguments.prompt_list(prompt)
                    prompt_embeds = self._tau(prompts, device, clip_skip)
                if do_classifier_free_guidance and negative_prompt_embeds is None:
                    negatives = arguments.negatives_for(negative_prompt, len(prompt_embeds))
                    each = list(dict.fromkeys(negatives))
                    rows = self._tau(each, device)
                    negative_prompt_embeds = rows[[each.index(text) for text in negatives]]
                    arguments.require_same_length(prompt_embeds, negative_prompt_embeds)
            prompt = None
            negative_prompt = None
            clip_skip = None

        return super().encode_prompt(
            prompt,
            device,
            num_images_per_prompt,
            do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            lora_scale=lora_scale,
            clip_skip=clip_skip,
        )

    def _tau(
        self, prompts: list[str], device: torch.device, clip_skip: int | None = None
    ) -> Tensor:
        """Text features (N,Ntok,D) of prompts, with the subject in them if there is one."""
        layers = self.text_encoder.config.num_hidden_layers
        arguments.require_layers(clip_skip, layers)
        texts = self.maybe_convert_prompt(prompts, self.tokenizer)
        if self._carried is not None:
            return self._carried.encode(texts, device, clip_skip)

        ids = self.tokenizer(
            texts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return features(self.text_encoder, ids.to(device), clip_skip)

    @property
    def carried(self) -> Carried:
        """The concept in use. Raises UserError without one."""
        require(self._carried is not None, "no concept is loaded: pipe.load_concept(FILE)")
        return self._carried

    def require_room(self, prompts: Sequence[str]) -> None:
        """Warns about prompts that are too long. Raises UserError if a subject is cut off."""
        unique = list(dict.fromkeys(prompts))
        self._carried.model.tokenize(unique, self._carried.concept.recipe.class_word)

    def chosen(self, reference: int | Sequence[int], count: int | None = None) -> tuple[int, ...]:
        """The numbers of the photos to attend to: see `Carried.chosen`."""
        return self._carried.chosen(reference, count)

    def schedule(
        self,
        steps: int,
        chosen: Sequence[int] = (0,),
        reference_for: str = "both",
        cache_gb: float = 2.0,
    ) -> ReferenceSchedule:
        """F^r of the chosen photos over a number of steps, for the drawings that follow."""
        self.scheduler.set_timesteps(steps)
        return self._schedule_now(chosen, reference_for, cache_gb)

    def _schedule_now(
        self, chosen: Sequence[int], reference_for: str, cache_gb: float
    ) -> ReferenceSchedule:
        """F^r over the timesteps that the scheduler has now."""
        device = self._execution_device
        timesteps = self.scheduler.timesteps
        return self._carried.schedule(timesteps, device, chosen, reference_for, cache_gb)
