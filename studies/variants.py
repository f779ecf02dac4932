"""What the studies compare: data. A variant is flags of train_eqdiff.py; equal flags are trained once for all."""

from dataclasses import dataclass, field
from typing import Literal

from toybox.captions import plain_caption
from toybox.instances import CLASS_NAMES
from toybox.world import CONTEXT_NAMES, STYLE_NAMES

OFF = ("--no-rra", "--no-fdte", "--masking", "none")
INVERSION = (*OFF, "--unet_weights", "none", "--no-with_prior_preservation", "--max_train_steps", "600")
DREAMBOOTH = (*OFF, "--unet_weights", "all", "--token_init", "rare", "--token_learning_rate", "0")
LIGHT = ("--num_class_images", "32", "--class_inference_steps", "20", "--reference_pool", "64")
# what the toybox base needs under any preset: its own size, words and levels
TOYBOX_SIZE = (
    *("--resolution", "128", "--ra_loss_layers", "up_blocks.2", "up_blocks.3", *LIGHT),
    *("--instance_prompt", "a photo of a {}", "--reference_prompt", "a photo of a {}"),
)


@dataclass(frozen=True)
class Study:
    """variants: name -> training flags, None for the drawn truth; draw: name -> arguments of the pipeline; against:
    what others are compared to; subjects of the table, seeds: trainings of each. Settings are chosen on `dev`,
    claims are measured on `test`."""

    variants: dict[str, tuple[str, ...] | None]
    against: str
    subjects: int = 4
    seeds: int = 1
    table: Literal["test", "dev"] = "test"
    draw: dict[str, dict[str, float]] = field(default_factory=dict)


def _bands(*triples: tuple[float, float, float]) -> dict[str, tuple[str, ...]]:
    return {" ".join(f"{p:g}" for p in t): ("--band_probs", *(f"{p:g}" for p in t)) for t in triples}


def _rates(rate: str) -> tuple[str, ...]:
    return ("--learning_rate", rate, "--token_learning_rate", rate)


STUDIES: dict[str, Study] = {
    # the paper's Fig. 7; the first eight subjects decide, up to 16 settle what they leave open
    "ablation": Study(
        {
            "A": OFF,
            "B": ("--no-fdte", "--masking", "none", "--ra_loss_weight", "0"),
            "C": ("--no-fdte", "--masking", "none"),
            "D": ("--masking", "none"),
            "E": ("--masking", "loss"),
            "F": ("--masking", "noise"),
            "truth": None,
        },
        against="F",
        subjects=8,
        seeds=2,
    ),
    "bands": Study(
        _bands((0.1, 0.1, 0.8), (0, 0, 1), (0.3, 0.3, 0.4), (0.5, 0.5, 0), (0.3, 0.1, 0.6), (0.1, 0.3, 0.6)),
        against="0.1 0.1 0.8",
    ),
    # the baselines, and our masked loss, at the rate that was best on dev subjects (`rates`), by identity x text
    "baselines": Study(
        {
            "EqDiff": ("--masking", "noise"),
            "EqDiff, masked loss": (),
            "EqDiff, masked loss, 1e-3": _rates("1e-3"),
            "Textual Inversion": (*INVERSION, "--token_learning_rate", "2e-2"),
            "DreamBooth": (*DREAMBOOTH, "--learning_rate", "3e-4"),
            "Custom Diffusion": (*OFF, *_rates("2e-3")),
        },
        against="EqDiff",
        subjects=8,
    ),
    "presets": Study(
        {
            "toybox": (),
            "paper": ("--preset", "paper", *TOYBOX_SIZE, "--class_prompt", "a photo of a {}"),
            "official": ("--preset", "official", *TOYBOX_SIZE),
        },
        against="toybox",
    ),
    "gate": Study({"zero": ("--gate_init", "zero"), "identity": ("--gate_init", "identity")}, against="zero"),
    "dilation": Study(
        {
            f"{masking} {n}/16": ("--masking", masking, "--mask_dilation", f"{n / 16:g}")
            for masking, sizes in (("loss", (0, 2)), ("noise", (0, 1, 2, 4)))
            for n in sizes
        },
        against="noise 0/16",
    ),
    "guidance": Study(
        {"3": (), "5": (), "7.5": (), "12.5": ()},
        against="7.5",
        draw={name: {"guidance_scale": float(name)} for name in ("3", "5", "7.5", "12.5")},
    ),
    # learning rates of what is compared, chosen before the test subjects are looked at
    "rates": Study(
        {
            **{f"TI {r}": (*INVERSION, "--token_learning_rate", r) for r in ("1e-3", "5e-3", "2e-2")},
            **{f"DB {r}": (*DREAMBOOTH, "--learning_rate", r) for r in ("2e-5", "1e-4", "3e-4", "6e-4")},
            **{f"CD {r}": (*OFF, *_rates(r)) for r in ("2e-4", "5e-4", "1e-3", "2e-3", "4e-3")},
            **{f"EqDiff {r}": _rates(r) for r in ("5e-4", "1e-3", "2e-3")},
            "EqDiff 5e-4, tokens 2.5e-4": ("--token_learning_rate", "2.5e-4"),
        },
        against="EqDiff 5e-4",
        subjects=2,
        table="dev",
    ),
    # why D's text alignment is below C's: two summed rows move twice as fast as one; the filtered photos
    "fdte": Study(
        {
            "C, one row": ("--no-fdte", "--masking", "none"),
            "D, two rows": ("--masking", "none"),
            "D at half the token rate": ("--masking", "none", "--token_learning_rate", "2.5e-4"),
            "D without filtered photos": ("--masking", "none", "--band_probs", "0", "0", "1"),
        },
        against="C, one row",
        subjects=8,
    ),
    # where the cost of masked noising sits: in RRA, or in the K/V weights and the tokens
    "noise": Study(
        {
            f"{masking}{how}": ("--masking", masking, *flags)
            for masking in ("loss", "noise")
            for how, flags in (("", ()), (", drawn without RRA", ()), (", trained without RRA", ("--no-rra",)))
        },
        against="noise",
        subjects=8,
        draw={f"{masking}, drawn without RRA": {"rra": 0} for masking in ("loss", "noise")},
    ),
    # how fast masked training may go before it spoils what lies outside the mask
    "masking": Study(
        {
            f"{masking} {rate}": ("--masking", masking, *_rates(rate))
            for rate in ("1e-4", "2e-4", "5e-4")
            for masking in ("none", "loss", "noise")
        },
        against="loss 5e-4",
        subjects=2,
        table="dev",
    ),
}


@dataclass(frozen=True)
class Prompt:
    """text, with {} for the subject, and what it asks for."""

    text: str
    context: str
    style: str

    @property
    def kind(self) -> str:
        return "plain" if self.style == "photo" else "style"


def prompts() -> list[Prompt]:
    """12 plain prompts, every place and two of them in other words, and 12 stylized: every style, then five again."""
    plain = [(plain_caption("{}", place, "photo"), place) for place in CONTEXT_NAMES]
    plain += [(f"photo of a {{}} {place}", place) for place in ("in the snow", "in a galaxy")]
    styles = [style for style in STYLE_NAMES if style != "photo"]
    pairs = [(styles[n % len(styles)], CONTEXT_NAMES[(3 * n + 1) % len(CONTEXT_NAMES)]) for n in range(12)]
    stylized = [(plain_caption("{}", place, style), place, style) for style, place in pairs]
    return [Prompt(text, place, "photo") for text, place in plain] + [Prompt(*found) for found in stylized]


def subjects(count: int) -> list[tuple[str, int]]:
    """(class, index in its table) of the first `count` subjects: the classes in turn."""
    return [(CLASS_NAMES[n % len(CLASS_NAMES)], n // len(CLASS_NAMES)) for n in range(count)]
