"""Weights that diffusers' offloading keeps elsewhere, and how to have them at hand for a moment.

`enable_model_cpu_offload` moves a whole part to the GPU while it runs. Its weights lie on the CPU
before and after, where they can be read and exchanged. `enable_sequential_cpu_offload` brings each
layer's weights for that layer alone, from a store that hooks of accelerate keep. In between the
layer has empty tensors, so the hooks have to come off before weights are exchanged.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from torch import nn

from eqdiff.errors import require

HOOK = "_hf_hook"  # where accelerate keeps a module's hook
GROUP_HOOKS = "_diffusers_hook"  # where diffusers keeps its own, of `enable_group_offload`
BY_GROUP = "group_offloading"  # its name there
LAYER_HOOKS = (BY_GROUP, "layerwise_casting")


def is_sequential(module: nn.Module) -> bool:
    """Whether the module's weights come layer by layer."""
    return hasattr(module, HOOK) and any(weight.is_meta for weight in module.parameters())


@contextmanager
def weights_at_hand(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Within: no hook of accelerate is on the module, and its weights are in it.

    device: where the module runs.
    """
    hook: Any = getattr(module, HOOK, None)
    if hook is None:
        yield
        return

    sequential = is_sequential(module)
    remove_hook_from_module(module, recurse=sequential)
    try:
        yield
    finally:
        if sequential:
            _send_layer_by_layer(module, device)
        else:
            add_hook_to_module(module, hook)


def layers_change_by_themselves(module: nn.Module) -> bool:
    """Whether diffusers moves or casts layers while the module runs, and those of no other one.

    That is `enable_group_offload` and `enable_layerwise_casting`.
    """
    return any(_hooks(module, name) for name in LAYER_HOOKS)


def _hooks(module: nn.Module, name: str) -> list[Any]:
    """The hooks of that name that diffusers has put on parts of a module."""
    registries = [getattr(part, GROUP_HOOKS, None) for part in module.modules()]
    hooks = [registry.get_hook(name) for registry in registries if registry]
    return [hook for hook in hooks if hook]


def exchangeable(module: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """Within: the module's weights can be exchanged.

    Raises UserError if diffusers keeps a second copy of them, from which it would bring them back.
    """
    for hook in _hooks(module, BY_GROUP):
        require(
            getattr(getattr(hook, "group", None), "stream", None) is None,
            "enable_group_offload with use_stream brings the base's own weights back, without the "
            "subject; leave use_stream out, or use enable_model_cpu_offload",
        )
    return weights_at_hand(module, device) if is_sequential(module) else nullcontext()


@contextmanager
def brought(module: nn.Module | None, device: torch.device, like: nn.Module) -> Iterator[None]:
    """Within: the module can run on the device. It is offloaded as `like` is, if that is."""
    if module is None:
        yield
        return

    if is_sequential(like):
        module.to("cpu")
        _send_layer_by_layer(module, device)
    else:
        module.to(device)

    try:
        yield
    finally:
        if is_sequential(like):
            remove_hook_from_module(module, recurse=True)
        elif hasattr(like, HOOK):
            module.to("cpu")


def _send_layer_by_layer(module: nn.Module, device: torch.device) -> None:
    """As `enable_sequential_cpu_offload` does it for each part of a pipeline."""
    cpu_offload(module, device, offload_buffers=len(module._parameters) > 0)


@contextmanager
def marks_kept(*modules: nn.Module) -> Iterator[None]:
    """Afterwards: who wants gradients, and who is in training mode, is as it was before."""
    parts = [part for module in modules for part in module.modules()]
    modes = [part.training for part in parts]
    gradients = [
        (part, name, weight.requires_grad)
        for part in parts
        for name, weight in part.named_parameters(recurse=False)
    ]

    try:
        yield
    finally:
        for part, training in zip(parts, modes, strict=True):
            part.training = training
        for part, name, wanted in gradients:
            getattr(part, name).requires_grad_(wanted)
