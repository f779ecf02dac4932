"""The frozen reference UNet: features by layer name, and their cache over a sampling schedule."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from eqdiff.attention import ReferenceContext, install, rra_sites
from eqdiff.reference import FeatureTap, ReferenceSchedule, capture

SIDE, TOKENS, WIDTH = 16, 7, 16  # latent side, text tokens, text width
STEPS = [751, 501, 251, 1]


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=SIDE,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        block_out_channels=(16, 16, 32, 32),
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
    ).eval()


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
Z, NOISE, TEXT = randn(1, 4, SIDE, SIDE, seed=1), randn(1, 4, SIDE, SIDE, seed=2), randn(2, TOKENS, WIDTH, seed=3)


def schedule(unet, timesteps=STEPS, **options) -> ReferenceSchedule:
    return ReferenceSchedule(unet, rra_sites(unet), Z, NOISE, ALPHAS_CUMPROD, TEXT, timesteps, **options)


def noised(t: int) -> torch.Tensor:
    return ALPHAS_CUMPROD[t].sqrt() * Z + (1 - ALPHAS_CUMPROD[t]).sqrt() * NOISE


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[site], b[site]) for site in a)


def test_features_are_what_attn1_receives():
    unet, received = tiny_unet(), {}

    class Spy(AttnProcessor2_0):
        def __init__(self, name):
            self.name = name

        def __call__(self, attn, hidden_states, *args, **kwargs):
            received[self.name] = hidden_states.clone()
            return super().__call__(attn, hidden_states, *args, **kwargs)

    sites = rra_sites(unet)
    features = capture(unet, sites, Z.expand(2, -1, -1, -1), 501, TEXT)
    unet.set_attn_processor({name: Spy(name) for name in unet.attn_processors})
    unet(Z.expand(2, -1, -1, -1), 501, TEXT)
    assert list(features) == sites
    assert all(torch.equal(features[site], received[site]) for site in sites)


def test_capture_leaves_the_unet_as_it_was_and_makes_no_graph():
    unet = tiny_unet()
    before = unet(Z, 501, TEXT[:1]).sample
    features = capture(unet, rra_sites(unet), Z, 501, TEXT[:1])
    assert torch.equal(unet(Z, 501, TEXT[:1]).sample, before)
    assert not any(module._forward_pre_hooks for module in unet.modules())
    assert not any(x.requires_grad or x.is_inference() for x in features.values())


def test_hooks_go_when_the_forward_fails():
    unet = tiny_unet()
    with pytest.raises(RuntimeError):
        capture(unet, rra_sites(unet), Z[:, :3], 501, TEXT[:1])
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_tap_refuses_a_layer_that_is_not_there():
    with pytest.raises(KeyError, match="no layer up_blocks.9"):
        FeatureTap(tiny_unet(), ["up_blocks.9.attn1.processor"])


def test_capture_takes_a_timestep_per_sample():
    unet = tiny_unet()
    pair = capture(unet, rra_sites(unet), Z.expand(2, -1, -1, -1), torch.tensor([501, 1]), TEXT)
    for i, t in enumerate((501, 1)):
        single = capture(unet, rra_sites(unet), Z, t, TEXT[i : i + 1])
        for site, x in single.items():
            torch.testing.assert_close(pair[site][i : i + 1], x, atol=1e-5, rtol=1e-5)


def test_capture_follows_the_dtype_of_the_unet():
    unet = tiny_unet().to(torch.bfloat16)
    features = capture(unet, rra_sites(unet), Z, 501, TEXT[:1])
    assert all(x.dtype == torch.bfloat16 for x in features.values())


@pytest.mark.parametrize("clean", [False, True])
def test_schedule_equals_a_live_capture_at_every_timestep(clean):
    unet = tiny_unet()
    cache = schedule(unet, clean=clean)
    for t in STEPS:
        z = (Z if clean else noised(t)).expand(2, -1, -1, -1)
        assert same(cache.features(t), capture(unet, rra_sites(unet), z, t, TEXT)), t


def test_noising_is_exact_whatever_the_dtype_of_the_latents():
    unet = tiny_unet()
    z, noise = Z.to(torch.bfloat16), NOISE.to(torch.bfloat16)
    cache = ReferenceSchedule(unet, rra_sites(unet), z, noise, ALPHAS_CUMPROD, TEXT, [1])
    exact = ALPHAS_CUMPROD[1].sqrt() * z.float() + (1 - ALPHAS_CUMPROD[1]).sqrt() * noise.float()
    assert same(cache.features(1), capture(unet, rra_sites(unet), exact.expand(2, -1, -1, -1), 1, TEXT))


def test_each_timestep_is_computed_once_and_only_when_asked_for():
    unet, calls = tiny_unet(), []
    unet.register_forward_pre_hook(lambda *_: calls.append(1))
    cache = schedule(unet)
    assert not calls
    for t in (751, 751, torch.tensor(751), 751.3, 501, 751):
        cache.for_batch(t, 3)
    assert len(calls) == 2


def test_fractional_timesteps_are_rounded_and_unknown_ones_refused():
    unet = tiny_unet()
    cache = schedule(unet, timesteps=torch.tensor([999.0, 749.25, 0.0]))
    z = noised(749).expand(2, -1, -1, -1)
    assert same(cache.features(torch.tensor(749.25)), capture(unet, rra_sites(unet), z, 749, TEXT))
    assert cache.features(0)
    with pytest.raises(ValueError, match="timestep 500 is not one"):
        cache.features(500)


def test_for_batch_is_in_the_order_of_guidance():
    cache = schedule(tiny_unet())
    pair, batch = cache.features(501), cache.for_batch(501, 3)
    for site, x in batch.items():
        assert not torch.equal(pair[site][0], pair[site][1])
        assert all(torch.equal(x[i], pair[site][i // 3]) for i in range(6)) and len(x) == 6
    assert all(torch.equal(x, pair[site][1:]) for site, x in cache.for_batch(501, 3, guided=False).items())


def test_the_schedule_feeds_a_patched_unet():
    unet, frozen = tiny_unet(), tiny_unet()
    cache = schedule(frozen)
    context = ReferenceContext(cache.for_batch(501, 2), record_gates=True)
    with install(unet, gate_init="identity", clamp="inward"), torch.no_grad():
        text = TEXT.repeat_interleave(2, 0)
        unet(Z.expand(4, -1, -1, -1), 501, text, cross_attention_kwargs={"reference": context})
    assert len(context.gates) == 10
