"""Residual Reference Attention: RRA, the paper's Sec. 4.3 (Eq. 8-9).

A self-attention layer attends a second time, with the same queries, to the features of the frozen
reference UNet. A gate, one number a token, decides how much of that replaces the layer's own
output. Its loss (Eq. 10) is in attention_loss.py.

Departures from the paper, whose gate is a plain clamp: ours has a gradient on its bounds, where
zero initialisation puts every gate, and by default also beyond them, where a step would lead back
(see `clamp01`). The start "identity" is ours (see `RRAProcessor`), as is a factor on the gate while
an image is drawn (see `scaled_gate`).

Axes: B batch, S samples of it that look at the reference, Br rows of reference features, N tokens,
M reference tokens, C channels.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from eqdiff.base.adapters import plain_layer
from eqdiff.context import ReferenceContext
from eqdiff.processors import PlainProcessor, multi_head_attention


def rra_sites(unet: nn.Module, layers: Iterable[str] = ("mid_block", "up_blocks")) -> list[str]:
    """The self-attentions of the middle and up blocks whose names start with one of `layers`.

    They come in the order in which the UNet runs them; SD 1.x has 10 (Sec. 4.3).
    """
    names = [name for name in unet.attn_processors if name.endswith(".attn1.processor")]
    chosen = [name for name in names if name.startswith(tuple(layers))]

    middle = [name for name in chosen if name.startswith("mid_block.")]
    up = [name for name in chosen if name.startswith("up_blocks.")]
    return middle + up


class _Clamp01(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inward: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.inward = inward
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        passes_low = (x >= 0) | (ctx.inward & (grad < 0))  # a descent step raises x
        passes_high = (x <= 1) | (ctx.inward & (grad > 0))  # a descent step lowers x
        return torch.where(passes_low & passes_high, grad, 0), None


# Eq. 8, phi.
def clamp01(x: Tensor, kind: Literal["inward", "closed"]) -> Tensor:
    """Clamp to [0, 1] with gradient 1 on the closed interval, as in the release's torch 2.0.

    `torch.clamp` of torch >= 2.15 has gradient 0 on the bound, which would keep zero-initialised
    gates shut for ever. Outside the interval the gradient is 0 ("closed", as in the paper), or it
    passes where a descent step on it brings the value back ("inward", ours: else a token below 0
    never comes back).
    """
    return _Clamp01.apply(x, {"inward": True, "closed": False}[kind])


# Ours, not the paper's: how much of the reference there is, chosen anew for each picture.
def scaled_gate(m_f: Tensor, strength: float) -> Tensor:
    """M_f of Eq. 8, any shape, times a strength of 0 or more, and at most 1.

    1 is the gate as trained, and 0 leaves F_SA, both bit for bit.
    """
    return m_f if strength == 1 else (strength * m_f).clamp(max=1)


class RRAProcessor(PlainProcessor, nn.Module):
    """Self-attention plus a gated second attention over the reference's features (Eq. 8-9).

    Trained are `to_k_ref` and `to_v_ref`, copies of the layer's own projections, and `fuse`, which
    is H_r: [O_r | O_s] of 2C channels -> C+1. All are in the layer's dtype and on its device.
    """

    def __init__(
        self, attn: Attention, name: str, *, gate_init: str = "zero", clamp: str = "inward"
    ) -> None:
        """gate_init: "zero", the paper's, or "identity", ours. clamp: the kind of `clamp01`.

        "zero": H_r = 0, so that at first the layer is the stock layer bit for bit.
        "identity": H_r = [0 | W_o] and a gate of 0.5, so that it is the stock layer up to rounding;
        F_RA then has a gradient from step 1 and M_f from step 2.

        Raises ValueError if gate_init or clamp is another word.
        """
        nn.Module.__init__(self)
        PlainProcessor.__init__(self, attn, name)
        if gate_init not in ("zero", "identity") or clamp not in ("inward", "closed"):
            raise ValueError(
                "gate_init is zero or identity, clamp inward or closed; "
                f"not {gate_init!r}, {clamp!r}"
            )
        self.clamp = clamp
        to_k, to_v, to_out = (plain_layer(x) for x in (attn.to_k, attn.to_v, attn.to_out[0]))
        self.to_k_ref = _copied_linear(to_k)
        self.to_v_ref = _copied_linear(to_v)
        self.fuse = _zero_linear(to_out, like=to_k.weight)

        if gate_init == "identity":
            width = to_out.in_features
            with torch.no_grad():
                self.fuse.weight[:-1, width:] = to_out.weight
                self.fuse.bias[:-1] = to_out.bias
                self.fuse.bias[-1] = 0.5

    # Eq. 9: F_RRA = F_SA (1 - M_f) + F_RA M_f.
    def blend(
        self, q: Tensor, o_s: Tensor, f_sa: Tensor, heads: int, reference: ReferenceContext
    ) -> Tensor:
        """F_RRA for the samples that look at the reference, F_SA for all others: (B,N,C).

        q: the queries of F^g. o_s: O_s = SA(F^g, F^g, F^g). f_sa: F_SA = H_s(O_s). (B,N,C) each.
        """
        if not reference.features:
            return f_sa
        features, looking = reference.at(self.name, len(q))

        o_r = self._attend_reference(q[looking], features, heads, reference)
        f_ra, m_f = self._fuse(o_r, o_s[looking])
        if reference.record_gates:
            reference.gates[self.name] = m_f.detach().float()[..., 0]  # (S,N,1) -> (S,N)

        m_f = scaled_gate(m_f, reference.strength)
        f_rra = (f_sa[looking] * (1 - m_f) + f_ra * m_f).to(f_sa.dtype)  # (S,N,C)
        if len(f_rra) == len(f_sa):
            return f_rra
        return torch.cat([f_sa[: looking.start], f_rra, f_sa[looking.stop :]])  # (B,N,C)

    # Eq. 8: O_r = SA(F^g, F^r, F^r), with the layer's own queries; rho of Eq. 10 on the way.
    def _attend_reference(
        self, q: Tensor, features: Tensor, heads: int, reference: ReferenceContext
    ) -> Tensor:
        """q (S,N,C), features (Br,M,C) -> O_r (S,N,C)."""
        k = _project(self.to_k_ref, features)
        v = _project(self.to_v_ref, features)
        watched = self.name in reference.mass_sites
        mask = reference.weights(k.shape[1]) if watched else None

        # samples that share a row are its queries, side by side: keys and values are not repeated
        queries = q.reshape(len(k), -1, q.shape[-1])  # (S,N,C) -> (Br, S/Br N, C)
        o_r, mass = multi_head_attention(queries, k, v, heads, mask)

        if watched:
            reference.mass[self.name] = mass.view(q.shape[:2])
        return o_r.reshape_as(q)

    # Eq. 8: F_I = H_r([O_r, O_s]), F_RA = <F_I>_0:d, M_f = phi(<F_I>_d:d+1).
    def _fuse(self, o_r: Tensor, o_s: Tensor) -> tuple[Tensor, Tensor]:
        """O_r, O_s (S,N,C) -> F_RA (S,N,C), M_f (S,N,1) in [0, 1]."""
        f_i = _project(self.fuse, torch.cat([o_r, o_s], dim=-1))  # (S,N,2C) -> (S,N,C+1)
        return f_i[..., :-1], clamp01(f_i[..., -1:], self.clamp)


def _project(layer: nn.Linear, x: Tensor) -> Tensor:
    """x through the layer, in the layer's precision."""
    return layer(x.to(layer.weight.dtype))


def _copied_linear(layer: nn.Linear) -> nn.Linear:
    """A layer with the same weights that wants gradients, without hooks that are on the first."""
    copied = nn.utils.skip_init(
        nn.Linear,
        in_features=layer.in_features,
        out_features=layer.out_features,
        bias=layer.bias is not None,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    copied.load_state_dict(layer.state_dict())
    return copied


def _zero_linear(out: nn.Linear, like: Tensor) -> nn.Linear:
    """H_r as the paper starts it, zero: 2C -> C+1 for an output projection `out` of C -> C.

    In the dtype and on the device of `like`. It draws nothing from torch's random stream.
    """
    fuse = nn.utils.skip_init(
        nn.Linear,
        in_features=2 * out.in_features,
        out_features=out.out_features + 1,
        device=like.device,
        dtype=like.dtype,
    )
    with torch.no_grad():
        fuse.weight.zero_()
        fuse.bias.zero_()
    return fuse


def rra_processors(
    unet: nn.Module, sites: list[str] | None = None, *, gate_init: str, clamp: str
) -> dict[str, RRAProcessor]:
    """RRA for the self-attentions at `sites` (default: all `rra_sites`), by layer."""
    processors = {}
    for name in rra_sites(unet) if sites is None else sites:
        layer = unet.get_submodule(name.removesuffix(".processor"))
        processors[name] = RRAProcessor(layer, name, gate_init=gate_init, clamp=clamp)
    return processors
