"""What the tests of bases share: copies to spoil, and what is said of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eqdiff.base.load import Base, load_base
from eqdiff.errors import UserError
from eqdiff.pipeline import EqDiffPipeline

Tensors = dict[str, torch.Tensor]


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def retensor(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Changes the tensors of a safetensors file."""
    save_file({name: x.contiguous() for name, x in change(load_file(path)).items()}, path)


def refusal(name: str | Path) -> str:
    """The one line by which a base is refused; it names the base."""
    with pytest.raises(UserError) as caught:
        load_base(str(name))
    assert str(name) in str(caught.value)
    return str(caught.value)


def assert_same(one: Base, two: Base) -> None:
    """All weights, and what is drawn with them."""
    for part in ("unet", "vae", "text_encoder"):
        left = getattr(one, part).state_dict()
        right = getattr(two, part).state_dict()
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left), part

    assert one.fingerprint == two.fingerprint
    assert np.array_equal(drawn(one), drawn(two))


def drawn(base: Base) -> np.ndarray:
    """A picture by a base alone (1, H, W, 3), in two steps."""
    pipe = EqDiffPipeline.of(base)
    return pipe(["a photo of a cat"], seeds=[3], num_inference_steps=2, output_type="np").images
