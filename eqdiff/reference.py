"""The frozen reference UNet (Sec. 4.3): its features by layer name, and the cache of them over a sampling schedule.

Axis letters: B batch, N tokens, C channels, h,w latent size, Ntok text tokens, D text width.
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


class _AllSeen(Exception):
    """The features asked for are there: what is left of the UNet's forward would be for nothing."""


class FeatureTap(AbstractContextManager):
    """Within `with FeatureTap(unet, sites) as features`, a forward of `unet` fills features[site], (B,N,C): the normed
    hidden states that enter that self-attention, F^r of Eq. 8. The UNet is left as it was found.
    stop: the forward ends by _AllSeen at the last of the sites."""

    def __init__(self, unet: nn.Module, sites: Iterable[str], *, stop: bool = False) -> None:
        self._modules, self._stop = {}, stop
        for site in sites:
            try:
                self._modules[site] = unet.get_submodule(site.removesuffix(".processor"))
            except AttributeError:
                raise KeyError(f"the reference UNet has no layer {site}") from None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Features:
        features: Features = {}
        for site, module in self._modules.items():

            def keep(_: nn.Module, args: tuple, kwargs: dict, site: str = site) -> None:
                features[site] = args[0] if args else kwargs["hidden_states"]
                if self._stop and len(features) == len(self._modules):
                    raise _AllSeen

            self._hooks.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        return features

    def __exit__(self, *exception: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()


@torch.no_grad()
def capture(unet: nn.Module, sites: Iterable[str], z: Tensor, t: Tensor | int, text: Tensor) -> Features:
    """Features of the reference latent z (B,4,h,w) at timestep t (scalar or (B,)), text (B,Ntok,D): site -> (B,N,C).

    Always without gradient, in the UNet's dtype (the release backpropagates through it to nowhere and casts to fp16),
    and no further than the last site.
    """
    with FeatureTap(unet, sites, stop=True) as features, suppress(_AllSeen):
        unet(z.to(unet.dtype), t, text.to(unet.dtype), return_dict=False)
    return features


def place_for(need: float, budget: float, *, on_gpu: bool, host_free: float) -> Place:
    """Where features of `need` bytes are kept: on the device if `budget` bytes suffice, else in pinned host memory if
    they fit in half of what is free there, else nowhere: they are computed at every step, as for a budget of 0."""
    if budget == 0:
        return "nowhere"
    if need <= budget:
        return "device"
    return "host" if on_gpu and need <= host_free / 2 else "nowhere"


class ReferenceSchedule:
    """F^r over a sampling schedule. It depends on the subject, the reference noise and t alone, not on prompt, seed or
    concept: each timestep is computed once, when first asked for, and serves every batch.

    z_r0 (R,4,h,w), noise (1,4,h,w): scaled latents of the references (the paper has one), and the one fixed noise.
    alphas_cumprod: (T,), the base's.
    texts: (G,Ntok,D), [empty prompt, reference prompt], or the latter alone. timesteps: those the UNet will see, in
    its order; fractions are rounded. clean: feed z_r0 itself at every t, as the release; the default noises it to t, as
    training does. cache_gb: memory for the features [GB], see `place_for`.
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
        self._unet, self._sites, self._texts, self._clean = unet, tuple(sites), texts, clean
        self._z_r0, self._noise, self._alphas_cumprod = z_r0, noise, alphas_cumprod
        self._timesteps = [round(float(t)) for t in timesteps]
        self._budget = cache_gb * 1e9
        self._place: Place | None = None if cache_gb else "nowhere"  # known once the size of a step is
        self._cache: dict[int, Features] = {}

    @property
    def count(self) -> int:
        """R, how many references are looked at side by side."""
        return len(self._z_r0)

    def _latent(self, t: int) -> Tensor:
        """z^r_t by the base's own noise schedule: a scheduler's `add_noise` may scale by its sigmas (Euler does)."""
        if self._clean:
            return self._z_r0
        alpha_bar = self._alphas_cumprod[t].to(self._z_r0.device, torch.float32)  # bf16 would spoil 1 - alpha_bar
        return alpha_bar.sqrt() * self._z_r0.float() + (1 - alpha_bar).sqrt() * self._noise.float()

    def _compute(self, step: int) -> Features:
        z = self._latent(step)
        texts = self._texts.repeat_interleave(len(z), 0)
        return capture(self._unet, self._sites, z.repeat(len(self._texts), 1, 1, 1), step, texts)

    def _keep(self, step: int, features: Features) -> None:
        on_gpu = self._z_r0.is_cuda
        if self._place is None:
            need = sum(x.nbytes for x in features.values()) * len(set(self._timesteps))
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            self._place = place_for(need, self._budget, on_gpu=on_gpu, host_free=free)
        if self._place == "host":
            features = {site: x.cpu().pin_memory() for site, x in features.items()}
        if self._place != "nowhere":
            self._cache[step] = features

    def progress(self, t: float | Tensor) -> float:
        """How far in the schedule timestep t is, in [0,1). ValueError for a t not in it."""
        step = round(float(t))
        if step not in self._timesteps:
            raise ValueError(f"timestep {step} is not one of the schedule's {self._timesteps}")
        return self._timesteps.index(step) / len(self._timesteps)

    def features(self, t: float | Tensor) -> Features:
        """site -> (G R,N,C) at timestep t, the R references of a text one after another. ValueError for a t not in the
        schedule."""
        self.progress(t)
        step = round(float(t))
        if step in self._cache:
            device = self._z_r0.device
            return {site: x.to(device, non_blocking=True) for site, x in self._cache[step].items()}
        features = self._compute(step)
        self._keep(step, features)
        return features

    def fill(self, process: int, processes: int, broadcast: Callable[[Tensor, int], Tensor]) -> None:
        """Each process computes its share of the timesteps and all get all of them; broadcast(tensor, source) is a
        collective that returns the source's. Nothing is done where nothing is kept."""
        first, *others = dict.fromkeys(self._timesteps)
        features = self.features(first)
        chosen = torch.tensor(PLACES.index(self._place), device=self._z_r0.device)
        self._place = PLACES[int(broadcast(chosen, 0))]  # free memory is each process's own; what is done is not
        for number, step in enumerate(others if self._place != "nowhere" else []):
            source = number % processes
            mine = self._compute(step) if process == source else {s: torch.empty_like(x) for s, x in features.items()}
            self._keep(step, {site: broadcast(x.contiguous(), source) for site, x in mine.items()})
