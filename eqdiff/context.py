"""What one call of the UNet knows of the reference, and what its layers report (Sec. 4.3).

The attention processors of processors.py and attention.py read and write it.

Axes: B batch, S samples of it that look at the reference, Br rows of reference features, N tokens,
M tokens of one reference, C channels, h, w latent size, Ntok text tokens. Layers are named by the
keys of `unet.attn_processors`.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from eqdiff.masking import at_level


class Probe:
    """What attention layers are to report during one call of the UNet, and their reports.

    A layer that gradient checkpointing runs twice overwrites its report.
    """

    def __init__(
        self,
        *,
        mass_sites: Iterable[str] = (),
        slots: Tensor | None = None,
        slot_sites: Iterable[str] = (),
        record_gates: bool = False,
    ) -> None:
        """Which layers report what.

        mass_sites: RRA layers that report `mass`; they need the reference's mask.
        slots: (B,Ntok) bool, where the subject is in the captions.
        slot_sites: cross-attention layers that report `slot_mass`; they need `slots`.
        record_gates: whether all RRA layers report `gates`.
        """
        self.mass_sites = frozenset(mass_sites)
        self.slots = slots
        self.slot_sites = frozenset(slot_sites)
        self.record_gates = record_gates

        # reports by layer, in fp32 and [0,1]; the first two are means over heads
        self.mass: dict[str, Tensor] = {}  # (S,N), rho of Eq. 10
        self.slot_mass: dict[str, Tensor] = {}  # (B,N), attention on the slots
        self.gates: dict[str, Tensor] = {}  # (S,N), M_f of Eq. 8, detached


class ReferenceContext(Probe):
    """What to look at, who looks, and, as a `Probe`, what to report.

    It is the `reference` in a UNet call's `cross_attention_kwargs`. Opaque on purpose: FSDP copies
    dicts and dataclasses, and a report that is written into a copy is lost.
    """

    def __init__(
        self,
        features: dict[str, Tensor],
        mask: Tensor | None = None,
        *,
        count: int = 1,
        nearest_mask: bool = False,
        samples: int | None = None,
        first: int = 0,
        **probe: Any,
    ) -> None:
        """What to look at:
            features: layer -> (Br count, M, C), F^r of Eq. 8; {} for no reference
            mask: (Br count, 1, h, w), or one for all, in [0, 1], where the subject is in them
            count: references in a row of features, one after another; the paper has one
            nearest_mask: whether the mask is resized as in the release

        Who looks:
            samples: how many of the batch, S / Br one after another at each row of the features;
                None: Br of them, or the whole batch if Br is 1
            first: the number of the first one

        What to report:
            probe: the arguments of `Probe`
        """
        super().__init__(**probe)
        self.features = features
        self.mask = mask
        self.count = count
        self.nearest_mask = nearest_mask

        self.samples = samples
        self.first = first
        self.strength = 1.0  # a factor on every gate, 0 or more: the pipeline sets it

    def at(self, name: str, batch: int) -> tuple[Tensor, slice]:
        """Features of layer `name` (Br, count M, C), and which samples of a batch look at them.

        Raises KeyError if the layer has no features, ValueError if rows and samples do not fit.
        """
        features = side_by_side(self.features[name], self.count)
        rows = len(features)

        samples = self.samples or (batch if rows == 1 else rows)
        if samples % rows or self.first + samples > batch:
            raise ValueError(
                f"{name}: {rows} rows of reference features for {samples} samples "
                f"in a batch of {batch}"
            )
        return features, slice(self.first, self.first + samples)

    def weights(self, tokens: int) -> Tensor:
        """The mask at the level of features with `tokens` = count M tokens: (Br, count M)."""
        mask = at_level(self.mask, tokens // self.count, binary=not self.nearest_mask)
        return side_by_side(mask, self.count)


def side_by_side(x: Tensor, count: int) -> Tensor:
    """Puts the tokens of `count` references in a row: (Br count, M, ...) -> (Br, count M, ...)."""
    return x.unflatten(0, (-1, count)).flatten(1, 2)
