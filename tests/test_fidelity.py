"""Colour distance and masked max-cosine: published values, and what they must not see."""

import pytest
import torch

from eqdiff.evaluation.fidelity import ciede2000, colour_distance, colours_of, max_cosine, to_lab

# pairs of the supplement to Sharma, Wu and Dalal (2005)
PUBLISHED = [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
    ((50, 2.8361, -74.0200), (50, 0, -82.7485), 3.4412),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((50, 2.5, 0), (61, -5, 29), 22.8977),
    ((50, 2.5, 0), (56, -27, -3), 31.9030),
    ((50, 2.5, 0), (58, 24, 15), 19.4535),
]


@pytest.mark.parametrize(("first", "second", "difference"), PUBLISHED)
def test_colour_difference_is_the_published_one_in_both_directions(first, second, difference):
    a, b = (torch.tensor(lab, dtype=torch.float64) for lab in (first, second))
    assert float(ciede2000(a, b)) == pytest.approx(difference, abs=1e-4)
    assert float(ciede2000(b, a)) == pytest.approx(difference, abs=1e-4)


def test_srgb_becomes_cielab():
    colours = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    white, red, grey = to_lab(colours)
    assert white.tolist() == pytest.approx([100, 0, 0], abs=0.02)
    assert red.tolist() == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    assert grey.tolist() == pytest.approx([53.39, 0, 0], abs=0.02)


def blocks(*parts: tuple[tuple[float, float, float], int]) -> torch.Tensor:
    """Pixels (P, 3): each colour so many times, a little uneven."""
    pixels = torch.cat([torch.tensor(colour).expand(count, 3) for colour, count in parts])
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return (pixels + 0.01 * noise).clamp(0, 1)


YELLOW = (0.99, 0.85, 0.19)
PURPLE = (0.51, 0.22, 0.72)
BLUE = (0.14, 0.35, 0.86)
GREEN = (0.2, 0.6, 0.2)


def test_the_subjects_colours_are_found_wherever_they_are_and_whatever_is_beside():
    truth = colours_of(blocks((YELLOW, 600), (PURPLE, 300)))
    picture = colours_of(blocks((GREEN, 900), (PURPLE, 400), (YELLOW, 500)))
    assert colour_distance(truth, truth) < 0.5
    assert colour_distance(truth, picture) < 3


def test_another_main_colour_is_far_and_a_missing_second_is_between():
    truth = colours_of(blocks((YELLOW, 600), (PURPLE, 300)))
    blue = colours_of(blocks((BLUE, 600), (PURPLE, 300)))
    plain = colours_of(blocks((YELLOW, 900)))

    assert colour_distance(truth, blue) > 25
    assert 5 < colour_distance(truth, plain) < colour_distance(truth, blue)


def test_a_colour_of_a_few_pixels_is_no_main_colour():
    truth = colours_of(blocks((YELLOW, 600), (PURPLE, 300)))
    speck = colours_of(blocks((BLUE, 600), (PURPLE, 300), (YELLOW, 40)))
    assert colour_distance(truth, speck) > 25


def test_max_cosine_finds_the_subjects_patches_anywhere_and_only_those():
    patches = torch.eye(6)
    mask = torch.tensor([True, True, False, False, False, False])
    moved = patches[[5, 1, 4, 0]]
    without = patches[[2, 3, 4, 5]]
    half = patches[[0, 2, 3, 4]]

    shares = max_cosine(patches, mask, torch.stack([moved, without, half]))
    assert shares.tolist() == pytest.approx([1, 0, 0.5])
