"""The frozen reference UNet: features by layer name, and their cache over a sampling schedule."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from eqdiff.attention import rra_processors, rra_sites
from eqdiff.context import ReferenceContext
from eqdiff.processors import install
from eqdiff.reference import FeatureTap, ReferenceSchedule, capture, place_for

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
Z, NOISE, TEXT = (
    randn(1, 4, SIDE, SIDE, seed=1),
    randn(1, 4, SIDE, SIDE, seed=2),
    randn(2, TOKENS, WIDTH, seed=3),
)


def schedule(unet, timesteps=STEPS, **options) -> ReferenceSchedule:
    return ReferenceSchedule(
        unet, rra_sites(unet), Z, NOISE, ALPHAS_CUMPROD, TEXT, timesteps, **options
    )


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


def test_the_forward_ends_at_the_last_layer_that_is_needed():
    unet, ran = tiny_unet(), []
    for name, module in unet.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    whole, truncated = (
        FeatureTap(unet, rra_sites(unet)),
        capture(unet, rra_sites(unet), Z, 501, TEXT[:1]),
    )
    assert "up_blocks.3.attentions.2.norm" in ran
    assert not {
        "conv_out",
        "up_blocks.3",
        "up_blocks.3.attentions.2.transformer_blocks.0.attn1",
    } & set(ran)
    with whole as features, torch.no_grad():
        unet(Z, 501, TEXT[:1])
    assert "conv_out" in ran
    assert same(features, truncated)
    ran.clear()
    coarse = capture(unet, rra_sites(unet, ["mid_block", "up_blocks.1"]), Z, 501, TEXT[:1])
    assert "up_blocks.2.resnets.0" not in ran
    assert all(torch.equal(x, truncated[site]) for site, x in coarse.items())


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
    assert same(
        cache.features(1), capture(unet, rra_sites(unet), exact.expand(2, -1, -1, -1), 1, TEXT)
    )


def test_each_timestep_is_computed_once_and_only_when_asked_for():
    unet, calls = tiny_unet(), []
    unet.register_forward_pre_hook(lambda *_: calls.append(1))
    cache = schedule(unet)
    assert not calls
    for t in (751, 751, torch.tensor(751), 751.3, 501, 751):
        cache.features(t)
    assert len(calls) == 2


def test_fractional_timesteps_are_rounded_and_unknown_ones_refused():
    unet = tiny_unet()
    cache = schedule(unet, timesteps=torch.tensor([999.0, 749.25, 0.0]))
    z = noised(749).expand(2, -1, -1, -1)
    assert same(cache.features(torch.tensor(749.25)), capture(unet, rra_sites(unet), z, 749, TEXT))
    assert cache.features(0)
    with pytest.raises(ValueError, match="timestep 500 is not one"):
        cache.features(500)


def test_a_memory_budget_decides_where_features_are_kept():
    assert place_for(5, 10, on_gpu=True, host_free=0) == "device"
    assert place_for(11, 10, on_gpu=True, host_free=22) == "host"
    assert place_for(11, 10, on_gpu=True, host_free=21) == "nowhere"
    assert place_for(11, 10, on_gpu=False, host_free=1000) == "nowhere"
    assert place_for(1, 0, on_gpu=True, host_free=1000) == "nowhere"


@pytest.mark.parametrize("gigabytes", [0.0, 1e-7])
def test_a_schedule_without_memory_computes_every_time_the_same(gigabytes):
    unet, calls = tiny_unet(), []
    unet.register_forward_pre_hook(lambda *_: calls.append(1))
    live, cached = schedule(unet, cache_gb=gigabytes), schedule(unet)
    for t in (751, 501, 751):
        assert same(live.features(t), cached.features(t))
    assert len(calls) == 3 + 2


def test_processes_share_the_work_and_get_all_of_it():
    unet, calls, sent = tiny_unet(), [0, 0], {}
    ranks = [schedule(unet) for _ in range(2)]
    unet.register_forward_pre_hook(lambda *_: calls.__setitem__(turn, calls[turn] + 1))

    def broadcast(tensor, source):  # both ranks ask for the same tensors in the same order
        order[0] += 1
        if turn == source:
            sent[order[0]] = tensor
        return sent.get(order[0], tensor)

    for turn in (0, 1, 0):  # rank 0 again, now that rank 1's share is known
        ranks[turn]._cache.clear()
        order = [0]
        ranks[turn].fill(turn, 2, broadcast)
    assert calls == [6, 2]  # of four timesteps: the first by both, then 2 and 1; rank 0 ran twice
    whole = schedule(unet)
    turn = 1
    before = calls[1]
    assert all(same(rank.features(t), whole.features(t)) for rank in ranks for t in STEPS)
    assert calls[1] - before == len(STEPS)  # all by `whole`: the ranks held everything


def test_progress_is_the_share_of_the_steps_before_this_one():
    cache = schedule(tiny_unet())
    assert [cache.progress(t) for t in STEPS] == [0.0, 0.25, 0.5, 0.75]


def test_the_schedule_feeds_a_patched_unet():
    unet, frozen = tiny_unet(), tiny_unet()
    context = ReferenceContext(schedule(frozen).features(501), samples=4, record_gates=True)
    with install(unet, rra_processors(unet, gate_init="identity", clamp="inward")), torch.no_grad():
        text = TEXT.repeat_interleave(2, 0)
        unet(Z.expand(4, -1, -1, -1), 501, text, cross_attention_kwargs={"reference": context})
    assert len(context.gates) == 10
