"""What a training starts from: the data as latents, the model, the optimizer; and the previews of where it stands."""

from pathlib import Path

import torch
from accelerate import Accelerator

from eqdiff.concept import Concept, References
from eqdiff.config import ASSETS, TrainConfig, read_prompts
from eqdiff.data import image_grid, load_subject, overlay_sheet
from eqdiff.latents import TrainingLatents, prepare, vae_encoder
from eqdiff.masking import coverage
from eqdiff.model import PRECISIONS, Base, EqDiff, start_rows
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.prior import class_images

# settings that say where things lie on somebody's machine: not for a file that is passed on
PATHS = (
    "pretrained_model_name_or_path", "instance_data_dir", "mask_dir", "output_dir", "class_data_dir",
    "validation_prompts", "resume_from_checkpoint",
)  # fmt: skip


def load_data(config: TrainConfig, base: Base, accelerator: Accelerator) -> tuple[TrainingLatents, References]:
    """Photos, class images and everything the VAE has to encode, as TrainingLatents; and the sampling References."""
    subject = load_subject(
        config.instance_data_dir,
        class_word=config.class_word,
        resolution=config.resolution,
        mask_dir=config.mask_dir,
        binary_masks=config.binary_masks,
    )
    if accelerator.is_main_process:
        overlay_sheet(subject).save(Path(config.output_dir) / "masks.png")
    images = None
    if config.with_prior_preservation:
        with accelerator.main_process_first():
            images = class_images(base, config, quiet=not accelerator.is_main_process)
    generator = torch.Generator().manual_seed(config.seed)
    encode = vae_encoder(base.vae)
    latents = prepare(subject, images, config, encode, generator)
    share = float(coverage(latents.noise_masks).mean())
    if config.masking != "none" and share > 0.9:
        print(
            f"warning: the dilated masks cover {share:.0%} of the picture: masking does nothing; lower --mask_dilation"
        )
    noise = torch.randn(latents.targets.mean[:1, 0].shape, generator=generator)
    return latents, References(latents.targets.mean[:, -1], latents.subject_masks, noise, subject.names)


def build_model(config: TrainConfig, base: Base, accelerator: Accelerator) -> EqDiff:
    """The base with the subject's parts in it, on its device, frozen weights in the precision of the run."""
    rare = base.tokenizer(config.rare_token, add_special_tokens=False).input_ids
    rows = start_rows(
        base,
        word=config.class_word if config.token_init == "class" else config.rare_token,
        n_rows=2 if config.fdte else 1,
        scale=config.token_init_scale,
    )
    model = EqDiff(
        base,
        rows,
        rra=config.rra,
        gate_init=config.gate_init,
        clamp=config.gate_clamp,
        slot_by=config.slot_by,
        stand_in=rare[0],
    )
    if accelerator.device.type == "cuda":
        model.to_dtype(PRECISIONS[accelerator.mixed_precision])
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    return model.to(accelerator.device)


def make_optimizer(model: EqDiff, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the one list of concept parameters, the token rows in a group of their own."""
    named = model.concept_parameters()
    tokens = [p for name, p in named.items() if name.startswith("tokens.")]
    others = [p for name, p in named.items() if not name.startswith("tokens.")]
    groups = [
        {"params": others, "lr": config.learning_rate, "weight_decay": config.adam_weight_decay},
        {"params": tokens, "lr": config.token_learning_rate, "weight_decay": config.token_weight_decay},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)


def preview(model: EqDiff, concept: Concept, config: TrainConfig, path: Path) -> None:
    """A grid of the preview prompts, one seed each, drawn with the concept as it is now."""
    names = {"toybox": "toybox_preview.txt"}
    file = config.validation_prompts or ASSETS / "prompts" / names.get(config.preset, "preview.txt")
    prompts = [p for p in read_prompts(file) for _ in range(config.num_validation_images)]
    pipe = EqDiffPipeline.of(model)
    pipe.attach(model, concept)
    model.unet.eval()
    seeds = [seed_of(config.seed, prompt, i % config.num_validation_images) for i, prompt in enumerate(prompts)]
    images = pipe(prompts, seeds=seeds).images
    model.unet.train(config.gradient_checkpointing)
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns=min(4, len(images)), captions=[p.replace("{}", "S") for p in prompts]).save(path)
