"""The mask-guided diffusion process (Eq. 6-7)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eqdiff.masking import (
    add_noise,
    coverage,
    dilate,
    dilate_by_time,
    dilation_radius,
    loss_weights,
    masked_mse,
    masked_noising,
    noise_region,
    resize_mask,
)

ALPHA_BAR = torch.tensor([0.9, 0.02])


@pytest.fixture
def mask() -> Tensor:
    """Two samples of different area: (2, 1, 8, 8)."""
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, 1:4, 2:7] = 1
    mask[1, :, 4:, :2] = 1
    return mask


def latents() -> Tensor:
    return torch.randn(2, 4, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outside_the_mask_the_latent_stays_bit_for_bit(mask: Tensor, dtype: torch.dtype) -> None:
    z0, noise = latents().to(dtype), latents().to(dtype)
    noised = masked_noising(z0, noise, ALPHA_BAR, mask)
    inside = mask.bool().expand_as(z0)
    assert noised.dtype == dtype
    assert torch.equal(noised[~inside], z0[~inside])
    assert torch.equal(noised[inside], add_noise(z0, noise, ALPHA_BAR)[inside])
    assert (noised[inside] != z0[inside]).float().mean() > 0.9


def test_outside_the_mask_even_endless_noise_does_not_matter(mask: Tensor) -> None:
    z0 = latents()
    noise = torch.where(mask.bool(), latents(), torch.inf)
    assert torch.equal(masked_noising(z0, noise, ALPHA_BAR, mask)[0, :, 0], z0[0, :, 0])


def test_a_mask_of_ones_is_plain_noising() -> None:
    z0, noise = latents(), latents()
    assert torch.equal(
        masked_noising(z0, noise, ALPHA_BAR, torch.ones(2, 1, 8, 8)),
        add_noise(z0, noise, ALPHA_BAR),
    )


def test_a_grey_mask_mixes() -> None:
    z0, noise = latents(), latents()
    mixed = masked_noising(z0, noise, ALPHA_BAR, torch.full((2, 1, 8, 8), 0.25))
    assert torch.allclose(mixed, 0.25 * add_noise(z0, noise, ALPHA_BAR) + 0.75 * z0, atol=1e-6)


def test_noise_is_that_of_the_scheduler() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    z0, noise, t = latents(), latents(), torch.tensor([17, 803])
    ours = add_noise(z0, noise, scheduler.alphas_cumprod[t])
    assert torch.allclose(ours, scheduler.add_noise(z0, noise, t), atol=1e-6)


def test_loss_ignores_everything_outside_the_mask(mask: Tensor) -> None:
    prediction, target = latents(), latents()
    loss = masked_mse(prediction, target, mask)
    for outside in (latents() * 100, torch.full_like(prediction, torch.nan)):
        assert torch.equal(
            masked_mse(torch.where(mask.bool(), prediction, outside), target, mask), loss
        )
        assert torch.equal(
            masked_mse(prediction, torch.where(mask.bool(), target, outside), mask), loss
        )


def test_loss_sees_every_cell_and_channel_inside_the_mask(mask: Tensor) -> None:
    prediction = latents().requires_grad_()
    masked_mse(prediction, latents(), mask).sum().backward()
    assert torch.equal(prediction.grad != 0, mask.bool().expand_as(prediction))


def test_gradient_stays_finite_when_the_outside_is_not(mask: Tensor) -> None:
    prediction = torch.where(mask.bool(), latents(), torch.inf).requires_grad_()
    masked_mse(prediction, latents(), mask).sum().backward()
    assert prediction.grad.isfinite().all()


def test_loss_is_the_mean_over_the_mask_and_over_channels(mask: Tensor) -> None:
    prediction, target = latents(), latents()
    expected = [
        (
            (prediction[i] - target[i])[:, mask[i, 0].bool()] ** 2
        ).mean()  # per channel, per masked cell
        for i in range(2)
    ]
    assert torch.allclose(masked_mse(prediction, target, mask), torch.stack(expected))
    error_of_two = masked_mse(target + 2, target, mask)
    assert torch.allclose(
        error_of_two, torch.tensor([4.0, 4.0])
    )  # neither the area nor the channel count shows


def test_loss_over_a_mask_of_ones_is_the_mse() -> None:
    prediction, target = latents(), latents()
    loss = masked_mse(prediction, target, torch.ones(2, 1, 8, 8))
    assert torch.allclose(loss.mean(), F.mse_loss(prediction, target))


def test_a_grey_mask_weighs_the_loss() -> None:
    prediction, target, grey = latents(), latents(), torch.rand(2, 1, 8, 8)
    square = ((prediction - target) ** 2).mean(1, keepdim=True)
    expected = (grey * square).sum((1, 2, 3)) / grey.sum((1, 2, 3))
    assert torch.allclose(masked_mse(prediction, target, grey), expected)


def test_loss_is_computed_in_full_precision(mask: Tensor) -> None:
    prediction, target = latents().bfloat16(), latents().bfloat16()
    loss = masked_mse(prediction, target, mask)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, masked_mse(prediction.float(), target.float(), mask))


def test_official_dilation_makes_a_dot_21_cells_wide() -> None:
    dot = torch.zeros(1, 1, 64, 64)
    dot[..., 30, 40] = 1
    grown = dilate(dot, dilation_radius(10 / 64, 64))
    expected = torch.zeros_like(dot)
    expected[..., 20:41, 30:51] = 1
    assert torch.equal(grown, expected)


def test_official_dilation_is_five_small_ones_also_at_the_border() -> None:
    blobs = (torch.rand(2, 1, 64, 64) > 0.999).float()
    blobs[0, 0, 0, 5] = blobs[1, 0, 63, 63] = 1
    step = blobs
    for _ in range(5):
        step = F.max_pool2d(F.pad(step, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    assert 0.01 < step.mean() < 0.9
    assert torch.equal(dilate(blobs, 10), step)


def test_no_dilation_changes_nothing_and_a_negative_one_is_refused(mask: Tensor) -> None:
    assert torch.equal(dilate(mask, dilation_radius(0.0, 8)), mask)
    with pytest.raises(ValueError, match="-1"):
        dilate(mask, -1)


def test_dilation_is_a_fraction_of_the_side() -> None:
    assert [dilation_radius(10 / 64, side) for side in (16, 32, 64, 96)] == [2, 5, 10, 15]


def test_latent_mask_keeps_cells_that_are_half_full() -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :8, :8] = 1  # whole cell (0, 0)
    mask[..., 8:16, 16:20] = 1  # half of cell (1, 2)
    mask[..., 24:32, 24:27] = 1  # three eighths of cell (3, 3)
    expected = torch.zeros(1, 1, 8, 8)
    expected[..., 0, 0] = expected[..., 1, 2] = 1
    assert torch.equal(resize_mask(mask, (8, 8)), expected)


def test_latent_mask_of_a_thin_subject_is_not_empty_and_that_of_none_is() -> None:
    masks = torch.zeros(3, 1, 64, 64)
    masks[0, :, 10, 9:50] = 1  # a line: one eighth of the cells that it crosses
    masks[1, :, 20, 20] = 1
    small = resize_mask(masks, (8, 8))
    line, dot = torch.zeros(8, 8), torch.zeros(8, 8)
    line[1, 2:6], dot[2, 2] = 1, 1  # the cells at the line's ends hold less of it
    assert torch.equal(small[0, 0], line) and torch.equal(small[1, 0], dot)
    assert not small[2].any()


def test_nearest_latent_mask_keeps_greys() -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 8, 16] = 0.3
    nearest = resize_mask(mask, (8, 8), binary=False)
    assert nearest[0, 0, 1, 2] == mask[0, 0, 8, 16] and nearest.count_nonzero() == 1


def test_coverage_is_the_share_of_each_mask(mask: Tensor) -> None:
    assert coverage(mask).tolist() == [15 / 64, 8 / 64]


def test_a_dilation_by_time_is_each_samples_own() -> None:
    dots = torch.zeros(3, 1, 16, 16)
    dots[..., 8, 8] = 1
    grown = dilate_by_time(dots, 0.25, torch.tensor([0.0, 0.5, 0.999]))
    assert [int(mask.sum()) for mask in grown] == [1, 5**2, 9**2]
    assert torch.equal(grown[1:2], dilate(dots[:1], 2))


def test_noise_is_in_the_mask_or_everywhere_sample_by_sample(mask: Tensor) -> None:
    noised = noise_region(mask, torch.tensor([False, True]))
    assert torch.equal(noised[0], mask[0])
    assert bool((noised[1] == 1).all())
    grey = mask / 4
    assert torch.equal(noise_region(grey, torch.zeros(2, dtype=torch.bool)), grey)


def test_the_background_counts_where_noise_is_and_nowhere_else(mask: Tensor) -> None:
    noised = noise_region(mask, torch.tensor([False, True]))
    weights = loss_weights(mask, noised, 0.25)
    assert torch.equal(weights[0], mask[0])
    assert torch.equal(weights[1], mask[1] + (1 - mask[1]) / 4)
    assert torch.equal(loss_weights(mask, noised, 0.0), mask)
    whole = torch.ones_like(mask)
    assert torch.equal(loss_weights(mask, whole, 1.0), whole)
