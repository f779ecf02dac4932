"""The two bands of an image and their draw (Eq. 3-5)."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from eqdiff.frequency import Band, Filter, apply_band, draw_bands, high_pass, low_pass, pass_mask

PAPER = Filter()
OFFICIAL = Filter(shape="square", low_cutoff=50, high_cutoff=5, colour=False, rectify=True)


def random_images(*shape: int) -> Tensor:
    return torch.rand(shape) * 2 - 1


def wave(cycles: int, side: int) -> Tensor:
    """cos along the width with so many cycles per image: (1, 3, side, side)."""
    x = torch.arange(side) / side
    return torch.cos(2 * math.pi * cycles * x).expand(1, 3, side, side).clone()


@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
@pytest.mark.parametrize("shape", ["circle", "square"])
def test_complementary_bands_sum_to_the_image(size: tuple[int, int], shape: str) -> None:
    image = random_images(2, 3, *size)
    both = Filter(shape=shape)
    low, high = low_pass(image, both), high_pass(image, both)
    assert (low + high - image).abs().max() < 1e-5
    assert low.std() > 0.05 and high.std() > 0.05  # neither band is empty


def test_paper_filter_is_complementary() -> None:
    assert (
        PAPER.low_cutoff == PAPER.high_cutoff
        and PAPER.colour
        and not PAPER.rectify
        and PAPER.shape == "circle"
    )


def test_low_of_a_constant_is_the_constant_and_high_is_nothing() -> None:
    colours = torch.tensor([-0.8, 0.1, 0.6])[:, None, None].expand(3, 40, 40)
    assert (low_pass(colours, PAPER) - colours).abs().max() < 1e-6
    assert high_pass(colours, PAPER).abs().max() < 1e-6


def test_low_keeps_the_colours_apart() -> None:
    image = random_images(1, 3, 32, 32)
    alone = low_pass(image[:, 1:2], PAPER)
    assert (low_pass(image, PAPER)[:, 1:2] - alone).abs().max() < 1e-6


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("cycles", [7, 8, 9])
def test_cutoff_is_in_cycles_per_image_at_every_resolution(side: int, cycles: int) -> None:
    image, at_8 = wave(cycles, side), Filter(low_cutoff=8, high_cutoff=8)
    expected = image if cycles <= 8 else torch.zeros_like(image)
    assert (low_pass(image, at_8) - expected).abs().max() < 1e-5
    assert (high_pass(image, at_8) - (image - expected)).abs().max() < 1e-5


def test_circle_is_round_and_square_is_the_slice() -> None:
    circle, square = pass_mask(64, 48, 5, "circle"), pass_mask(64, 48, 5, "square")
    v, u = np.mgrid[:64, :48]
    assert np.array_equal(circle.numpy(), np.hypot(v - 32, u - 24) <= 5)
    assert square.nonzero().amin(0).tolist() == [27, 19] and square.nonzero().amax(0).tolist() == [
        36,
        28,
    ]
    assert square.sum() == 100


@pytest.mark.parametrize("size", [(128, 128), (101, 130)])
def test_official_bands_equal_the_numpy_computation(size: tuple[int, int]) -> None:
    image = random_images(3, *size)
    spectrum = np.fft.fftshift(np.fft.fft2(image.double().numpy().mean(0)))
    row, column = size[0] // 2, size[1] // 2
    only_low, no_low = np.zeros_like(spectrum), spectrum.copy()
    window = (slice(row - 50, row + 50), slice(column - 50, column + 50))
    only_low[window] = spectrum[window]
    no_low[row - 5 : row + 5, column - 5 : column + 5] = 0
    for ours, theirs in (
        (low_pass(image, OFFICIAL), only_low),
        (high_pass(image, OFFICIAL), no_low),
    ):
        expected = np.abs(np.fft.ifft2(np.fft.ifftshift(theirs)))
        assert ours.shape == image.shape
        assert np.abs(ours.numpy() - expected[None]).max() < 1e-5


def test_official_turns_dark_into_bright() -> None:
    dark = torch.full((3, 128, 128), -0.8)
    assert (low_pass(dark, OFFICIAL) - 0.8).abs().max() < 1e-5
    assert high_pass(random_images(3, 128, 128), OFFICIAL).min() >= 0


def test_each_image_gets_its_own_band() -> None:
    images = random_images(4, 3, 32, 32)
    bands = torch.tensor([Band.HIGH, Band.FULL, Band.LOW, Band.HIGH])
    filtered = apply_band(images, bands, PAPER)
    assert torch.equal(filtered[1], images[1])
    assert torch.allclose(filtered[2], low_pass(images[2], PAPER), atol=1e-6)
    assert torch.allclose(filtered[0], high_pass(images[0], PAPER), atol=1e-6)
    assert torch.allclose(filtered[3], high_pass(images[3], PAPER), atol=1e-6)


def test_half_precision_images_are_filtered_in_full_precision() -> None:
    image = random_images(1, 3, 32, 32).bfloat16()
    low = low_pass(image, PAPER)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, low_pass(image.float(), PAPER).bfloat16())


def test_draws_follow_the_probabilities() -> None:
    bands = draw_bands((0.1, 0.3, 0.6), 20_000, torch.Generator().manual_seed(1))
    shares = torch.bincount(bands, minlength=3) / len(bands)
    assert bands.dtype == torch.long
    assert (shares - torch.tensor([0.1, 0.3, 0.6])).abs().max() < 0.01  # 3 standard errors: 0.0104


@pytest.mark.parametrize("band", list(Band))
def test_a_certain_band_is_always_drawn(band: Band) -> None:
    probs = tuple(float(b == band) for b in Band)
    assert (draw_bands(probs, 50, torch.Generator()) == band).all()


def test_draws_depend_on_the_generator_alone() -> None:
    first = draw_bands((0.3, 0.3, 0.4), 50, torch.Generator().manual_seed(5))
    torch.rand(7)
    assert torch.equal(first, draw_bands((0.3, 0.3, 0.4), 50, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, draw_bands((0.3, 0.3, 0.4), 50, torch.Generator().manual_seed(6)))


@pytest.mark.parametrize("probs", [(0.1, 0.1, 0.7), (-0.1, 0.3, 0.8), (0.5, 0.5)])
def test_wrong_probabilities_are_refused_with_their_values(probs: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=str(probs[0])):
        draw_bands(probs, 3, torch.Generator())


def test_wrong_filters_are_refused() -> None:
    with pytest.raises(ValueError, match="triangle"):
        Filter(shape="triangle")
    with pytest.raises(ValueError, match="-1"):
        Filter(low_cutoff=-1)
