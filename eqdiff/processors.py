"""Attention as Stable Diffusion 1.x has it (Eq. 2), with three doors for a method; install, remove.

Where a loss needs it, a layer also reports the sum of Eq. 10: how much attention falls on a mask.

Departure from the paper, as in Custom Diffusion and the release: keys and values of a caption's
start token get no gradient. The release, by accident, does the same to a pixel of self-attention.

Axes: B batch, N tokens, M tokens attended to, C channels, H heads, d = C / H, D width of what is
attended to. Layers are named by the keys of `unet.attn_processors`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from eqdiff.context import ReferenceContext
from eqdiff.errors import require

Attend = Callable[..., Tensor]  # (q, k, v, heads, reference) -> O_s, as `PlainProcessor.attend`
Guest = Callable[..., Tensor]  # (layer, attend, q, k, v, heads, reference) -> O_s


# Eq. 10, first term: softmax(q k^T) m is attention with m as one more value channel.
def attention_with_mass(q: Tensor, k: Tensor, v: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
    """SA(q, k, v) (B,H,N,d) and, with the same softmax, SA(q, k, extra) (B,H,N,c).

    q (B,H,N,d), k and v (B,H,M,d), extra (B,1,M,c). Exact, and the N x M map is never built. Flash
    kernels require equal head dimensions in multiples of 8, so all are padded alike; the softmax
    keeps the scale of the true d.
    """
    d = q.shape[-1]
    c = extra.shape[-1]
    v = torch.cat([v, extra.to(v.dtype).expand(*v.shape[:3], -1)], dim=-1)  # (B,H,M,d+c)

    width = (d + c + 7) // 8 * 8
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=d**-0.5)
    return out[..., :d], out[..., d : d + c]


# Eq. 2: SA(q, k, v) = softmax(q k^T / sqrt(d)) v, in H heads.
def multi_head_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """q (B,N,C), k and v (B,M,C) -> SA(q, k, v) (B,N,C), and the attention on `weights`.

    For weights (B,M), or (1,M) for all, the latter is (B,N) in fp32, the mean over heads.
    """
    # (B,N,C) -> (B,H,N,d)
    q, k, v = (x.to(q.dtype).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))

    if weights is None:
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).flatten(2), None  # (B,H,N,d) -> (B,N,C)

    out, mass = attention_with_mass(q, k, v, weights[:, None, :, None])
    return out.transpose(1, 2).flatten(2), mass.float().mean(1)[..., 0]  # (B,H,N,1) -> (B,N)


class PlainProcessor:
    """The attention of SD 1.x, bit for bit as diffusers has it, with three doors for a method.

    A method overrides one or more of them: `keys_and_values`, `attend` and `blend`. A processor
    takes `reference`, even if it ignores it: diffusers warns at each call of one that does not.
    """

    def __init__(self, attn: Attention, name: str, *, detach_start: bool = False) -> None:
        """detach_start: keys and values of the first token get no gradient.

        Raises ValueError if `attn` is not an attention of Stable Diffusion 1.x.
        """
        unknown = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross)
        normed = any(norm is not None for norm in unknown)
        if normed or attn.residual_connection or attn.rescale_output_factor != 1:
            raise ValueError(
                f"{name}: not the attention of Stable Diffusion 1.x "
                "(it has norms or its own residual)"
            )
        self.name = name
        self.detach_start = detach_start
        self.attending: Attend | None = None  # `attend` with guests around it: see `visited`

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reference: ReferenceContext | None = None,
    ) -> Tensor:
        """hidden_states (B,N,C), what is attended to (B,M,D) or themselves -> (B,N,C).

        diffusers drops the kwargs that `__call__` does not name, so they must not move to
        `forward`. Raises ValueError if there is an attention mask.
        """
        if attention_mask is not None:
            raise ValueError(f"{self.name}: attention masks are not supported")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        # first keys and values, then queries: the order in which the backward pass adds gradients
        k, v = self.keys_and_values(attn, context, reference)
        q = attn.to_q(hidden_states)
        attend = self.attending or self.attend
        o_s = attend(q, k, v, attn.heads, reference)
        f_sa = attn.to_out[1](attn.to_out[0](o_s))  # H_s of Eq. 8, then its dropout

        if reference is None:
            return f_sa
        return self.blend(q, o_s, f_sa, attn.heads, reference)

    # The three doors of a method: what is attended to, how, and what comes of it.

    def keys_and_values(
        self, attn: Attention, context: Tensor, reference: ReferenceContext | None
    ) -> tuple[Tensor, Tensor]:
        """context (B,M,D) -> K and V, (B,M,C) each."""
        k = attn.to_k(context)
        v = attn.to_v(context)
        if self.detach_start:
            k, v = (torch.cat([x[:, :1].detach(), x[:, 1:]], dim=1) for x in (k, v))
        return k, v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, reference: ReferenceContext | None
    ) -> Tensor:
        """q (B,N,C), k and v (B,M,C) -> O_s (B,N,C)."""
        if reference is None or self.name not in reference.slot_sites:
            return multi_head_attention(q, k, v, heads, None)[0]

        o_s, mass = multi_head_attention(q, k, v, heads, reference.slots)
        reference.slot_mass[self.name] = mass
        return o_s

    def blend(
        self, q: Tensor, o_s: Tensor, f_sa: Tensor, heads: int, reference: ReferenceContext
    ) -> Tensor:
        """The layer's output, given its queries, O_s and the stock output F_SA: all (B,N,C)."""
        return f_sa


@contextmanager
def visited(unet: nn.Module, guests: Mapping[str, Guest]) -> Iterator[None]:
    """Within: each guest stands around its layer's `attend`, and those who came before inside it.

    So what works while an image is drawn goes with every method. Raises KeyError if a layer has
    no `PlainProcessor`: no concept is in the UNet, or no such layer is there.
    """
    present = {n: p for n, p in unet.attn_processors.items() if isinstance(p, PlainProcessor)}
    before = {name: present[name].attending for name in guests}
    for name, guest in guests.items():
        attend = before[name] or present[name].attend
        present[name].attending = partial(guest, name, attend)
    try:
        yield
    finally:
        for name, attending in before.items():
            present[name].attending = attending


class Installed(AbstractContextManager):
    """What `install` returns. `remove`, or the end of `with`, puts the original processors back."""

    def __init__(
        self,
        unet: nn.Module,
        processors: dict[str, PlainProcessor],
        plain: dict[str, PlainProcessor],
    ) -> None:
        """processors: the method's, by layer. plain: those of all other layers."""
        self.unet = unet
        self.original: dict[str, Any] = {}
        self.processors = processors
        self.plain = plain
        self.again()

    def again(self) -> None:
        """Puts the method's processors in. `remove` puts back what is in their place now.

        Raises RuntimeError if something is installed already, UserError if processors with weights
        of their own would be lost.
        """
        original = dict(self.unet.attn_processors)
        for name, processor in original.items():
            kind = type(processor).__name__
            if isinstance(processor, PlainProcessor):
                raise RuntimeError(f"{name} already holds a {kind}: remove that first")
            require(
                not isinstance(processor, nn.Module),
                f"{name} holds a {kind} with weights of its own (an IP-Adapter's?), which a "
                "concept cannot stand beside; unload it with unload_ip_adapter, or the concept",
            )

        self.original = original
        self.unet.set_attn_processor({**self.processors, **self.plain})

    def remove(self) -> None:
        """Puts the original objects back. A second call does no harm."""
        copied = dict(self.original)  # diffusers empties the dict it is given
        self.unet.set_attn_processor(copied)

    def __exit__(self, *exception: object) -> None:
        self.remove()


def install(
    unet: nn.Module,
    processors: Mapping[str, PlainProcessor] = MappingProxyType({}),
    *,
    detach_start: bool = True,
) -> Installed:
    """Gives an SD 1.x UNet a method's attention processors, and plain ones to all other layers.

    detach_start: the plain processors of cross-attentions detach the start token.

    Raises what `Installed.again` raises.
    """
    plain = {}
    for name in unet.attn_processors.keys() - processors.keys():
        layer = unet.get_submodule(name.removesuffix(".processor"))
        detach = detach_start and name.endswith(".attn2.processor")
        plain[name] = PlainProcessor(layer, name, detach_start=detach)
    return Installed(unet, dict(processors), plain)
