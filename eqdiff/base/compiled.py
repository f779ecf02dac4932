"""`--compile`: the transformer blocks of a UNet by torch.compile, each on its own.

A block's attention layers have names, by which they keep or find a photo's features. So each block
needs a graph of its own for each kind of call: the photo's, the picture's, a batch of another size.
torch keeps 8 graphs of a function; all blocks share one, and beyond 8 it runs them as they are,
without a word to who asked for --compile.
"""

from typing import Any

import torch
from torch import nn

GRAPHS = 256  # SD 1.x has 16 blocks, each with two kinds of call, alone and in batches: 64
LIMITS = ("recompile_limit", "cache_size_limit")  # its names, the second before torch 2.7


def compile_blocks(unet: nn.Module, **how: Any) -> None:
    """Compiles the blocks in place. how: what torch.compile takes."""
    config = torch._dynamo.config
    name = next(name for name in LIMITS if hasattr(config, name))
    setattr(config, name, max(GRAPHS, getattr(config, name)))
    unet.compile_repeated_blocks(**how)
