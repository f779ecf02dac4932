"""The search of the toybox's preset on dev subjects: one setting changed at a time, as data."""

from studies.reproduce.study import Method, Table

LOSS = ("--masking", "loss")
GUIDANCES = ("2", "5", "7.5", "12.5")  # the preset has 3


def rates_of(rate: str) -> tuple[str, ...]:
    """The flags of one rate for weights and tokens."""
    return ("--learning_rate", rate, "--token_learning_rate", rate)


def _cutoffs(side: str) -> tuple[str, ...]:
    return ("--low_cutoff", side, "--high_cutoff", side)


# One setting of a centre changed; the best becomes the next centre, while something is better. The
# first centre has half of its timesteps noisy, 300 steps and one rate; each says so, whatever the
# preset has.
HALF, SHORT = ("--high_noise_share", "0.5"), ("--max_train_steps", "300")
CENTRE = "half noisy"


def _near(
    *words: str,
    noisy: tuple[str, ...] = HALF,
    steps: tuple[str, ...] = SHORT,
    rate: str = "1e-3",
    draw: tuple[str, ...] = (),
) -> Method:
    return Method((*LOSS, *noisy, *steps, *rates_of(rate), *words), draw=draw)


LONG, EVEN = ("--max_train_steps", "450"), ("--high_noise_share", "0")
SEARCH: dict[str, Method] = {
    f"{CENTRE}, rate 5e-4": _near(rate="5e-4"),
    f"{CENTRE}, rate 2e-3": _near(rate="2e-3"),
    "evenly": _near(noisy=EVEN),
    "three quarters noisy": _near(noisy=("--high_noise_share", "0.75")),
    f"{CENTRE}, 200 steps": _near(steps=("--max_train_steps", "200")),
    f"{CENTRE}, 450 steps": _near(steps=LONG),
    f"{CENTRE}, cutoffs 4": _near(*_cutoffs("4")),
    f"{CENTRE}, cutoffs 12": _near(*_cutoffs("12")),
    f"{CENTRE}, coarse RRA": _near("--rra_layers", "mid_block", "up_blocks.1", "up_blocks.2"),
    **{
        f"{CENTRE}, guidance {scale}": _near(draw=("--guidance_scale", scale))
        for scale in GUIDANCES
    },
    f"{CENTRE}, no filtered photos": _near("--band_probs", "0", "0", "1"),
    f"{CENTRE}, no FDTE": _near("--no-fdte"),
    f"{CENTRE}, predictions": _near("--prior_kind", "prediction"),
}
# those that led on two dev subjects, and what led put together, on four
RIVALS: dict[str, Method] = {
    CENTRE: _near(),
    **{name: SEARCH[name] for name in (f"{CENTRE}, rate 2e-3", f"{CENTRE}, 450 steps", "evenly")},
    "evenly, 450 steps": _near(noisy=EVEN, steps=LONG),
}

METHODS: dict[str, Method] = {**SEARCH, **RIVALS}


def _searched(title: str, methods: tuple[str, ...]) -> Table:
    return Table(title, methods, CENTRE, dev=True, toybox=True)


TABLES: dict[str, Table] = {
    "search": _searched("The preset's neighbours", (CENTRE, *SEARCH)),
    "rivals": _searched("The preset's rivals", tuple(RIVALS)),
}
