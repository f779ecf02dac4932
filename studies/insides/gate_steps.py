"""The gate over steps and layers while a picture is drawn (the paper's Fig. 5): M_f, 1 is white.

    python -m studies.insides.gate_steps CONCEPT [--prompt TEXT] [--picture FILE] [--columns N]

Rows are layers in the order in which the UNet runs them, columns are steps of the sampling. The
gate is that of the conditional half of guidance. The first row is the picture itself (seed 0,
nothing picked). Prints the mean gate of each layer and step too.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from eqdiff.concept.file import load_concept
from eqdiff.errors import main_guard
from eqdiff.pipeline import EqDiffPipeline, seed_of
from studies.insides.concepts import base_of, picture_of, save_grid, settings_of

Gates = dict[str, Tensor]  # layer -> (N,) in [0,1]
Step = tuple[int, Gates]  # a timestep, and the gates there


class GateTape:
    """Listens to a pipeline's UNet: of every call the timestep and the last sample's gates."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.steps: list[Step] = []
        self._hooks = [
            unet.register_forward_pre_hook(self._before, with_kwargs=True),
            unet.register_forward_hook(self._after, with_kwargs=True),
        ]

    def _before(self, _: Any, args: tuple, kwargs: dict) -> None:
        kwargs["cross_attention_kwargs"]["reference"].record_gates = True

    def _after(self, _: Any, args: tuple, kwargs: dict, out: Any) -> None:
        gates = kwargs["cross_attention_kwargs"]["reference"].gates
        self.steps.append((int(args[1]), {layer: gate[-1].cpu() for layer, gate in gates.items()}))

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()


def name_of(layer: str) -> str:
    """A layer's name without the parts that all RRA layers share."""
    return layer.replace(".transformer_blocks.0.attn1.processor", "").replace("attentions.", "")


def report(steps: Sequence[Step]) -> None:
    """Prints a line a layer: its mean gate at each step."""
    for layer in steps[0][1]:
        means = [f"t {t}: {float(gates[layer].mean()):.3f} " for t, gates in steps]
        print(f"{name_of(layer):24}", *means)


def maps_of(steps: Sequence[Step], size: tuple[int, int]) -> list[tuple[Image.Image, str]]:
    """The gates as pictures of this (height, width) with captions, a row a layer."""
    cells = []
    for layer in steps[0][1]:
        for t, gates in steps:
            side = round(len(gates[layer]) ** 0.5)
            gate = gates[layer].reshape(1, side, side)
            cells.append((picture_of(gate, size), f"{name_of(layer)}, t = {t}"))
    return cells


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concept", type=Path)
    parser.add_argument("--prompt", default="a watercolor painting of a {} in the snow")
    parser.add_argument("--picture", type=Path, default=Path("gate_steps.png"), metavar="FILE")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--base", help="default: that of the concept's config.json")
    args = parser.parse_args(argv)

    pipe = EqDiffPipeline.of(base_of(settings_of(args.concept), args.base))
    pipe.load_concept(load_concept(args.concept))
    tape = GateTape(pipe.unet)
    image = pipe(args.prompt, seeds=[seed_of(0, args.prompt, 0)]).images[0]
    tape.stop()

    numbers = torch.linspace(0, len(tape.steps) - 1, args.columns).round().int().tolist()
    steps = [tape.steps[number] for number in numbers]
    report(steps)

    blank = Image.new("RGB", image.size, "white")
    cells = [(image, args.prompt.replace("{}", "S")), *[(blank, "")] * (args.columns - 1)]
    cells += maps_of(steps, image.size[::-1])
    pictures = [picture for picture, _ in cells]
    save_grid(args.picture, pictures, args.columns, [caption for _, caption in cells])


if __name__ == "__main__":
    main()
