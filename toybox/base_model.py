"""The base's parts and its loss: Stable Diffusion 1.x's arrangement, small."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from toybox.latents import Batch

WIDTH = 128  # of the text encoder
SCHEDULER = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
DINO_WIDTH = 128  # of the toy DINO's patches
HIGH_FROM = 750  # timesteps from here on are "high": there an object's colour is decided


@dataclass(frozen=True)
class Recipe:
    """How a base is trained: what toybox.trials compares."""

    widths: tuple[int, ...] = (64, 96, 128, 160)  # of the UNet's levels
    text: str = "along"  # the text encoder, trained with the UNet; else a folder with a frozen one
    batch: int = 64
    learning_rate: float = 6e-4
    ema_decay: float = 0.998
    snr_cap: float = 5.0  # min-SNR weighting (Hang et al. 2023)
    subject_weight: float = (
        1.5  # added inside the subject's mask: subjects are what is learned last
    )
    high_share: float = 0.5  # of the draws of t, taken from HIGH_FROM on
    low_share: float = 0.0  # of the draws of t, taken from below low_below
    low_below: int = 300  # timesteps below are "low": there patterns and emblems are drawn
    high_power: float = 0.5  # of 1 / SNR, a weight from 1 to high_cap
    high_cap: float = 12.0
    offset: float = 0.0  # spread of a random mean of the noise, one a channel
    contrast: float = 0.0  # weight of the distance to another sample's noise (Stoica et al. 2025)
    repa: float = (
        0.0  # weight of a pull of 8 x 8 features to a DINO's patches (REPA, Yu et al. 2024)
    )


# what the committed base was trained with, one after the other: see assets/toybox/README.md
RECIPES = {
    "first": Recipe(),
    "low": Recipe(high_share=0.12, low_share=0.5, low_below=450),
    "lower": Recipe(high_share=0.12, low_share=0.55, snr_cap=15.0, subject_weight=2.5),
}


def text_model(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def unet_model(widths: tuple[int, ...]) -> UNet2DConditionModel:
    """Stable Diffusion 1.x's default block types, narrow."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


class BaseLoss(nn.Module):
    """The epsilon loss of a latent diffusion model, weighted by timestep and by subject mask."""

    def __init__(
        self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, recipe: Recipe
    ) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.recipe = recipe

        alpha_bar = DDIMScheduler(**SCHEDULER).alphas_cumprod
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)
        if recipe.repa:
            self.project = nn.Conv2d(recipe.widths[1], DINO_WIDTH, 1)
            unet.down_blocks[1].attentions[0].register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: tuple, output: tuple[Tensor]) -> None:
        self.features = output[0]  # (B, C, 8, 8)

    def pull(self, patches: Tensor) -> Tensor:
        """1 - mean cosine of the last prediction's features to a DINO's patches (B, 64, D)."""
        features = self.project(self.features).flatten(2).transpose(1, 2)
        return 1 - F.cosine_similarity(features, patches, dim=-1).mean()

    def timesteps(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """int64 (count,): uniform, but for shares drawn from HIGH_FROM on and below low_below."""
        steps = len(self.alpha_bar)
        where = self._place(generator)
        choice = torch.rand(count, generator=generator, device=where)
        first = torch.where(choice < self.recipe.high_share, HIGH_FROM, 0)
        end = torch.where(choice >= 1 - self.recipe.low_share, self.recipe.low_below, steps)

        drawn = first + (end - first) * torch.rand(count, generator=generator, device=where)
        return drawn.long().clamp(max=steps - 1)

    def _place(self, generator: torch.Generator | None) -> torch.device:
        """Where random numbers are drawn: at the generator, else where the module is."""
        return self.alpha_bar.device if generator is None else generator.device

    def weights(self, t: Tensor) -> Tensor:
        """The loss's weight at each timestep: min-SNR below, (1 / SNR) ** high_power above."""
        snr = self.alpha_bar[t] / (1 - self.alpha_bar[t])
        low = snr.clamp(max=self.recipe.snr_cap) / snr
        return low * snr.pow(-self.recipe.high_power).clamp(1.0, self.recipe.high_cap)

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noise of the shape (B, C, H, W) of `like`, with the recipe's random mean."""
        where = self._place(generator)
        noise = torch.randn(like.shape, generator=generator, device=where)
        if self.recipe.offset:
            mean = torch.randn((*like.shape[:2], 1, 1), generator=generator, device=where)
            noise = noise + self.recipe.offset * mean
        return noise.to(like)

    def predict(self, latents: Tensor, noise: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """The noise that the UNet sees in noised latents.

        latents, noise: (B, 4, 16, 16); t: timesteps (B,); ids: the captions' tokens (B, L).
        """
        signal = self.alpha_bar[t][:, None, None, None]
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        return self.unet(noisy, t, self.text_encoder(ids).last_hidden_state).sample

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        t = self.timesteps(len(batch.latents), generator).to(batch.latents.device)
        noise = self.noise(batch.latents, generator)
        predicted = self.predict(batch.latents, noise, t, batch.ids)

        squared = (predicted - noise).square()
        loss = squared
        if self.recipe.contrast:
            another = noise.roll(1, 0)
            loss = loss - self.recipe.contrast * (predicted - another).square()

        weight = 1 + self.recipe.subject_weight * batch.masks
        weight = weight * self.weights(t)[:, None, None, None]
        total = (loss * weight).mean()
        if self.recipe.repa:
            total = total + self.recipe.repa * self.pull(batch.patches)

        return {"loss": total, "mse": squared.mean()}


def pipeline_of(
    module: BaseLoss, tokenizer: CLIPTokenizer, vae: AutoencoderKL
) -> StableDiffusionPipeline:
    """The base as plain diffusers draws with it."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=module.text_encoder,
        tokenizer=tokenizer,
        unet=module.unet,
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def band_losses(module: BaseLoss, batch: Batch, bands: int = 4) -> dict[str, float]:
    """The plain squared error in equal bands of t; noise and timesteps are the same at every call.

    The keys are "loss_" and the band's first timestep.
    """
    size = len(module.alpha_bar) // bands
    count = len(batch.latents)
    device = module.alpha_bar.device
    figures = {}

    for band in range(bands):
        first = band * size
        generator = torch.Generator().manual_seed(band)
        t = torch.randint(first, first + size, (count,), generator=generator)
        noise = torch.randn(batch.latents.shape, generator=generator)

        whole = (batch.latents, noise, t, batch.ids)
        parts = zip(*(part.to(device).split(64) for part in whole), strict=True)
        errors = [
            (module.predict(latents, eps, steps, ids) - eps).square().mean((1, 2, 3))
            for latents, eps, steps, ids in parts
        ]
        figures[f"loss_{first}"] = round(float(torch.cat(errors).mean()), 5)

    return figures
