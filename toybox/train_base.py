"""Trains the toybox's text encoder and UNet together, from nothing, on latents of drawn pictures."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from toybox.dataset import LATENT_SIDE, Dataset, load, to_tensor
from toybox.judges import Judges, tokenize
from toybox.loop import add_arguments, budget, fit
from toybox.quality import accuracies, evaluation_triples, generate
from toybox.sheets import save_sheet

WIDTH = 128  # of the text encoder
CAPTIONS = 4  # wordings kept of each picture
DROP = 0.1  # share of empty captions, for classifier-free guidance
SUBJECT_WEIGHT = 1.5  # added inside the subject's mask: subjects are what is learned last
SNR_CAP = 5.0  # min-SNR weighting (Hang et al. 2023)
SCHEDULER = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


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


def unet_model() -> UNet2DConditionModel:
    """Stable Diffusion 1.x's arrangement at 8.9 M parameters: its default block types, narrow."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        block_out_channels=(64, 96, 128, 160),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


class BaseLoss(nn.Module):
    """The epsilon loss of a latent diffusion model, with min-SNR and subject weights."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        alpha_bar = DDIMScheduler(**SCHEDULER).alphas_cumprod
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        latents, ids, masks = batch  # (B, 4, 16, 16), (B, L), (B, 1, 16, 16) in 0..1
        t = torch.randint(len(self.alpha_bar), (len(latents),), device=latents.device)
        noise, signal = torch.randn_like(latents), self.alpha_bar[t][:, None, None, None]
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        error = self.unet(noisy, t, self.text_encoder(ids).last_hidden_state).sample - noise
        snr = signal / (1 - signal)
        squared = error.square()
        loss = (squared * (1 + SUBJECT_WEIGHT * masks) * (snr.clamp(max=SNR_CAP) / snr)).mean()
        return {"loss": loss, "mse": squared.mean()}


@torch.no_grad()
def encode(data: Dataset, vae: AutoencoderKL, path: Path) -> np.ndarray:
    """Scaled latent means of all pictures, float16 (N, 4, 16, 16), kept beside the pictures."""
    if path.exists():
        return np.load(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = vae.to(device).eval()
    latents = np.zeros((len(data), 4, LATENT_SIDE, LATENT_SIDE), np.float16)
    for first in tqdm(range(0, len(data), 32), desc="encoding"):
        mean = vae.encode(to_tensor(data.images[first : first + 32]).to(device)).latent_dist.mean
        latents[first : first + 32] = (mean * vae.config.scaling_factor).cpu().numpy()
    np.save(path, latents)
    return latents


def batches(
    data: Dataset, latents: np.ndarray, tokenizer: CLIPTokenizer, size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    rng = np.random.default_rng(seed)
    texts = [data.caption(row, rng) for row in tqdm(range(len(data)), desc="captions") for _ in range(CAPTIONS)]
    ids = tokenize(tokenizer, texts).reshape(len(data), CAPTIONS, -1)
    empty = tokenize(tokenizer, [""])[0]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    while True:
        rows = rng.integers(len(data), size=size)
        chosen = ids[rows, rng.integers(CAPTIONS, size=size)]
        chosen[torch.from_numpy(rng.random(size) < DROP)] = empty
        masks = torch.from_numpy(data.masks[rows]).float().div(255)[:, None]
        yield torch.from_numpy(latents[rows]).float().to(device), chosen.to(device), masks.to(device)


def save(module: BaseLoss, parts: tuple[CLIPTokenizer, AutoencoderKL], assets: Path, picture: Path) -> dict[str, float]:
    """Writes the pipeline in fp16, a sheet of held-out captions and, if there is a judge, its accuracies."""
    tokenizer, vae = parts
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=module.text_encoder,
        tokenizer=tokenizer,
        unet=module.unet,
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    triples = evaluation_triples(80)
    images = generate(pipe, [t.caption for t in triples], range(len(triples)), steps=20, guidance=5.0)
    save_sheet(picture, images, columns=10)
    for part in (module, vae):
        part.half()
    pipe.save_pretrained(assets / "base")
    for part in (module, vae):
        part.float()
    if not all((assets / name / "model.safetensors").exists() for name in ("clip", "dino")):
        return {"steps_saved": 1}
    return accuracies(Judges.load(assets), images, triples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, steps=60000, minutes=120, rate=6e-4, batch=16)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    base = args.assets / "base"
    data, tokenizer = load(args.data), CLIPTokenizer.from_pretrained(base / "tokenizer")
    vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32)
    if args.resume:
        unet = UNet2DConditionModel.from_pretrained(base / "unet", dtype=torch.float32)
        text = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32)
    else:
        unet, text = unet_model(), text_model(tokenizer)
    stream = batches(data, encode(data, vae, args.data / "latents.npy"), tokenizer, args.batch, args.seed)
    folder = args.data.parent
    module = BaseLoss(unet, text)
    fit(
        module,
        stream,
        budget(args),
        lambda m: save(m, (tokenizer, vae), args.assets, folder / "base.png"),
        folder / "base.jsonl",
    )


if __name__ == "__main__":
    main()
