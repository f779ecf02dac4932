"""The gate over steps and layers while a picture is drawn (the paper's Fig. 5): M_f of each RRA layer, white = 1.

    python benchmarks/gate_steps.py CONCEPT [--prompt TEXT] [--picture FILE] [--columns N] [--base DIR]

Rows are layers in the order the UNet runs them, columns steps of the sampling, the conditional half of guidance; the
first row is the picture from that seed (seed 0, nothing picked). Prints the mean gate of each layer and step too.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eqdiff.base import load_base  # noqa: E402
from eqdiff.concept import load_concept  # noqa: E402
from eqdiff.config import TrainConfig, from_json, resolve_base  # noqa: E402
from eqdiff.data import image_grid, to_pil  # noqa: E402
from eqdiff.pipeline import EqDiffPipeline, seed_of  # noqa: E402

Gates = dict[str, Tensor]  # layer -> (N,) in [0,1]


class GateTape:
    """Listens to a pipeline's UNet: the timestep of every call and the last sample's gates, layer by layer."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.steps: list[tuple[int, Gates]] = []
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
    return layer.replace(".transformer_blocks.0.attn1.processor", "").replace("attentions.", "")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concept", type=Path)
    parser.add_argument("--prompt", default="a watercolor painting of a {} in the snow")
    parser.add_argument("--picture", type=Path, default=Path("gate_steps.png"), metavar="FILE")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--base", help="default: that of the concept's config.json")
    args = parser.parse_args(argv)
    config = from_json(TrainConfig, (args.concept.parent / "config.json").read_text())
    pipe = EqDiffPipeline.of(load_base(resolve_base(args.base or config.pretrained_model_name_or_path)))
    pipe.load_concept(load_concept(args.concept))
    tape = GateTape(pipe.unet)
    image = pipe(args.prompt, seeds=[seed_of(0, args.prompt, 0)]).images[0]
    tape.stop()
    places = torch.linspace(0, len(tape.steps) - 1, args.columns).round().int().tolist()
    shown = [tape.steps[place] for place in places]
    cells, captions = [image], [args.prompt.replace("{}", "S")]
    blank = image.copy()
    blank.paste("white", (0, 0, *image.size))
    cells += [blank] * (args.columns - 1)
    captions += [""] * (args.columns - 1)
    for layer in shown[0][1]:
        means = [float(gates[layer].mean()) for _, gates in shown]
        print(f"{name_of(layer):24}", *(f"t {t}: {mean:.3f} " for (t, _), mean in zip(shown, means, strict=True)))
        for t, gates in shown:
            side = round(len(gates[layer]) ** 0.5)
            gate = F.interpolate(gates[layer].reshape(1, 1, side, side), size=image.size[::-1], mode="nearest")[0]
            cells.append(to_pil(gate.expand(3, -1, -1) * 2 - 1))
            captions.append(f"{name_of(layer)}, t = {t}")
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    image_grid(cells, columns=args.columns, captions=captions).save(args.picture)


if __name__ == "__main__":
    main()
