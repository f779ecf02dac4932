"""A Stable Diffusion 1.x with tiny random weights and a subject's folder, made on the spot: for
tests and the soak."""

import json
import math
import shutil
from pathlib import Path

import torch
from PIL import Image, ImageDraw

# Each is one token of the tiny vocabulary, as in CLIP's; any other word falls into several.
WORDS = """
a an the of in on at to for with by and or is as from under over near behind beside between inside
outside through up down photo photograph picture image painting drawing sketch portrait print
poster sculpture statue figure icon logo mosaic watercolor oil acrylic pencil charcoal ink chalk
pastel crayon pixel cartoon comic anime manga style art artwork vintage modern abstract realistic
colorful bright dark soft sharp simple detailed flat glossy matte wooden metal plastic glass stone
paper clay felt knitted woven shiny rusty old new small large tiny big huge very far away close
near one two three cat dog toy bird fish horse bear rabbit duck mouse owl fox lion tiger cow sheep
pig frog snail animal pet creature can cup mug bowl vase teapot bottle jar box bag backpack shoe
boot hat clock lamp chair table sofa bed book candle robot car truck bus bike boat ship plane
train house castle tower bridge tree flower plant leaf mushroom fruit apple pear berry cake bread
food object thing subject person man woman child face hand red orange yellow green blue purple
pink brown black white grey gold silver striped spotted plain beach snow jungle forest mountain
desert city street road river lake sea ocean sky cloud sun moon star night day sunset sunrise rain
storm field garden park grass sand water floor wall room kitchen window door background scene
wearing holding sitting standing lying running jumping sleeping floating flying swimming eating
playing seen shown made van gogh monet picasso rembrandt famous master artist gallery museum shop
market winter summer spring autumn ktn
""".split()


def _write_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer's files; vocabulary in CLIP's order: bytes, bytes that end a word, merges,
    special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    last_bytes = [f"{byte}</w>" for byte in alphabet]
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        initial_alphabet=alphabet,
        special_tokens=last_bytes,  # numbers them: ties between merges then fall alike in every run
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator([" ".join(WORDS)], trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    pieces = alphabet + last_bytes + ["".join(merge) for merge in merges]
    vocab = {
        piece: i
        for i, piece in enumerate(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    }
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    specials = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>")
    specials |= dict(unk_token="<|endoftext|>", pad_token="<|endoftext|>")
    config = dict(specials, model_max_length=77, tokenizer_class="CLIPTokenizer")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _tiny_unet() -> torch.nn.Module:
    """SD 1.x's arrangement with one layer fewer in each block: self-attention at 3 + 1 + 6 places,
    7 of them in the middle and on the way up."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=2,  # the number of heads, as in SD 1.x's config
        cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )


def _tiny_vae() -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),  # four levels: 8 pixels to a latent cell
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=0.18215,
    )


def make_base(folder: Path) -> Path:
    """Writes a Stable Diffusion 1.x in diffusers layout: 64 pixels, 8x8 latents, text width 32,
    seeded weights."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    _write_tokenizer(folder / "words")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "words")
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules = dict(vae=_tiny_vae(), text_encoder=CLIPTextModel(text_config), unet=_tiny_unet())
    pipeline = StableDiffusionPipeline(
        **modules,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "tiny")
    return folder / "tiny"


def make_judges(folder: Path, base: Path, side: int = 32) -> tuple[Path, Path]:
    """Writes a CLIP and a ViT with small random weights that see `side` pixels: their folders."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    seen = dict(image_size=side, patch_size=8)
    words = dict(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        clip = CLIPModel(
            CLIPConfig(text_config=sizes | words, vision_config=sizes | seen, projection_dim=24)
        )
        vit = ViTModel(ViTConfig(**sizes, **seen), add_pooling_layer=False)
        for model in (clip, vit):  # far enough from zero that pictures differ
            for weight in model.parameters():
                weight.data.add_(0.1 * torch.randn_like(weight))
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    vit.save_pretrained(folder / "dino")
    return folder / "clip", folder / "dino"


def only_configuration(base: Path, folder: Path) -> Path:
    """A copy of a base without its weights."""
    weights = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(base, folder, ignore=weights))


def _photo(size: tuple[int, int], angle: float) -> tuple[Image.Image, Image.Image]:
    """A striped disc on a gradient, and its mask."""
    width, height = size
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    mask = Image.new("L", size, 0)
    x, y, r = width / 2 + 6 * math.cos(angle), height / 2 + 6 * math.sin(angle), min(size) / 4
    disc = (x - r, y - r, x + r, y + r)
    draw = ImageDraw.Draw(image)
    draw.ellipse(disc, fill=(200, 60, 40))
    draw.pieslice(disc, math.degrees(angle), math.degrees(angle) + 70, fill=(40, 80, 220))
    ImageDraw.Draw(mask).ellipse(disc, fill=255)
    return image, mask


def make_subject(folder: Path) -> Path:
    """Writes four small photos, 00.jpg to 03.jpg, none square, with masks/00.png to
    masks/03.png.
    """
    (folder / "masks").mkdir(parents=True)
    for i, size in enumerate([(96, 72), (72, 96), (120, 80), (80, 100)]):
        image, mask = _photo(size, angle=1.3 * i)
        image.save(folder / f"{i:02}.jpg", quality=95)
        mask.save(folder / "masks" / f"{i:02}.png")
    return folder
