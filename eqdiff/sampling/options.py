"""The options of a sampling run, from its settings: what works over the concept of any method."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from eqdiff.sampler import SamplingOption
from eqdiff.sampling.alignit import AlignIT
from eqdiff.sampling.dci import DCI
from eqdiff.sampling.dreammatcher import DreamMatcher
from eqdiff.sampling.freecustom import FreeCustom
from eqdiff.settings.sample import SampleConfig
from eqdiff.settings.sampling import OPTIONS

KINDS: dict[str, type[SamplingOption]] = {
    "dci": DCI,
    "dreammatcher": DreamMatcher,
    "freecustom": FreeCustom,
    "alignit": AlignIT,
}


def options_of(config: SampleConfig) -> tuple[SamplingOption, ...]:
    """The options that the settings turn on."""
    return tuple(
        KINDS[name](**{field: getattr(config, setting) for field, setting in fields.items()})
        for name, fields in OPTIONS.items()
        if getattr(config, name)
    )


def option_facts(options: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The options as they stand in a line of the manifest, by name."""
    return {type(option).__name__.lower(): dataclasses.asdict(option) for option in options}
