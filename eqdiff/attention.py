"""Residual Reference Attention (Sec. 4.3, Eq. 8-9): processors, gate, install / remove. Its loss: attention_loss.py.

Axes: B batch, Br leading samples with a reference, N tokens, M tokens attended to, C channels, H heads, d = C / H.
Layers are named by the keys of `unet.attn_processors`. "The release" is the authors' code.
"""

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from eqdiff.attention_loss import at_level


def rra_sites(unet: nn.Module, layers: Iterable[str] = ("mid_block", "up_blocks")) -> list[str]:
    """Self-attentions of the middle and up blocks whose names start with one of `layers`, in the order the UNet runs
    them; SD 1.x has 10 (Sec. 4.3)."""
    names = [n for n in unet.attn_processors if n.endswith(".attn1.processor") and n.startswith(tuple(layers))]
    return [name for block in ("mid_block.", "up_blocks.") for name in names if name.startswith(block)]


class ReferenceContext:
    """What one UNet call knows of the reference, for `cross_attention_kwargs={"reference": context}`, and its reports.
    Opaque on purpose: FSDP copies dicts and dataclasses, and a report written into the copy is lost. Reports are keyed
    by layer: one that gradient checkpointing runs twice overwrites. `samples` of the batch from number `first` on (if
    not given Br, or all if Br is 1) look at the reference, samples / Br in a row at each row of it; the others do not.
    With `count` references a row, they come one after another, Br * count in all, and are looked at side by side.
    """

    def __init__(
        self,
        features: dict[str, Tensor],  # layer -> (Br,M,C), input of the frozen UNet's self-attention; {}: no reference
        mask: Tensor | None = None,  # (Br or 1,1,h,w) in [0,1], the reference's subject at latent size
        *,
        mass_sites: Iterable[str] = (),  # self-attention layers that report `mass` (Eq. 10); they need `mask`
        nearest_mask: bool = False,  # resize `mask` as the release does
        slots: Tensor | None = None,  # (B,Ntok) bool, the placeholder in the caption
        slot_sites: Iterable[str] = (),  # cross-attention layers that report `slot_mass`; they need `slots`
        samples: int | None = None,
        first: int = 0,
        count: int = 1,
        record_gates: bool = False,
    ) -> None:
        self.features, self.mask, self.nearest_mask, self.slots = features, mask, nearest_mask, slots
        self.mass_sites, self.slot_sites = frozenset(mass_sites), frozenset(slot_sites)
        self.samples, self.first, self.count, self.record_gates = samples, first, count, record_gates
        self.mass: dict[str, Tensor] = {}  # layer -> (samples,N) in [0,1], head mean, fp32
        self.slot_mass: dict[str, Tensor] = {}  # layer -> (B,N) in [0,1], head mean, fp32
        self.gates: dict[str, Tensor] = {}  # layer -> (samples,N) in [0,1], fp32, detached

    def at(self, name: str, batch: int) -> tuple[Tensor, slice]:
        """Features of layer `name` (Br, count M, C), and which samples look at them. KeyError, ValueError."""
        features = side_by_side(self.features[name], self.count)
        rows = len(features)
        samples = self.samples or (batch if rows == 1 else rows)
        if samples % rows or self.first + samples > batch:
            raise ValueError(f"{name}: {rows} rows of reference features for {samples} samples in a batch of {batch}")
        return features, slice(self.first, self.first + samples)

    def weights(self, tokens: int) -> Tensor:
        """The reference's mask at a level, (Br, tokens), as the features of that level lie."""
        return side_by_side(at_level(self.mask, tokens // self.count, nearest=self.nearest_mask), self.count)


def side_by_side(x: Tensor, count: int) -> Tensor:
    """(Br count, M, ...) -> (Br, count M, ...): the tokens of references that follow one another, in a row."""
    return x.unflatten(0, (-1, count)).flatten(1, 2)


class _Clamp01(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inward: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.inward = inward
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        passes = ((x >= 0) | (ctx.inward & (grad < 0))) & ((x <= 1) | (ctx.inward & (grad > 0)))
        return torch.where(passes, grad, 0), None


# Eq. 8, phi. Zero initialisation puts every gate on the bound, where clamp of torch >= 2.15 has gradient 0: all dead.
def clamp01(x: Tensor, kind: Literal["inward", "closed"]) -> Tensor:
    """Clamp to [0,1], gradient 1 on the closed interval as in the authors' torch 2.0. Outside it 0 ("closed"), or, not
    in the paper, passed if a descent step on it brings the value back ("inward": else a token below 0 stays dead)."""
    return _Clamp01.apply(x, {"inward": True, "closed": False}[kind])


# Eq. 10, first term: softmax(q k^T) m is attention with m as one more value channel: the N x M map is never built.
def attention_with_mass(q: Tensor, k: Tensor, v: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
    """q (B,H,N,d), k, v (B,H,M,d), extra (B,1,M,c) -> attention (B,H,N,d), same softmax on `extra` (B,H,N,c).
    Exact. Flash kernels want equal head dims in multiples of 8: all are padded alike; the scale is the true d's."""
    d, c = q.shape[-1], extra.shape[-1]
    v = torch.cat([v, extra.to(v.dtype).expand(*v.shape[:3], -1)], dim=-1)  # (B,H,M,d+c)
    width = (d + c + 7) // 8 * 8
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=d**-0.5)
    return out[..., :d], out[..., d : d + c]


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """SA(q,k,v): (B,N,C), (B,M,C) -> (B,N,C); for `weights` (B or 1,M) the head-mean attention on them, (B,N) fp32."""
    q, k, v = (x.to(q.dtype).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B,H,N,d)
    if weights is None:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), None
    out, mass = attention_with_mass(q, k, v, weights[:, None, :, None])
    return out.transpose(1, 2).flatten(2), mass.float().mean(1)[..., 0]


class PlainProcessor:
    """SD 1.x attention, bit for bit as diffusers', but taking `reference`: one that does not earns a warning per call.
    detach_start: the caption's start token gets no gradient through keys and values, as in Custom Diffusion."""

    def __init__(self, attn: Attention, name: str, *, detach_start: bool = False) -> None:
        unknown = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross)
        if any(x is not None for x in unknown) or attn.residual_connection or attn.rescale_output_factor != 1:
            raise ValueError(f"{name}: not the attention of Stable Diffusion 1.x (it has norms or its own residual)")
        self.name, self.detach_start = name, detach_start

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reference: ReferenceContext | None = None,
    ) -> Tensor:
        """(B,N,C) -> (B,N,C). `__call__`, not `forward`: diffusers drops the kwargs that its signature lacks."""
        if attention_mask is not None:
            raise ValueError(f"{self.name}: attention masks are not supported")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        k, v = attn.to_k(context), attn.to_v(context)
        if self.detach_start:
            k, v = (torch.cat([x[:, :1].detach(), x[:, 1:]], dim=1) for x in (k, v))
        q, watched = attn.to_q(hidden_states), reference is not None and self.name in reference.slot_sites
        o_s, mass = _attend(q, k, v, attn.heads, reference.slots if watched else None)
        if watched:
            reference.slot_mass[self.name] = mass
        f_sa = attn.to_out[1](attn.to_out[0](o_s))  # Eq. 8, H_s
        return f_sa if reference is None else self._add_reference(q, o_s, f_sa, attn.heads, reference)

    def _add_reference(self, q: Tensor, o_s: Tensor, f_sa: Tensor, heads: int, reference: ReferenceContext) -> Tensor:
        return f_sa


class RRAProcessor(PlainProcessor, nn.Module):
    """Self-attention plus a gated second attention over the reference's features (Eq. 8-9).
    Trained: `to_k_ref`, `to_v_ref` (copies of the layer's own) and `fuse`, H_r: 2C -> C+1 on [O_r | O_s]. gate_init
    "zero" (the paper): H_r = 0, the stock layer bit for bit. "identity" (ours): H_r = [0 | W_o] and gate 0.5, the stock
    layer up to rounding, where F_RA has gradient from step 1 and M_f from step 2. In the layer's dtype and device."""

    def __init__(self, attn: Attention, name: str, *, gate_init: str = "zero", clamp: str = "inward") -> None:
        nn.Module.__init__(self)
        PlainProcessor.__init__(self, attn, name)
        if gate_init not in ("zero", "identity") or clamp not in ("inward", "closed"):
            raise ValueError(f"gate_init is zero or identity, clamp inward or closed; not {gate_init!r}, {clamp!r}")
        self.clamp, out, w = clamp, attn.to_out[0], attn.to_k.weight
        self.to_k_ref, self.to_v_ref = (copy.deepcopy(x).requires_grad_(True) for x in (attn.to_k, attn.to_v))
        sizes = {"in_features": 2 * out.in_features, "out_features": out.out_features + 1}
        self.fuse = nn.utils.skip_init(nn.Linear, **sizes, device=w.device, dtype=w.dtype)
        with torch.no_grad():
            self.fuse.weight.zero_()
            self.fuse.bias.zero_()
            if gate_init == "identity":
                self.fuse.weight[:-1, out.in_features :] = out.weight
                self.fuse.bias[:-1], self.fuse.bias[-1] = out.bias, 0.5

    # Eq. 8: O_r = SA(F^g, F^r, F^r), H_r, phi; then Eq. 9. o_s is O_s, f_sa is F_SA.
    def _add_reference(self, q: Tensor, o_s: Tensor, f_sa: Tensor, heads: int, reference: ReferenceContext) -> Tensor:
        if not reference.features:
            return f_sa
        features, looking = reference.at(self.name, len(q))
        k, v = (x(features.to(x.weight.dtype)) for x in (self.to_k_ref, self.to_v_ref))  # (Br,M,C)
        watched = self.name in reference.mass_sites
        mask = reference.weights(k.shape[1]) if watched else None
        q, own, stock = q[looking], o_s[looking], f_sa[looking]  # (samples,N,C)
        # samples that share a row are that row's queries, side by side: keys and values are never repeated
        o_r, mass = _attend(q.reshape(len(k), -1, q.shape[-1]), k, v, heads, mask)
        if watched:
            reference.mass[self.name] = mass.view(q.shape[:2])
        f_i = self.fuse(torch.cat([o_r.reshape_as(own), own], dim=-1).to(self.fuse.weight.dtype))  # (samples,N,C+1)
        f_ra, m_f = f_i[..., :-1], clamp01(f_i[..., -1:], self.clamp)
        if reference.record_gates:
            reference.gates[self.name] = m_f.detach().float()[..., 0]
        f_rra = (stock * (1 - m_f) + f_ra * m_f).to(f_sa.dtype)
        return torch.cat([f_sa[: looking.start], f_rra, f_sa[looking.stop :]]) if len(q) < len(f_sa) else f_rra


class Installed(AbstractContextManager):
    """Handle of `install`. processors: RRA by layer. `remove()`, or the end of `with`, puts the former objects back."""

    def __init__(self, unet: nn.Module, former: dict[str, Any], processors: dict[str, RRAProcessor]) -> None:
        self.unet, self.former, self.processors = unet, former, processors

    def remove(self) -> None:
        self.unet.set_attn_processor(dict(self.former))  # a copy: diffusers empties the dict it is given

    def __exit__(self, *exception: object) -> None:
        self.remove()


def install(
    unet: nn.Module, *, gate_init: str, clamp: str, sites: list[str] | None = None, detach_start: bool = True
) -> Installed:
    """Give all attentions of an SD 1.x UNet our processors: RRA at `sites` (default: all `rra_sites`), the start-token
    detach at cross-attentions. RuntimeError if installed already, or if processors with weights would be lost."""
    former = dict(unet.attn_processors)
    for name, processor in former.items():
        if isinstance(processor, PlainProcessor | nn.Module):
            raise RuntimeError(f"{name} already holds a {type(processor).__name__}: remove or unload that first")
    layer = {name: unet.get_submodule(name.removesuffix(".processor")) for name in former}
    chosen = rra_sites(unet) if sites is None else sites
    processors = {name: RRAProcessor(layer[name], name, gate_init=gate_init, clamp=clamp) for name in chosen}
    detach = {name: detach_start and name.endswith(".attn2.processor") for name in former}
    others = {n: PlainProcessor(layer[n], n, detach_start=detach[n]) for n in former if n not in processors}
    unet.set_attn_processor(processors | others)
    return Installed(unet, former, processors)
