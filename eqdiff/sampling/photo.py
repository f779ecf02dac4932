"""DreamMatcher's photo: its latents on the way to noise, and what the UNet sees of them.

The UNet is the one that draws, with the concept in it, and its calls for the photo are made within
its calls for the picture. They are made once a subject: what is kept holds for the UNet as it was
then, so adapters that are put on later are not seen. `Carried.follow` forgets it.

Axes: G halves of guidance, n cells of a layer, C channels, h, w latent size.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from eqdiff.context import ReferenceContext
from eqdiff.reference import Features
from eqdiff.sampler import Drawing
from eqdiff.sampling.inversion import ReferenceStream, invert


class Photo:
    """The concept's first chosen photo, for one drawing."""

    def __init__(self, drawing: Drawing, layers: tuple[str, ...]) -> None:
        """layers: prefixes of the layers that record what they see of it."""
        self.drawing = drawing
        self.layers = layers
        carried = drawing.carried
        device = drawing.pipe._execution_device

        self.number = carried.chosen(drawing.photos)[0]
        z_0 = carried.concept.references.latents[self.number : self.number + 1]
        z_0 = F.interpolate(z_0, drawing.cells, mode="bilinear")  # the same, if of that size
        self.z_0 = z_0.to(device)  # (1,4,h,w)

        # its texts: the empty one, which is that of inversion too, and its own
        prompts = ["", carried.concept.recipe.reference_prompt]
        self.texts = carried.encode(prompts, device)
        self._stream: ReferenceStream | None = None
        self._halves = len(self.texts)  # that there were at the first step
        self._seen: Features | None = None  # while it is looked at

    def steps(self, unet: nn.Module) -> list[int]:
        """The timesteps of this drawing in order, each once. Inverts the photo if need be."""
        if self._stream is None:
            self._halves = self.drawing.pipe._halves()
            self._stream = self._stream_over_schedule(unet)
        return list(self._stream.latents)

    def features(self, unet: nn.Module, t: float | Tensor) -> Features:
        """What was recorded of it at timestep t, under the text of each half: (G,...) each."""
        seen = self._stream.features(t, partial(self._look, unet))
        halves = self.drawing.pipe._halves()  # a callback may end guidance
        return {name: x[-halves:] for name, x in seen.items()}

    def records(self, name: str, seen: Tensor) -> bool:
        """Takes what a layer sees, if it is the photo that the UNet looks at now."""
        if self._seen is None:
            return False
        self._seen[name] = seen
        return True

    def _stream_over_schedule(self, unet: nn.Module) -> ReferenceStream:
        """The photo's stream over this schedule, made now or by an earlier drawing."""
        drawing = self.drawing
        model = drawing.carried.model
        scheduler = drawing.pipe.scheduler
        timesteps = [round(float(t)) for t in scheduler.timesteps]
        here = (str(self.z_0.device), model.unet.dtype)
        how = (self.layers, self.number, self._halves, drawing.cells, drawing.cache_gb)
        key = (here, "dreammatcher", tuple(timesteps), *how)

        streams = drawing.carried.schedules
        if key not in streams:
            kind = scheduler.config.prediction_type
            empty = partial(self._predict, unet, self.texts[:1])
            found = invert(empty, self.z_0, timesteps, model.alphas_cumprod, kind)
            latents = {t: found[t] for t in timesteps}  # in the order of sampling
            streams[key] = ReferenceStream(latents, drawing.cache_gb)
        return streams[key]

    def _predict(self, unet: nn.Module, texts: Tensor, z: Tensor, t: int) -> Tensor:
        """What the UNet predicts for one latent (1,4,h,w) under each text: (G,4,h,w).

        It is called past its hooks: this happens within a call of it.
        """
        rows = z.to(unet.dtype).repeat(len(texts), 1, 1, 1)
        options = {"cross_attention_kwargs": {"reference": ReferenceContext({})}}
        return unet.forward(rows, t, texts.to(unet.dtype), **options, return_dict=False)[0]

    def _look(self, unet: nn.Module, z: Tensor, t: int) -> Features:
        """What layers record of one latent under each text."""
        self._seen = {}
        try:
            self._predict(unet, self.texts[-self._halves :], z, t)
            return self._seen
        finally:
            self._seen = None
