"""The frozen reference UNet (Sec. 4.3): its features by layer name, and the cache of them over a sampling schedule.

Axis letters: B batch, N tokens, C channels, h,w latent size, Ntok text tokens, D text width.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

Features = dict[str, Tensor]  # layer, by its key in `unet.attn_processors` -> (B,N,C)


class FeatureTap(AbstractContextManager):
    """Within `with FeatureTap(unet, sites) as features`, each forward of `unet` fills features[site], (B,N,C): the
    normed hidden states that enter that self-attention, F^r of Eq. 8. The UNet is left as it was found."""

    def __init__(self, unet: nn.Module, sites: Iterable[str]) -> None:
        modules = dict(unet.named_modules())
        names = {site: site.removesuffix(".processor") for site in sites}
        missing = [site for site, name in names.items() if name not in modules]
        if missing:
            raise KeyError(f"the reference UNet has no layer {missing[0]}")
        self._modules = {site: modules[name] for site, name in names.items()}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Features:
        features: Features = {}
        for site, module in self._modules.items():

            def keep(_: nn.Module, args: tuple, kwargs: dict, site: str = site) -> None:
                features[site] = args[0] if args else kwargs["hidden_states"]

            self._hooks.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        return features

    def __exit__(self, *exception: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()


@torch.no_grad()
def capture(unet: nn.Module, sites: Iterable[str], z: Tensor, t: Tensor | int, text: Tensor) -> Features:
    """Features of the reference latent z (B,4,h,w) at timestep t (scalar or (B,)), text (B,Ntok,D): site -> (B,N,C).

    Always without gradient, in the UNet's dtype (the release backpropagates through it to nowhere and casts to fp16).
    """
    with FeatureTap(unet, sites) as features:
        unet(z.to(unet.dtype), t, text.to(unet.dtype), return_dict=False)
    return features


class ReferenceSchedule:
    """F^r over a sampling schedule. It depends on the subject, the reference noise and t alone, not on prompt, seed or
    concept: each timestep is computed once, when first asked for, and serves every batch.

    z_r0, noise: (1,4,h,w), the reference's scaled latent and its one fixed noise. alphas_cumprod: (T,), the base's.
    text_pair: (2,Ntok,D), [empty prompt, reference prompt]. timesteps: those the UNet will see; fractions are rounded.
    clean: feed z_r0 itself at every t, as the release; the default noises it to t, as training does.
    """

    def __init__(
        self,
        unet: nn.Module,
        sites: Iterable[str],
        z_r0: Tensor,
        noise: Tensor,
        alphas_cumprod: Tensor,
        text_pair: Tensor,
        timesteps: Sequence[float] | Tensor,
        *,
        clean: bool = False,
    ) -> None:
        self._unet, self._sites, self._text_pair, self._clean = unet, tuple(sites), text_pair, clean
        self._z_r0, self._noise, self._alphas_cumprod = z_r0, noise, alphas_cumprod
        self._timesteps = {round(float(t)) for t in timesteps}
        self._cache: dict[int, Features] = {}

    def _latent(self, t: int) -> Tensor:
        """z^r_t by the base's own noise schedule: a scheduler's `add_noise` may scale by its sigmas (Euler does)."""
        if self._clean:
            return self._z_r0
        alpha_bar = self._alphas_cumprod[t].to(self._z_r0.device, torch.float32)  # bf16 would spoil 1 - alpha_bar
        return alpha_bar.sqrt() * self._z_r0.float() + (1 - alpha_bar).sqrt() * self._noise.float()

    def features(self, t: float | Tensor) -> Features:
        """site -> (2,N,C), [unconditional, conditional], at timestep t. ValueError for a t not in the schedule."""
        step = round(float(t))
        if step not in self._timesteps:
            raise ValueError(f"timestep {step} is not one of the schedule's {sorted(self._timesteps, reverse=True)}")
        if step not in self._cache:
            z = self._latent(step).expand(2, -1, -1, -1)
            self._cache[step] = capture(self._unet, self._sites, z, step, self._text_pair)
        return self._cache[step]

    def for_batch(self, t: float | Tensor, batch: int, *, guided: bool = True) -> Features:
        """Features for `batch` images in the order of diffusers' guided call, [uncond..., cond...]: (2 batch,N,C).

        Both halves see the reference, each under its own text (as the release). Without guidance the conditional half
        alone, (1,N,C), which `ReferenceContext` shares over the batch.
        """
        features = self.features(t)
        if not guided:
            return {site: pair[1:] for site, pair in features.items()}
        return {site: pair[:, None].expand(-1, batch, -1, -1).flatten(0, 1) for site, pair in features.items()}
