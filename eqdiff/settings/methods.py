"""The methods beside EqDiff as data: which of its settings each of them changes, in which preset.

Custom Diffusion, DreamBooth and Textual Inversion are EqDiff's trainer with parts of it off. Their
preset `paper` has their papers' numbers, as far as they say them: batch, rate, steps, guidance.
`toybox` has the rates that were best by identity x text on two dev subjects
(`scripts/reproduce.sh --tables rates --toybox_table dev`, docs/methods.md). Only methods
whose release does other things than its paper have a preset `official`.
"""

from typing import Any

OFF: dict[str, Any] = {"rra": False, "fdte": False, "masking": "none"}  # the parts of EqDiff

# of arXiv 2212.04488 (rate 1e-5 times the batch), without its resizing and its size words
CUSTOM_DIFFUSION = {
    "paper": {
        **OFF, "token_init": "rare", "train_batch_size": 8, "max_train_steps": 250,
        "learning_rate": 8e-5, "token_learning_rate": 8e-5, "guidance_scale": 6.0,
    },
    "toybox": {**OFF, "unet_weights": "kv", "learning_rate": 2e-3, "token_learning_rate": 2e-3},
}  # fmt: skip

# of arXiv 2208.12242 (for Stable Diffusion: 5e-6 and 1000 steps), with the text encoder frozen
_DREAMBOOTH = {**OFF, "unet_weights": "all", "token_init": "rare", "token_learning_rate": 0.0}
DREAMBOOTH = {
    "paper": {
        **_DREAMBOOTH, "train_batch_size": 1, "max_train_steps": 1000, "learning_rate": 5e-6,
        "guidance_scale": 7.5,
    },
    "toybox": {**_DREAMBOOTH, "learning_rate": 6e-4},
}  # fmt: skip

# of arXiv 2208.01618 (0.005 times a batch of 8), with the class word behind the token
_INVERSION = {**OFF, "unet_weights": "none", "with_prior_preservation": False}
TEXTUAL_INVERSION = {
    "paper": {
        **_INVERSION, "train_batch_size": 8, "max_train_steps": 5000, "token_learning_rate": 0.04,
        "guidance_scale": 7.5,
    },
    "toybox": {**_INVERSION, "max_train_steps": 600, "token_learning_rate": 2e-2},
}  # fmt: skip

# of the release (arXiv 2404.14007 has no settings that we could read), without its templates and
# flips, and on the photos' own masks in place of CLIPSeg's
_INFUSION = {
    **OFF, "unet_weights": "none", "with_prior_preservation": False, "masking": "loss",
    "binary_masks": False,
}  # fmt: skip
_INFUSION_RATES = {
    "learning_rate": 0.01, "train_batch_size": 4, "gradient_accumulation_steps": 4,
    "max_train_steps": 500, "guidance_scale": 8.0,
}  # fmt: skip
INFUSION = {
    "paper": {**_INFUSION, **_INFUSION_RATES, "infusion_streams": "dual"},
    "official": {
        **_INFUSION, **_INFUSION_RATES, "infusion_streams": "single", "infusion_keys": True,
        "concept_dtype": "fp16",
    },
    "toybox": {**_INFUSION, "infusion_streams": "single", "learning_rate": 0.3},
}  # fmt: skip

# of the release of arXiv 2412.04831 (rate 1e-5 times 3 GPUs times a batch of 2)
_ICO = {
    **OFF, "token_init": "rare", "instance_prompt": "photo of a {} .",
    "learning_rate": 6e-5, "token_learning_rate": 6e-5, "context_rate": 10.0,
    "train_batch_size": 6, "max_train_steps": 900, "guidance_scale": 6.0,
}  # fmt: skip
ICO = {
    "paper": {**_ICO, "task_tokens": 2},
    "official": {
        **_ICO, "task_tokens": 3, "context_positions": "release", "token_weight_decay": 0.01,
    },
    # the captions of the toybox have no full stop; contexts that move 10 times as fast learn there
    # what the subject should (docs/methods.md)
    "toybox": {
        **OFF, "unet_weights": "kv", "task_tokens": 2, "context_rate": 1.0,
        "learning_rate": 4e-3, "token_learning_rate": 4e-3,
    },
}  # fmt: skip

OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "custom_diffusion": CUSTOM_DIFFUSION,
    "dreambooth": DREAMBOOTH,
    "textual_inversion": TEXTUAL_INVERSION,
    "infusion": INFUSION,
    "ico": ICO,
}
