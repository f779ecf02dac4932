"""What a training starts from: the data as latents, the model, the optimizer."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from eqdiff.base.load import PRECISIONS, Base
from eqdiff.batch import Latents
from eqdiff.concept.concept import References
from eqdiff.data.latents import prepare, prepare_live
from eqdiff.data.sheets import overlay_sheet
from eqdiff.data.subject import Subject, load_subject, mask_folder
from eqdiff.data.vae import cache_root, cached_encoder, picture_key, vae_encoder, vae_key
from eqdiff.masking import coverage
from eqdiff.masks.make import make_masks
from eqdiff.model import Customized, EqDiff, new_model
from eqdiff.settings.groups import Optimization
from eqdiff.settings.masks import MaskConfig
from eqdiff.settings.train import TrainConfig
from eqdiff.training.class_images import class_captions, class_images

MOST_COVERAGE = 0.9  # of the picture: beyond it, masking does nothing


class Data(NamedTuple):
    """What a training learns from.

    latents: the source of each step's photos, class images and references. references: what
    sampling attends to. overlay: the photos under their masks. keys: "photos" and perhaps
    "class_images" -> a key of these pictures as this VAE encodes them, which the cache of latents
    uses too. class_captions: of the class images in turn, as they were drawn.
    """

    latents: Latents
    references: References
    overlay: Image.Image
    keys: dict[str, str]
    class_captions: tuple[str, ...]


def load_data(
    config: TrainConfig,
    base: Base,
    accelerator: Accelerator,
    lap: Callable[[str], None] = lambda _: None,
) -> Data:
    """Loads photos and class images, and encodes them. The base's VAE is not needed after that.

    lap: is told the name of each part of the work when it is done.

    Raises UserError if the photos, their masks or the class images cannot be used.
    """
    subject = _load_photos(config, accelerator)
    # now: drawing may take an hour, in which the prompt file may change; of more no image is there
    captions = class_captions(config)[: config.num_class_images]
    images = _load_class_images(config, base, accelerator)
    lap("photos and class images")

    key = vae_key(base.vae)
    keys = {"photos": picture_key(key, subject.images, subject.masks)}
    if images is not None:
        keys["class_images"] = picture_key(key, images)

    generator = torch.Generator().manual_seed(config.seed)
    base.vae.to(accelerator.device)
    if config.latent_cache:
        encode = cached_encoder(vae_encoder(base.vae), cache_root() / "latents", key)
        with accelerator.main_process_first():  # the other processes find its files
            latents = prepare(subject, images, config, encode, generator)
    else:
        # a copy, which stays on the device in full precision whatever becomes of the base's
        vae = copy.deepcopy(base.vae)
        latents = prepare_live(subject, images, config, vae_encoder(vae))
    base.vae.to("cpu")
    _warn_of_coverage(config, latents)

    noise = torch.randn(latents.photo_means[:1].shape, generator=generator)
    references = References(latents.photo_means, latents.subject_masks, noise, subject.names)
    lap("latents")
    return Data(latents, references, overlay_sheet(subject), keys, captions)


def _load_photos(config: TrainConfig, accelerator: Accelerator) -> Subject:
    """The photos with their masks; the main process makes those that are missing."""
    made = Path(config.output_dir) / "masks"
    if config.auto_masks:
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                _make_missing_masks(config, made, accelerator.device)

    return load_subject(
        config.instance_data_dir,
        class_word=config.class_word,
        resolution=config.resolution,
        mask_dir=config.mask_dir,
        binary_masks=config.binary_masks,
        made_masks=made if config.auto_masks else None,
    )


def _make_missing_masks(config: TrainConfig, made: Path, device: torch.device) -> None:
    """Masks in `made` for photos without one; a resumed training keeps the masks it began with."""
    settings = MaskConfig(
        detector_model=config.detector_model,
        segmenter_model=config.segmenter_model,
        overwrite=config.overwrite,
    )
    user_masks = mask_folder(config.instance_data_dir, config.mask_dir)
    folders = (user_masks, made) if config.resume_from_checkpoint else (user_masks,)

    photos = Path(config.instance_data_dir)
    make_masks(
        photos,
        settings,
        made,
        word=config.class_word,
        given=folders,
        device=device,
        quiet=True,  # load_subject warns of the same
    )


def _load_class_images(config: TrainConfig, base: Base, accelerator: Accelerator) -> Tensor | None:
    """The class images (m,3,R,R) in [-1,1], made first where missing; None without."""
    if not config.needs_class_images:
        return None

    quiet = not accelerator.is_main_process
    with accelerator.main_process_first(), accelerator.autocast():
        return class_images(base, config, accelerator.device, quiet=quiet)


def _warn_of_coverage(config: TrainConfig, latents: Latents) -> None:
    share = float(coverage(latents.noise_masks).mean())
    if config.masking != "none" and share > MOST_COVERAGE:
        print(
            f"warning: the dilated masks cover {share:.0%} of the picture: "
            "masking does nothing; lower --mask_dilation"
        )


def build_model(
    config: TrainConfig, base: Base, accelerator: Accelerator, kind: type[Customized] = EqDiff
) -> Customized:
    """`new_model` on the run's device, frozen weights in the precision of the run.

    The model is cast on the CPU: two UNets in full precision would fill an 8 GB card before the
    first step.

    Raises UserError if the settings name no layer of this base, or its class word has no tokens.
    """
    model = new_model(config, base, kind)
    if accelerator.device.type == "cuda":
        model.to_dtype(PRECISIONS[accelerator.mixed_precision])
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    return model.to(accelerator.device)


def leave_cudnn_attention() -> None:
    """Makes torch take its other attention kernels in this process.

    On an H200 with torch 2.11 trainings in bf16 ended with NaN gradients or an illegal memory
    access, and in fp32, which cuDNN's attention does not serve, none did. Others found its backward
    pass at fault there (pytorch issue 196678); that this mends ours no GPU has shown yet. Call it
    once CUDA is in use: before, torch may forget it.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def make_optimizer(
    model: Customized, config: Optimization, aids: Mapping[str, nn.Parameter] = MappingProxyType({})
) -> torch.optim.Optimizer:
    """AdamW over the one list of concept parameters, the token rows in a group of their own.

    So are the RRA layers, where their rate is another. aids: see `Objective.make_aids`; they are a
    group too.
    """
    named = model.concept_parameters()
    in_rra = tuple(f"unet.{site}." for site in model.sites) if config.rra_rate != 1 else ()
    tokens = [p for name, p in named.items() if name.startswith("tokens.")]
    rra = [p for name, p in named.items() if name.startswith(in_rra)]
    others = [p for name, p in named.items() if not name.startswith(("tokens.", *in_rra))]

    groups = [
        {
            "params": others,
            "flag": "--learning_rate",
            "lr": config.learning_rate,
            "weight_decay": config.adam_weight_decay,
        },
        {
            "params": tokens,
            "flag": "--token_learning_rate",
            "lr": config.token_learning_rate,
            "weight_decay": config.token_weight_decay,
        },
    ]
    if rra:
        own = {"flag": "--rra_rate", "lr": config.rra_rate * config.learning_rate}
        groups.append({"params": rra, **own, "weight_decay": config.adam_weight_decay})
    if aids:
        own = {"flag": "--context_rate", "lr": config.context_rate * config.learning_rate}
        decay = config.token_weight_decay
        groups.append({"params": list(aids.values()), **own, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)
