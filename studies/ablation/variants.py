"""What the studies compare. A variant is flags of train_eqdiff.py.

Equal flags are trained once for all studies.
"""

from dataclasses import dataclass, field
from typing import Literal

from toybox.captions import plain_caption
from toybox.instances import CLASS_NAMES
from toybox.world import CONTEXT_NAMES, STYLE_NAMES

OFF = ("--no-rra", "--no-fdte", "--masking", "none")
INVERSION = ("--method", "textual_inversion")
DREAMBOOTH = ("--method", "dreambooth")
LIGHT = ("--num_class_images", "32", "--class_inference_steps", "20", "--reference_pool", "64")
# what the toybox base needs under any preset: its own size, words and levels
TOYBOX_SIZE = (
    *("--resolution", "128", "--ra_loss_layers", "up_blocks.2", "up_blocks.3", *LIGHT),
    *("--instance_prompt", "a photo of a {}", "--reference_prompt", "a photo of a {}"),
)


@dataclass(frozen=True)
class Study:
    """What a study compares, and on how many subjects."""

    variants: dict[str, tuple[str, ...] | None]
    """name -> flags of a training; None: the truth, drawn by the toybox"""
    against: str
    """the variant that the others are compared with"""
    subjects: int = 4
    """how many subjects of the table, from its start"""
    seeds: int = 1
    """how many trainings of each subject and variant"""
    table: Literal["test", "dev"] = "test"
    """settings are chosen on dev, claims are measured on test"""
    draw: dict[str, dict[str, float]] = field(default_factory=dict)
    """name -> arguments of the pipeline, where they are not the preset's"""


def _bands(*triples: tuple[float, float, float]) -> dict[str, tuple[str, ...]]:
    words = [tuple(f"{share:g}" for share in triple) for triple in triples]
    return {" ".join(shares): ("--band_probs", *shares) for shares in words}


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
        _bands(
            (0.1, 0.1, 0.8),
            (0, 0, 1),
            (0.3, 0.3, 0.4),
            (0.5, 0.5, 0),
            (0.3, 0.1, 0.6),
            (0.1, 0.3, 0.6),
        ),
        against="0.1 0.1 0.8",
    ),
    # the baselines, and our masked loss, each at the rate that was best on dev subjects by
    # identity x text (`scripts/reproduce.sh --tables rates --toybox_table dev`)
    "baselines": Study(
        {
            "EqDiff": ("--masking", "noise"),
            "EqDiff, masked loss": (),
            "EqDiff, masked loss, 1e-3": _rates("1e-3"),
            "Textual Inversion": INVERSION,
            "DreamBooth": DREAMBOOTH,
            "Custom Diffusion": ("--method", "custom_diffusion"),
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
    "gate": Study(
        {"zero": ("--gate_init", "zero"), "identity": ("--gate_init", "identity")}, against="zero"
    ),
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
    # the preset toybox and one setting at a time changed; the best becomes the next centre,
    # as long as something is better
    "search": Study(
        {
            "centre": (),
            "rate 5e-4": _rates("5e-4"),
            "rate 2e-3": _rates("2e-3"),
            "high 0": ("--high_noise_share", "0"),
            "high .75": ("--high_noise_share", "0.75"),
            "steps 200": ("--max_train_steps", "200"),
            "steps 450": ("--max_train_steps", "450"),
            "masked noising": ("--masking", "noise"),
            "no mask": ("--masking", "none"),
            "cutoffs 4": ("--low_cutoff", "4", "--high_cutoff", "4"),
            "cutoffs 12": ("--low_cutoff", "12", "--high_cutoff", "12"),
            "RRA, coarse levels": ("--rra_layers", "mid_block", "up_blocks.1", "up_blocks.2"),
            "guidance 5": (),
            "guidance 7.5": (),
        },
        against="centre",
        table="dev",
        draw={
            name: {"guidance_scale": float(name.split()[1])}
            for name in ("guidance 5", "guidance 7.5")
        },
    ),
    # two reasons why D's text alignment may be below C's: two summed rows move twice as fast as
    # one, and the filtered photos
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
            f"{masking}{change}": ("--masking", masking, *flags)
            for masking in ("loss", "noise")
            for change, flags in (
                ("", ()),
                (", drawn without RRA", ()),
                (", trained without RRA", ("--no-rra",)),
            )
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
    """A prompt, with {} for the subject, and the place and style that it names."""

    text: str
    context: str
    style: str

    @property
    def kind(self) -> str:
        return "plain" if self.style == "photo" else "style"


def prompts() -> list[Prompt]:
    """12 plain prompts and 12 stylized ones.

    The plain ones name every place, two of them again in other words; the stylized ones name every
    style, five of them again.
    """
    plain = [Prompt(plain_caption("{}", place, "photo"), place, "photo") for place in CONTEXT_NAMES]
    plain += [
        Prompt(f"photo of a {{}} {place}", place, "photo")
        for place in ("in the snow", "in a galaxy")
    ]

    styles = [style for style in STYLE_NAMES if style != "photo"]
    stylized = []
    for number in range(12):
        style = styles[number % len(styles)]
        place = CONTEXT_NAMES[(3 * number + 1) % len(CONTEXT_NAMES)]
        stylized.append(Prompt(plain_caption("{}", place, style), place, style))
    return plain + stylized


def subjects(count: int) -> list[tuple[str, int]]:
    """(class, index in its table) of the first `count` subjects: the classes in turn."""
    classes = len(CLASS_NAMES)
    return [(CLASS_NAMES[n % classes], n // classes) for n in range(count)]
