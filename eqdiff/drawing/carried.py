"""A concept in use: how prompts are read with it, what is looked at, its way in and out.

Axes: N prompts, Ntok text tokens, D text width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from eqdiff.base.adapters import adapters_off, copy_as_it_came, unwrapped
from eqdiff.base.offload import brought, exchangeable, layers_change_by_themselves
from eqdiff.base.shared import changed, looks, shares
from eqdiff.concept.concept import Concept
from eqdiff.errors import UserError, require
from eqdiff.frequency import Band
from eqdiff.model import Customized
from eqdiff.reference import ReferenceSchedule


class Carried:
    """The model that carries a concept, for the pipeline that draws with it."""

    def __init__(self, model: Customized, concept: Concept) -> None:
        self.model = model
        self.concept = concept
        # what is computed once over a schedule: F^r here, and what sampling options keep. Keys
        # begin with device and dtype.
        self.schedules: dict[tuple, Any] = {}
        self.looks = looks(model.reference_unet)
        self.band = Band.FULL  # what stands for the subject in prompts

    def require_parts(self, pipe: Any) -> None:
        """Raises UserError if the pipeline has another UNet or text encoder than the concept."""
        replaced = [
            name
            for name in ("unet", "text_encoder")
            if unwrapped(getattr(pipe, name)) is not unwrapped(getattr(self.model, name))
        ]
        names = " and ".join(replaced)
        message = f"the pipeline's {names} was replaced after load_concept: load the concept again"
        require(not replaced, message)

    def follow(self) -> None:
        """Moves the subject's own parts to where the UNet is, in its precision."""
        self.model.follow()
        self.schedules = {}  # they hold features where they were

    def own_reference(self) -> None:
        """Gives the reference UNet weights of its own, before those of the UNet are changed.

        Raises UserError if they were changed already.
        """
        model = self.model
        self.require_reference()
        if model.reference_unet is not None and shares(model.unet, model.reference_unet):
            model.reference_unet = copy_as_it_came(model.reference_unet)
            self.looks = looks(model.reference_unet)

    def require_reference(self) -> None:
        """Raises UserError if somebody has changed weights that the two UNets share."""
        require(
            not changed(self.model.reference_unet, self.looks),
            "the UNet's weights were changed after load_concept: load the concept again",
        )

    @contextmanager
    def inside(self, band: Band, device: torch.device) -> Iterator[None]:
        """Within: the subject is in the UNet, which runs on `device`, and `band` in the prompts.

        A subject that is in training is in it all the time.
        """
        model = self.model
        resident = model.attached
        if not resident:
            self.require_reference()
            if layers_change_by_themselves(model.unet):
                self.own_reference()
            with exchangeable(model.unet, device):
                model.attach()

        self.band = band
        try:
            with brought(model.reference_unet, device, like=model.unet):
                yield
        finally:
            self.band = Band.FULL
            if not resident:
                with exchangeable(model.unet, device):
                    model.detach()

    # Eq. 5, at inference with S_ori.
    def encode(
        self, prompts: list[str], device: torch.device, clip_skip: int | None = None
    ) -> Tensor:
        """tau of prompts with the subject in them, or without it: (N,Ntok,D)."""
        model = self.model
        ids, slots = model.tokenize(prompts, self.concept.recipe.class_word)
        bands = torch.full((len(prompts),), self.band, device=ids.device)
        return model.encode(ids.to(device), slots, bands, clip_skip)

    def chosen(self, reference: int | Sequence[int], count: int | None = None) -> tuple[int, ...]:
        """The numbers of the photos to attend to: those named, or `count` from one number on.

        After the last photo comes the first again. count defaults to the training's. Raises
        UserError if the concept has no such photo.
        """
        photos = len(self.concept.references.latents)
        if not photos:
            raise UserError(
                "this concept carries no photos to attend to: "
                "give it some (photo_references), or rra=False"
            )
        named = (reference,) if isinstance(reference, int) else tuple(reference)
        wrong = [number for number in named if not 0 <= number < photos]
        if wrong or not named:
            raise UserError(
                f"--reference {(wrong or [named])[0]}: the concept has photos 0 to {photos - 1}"
            )

        if not isinstance(reference, int):
            return named
        count = count or self.concept.recipe.num_references
        return tuple((reference + step) % photos for step in range(count))

    def schedule(
        self,
        timesteps: Tensor,
        device: torch.device,
        chosen: Sequence[int],
        reference_for: str,
        cache_gb: float,
    ) -> ReferenceSchedule:
        """F^r of the chosen photos over these timesteps, where the UNet runs.

        It is computed once and shared by all prompts and batches.
        """
        dtype = self.model.unet.dtype
        here = (str(device), dtype)
        unet = self.model.reference_unet
        key = (here, id(unet), tuple(timesteps.tolist()), tuple(chosen), reference_for, cache_gb)
        if key in self.schedules:
            return self.schedules[key]

        recipe = self.concept.recipe
        references = self.concept.references
        own = recipe.reference_prompt.replace("{}", recipe.class_word)
        with adapters_off(self.model.text_encoder):
            texts = self.model.encode_plain(["", own] if reference_for == "both" else [own])

        self.schedules = {key: kept for key, kept in self.schedules.items() if key[0] == here}
        self.schedules[key] = ReferenceSchedule(
            unet,
            self.model.sites,
            z_r0=references.latents[list(chosen)].to(device),
            noise=references.noise.to(device),
            alphas_cumprod=self.model.alphas_cumprod,
            texts=texts.to(device),
            timesteps=timesteps,
            clean=recipe.reference_at_sampling == "clean",
            cache_gb=cache_gb,
        )
        return self.schedules[key]
