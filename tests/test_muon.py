"""The optimizer of the toybox trainings."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, multiprocessing, nn

from toybox.muon import Muon, orthogonalize, shares_of


def test_singular_values_come_out_near_one() -> None:
    # square ones have singular values too small for five iterations
    for shape in ((32, 80), (80, 32)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape) * 7))
        assert 0.3 < values.min() <= values.max() < 1.3


def test_matrices_and_convolutions_are_orthogonalized_and_nothing_else() -> None:
    module = nn.ModuleDict(
        {
            "table": nn.Embedding(40, 32),
            "linear": nn.Linear(32, 32),
            "conv": nn.Conv2d(32, 32, 3),
            "few": nn.Linear(32, 4),
        }
    )

    chosen = Muon(module, lr=0.1, weight_decay=0.0).param_groups[0]["params"]
    assert {id(p) for p in chosen} == {id(module["linear"].weight), id(module["conv"].weight)}


def test_every_direction_of_a_matrix_moves_alike_and_adamw_moves_the_rest() -> None:
    linear = nn.Linear(32, 64)
    weight = linear.weight.detach().clone()
    bias = linear.bias.detach().clone()
    loss = (linear(torch.randn(8, 32)) ** 2).sum() * 100
    loss.backward()
    Muon(linear, lr=0.1, weight_decay=0.0).step()

    moved = (linear.weight.detach() - weight) / 0.1
    size = 0.2 * (8 / 32) ** 0.5  # rank 8 of 32: the batch has 8 samples
    assert abs(moved.square().mean().sqrt() - size) < 0.04
    steps = (linear.bias.detach() - bias).abs()
    torch.testing.assert_close(steps, torch.full((64,), 0.1), atol=1e-4, rtol=0)


def test_a_weight_without_gradient_stays() -> None:
    linear = nn.Linear(32, 32)
    before = linear.weight.detach().clone()
    Muon(linear, lr=0.1, weight_decay=0.1).step()
    assert torch.equal(linear.weight, before)


def _module() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Linear(32, 64), nn.Conv1d(64, 48, 3), nn.Linear(40, 96), nn.Embedding(20, 16)
    )


def _two_steps(module: nn.Module) -> list[torch.Tensor]:
    optimizer = Muon(module, lr=0.1, weight_decay=0.1)

    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        for p in module.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()

    return [p.detach().clone() for p in module.parameters()]


def _process(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    save_file(
        {str(i): p.contiguous() for i, p in enumerate(_two_steps(_module()))},
        f"{folder}/{rank}.safetensors",
    )
    distributed.barrier()
    os._exit(
        0
    )  # gloo's threads can abort a process while the interpreter is taken down (pytorch#179291)


@pytest.mark.long
def test_two_processes_share_the_matrices_and_end_where_one_does(tmp_path: Path) -> None:
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    alone = _two_steps(_module())

    for rank in range(2):
        shared = load_file(tmp_path / f"{rank}.safetensors")
        for ours, theirs in zip((shared[str(i)] for i in range(len(alone))), alone, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_matrices_are_shared_out_evenly() -> None:
    matrices = [torch.empty(n, n) for n in (64, 32, 32, 32, 16, 48, 48)]
    owners = shares_of(matrices, 2)
    cost = [0, 0]
    for matrix, owner in zip(matrices, owners, strict=True):
        cost[owner] += matrix.numel() * len(matrix)

    assert set(owners) == {0, 1}
    assert max(cost) < 2 * min(cost)
