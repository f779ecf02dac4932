"""What a training step holds beside the weights at SD 1.4's sizes, counted with nothing computed.

    python -m benchmarks.activations [--resolution 512] [--train_batch_size 1]
        [--gradient_checkpointing] [--autocast]

The constants of eqdiff/training/memory.py come from it. Every tensor that our own step makes is
followed until it is freed. Attention counts as fused: its inputs and its result, no N x N map.
--autocast: bf16 on a pretended GPU, the forward alone, since a backward there needs a real one.
"""

import argparse
import dataclasses
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.counting import NoValues, build, some_batch
from eqdiff.objective import Objective
from eqdiff.settings.presets import preset_config

# tensors of an objective that are no parameters
FIXED = ("ids", "slots", "class_text", "reference_text")


class Fused(torch.autograd.Function):
    """Shapes of a fused attention: it saves its inputs and its result."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


class Held(TorchDispatchMode):
    """Bytes of the storages that are made within, now and at most.

    Views of the module's own weights do not count.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        weights = (*module.parameters(), *module.buffers())
        self.known = {x.untyped_storage()._cdata for x in weights}
        self.now = 0
        self.most = 0

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage.device.type != "cpu" and storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())

        self.most = max(self.most, self.now)
        return out


def pretend(mode: FakeTensorMode, objective: Objective, batch: Any) -> Any:
    """Moves objective and batch to a GPU that is not there; returns the batch."""

    def moved(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        with mode:
            return torch.empty(x.shape, dtype=x.dtype, device="cuda")

    objective.model.to_dtype(torch.bfloat16)
    for module in objective.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                empty = torch.nn.Parameter(moved(p), requires_grad=p.requires_grad)
                module._parameters[name] = empty
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = moved(buffer)

    for name in FIXED:
        setattr(objective, name, moved(getattr(objective, name)))
    fields = {f.name: moved(getattr(batch, f.name)) for f in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **fields)


def measure(objective: Objective, batch: Any, autocast: bool) -> tuple[int, int]:
    """Bytes kept for the backward, and the most bytes of the step (of the forward, if autocast)."""
    mode = FakeTensorMode(allow_non_fake_inputs=True) if autocast else nullcontext()
    if autocast:
        batch = pretend(mode, objective, batch)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)

    with mode, NoValues(), Held(objective) as held:
        loss = objective(batch)["loss"]
        kept = held.now
        if not autocast:
            loss.backward()
    return kept, held.most


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--train_batch_size", type=int, default=1)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--autocast", action="store_true")
    args = vars(parser.parse_args(argv))
    autocast = args.pop("autocast")

    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: Fused.apply(q, k, v)
    config = preset_config("paper", class_word="mug", **args)
    objective = build(config)
    batch = some_batch(config)
    objective.model.unet.train(config.gradient_checkpointing)
    kept, most = measure(objective, batch, autocast)

    width = objective.model.unet.config.block_out_channels[0]
    unit = len(batch.z0) * (config.resolution // 8) ** 2 * width
    print(f"kept for backward {kept / 1e9:.2f} GB ({kept / unit:.0f} bytes a unit)", end="; ")
    part = "most of the forward" if autocast else "most"
    print(f"{part} {most / 1e9:.2f} GB ({most / unit:.0f} bytes a unit)")


if __name__ == "__main__":
    main()
