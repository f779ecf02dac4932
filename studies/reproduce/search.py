"""The search of the toybox's preset on dev subjects: one setting changed at a time, as data."""

from studies.reproduce.study import Method, Table

# what the toybox's preset has otherwise, said as the paper has it
KV = ("--unet_weights", "kv", "--train_batch_size", "2")  # K/V alone, and two photos a step
PAPERS = ("--prior_kind", "images", "--band_probs", "0.1", "0.1", "0.8", *KV)
UNMASKED = (*PAPERS, "--masking", "none")
LOSS = (*PAPERS, "--masking", "loss")
NOISE = (*PAPERS, "--masking", "noise")
WHOLE = ("--band_probs", "0", "0", "1")  # no filtered photos
PREDICTED = ("--prior_kind", "prediction")
WHOLE_UNET = ("--unet_weights", "all")
FOUR_PHOTOS = ("--train_batch_size", "4")  # a step


def rates_of(rate: str, token: str | None = None) -> tuple[str, ...]:
    """The flags of the weights' rate, and of the tokens' if that is another."""
    return ("--learning_rate", rate, "--token_learning_rate", token or rate)


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
    given += ("--guidance_scale", "3")
    return (*given, *rates_of(rate, token), *words)


SEARCH: dict[str, Method] = {
    f"{CENTRE}, rate 5e-4": Method(setting(rate="5e-4")),
    f"{CENTRE}, rate 2e-3": Method(setting(rate="2e-3")),
    "evenly": Method(setting(noisy="0")),
    "three quarters noisy": Method(setting(noisy="0.75")),
    f"{CENTRE}, 200 steps": Method(setting(steps=200)),
    f"{CENTRE}, 450 steps": Method(setting(steps=450)),
    f"{CENTRE}, cutoffs 4": Method(setting(*_cutoffs("4"))),
    f"{CENTRE}, cutoffs 12": Method(setting(*_cutoffs("12"))),
    f"{CENTRE}, coarse RRA": Method(
        setting("--rra_layers", "mid_block", "up_blocks.1", "up_blocks.2")
    ),
    **{
        f"{CENTRE}, guidance {scale}": Method(setting(), draw=("--guidance_scale", scale))
        for scale in ("2", "5", "7.5", "12.5")
    },
    f"{CENTRE}, no filtered photos": Method(setting(*WHOLE)),
    f"{CENTRE}, no FDTE": Method(setting("--no-fdte")),
    f"{CENTRE}, predictions": Method(setting(*PREDICTED)),
}
# those that led on two dev subjects, and what led put together, on four
RIVALS: dict[str, Method] = {
    CENTRE: Method(setting()),
    **{name: SEARCH[name] for name in (f"{CENTRE}, rate 2e-3", f"{CENTRE}, 450 steps", "evenly")},
    "evenly, 450 steps": Method(setting(noisy="0", steps=450)),
}

METHODS: dict[str, Method] = {**SEARCH, **RIVALS}


def _searched(title: str, methods: tuple[str, ...]) -> Table:
    return Table(title, methods, CENTRE, dev=True, toybox=True)


TABLES: dict[str, Table] = {
    "search": _searched("The preset's neighbours", (CENTRE, *SEARCH)),
    "rivals": _searched("The preset's rivals", tuple(RIVALS)),
}
