"""The search of the toybox's preset on dev subjects: one setting changed at a time, as data."""

from studies.reproduce.study import Method, Table

# where the toybox's preset departs from the paper, said as the paper has it
PAPERS = ("--prior_kind", "images", "--band_probs", "0.1", "0.1", "0.8")
LOSS = (*PAPERS, "--masking", "loss")
GUIDANCES = ("2", "5", "7.5", "12.5")  # the preset has 3


def rates_of(rate: str) -> tuple[str, ...]:
    """The flags of one rate for weights and tokens."""
    return ("--learning_rate", rate, "--token_learning_rate", rate)


def _cutoffs(side: str) -> tuple[str, ...]:
    return ("--low_cutoff", side, "--high_cutoff", side)


# One setting of a centre changed; the best becomes the next centre, while something is better. The
# first centre has half of its timesteps noisy, 300 steps and one rate.
CENTRE = "half noisy"


def setting(
    *words: str, noisy: str = "0.5", steps: int = 300, rate: str = "1e-3", token: str | None = None
) -> tuple[str, ...]:
    """Flags that say all that was searched, so that a change of the preset keeps what they mean.

    noisy: share of noisy timesteps. token: the tokens' rate if it is not the weights'.
    """
    given = (*LOSS, "--high_noise_share", noisy, "--max_train_steps", str(steps))
    given += ("--learning_rate", rate, "--token_learning_rate", token or rate)
    return (*given, *words)


def _near(flags: tuple[str, ...] = setting(), draw: tuple[str, ...] = ()) -> Method:
    return Method(flags, draw=draw)


SEARCH: dict[str, Method] = {
    f"{CENTRE}, rate 5e-4": _near(setting(rate="5e-4")),
    f"{CENTRE}, rate 2e-3": _near(setting(rate="2e-3")),
    "evenly": _near(setting(noisy="0")),
    "three quarters noisy": _near(setting(noisy="0.75")),
    f"{CENTRE}, 200 steps": _near(setting(steps=200)),
    f"{CENTRE}, 450 steps": _near(setting(steps=450)),
    f"{CENTRE}, cutoffs 4": _near(setting(*_cutoffs("4"))),
    f"{CENTRE}, cutoffs 12": _near(setting(*_cutoffs("12"))),
    f"{CENTRE}, coarse RRA": _near(
        setting("--rra_layers", "mid_block", "up_blocks.1", "up_blocks.2")
    ),
    **{
        f"{CENTRE}, guidance {scale}": _near(draw=("--guidance_scale", scale))
        for scale in GUIDANCES
    },
    f"{CENTRE}, no filtered photos": _near(setting("--band_probs", "0", "0", "1")),
    f"{CENTRE}, no FDTE": _near(setting("--no-fdte")),
    f"{CENTRE}, predictions": _near(setting("--prior_kind", "prediction")),
}
# those that led on two dev subjects, and what led put together, on four
RIVALS: dict[str, Method] = {
    CENTRE: _near(),
    **{name: SEARCH[name] for name in (f"{CENTRE}, rate 2e-3", f"{CENTRE}, 450 steps", "evenly")},
    "evenly, 450 steps": _near(setting(noisy="0", steps=450)),
}

METHODS: dict[str, Method] = {**SEARCH, **RIVALS}


def _searched(title: str, methods: tuple[str, ...]) -> Table:
    return Table(title, methods, CENTRE, dev=True, toybox=True)


TABLES: dict[str, Table] = {
    "search": _searched("The preset's neighbours", (CENTRE, *SEARCH)),
    "rivals": _searched("The preset's rivals", tuple(RIVALS)),
}
