"""A number that all processes of a run agree on."""

import torch
import torch.distributed as dist


class Agreement:
    """The largest of the processes' numbers. All of them make it, and ask it, together.

    It talks over the CPU, so that it does not wait for a GPU's queue.
    """

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo")

    def largest(self, number: int) -> int:
        """The largest `number` that a process gave, the same in all processes."""
        shared = torch.tensor(number)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self.group)
        return int(shared)
