"""The frozen reference UNet of the paper's Sec. 4.3: its features F^r, cached over a schedule.

F^r (Eq. 8) is what enters the self-attentions of a frozen copy of the base's UNet that reads the
noised reference z^r_t.

Departures: the paper does not say which noise a reference gets at sampling. Here it is one fixed
noise a subject; the release adds none (`clean`). In the release a gradient runs through the frozen
UNet to nowhere, and features are cast to fp16: not here.

Axes: B batch, N tokens, C channels, h, w latent size, Ntok text tokens, D text width, R references
that are looked at side by side, G texts that they are read under, T timesteps of the base.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Literal

import torch
from torch import Tensor, nn

Features = dict[str, Tensor]  # layer, by its key in `unet.attn_processors` -> (B,N,C)
Place = Literal["device", "host", "nowhere"]
PLACES: tuple[Place, ...] = ("device", "host", "nowhere")


class _Complete(Exception):
    """All features are there: the rest of the UNet's forward would be for nothing."""


class FeatureTap(AbstractContextManager):
    """Within `with FeatureTap(unet, sites) as features` a forward of `unet` fills `features`.

    features[site] (B,N,C) are the normed hidden states that enter that self-attention, F^r of
    Eq. 8. Afterwards the UNet is as it was before.
    """

    def __init__(self, unet: nn.Module, sites: Iterable[str], *, stop: bool = False) -> None:
        """stop: the forward ends at the last of the sites, by raising _Complete.

        Raises KeyError if the UNet has no such layer.
        """
        self._modules: dict[str, nn.Module] = {}
        self._stop = stop
        for site in sites:
            try:
                self._modules[site] = unet.get_submodule(site.removesuffix(".processor"))
            except AttributeError:
                raise KeyError(f"the reference UNet has no layer {site}") from None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Features:
        features: Features = {}
        for site, module in self._modules.items():

            def save(_: nn.Module, args: tuple, kwargs: dict, site: str = site) -> None:
                features[site] = args[0] if args else kwargs["hidden_states"]
                if self._stop and len(features) == len(self._modules):
                    raise _Complete

            self._hooks.append(module.register_forward_pre_hook(save, with_kwargs=True))
        return features

    def __exit__(self, *exception: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()


@torch.no_grad()
def capture(
    unet: nn.Module, sites: Iterable[str], z: Tensor, t: Tensor | int, text: Tensor
) -> Features:
    """F^r of the reference latent z (B,4,h,w) at timestep t: site -> (B,N,C), without gradient.

    t is a scalar or (B,), text (B,Ntok,D). Features are in the UNet's dtype. The UNet runs no
    further than the last site.
    """
    with FeatureTap(unet, sites, stop=True) as features, suppress(_Complete):
        unet(z.to(unet.dtype), t, text.to(unet.dtype), return_dict=False)
    return features


def place_for(need: float, budget: float, *, on_gpu: bool, host_free: float) -> Place:
    """Where features of `need` bytes are kept, all arguments in bytes.

    On the device if `budget` suffices; else in pinned host memory if they fit in half of what is
    free there; else, and for a budget of 0, nowhere: they are computed at every step.
    """
    if budget == 0:
        return "nowhere"
    if need <= budget:
        return "device"
    return "host" if on_gpu and need <= host_free / 2 else "nowhere"


class StepCache:
    """Features of the steps of a schedule, kept where there is room (see `place_for`)."""

    def __init__(self, gigabytes: float, steps: int, device: torch.device) -> None:
        """gigabytes: memory for all `steps` of them [GB], on the device where they are needed."""
        self._budget = gigabytes * 1e9
        self._steps = steps
        self._device = device
        # None: not decided, for the size of the features is not known yet
        self.place: Place | None = None if gigabytes else "nowhere"
        self._kept: dict[int, Features] = {}

    def get(self, step: int) -> Features | None:
        """The features of a step on the device; None if they are not kept."""
        if step not in self._kept:
            return None
        kept = self._kept[step]
        return {site: x.to(self._device, non_blocking=True) for site, x in kept.items()}

    def keep(self, step: int, features: Features) -> None:
        """Keeps the features of a step where there is room; the first tell how much is needed."""
        if self.place is None:
            need = sum(x.nbytes for x in features.values()) * self._steps
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            on_gpu = self._device.type == "cuda"
            self.place = place_for(need, self._budget, on_gpu=on_gpu, host_free=free)

        if self.place == "host":
            features = {site: x.cpu().pin_memory() for site, x in features.items()}
        if self.place != "nowhere":
            self._kept[step] = features

    def clear(self) -> None:
        """Forgets the features, and not where they were kept."""
        self._kept.clear()


class ReferenceSchedule:
    """F^r over a sampling schedule.

    It depends on the subject, the reference noise and t alone, not on prompt, seed or concept. So
    each timestep is computed once, when it is first needed, and serves every batch.
    """

    def __init__(
        self,
        unet: nn.Module,
        sites: Iterable[str],
        z_r0: Tensor,
        noise: Tensor,
        alphas_cumprod: Tensor,
        texts: Tensor,
        timesteps: Sequence[float] | Tensor,
        *,
        clean: bool = False,
        cache_gb: float = 2.0,
    ) -> None:
        """What the features depend on:
            z_r0: (R,4,h,w), scaled latents of the references; the paper has one
            noise: (1,4,h,w), the fixed noise
            alphas_cumprod: (T,), the base's
            texts: (G,Ntok,D), of the empty prompt and the reference prompt, or of the latter alone
            timesteps: those that the UNet will see, in its order; fractions are rounded
            clean: z_r0 itself at every t, as in the release; else it is noised, as in training

        cache_gb: memory for them [GB], see `place_for`.
        """
        self._unet = unet
        self._sites = tuple(sites)
        self._z_r0 = z_r0
        self._noise = noise
        self._alphas_cumprod = alphas_cumprod
        self._texts = texts
        self._timesteps = [round(float(t)) for t in timesteps]
        self._clean = clean
        self._cache = StepCache(cache_gb, len(set(self._timesteps)), z_r0.device)

    @property
    def count(self) -> int:
        """R, how many references are looked at side by side."""
        return len(self._z_r0)

    def progress(self, t: float | Tensor) -> float:
        """How far in the schedule timestep t is, in [0,1). Raises ValueError if t is not in it."""
        step = round(float(t))
        if step not in self._timesteps:
            raise ValueError(f"timestep {step} is not one of the schedule's {self._timesteps}")
        return self._timesteps.index(step) / len(self._timesteps)

    def features(self, t: float | Tensor) -> Features:
        """site -> (G R,N,C) at timestep t, the R references of a text one after another.

        Raises ValueError if t is not in the schedule.
        """
        self.progress(t)
        step = round(float(t))
        features = self._cache.get(step)
        if features is None:
            features = self._compute(step)
            self._cache.keep(step, features)
        return features

    def fill(
        self, process: int, processes: int, broadcast: Callable[[Tensor, int], Tensor]
    ) -> None:
        """Computes this process's share of the timesteps, and gets the others' share from them.

        broadcast(tensor, source) is a collective that returns the source's tensor. Nothing is done
        where nothing is kept.
        """
        first, *others = dict.fromkeys(self._timesteps)
        features = self.features(first)

        # Free memory is each process's own, but all must do the same: they follow the first.
        place = torch.tensor(PLACES.index(self._cache.place), device=self._z_r0.device)
        self._cache.place = PLACES[int(broadcast(place, 0))]
        if self._cache.place == "nowhere":
            return

        for number, step in enumerate(others):
            source = number % processes
            if process == source:
                mine = self._compute(step)
            else:
                mine = {site: torch.empty_like(x) for site, x in features.items()}
            shared = {site: broadcast(x.contiguous(), source) for site, x in mine.items()}
            self._cache.keep(step, shared)

    def _latent(self, t: int) -> Tensor:
        """z^r_t (R,4,h,w) by the base's own noise schedule.

        A scheduler's `add_noise` may scale by its sigmas instead (Euler does).
        """
        if self._clean:
            return self._z_r0
        # in fp32: bf16 would spoil 1 - alpha_bar
        alpha_bar = self._alphas_cumprod[t].to(self._z_r0.device, torch.float32)
        return alpha_bar.sqrt() * self._z_r0.float() + (1 - alpha_bar).sqrt() * self._noise.float()

    def _compute(self, step: int) -> Features:
        """site -> (G R,N,C): all references under the first text, then all under the second."""
        z = self._latent(step)
        texts = self._texts.repeat_interleave(len(z), 0)  # (G,Ntok,D) -> (G R,Ntok,D)
        return capture(self._unet, self._sites, z.repeat(len(self._texts), 1, 1, 1), step, texts)
