"""The processes of a run and their device, by accelerate: its settings are ours alone.

accelerate follows about a hundred environment variables, which `accelerate launch`, a container or
a forgotten export may have set: gradients summed over several steps, another precision, compiled
blocks. A concept would change without a word. So those that say which device is used are followed,
and no others.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator

from eqdiff.errors import require

LOG = logging.getLogger(__name__)
PREFIXES = ("ACCELERATE_", "FSDP_", "FP8_", "PARALLELISM_CONFIG_", "MEGATRON_LM_")
OF_THE_DEVICE = (
    "ACCELERATE_USE_CPU",
    "ACCELERATE_TORCH_DEVICE",
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_BYPASS_DEVICE_MAP",
)
NEUTRAL = ("", "no", "none", "false", "0", "1", "default")  # nobody notices that these are ignored


def join_processes(mixed_precision: str = "no", **options: Any) -> Accelerator:
    """This process among those of its run. options: further arguments of `Accelerator`.

    Raises UserError unless as many processes run together as were started.
    """
    with _without_settings():
        accelerator = Accelerator(mixed_precision=mixed_precision, **options)

    started = int(os.environ.get("WORLD_SIZE", 1))
    running = accelerator.num_processes
    require(
        running == started,
        f"{started} processes were started but {running} run together; see README",
    )
    return accelerator


@contextmanager
def _without_settings() -> Iterator[None]:
    """Hides accelerate's settings in the environment. A warning names those that say something."""
    hidden = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PREFIXES) and name not in OF_THE_DEVICE
    }
    telling = [f"{name}={value}" for name, value in hidden.items() if value.lower() not in NEUTRAL]
    if telling and os.environ.get("RANK", "0") == "0":
        LOG.warning("ignored in the environment: %s; use flags instead", ", ".join(telling))

    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
