"""A Stable Diffusion in diffusers layout as one file of the original layout: the inverse of what
diffusers reads."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
VAE = {
    "conv_norm_out": "norm_out", "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "to_out.0": "proj_out",
    "to_q": "q", "to_k": "k",
    "to_v": "v", "conv_shortcut": "nin_shortcut", "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
}  # fmt: skip
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
OPEN = {
    "embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn": "attn",
}  # fmt: skip


def _replaced(key: str, table: dict[str, str]) -> str:
    """Whole dotted parts of `key`, by the table."""
    for old, new in table.items():
        key = re.sub(rf"(^|\.){re.escape(old)}(?=\.)", rf"\g<1>{new}", key)
    return key


def unet_key(key: str, has_attention: set[str], per_level: int) -> str:
    """has_attention: the up blocks with attentions, where the upsampler comes third. per_level:
    layers of a down block; an up block has one more."""
    found = re.match(
        r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", key
    )
    if found is None:
        return _replaced(
            key, UNET if not key.startswith("mid_block.resnets") else {**UNET, **RESNET}
        )
    way, level, kind, number, rest = found.groups()
    rest = _replaced(rest, RESNET) if kind == "resnets" else rest
    if kind == "downsamplers":
        number = int(level) * (per_level + 1) + per_level + 1
        return f"input_blocks.{number}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        place = 2 if level in has_attention else 1
        return f"output_blocks.{int(level) * (per_level + 1) + per_level}.{place}.{rest}"
    block = int(level) * (per_level + 1) + int(number) + (way == "down")
    side = "input" if way == "down" else "output"
    return f"{side}_blocks.{block}.{int(kind == 'attentions')}.{rest}"


def vae_key(key: str, levels: int = 4) -> str:
    key = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{levels - 1 - int(found[1])}", key)
    key = re.sub(r"down_blocks\.", "down.", key)
    return _replaced(re.sub(r"((?:up|down)\.\d)\.resnets\.", r"\1.block.", key), VAE)


def open_clip_layout(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """The text encoder of SD 2.x: one tensor for q, k and v, other names."""
    tensors = {}
    for key, x in text.items():
        if key == "embeddings.position_embedding.weight":
            tensors["positional_embedding"] = x
        elif found := re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", key):
            parts = [text[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            tensors[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[2]}"] = torch.cat(parts)
        elif not re.search(r"[kv]_proj", key):
            tensors[_replaced(key, OPEN).replace("encoder.layers.", "transformer.resblocks.")] = x
    return tensors


def original_layout(folder: Path, *, open_clip: bool = False) -> dict[str, Tensor]:
    """The tensors of a base in diffusers layout under the original's names."""
    unet, vae = (
        load_file(folder / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae")
    )
    text = load_file(folder / "text_encoder" / "model.safetensors")
    text = {key.removeprefix("text_model."): x for key, x in text.items()}
    has_attention = {
        key.split(".")[1] for key in unet if key.startswith("up_blocks") and ".attentions." in key
    }
    layers = {key.split(".")[3] for key in unet if key.startswith("down_blocks.0.resnets.")}
    tensors = {
        f"model.diffusion_model.{unet_key(key, has_attention, len(layers))}": x
        for key, x in unet.items()
    }
    for key, x in vae.items():
        linear = ".attentions." in key and "group_norm" not in key and key.endswith("weight")
        tensors[f"first_stage_model.{vae_key(key)}"] = (
            x[:, :, None, None].contiguous() if linear else x
        )
    prefix, text = (OPEN_CLIP, open_clip_layout(text)) if open_clip else (CLIP, text)
    return tensors | {prefix + key: x for key, x in text.items()}


def write_single_file(folder: Path, path: Path, **how: bool) -> Path:
    save_file(original_layout(folder, **how), path)
    return path
