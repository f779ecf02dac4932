"""The methods and the tables, as data: another method is one row of METHODS.

A method is flags of train_eqdiff.py and test_eqdiff.py. Two names with equal flags are one
training: Custom Diffusion of Table 1 is A of Fig. 7, and the full method stands in all three.
"""

from studies.reproduce import questions
from studies.reproduce.paper import PAPER, PAPER_TABLE1
from studies.reproduce.search import LOSS, UNMASKED
from studies.reproduce.search import NOISE as FULL
from studies.reproduce.study import Method, Table

TRADE_OFF = "dino_i x text"
OFF = (*UNMASKED, "--no-rra", "--no-fdte")
BASELINES = questions.BASELINES
STRENGTHS = ("-1", "0.5", "1", "2")  # of DCI
LONGER = ("-1", "1", "2")  # of DCI in half of the schedule
# a step as large as ours, pictures drawn like ours: what the methods' own papers have otherwise
LIKE_OURS = ("--train_batch_size", "2", "--guidance_scale", "12.5")


def _ours(*train: str) -> Method:
    """A row of the paper's own; on the toybox at the rates that led there with K/V."""
    return Method(train, toy=questions.RATES)


def _bands(low: str, high: str, full: str) -> Method:
    return _ours(*FULL, "--band_probs", low, high, full)


RATE, TOKEN_RATE = "--learning_rate", "--token_learning_rate"
# name, its flags, the rates that are set to one value, the values
SEARCHED: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    ("EqDiff", FULL, (RATE,), ("5e-4", "1e-3", "2e-3")),  # the tokens' is the preset's
    (
        "Textual Inversion",
        ("--method", "textual_inversion"),
        (TOKEN_RATE,),
        ("5e-3", "2e-2", "5e-2"),
    ),
    ("DreamBooth", ("--method", "dreambooth"), (RATE,), ("1e-4", "3e-4", "6e-4", "1.2e-3")),
    (
        "Custom Diffusion",
        ("--method", "custom_diffusion"),
        (RATE, TOKEN_RATE),
        ("1e-3", "2e-3", "4e-3"),
    ),
    ("Infusion", ("--method", "infusion"), (RATE,), ("3e-3", "1e-2", "3e-2", "1e-1", "3e-1", "1")),
    ("ICO", ("--method", "ico"), (RATE, TOKEN_RATE), ("1e-3", "2e-3", "4e-3", "8e-3")),
)


def _dreammatcher(name: str) -> str:
    return f"{name}, DreamMatcher"


def _dci(strength: str) -> str:
    return f"ICO, DCI {strength}"


def _without_masks(name: str) -> str:
    return f"{_dreammatcher(name)} without masks"


# The paper says nothing of its baselines' settings. Ours on Stable Diffusion (`real`) are the
# usual ones of diffusers' examples, but for Custom Diffusion, which is the paper's own A.
METHODS: dict[str, Method] = {
    "EqDiff": _ours(*FULL),
    "Textual Inversion": Method(
        ("--method", "textual_inversion"),
        real=(*LIKE_OURS, "--max_train_steps", "3000", "--token_learning_rate", "5e-4"),
    ),
    "DreamBooth": Method(
        ("--method", "dreambooth"),
        real=(*LIKE_OURS, "--learning_rate", "5e-6", "--max_train_steps", "800"),
    ),
    # the later --method counts: on a base of one's own it is A of Fig. 7, since the paper has the
    # same figures for the two
    "Custom Diffusion": Method(("--method", "custom_diffusion"), real=("--method", "eqdiff", *OFF)),
    "A": _ours(*OFF),
    "B": _ours(*UNMASKED, "--no-fdte", "--ra_loss_weight", "0"),
    "C": _ours(*UNMASKED, "--no-fdte"),
    "D": _ours(*UNMASKED),
    "E": _ours(*LOSS),
    "F": _ours(*FULL),
    "0.1 0.1 0.8": _ours(*FULL),
    "0 0 1": _bands("0", "0", "1"),
    "0.3 0.3 0.4": _bands("0.3", "0.3", "0.4"),
    "0.5 0.5 0": _bands("0.5", "0.5", "0"),
    "0.3 0.1 0.6": _bands("0.3", "0.1", "0.6"),
    "0.1 0.3 0.6": _bands("0.1", "0.3", "0.6"),
    # the siblings, at their own settings, and what acts while a picture is drawn
    "Infusion": Method(("--method", "infusion")),
    "ICO": Method(("--method", "ico")),
    **{
        _dci(strength): Method(("--method", "ico"), draw=("--dci", "--dci_lambda", strength))
        for strength in STRENGTHS
    },
    **{
        f"{_dci(strength)} in half": Method(
            ("--method", "ico"), draw=("--dci", "--dci_share", "0.5", "--dci_lambda", strength)
        )
        for strength in LONGER
    },
    # what plain sampling trades between text and identity, to be compared with DCI's strengths
    **{
        f"ICO, guidance {scale}": Method(("--method", "ico"), draw=("--guidance_scale", scale))
        for scale in questions.GUIDANCES
    },
    **{
        named(name): Method(("--method", method), draw=("--dreammatcher", *words))
        for named, words in ((_dreammatcher, ()), (_without_masks, ("--no-dreammatcher_masks",)))
        for name, method in zip(
            BASELINES, ("textual_inversion", "dreambooth", "custom_diffusion"), strict=True
        )
    },
    # the rates among which each method's own was chosen, on dev subjects
    **{
        f"{name}, {rate}": Method((*words, *(word for flag in flags for word in (flag, rate))))
        for name, words, flags, rates in SEARCHED
        for rate in rates
    },
    **questions.METHODS,
}
BANDS = tuple(name for name in METHODS if name[0].isdigit())
DCIS = tuple(name for name in METHODS if name.startswith("ICO, DCI"))
PLAIN = tuple(name for name in METHODS if name.startswith("ICO, guidance"))


TABLES: dict[str, Table] = {
    "table1": Table(
        "Table 1",
        ("EqDiff", *BASELINES),
        "EqDiff",
        PAPER_TABLE1,
    ),
    "fig7": Table("Fig. 7", tuple("ABCDEF"), "F", PAPER),
    # the paper draws Fig. 9 and prints no figure of it: it says that .1 .1 .8 is best
    "fig9": Table(
        "Fig. 9",
        BANDS,
        "0.1 0.1 0.8",
        directions=tuple(("0.1 0.1 0.8", name, "all", TRADE_OFF) for name in BANDS[1:]),
    ),
    # what the siblings' papers claim
    "methods": Table(
        "The methods",
        ("EqDiff", *BASELINES, "Infusion", "ICO", *map(_dci, STRENGTHS))
        + (*map(_dreammatcher, BASELINES), *map(_without_masks, BASELINES)),
        "EqDiff",
        directions=(
            *((_dreammatcher(name), name, "plain", "dino_i") for name in BASELINES),
            *((name, _dreammatcher(name), "style", "clip_t") for name in BASELINES),
            *((_dreammatcher(name), name, "all", "clip_t") for name in BASELINES),
            *((_dreammatcher(name), name, "all", "identity") for name in BASELINES),
            *((_dreammatcher(name), _without_masks(name), "all", "clip_t") for name in BASELINES),
            *((_without_masks(name), _dreammatcher(name), "all", "dino_i") for name in BASELINES),
            ("ICO", "Custom Diffusion", "all", "clip_t"),
            ("ICO", "Custom Diffusion", "all", "dino_i"),
            ("ICO, DCI 2", "ICO", "all", "clip_t"),
            ("ICO", "ICO, DCI 2", "all", "dino_i"),
            ("Infusion", "Custom Diffusion", "all", "clip_t"),
            ("EqDiff", "Infusion", "all", "dino_i"),  # our guess: 16 vectors carry no texture
        ),
    ),
    # does DCI reach what plain sampling does not? `front.py` compares its points with that curve
    "front": Table("DCI and plain sampling", ("ICO", *PLAIN, *DCIS), "ICO", dev=True, toybox=True),
    "rates": Table(
        "The rates, on dev subjects",
        tuple(f"{name}, {rate}" for name, _, _, rates in SEARCHED for rate in rates),
        "EqDiff, 1e-3",
        dev=True,
        toybox=True,
    ),
    **questions.TABLES,
}
PAPER_TABLES = ("table1", "fig7", "fig9")
