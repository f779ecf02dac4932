"""What else is asked of the toybox: one thing changed at a time, as data.

E and all that is made of it train K/V, with class images, filtered photos and two photos a step, as
in the paper, at the rates that led so (how they were found is in `search.py`). The preset toybox
has none of the four; it is PRESET. Equal flags are one training, whatever the name.
"""

from studies.reproduce import search
from studies.reproduce.search import FOUR_PHOTOS, PREDICTED, WHOLE, WHOLE_UNET, rates_of
from studies.reproduce.study import Method, Table

LIGHT = ("--num_class_images", "32", "--class_inference_steps", "20", "--reference_pool", "64")
# what the toybox base needs under any preset: its own size, words and levels
SIZE = (
    *("--resolution", "128", "--ra_loss_layers", "up_blocks.2", "up_blocks.3", *LIGHT),
    *("--instance_prompt", "a photo of a {}", "--reference_prompt", "a photo of a {}"),
)
TOKEN_RATE = "3e-3"
RATES = rates_of("1e-3", TOKEN_RATE)  # of K/V and RRA on the toybox
UNMASKED = (*search.UNMASKED, *RATES)
LOSS = (*search.LOSS, *RATES)
NOISE = (*search.NOISE, *RATES)
BASELINES = ("Textual Inversion", "DreamBooth", "Custom Diffusion")
SIBLINGS = (
    "Custom Diffusion",
    "Custom Diffusion, DreamMatcher",
    "Infusion",
    "ICO",
    "ICO, DCI 1",
)
PREDICTIONS = "E, prediction matching"
KV_PRESET = "E, predictions, no filtered photos"
PRESET = f"{KV_PRESET}, whole UNet, four photos a step"
HALF_TOKEN_RATE = ("--token_learning_rate", str(float(TOKEN_RATE) / 2))


GUIDANCES = ("3", "5", "7.5", "12.5")  # the preset has 2
GUIDED: dict[str, Method] = {
    f"E, guidance {scale}": Method(LOSS, draw=("--guidance_scale", scale)) for scale in GUIDANCES
}
# why D's text may be below C's: two summed rows move twice as fast as one, and filtered photos
BANDS: dict[str, Method] = {
    "D, half the token rate": Method((*UNMASKED, *HALF_TOKEN_RATE)),
    "D, no filtered photos": Method((*UNMASKED, *WHOLE)),
}
# what FDTE does once the loss is inside the mask
FDTES: dict[str, Method] = {
    "E, no filtered photos": Method((*LOSS, *WHOLE)),
    "E, no FDTE": Method((*LOSS, "--no-fdte")),
}
# where the cost of masked noising sits: in RRA, or in the K/V weights and the tokens
WITHOUT_RRA: dict[str, Method] = {
    f"{name}, {how}": Method((*masking, *train), draw=draw)
    for name, masking in (("E", LOSS), ("F", NOISE))
    for how, train, draw in (
        ("drawn without RRA", (), ("--no-rra",)),
        ("trained without RRA", ("--no-rra",), ()),
    )
}
# what training RRA buys over looking at the photo with nothing trained for it
NO_RRA = (*LOSS, "--no-rra")
FREECUSTOM = "E, FreeCustom for RRA"


def _freecustom(weight: str, *train: str, draw: tuple[str, ...] = ()) -> Method:
    """weight: a cell of the photo counts e^weight times one of the picture."""
    draw = ("--freecustom", "--freecustom_weight", weight, *draw)
    return Method((*NO_RRA, *train), draw=draw)


FOR_RRA: dict[str, Method] = {
    "E, DreamMatcher for RRA": Method(NO_RRA, draw=("--dreammatcher",)),
    FREECUSTOM: _freecustom("0"),
}
WEIGHTS: dict[str, Method] = {
    f"E, FreeCustom {weight} for RRA": _freecustom(weight) for weight in ("-1", "-2")
}
# what led on the first eight test subjects, put together; chosen among on dev subjects
COMBINED: dict[str, Method] = {
    KV_PRESET: Method((*LOSS, *PREDICTED, *WHOLE)),
    PRESET: Method(
        (*LOSS, *PREDICTED, *WHOLE, *WHOLE_UNET, *FOUR_PHOTOS, *rates_of("2e-4", TOKEN_RATE))
    ),
    "E, no FDTE, FreeCustom for RRA": _freecustom("0", "--no-fdte"),
    **WEIGHTS,
}
HALVES = ("--freecustom_halves", "both")
# Can it keep its identity and give text back? Chosen among on dev subjects: of those that lead E
# in identity, the one that loses least text.
KEPT = "E, FreeCustom at guidance 1.5 for RRA"
KEEPING: dict[str, Method] = {
    "E, FreeCustom in both halves for RRA": _freecustom("0", draw=HALVES),
    **{
        f"E, FreeCustom in {layer} for RRA": _freecustom("0", draw=("--freecustom_layers", layer))
        for layer in ("up_blocks.2", "up_blocks.3")
    },
    **{
        f"E, FreeCustom{how} at guidance {scale} for RRA": _freecustom(
            weight, draw=(*halves, "--guidance_scale", scale)
        )
        for how, weight, halves, scale in (
            ("", "0", (), "3"),
            ("", "0", (), "1.5"),
            (" -1", "-1", (), "1.5"),
            (" in both halves", "0", HALVES, "1.5"),
        )
    },
}
DILATIONS: dict[str, Method] = {
    f"{name}, dilated {cells}/16": Method((*masking, "--mask_dilation", f"{cells / 16:g}"))
    for name, masking, sizes in (("E", LOSS, (2,)), ("F", NOISE, (1, 2, 4)))
    for cells in sizes
}
GATES: dict[str, Method] = {"E, gate from 1": Method((*LOSS, "--gate_init", "identity"))}
# Stable Diffusion's presets, at the toybox's sizes
PRESETS: dict[str, Method] = {
    "preset paper": Method(("--preset", "paper", *SIZE, "--class_prompt", "a photo of a {}")),
    "preset official": Method(("--preset", "official", *SIZE)),
}

# can masked noising keep its identity and give text back? each would refute one explanation
NEARER: dict[str, Method] = {
    "F, noised below 400": Method((*NOISE, "--masked_noise_below", "0.4")),
    "F, half of the steps whole": Method((*NOISE, "--full_noise_share", "0.5")),
    "F, dilated by t": Method((*NOISE, "--mask_dilation", "0.125", "--mask_dilation_by_t")),
    **{
        f"E, background {weight}": Method((*LOSS, "--background_loss_weight", weight))
        for weight in ("0.1", "0.3")
    },
}
# what goes beyond the paper; what wins without losing text would be a preset
BEYOND: dict[str, Method] = {
    "E, AlignIT": Method(LOSS, draw=("--alignit",)),
    PREDICTIONS: Method((*LOSS, *PREDICTED)),
    "E, half the token rate": Method((*LOSS, *HALF_TOKEN_RATE)),
    **{
        f"E, reference x {strength}": Method(LOSS, draw=("--reference_strength", strength))
        for strength in ("0.5", "1.5")
    },
    "E, references in the conditional half": Method(
        LOSS, draw=("--reference_for", "conditional", "--guidance_rescale", "0.7")
    ),
    "E, light class images": Method(
        (*LOSS, "--class_scheduler", "dpm++", "--class_inference_steps", "10")
    ),
}
# What the presets have (plus on a base of one's own, toybox), and what had more identity than E on
# the base before: `again.py` asks other subjects.
WINNERS = (
    PREDICTIONS,
    PRESET,
    "E, reference x 1.5",
    "E, references in the conditional half",
)
# do ICO's contexts learn what its subject should? The release's move 10 times as fast as the rest;
# all at the rate that was best with those
CONTEXTS: dict[str, Method] = {
    f"ICO, contexts x {rate}": Method(
        ("--method", "ico", "--context_rate", rate, *rates_of("4e-3"))
    )
    for rate in ("10", "0", "1")
}
# How soon each is good. Rates are constant, so this is the longer training after so many steps.
PACED: dict[str, tuple[Method, tuple[int, ...]]] = {
    "E": (Method(LOSS), (25, 50, 100, 200)),
    FREECUSTOM: (FOR_RRA[FREECUSTOM], (25, 50, 100, 200)),
    "Custom Diffusion": (Method(("--method", "custom_diffusion")), (25, 50, 100, 200)),
    "DreamBooth": (Method(("--method", "dreambooth")), (50, 100, 200)),
    "Textual Inversion": (Method(("--method", "textual_inversion")), (50, 150, 300)),
    "Infusion": (Method(("--method", "infusion")), (50, 100, 200)),
}
PACE: dict[str, Method] = {
    f"{name}, {count} steps": Method(
        (*method.train, "--max_train_steps", str(count)), draw=method.draw
    )
    for name, (method, counts) in PACED.items()
    for count in counts
}

METHODS: dict[str, Method] = {
    **PACE,
    **CONTEXTS,
    **NEARER,
    **BEYOND,
    **search.METHODS,
    **GUIDED,
    **BANDS,
    **FDTES,
    **WITHOUT_RRA,
    **FOR_RRA,
    **COMBINED,
    **KEEPING,
    **DILATIONS,
    **GATES,
    **PRESETS,
}


def _study(title: str, methods: tuple[str, ...], against: str, dev: bool = False) -> Table:
    return Table(title, methods, against, dev=dev, toybox=True)


TABLES: dict[str, Table] = {
    # Table 1's methods beside E and the toybox's own preset
    "baselines": Table(
        "The baselines",
        ("E", "F", PRESET, *BASELINES),
        "E",
        directions=tuple(
            ("E", name, "all", metric)
            for name in BASELINES
            for metric in ("identity", "clip_t", "identity x text")
        ),
        toybox=True,
    ),
    # the siblings on test subjects, and what may stand in the place of RRA
    "siblings": Table(
        "The siblings",
        ("E", "E, trained without RRA", *FOR_RRA, *SIBLINGS),
        "E",
        directions=(
            ("E", "E, trained without RRA", "all", "identity"),
            (FREECUSTOM, "E, trained without RRA", "all", "identity"),
            ("Custom Diffusion, DreamMatcher", "Custom Diffusion", "all", "identity"),
            ("ICO, DCI 1", "ICO", "all", "clip_t"),
            ("ICO", "ICO, DCI 1", "all", "identity"),
            ("Custom Diffusion", "Infusion", "all", "identity"),
            ("Infusion", "Custom Diffusion", "all", "clip_t"),
        ),
        toybox=True,
    ),
    **search.TABLES,
    "choice": _study(
        "What led, put together",
        ("E", PREDICTIONS, *FDTES, FREECUSTOM, *COMBINED),
        "E",
        dev=True,
    ),
    "keeping": _study(
        "FreeCustom that keeps text", ("E", FREECUSTOM, *WEIGHTS, *KEEPING), "E", dev=True
    ),
    "chosen": Table(
        "What was chosen",
        ("E", "Custom Diffusion", *FDTES, FREECUSTOM, *WEIGHTS, KEPT),
        "E",
        directions=tuple(
            (method, other, kind, metric)
            for method in (FREECUSTOM, KEPT)
            for other in ("E", "Custom Diffusion")
            for kind, metric in (
                ("all", "identity"),
                ("all", "clip_t"),
                ("style", "clip_t"),
                ("all", "identity x text"),
            )
        ),
        toybox=True,
    ),
    "fdte": _study("What FDTE does to text", ("C", "D", *BANDS), "C"),
    "bands": _study("What FDTE does once the loss is masked", ("E", *FDTES), "E"),
    "nearer": _study("Masked noising, changed", ("E", "F", *NEARER), "F"),
    "beyond": _study("Beyond the paper", ("E", "F", *BEYOND), "E"),
    "plus": _study("What we recommend", ("E", *WINNERS), "E"),
    "noise": _study("What masked noising costs", ("E", "F", *WITHOUT_RRA), "F"),
    "dilation": _study("Dilated masks", ("E", "F", *DILATIONS), "F"),
    "gate": _study("The gate's start", ("E", *GATES), "E"),
    "guidance": _study("Guidance", ("E", *GUIDED), "E"),
    "pace": _study("Time to quality", (*PACED, *PACE), "Custom Diffusion"),
    "contexts": _study(
        "ICO's contexts", (*CONTEXTS, "Custom Diffusion"), "ICO, contexts x 10", dev=True
    ),
    "presets": _study("The presets", ("E", *PRESETS), "E"),
}
