"""What others put on a model, mostly adapters of peft (LoRA and its kin); the model without it.

peft replaces a layer by a wrapper, which keeps the layer as its `base_layer` and has the adapters
beside it. peft itself need not be installed: nothing of it is imported unless a wrapper is there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import init_empty_weights
from diffusers.utils import scale_lora_layers, unscale_lora_layers
from torch import Tensor, nn

INNER = "base_layer"
JOINED = {"to_qkv", "to_kv", "to_added_qkv"}  # layers of diffusers' fused attention


def unwrapped(part: Any) -> Any:
    """The module itself, where `torch.compile` has wrapped it."""
    return getattr(part, "_orig_mod", part)


def wrappers(module: nn.Module) -> dict[str, Any]:
    """peft's wrappers in a module, by the name of the layer that each stands for."""
    return {name: part for name, part in module.named_modules() if hasattr(part, INNER)}


def plain_layer(layer: nn.Module) -> nn.Module:
    """The layer itself, where a wrapper stands for it."""
    return getattr(layer, INNER, layer)


def own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's own parameters, by the names that they have without adapters.

    What `fuse_qkv_projections` has joined of them is left out.
    """
    wrapped = wrappers(module)
    for name, parameter in module.named_parameters():
        if not JOINED.isdisjoint(name.split(".")):
            continue
        parents = _parents(name) if wrapped else ()
        layer = next((parent for parent in parents if parent in wrapped), None)
        if layer is None:
            yield name, parameter
        elif name.startswith(f"{layer}.{INNER}."):
            yield name.replace(f"{layer}.{INNER}.", f"{layer}.", 1), parameter


def _parents(name: str) -> Iterator[str]:
    """The names of the modules that a parameter is in, the innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def is_fused(*modules: nn.Module) -> bool:
    """Whether an adapter is added into the own weights of one of the modules (`fuse_lora`)."""
    parts = [part for module in modules for part in wrappers(module).values()]
    return any(_is_fused(part) for part in parts)


def _is_fused(wrapper: nn.Module) -> bool:
    return bool(getattr(wrapper, "merged", False))


def fused_change(module: nn.Module, name: str) -> Tensor | None:
    """What fused adapters have added to the module's own parameter `name`; None for nothing."""
    layer, _, kind = name.rpartition(".")
    wrapper: Any = module.get_submodule(layer)
    if kind != "weight" or not _is_fused(wrapper):
        return None

    changes = [wrapper.get_delta_weight(adapter) for adapter in wrapper.merged_adapters]
    return sum(changes[1:], start=changes[0])


def copy_as_it_came(unet: Any, own: Callable[[str], bool] = lambda _: True) -> Any:
    """A second UNet with the same weights, and nothing else of what was done to the first.

    It has no adapters and no hooks, and diffusers' own attention. It is frozen. It gets copies of
    the weights that `own` names. The others are the first UNet's very own, which has to be frozen.
    """
    values = {
        name: nn.Parameter(parameter.detach().clone()) if own(name) else parameter
        for name, parameter in own_parameters(unet)
    }
    with init_empty_weights():
        copied = type(unet).from_config(unet.config)
    copied.load_state_dict(values, assign=True)
    return copied.requires_grad_(False).eval()


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Within: the module computes without its adapters. Those that are fused stay."""
    parts = [part for part in wrappers(module).values() if not _is_fused(part)]
    active = [part for part in parts if not part.disable_adapters]
    for part in active:
        part.enable_adapters(False)
    try:
        yield
    finally:
        for part in active:
            part.enable_adapters(True)


@contextmanager
def adapters_scaled(module: nn.Module, scale: float | None) -> Iterator[None]:
    """Within: the module's adapters count `scale` times; None changes nothing."""
    if scale is None or not wrappers(module):
        yield
        return

    scale_lora_layers(module, scale)
    try:
        yield
    finally:
        unscale_lora_layers(module, scale)
