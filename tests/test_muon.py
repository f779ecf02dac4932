"""The optimizer of the toybox trainings."""

import torch
from torch import nn

from toybox.muon import Muon, orthogonalize


def test_singular_values_come_out_near_one() -> None:
    for shape in ((32, 80), (80, 32)):  # square ones have singular values too small for five iterations
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
    before = linear.weight.detach().clone(), linear.bias.detach().clone()
    loss = (linear(torch.randn(8, 32)) ** 2).sum() * 100
    loss.backward()
    Muon(linear, lr=0.1, weight_decay=0.0).step()
    moved = (linear.weight.detach() - before[0]) / 0.1
    assert abs(moved.square().mean().sqrt() - 0.2 * (8 / 32) ** 0.5) < 0.04  # rank 8 of 32: the batch has 8 samples
    torch.testing.assert_close((linear.bias.detach() - before[1]).abs(), torch.full((64,), 0.1), atol=1e-4, rtol=0)


def test_a_weight_without_gradient_stays() -> None:
    linear = nn.Linear(32, 32)
    before = linear.weight.detach().clone()
    Muon(linear, lr=0.1, weight_decay=0.1).step()
    assert torch.equal(linear.weight, before)
