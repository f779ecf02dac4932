"""RRA (Eq. 8-10) on a tiny UNet of SD 1.x's arrangement: what it leaves alone, what it computes,
what it trains."""

import dataclasses
import logging

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

from eqdiff.attention import clamp01, rra_processors, rra_sites
from eqdiff.attention_loss import cross_attention_loss, reference_attention_loss
from eqdiff.context import ReferenceContext
from eqdiff.errors import UserError
from eqdiff.objective import gate_statistics
from eqdiff.processors import attention_with_mass, install

SIDE, TOKENS, WIDTH = 16, 7, 16  # latent side, text tokens, text width
ARRANGEMENT = dict(
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    layers_per_block=2,
)
SD14 = dict(
    ARRANGEMENT,
    block_out_channels=(320, 640, 1280, 1280),
    cross_attention_dim=768,
    attention_head_dim=8,
    sample_size=64,
)


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    sizes = dict(block_out_channels=(16, 16, 32, 32), norm_num_groups=8, attention_head_dim=2)
    return UNet2DConditionModel(
        sample_size=SIDE, cross_attention_dim=WIDTH, **ARRANGEMENT, **sizes
    ).eval()


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_mask(batch: int = 1, side: int = SIDE) -> torch.Tensor:
    mask = torch.zeros(batch, 1, side, side)
    for i in range(batch):
        mask[i, :, 3 : 9 + i, 4:12] = 1
    return mask


def a_reference(unet, rows: int = 2, **options) -> ReferenceContext:
    """Random features of the right shapes: of a plain forward the inputs of attn1, replaced by
    noise."""
    features = {}
    for seed, (site, n, c) in enumerate(site_shapes(unet)):
        features[site] = randn(rows, n, c, seed=seed + 100)
    return ReferenceContext(features, a_mask(rows), **options)


def site_shapes(unet) -> list[tuple[str, int, int]]:
    inputs = attention_inputs(unet, [site.removesuffix(".processor") for site in rra_sites(unet)])
    return [(f"{name}.processor", *x.shape[1:]) for name, x in inputs.items()]


def attention_inputs(unet, names, batch: int = 1, reference=None) -> dict[str, torch.Tensor]:
    kept, modules = {}, dict(unet.named_modules())
    hooks = [
        modules[n].register_forward_pre_hook(lambda _, a, n=n: kept.__setitem__(n, a[0]))
        for n in names
    ]
    run(unet, batch, reference)
    for hook in hooks:
        hook.remove()
    return kept


def run(
    unet, batch: int = 2, reference=None, text: torch.Tensor | None = None, dtype=torch.float32
) -> torch.Tensor:
    z = randn(batch, 4, SIDE, SIDE, seed=2).to(dtype)
    text = randn(batch, TOKENS, WIDTH, seed=3).to(dtype) if text is None else text
    kwargs = {} if reference is None else {"cross_attention_kwargs": {"reference": reference}}
    return unet(z, 500, text, **kwargs).sample


def wake(handle) -> None:
    """Random H_r and a gate around 0.5, so that the reference matters everywhere."""
    for i, processor in enumerate(handle.processors.values()):
        with torch.no_grad():
            processor.fuse.weight.copy_(0.1 * randn(*processor.fuse.weight.shape, seed=i))
            processor.fuse.bias[-1] = 0.5


def explicit(q, k, v):
    attention = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return attention @ v, attention


def heads(x: torch.Tensor, n: int = 2) -> torch.Tensor:
    return x.reshape(*x.shape[:2], n, -1).transpose(1, 2)


def square_mask_at(tokens: int, rows: int = 2) -> torch.Tensor:
    """The area rule written out for masks whose side is a power of two: mean of each cell at least
    a half."""
    side = int(tokens**0.5)
    cells = a_mask(rows).reshape(rows, side, SIDE // side, side, SIDE // side)
    return (cells.mean((2, 4)) >= 0.5).float().flatten(1)


# --- what it leaves alone
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clamp", ["inward", "closed"])
def test_zero_gate_leaves_the_unet_bit_identical(clamp):
    unet = tiny_unet()
    plain = run(unet)
    reference = a_reference(unet, record_gates=True)
    with install(unet, rra_processors(unet, gate_init="zero", clamp=clamp)):
        assert torch.equal(run(unet, reference=reference), plain)
    assert len(reference.gates) == 10  # the reference was live, not ignored


def test_zero_gate_is_bit_identical_in_bf16_with_fp32_trainables():
    unet = tiny_unet().to(torch.bfloat16)
    plain = run(unet, dtype=torch.bfloat16)
    reference = a_reference(tiny_unet(), record_gates=True, mass_sites=rra_sites(unet))
    reference.features = {
        site: x.to(torch.bfloat16) for site, x in reference.features.items()
    }  # as a bf16 UNet gives
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")) as handle:
        for processor in handle.processors.values():
            processor.float()
        assert torch.equal(run(unet, reference=reference, dtype=torch.bfloat16), plain)
    assert len(reference.gates) == 10 and all(
        x.dtype == torch.float32 for x in reference.mass.values()
    )


def test_without_a_reference_everything_is_plain_whatever_was_learned():
    unet = tiny_unet()
    plain = run(unet)
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")) as handle:
        wake(handle)
        assert torch.equal(run(unet), plain)
        assert torch.equal(run(unet, reference=ReferenceContext({})), plain)
        assert not torch.allclose(run(unet, reference=a_reference(unet)), plain, atol=1e-3)


def test_identity_init_equals_the_plain_unet():
    unet = tiny_unet()
    plain = run(unet)
    reference = a_reference(unet, record_gates=True)
    with install(unet, rra_processors(unet, gate_init="identity", clamp="inward")):
        torch.testing.assert_close(run(unet, reference=reference), plain, atol=1e-5, rtol=0)
    assert all((gate == 0.5).all() and not gate.requires_grad for gate in reference.gates.values())


def test_install_touches_neither_weights_nor_the_random_stream_and_adds_exactly_its_parameters():
    unet = tiny_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    state = torch.get_rng_state()
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")):
        after = unet.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    parts = ("to_k_ref.weight", "to_v_ref.weight", "fuse.weight", "fuse.bias")
    assert after.keys() - before.keys() == {
        f"{site}.{part}" for site in rra_sites(unet) for part in parts
    }


def test_remove_restores_the_very_processor_objects():
    unet = tiny_unet()
    before, shown, plain = unet.attn_processors, repr(unet), run(unet)
    for _ in range(2):
        handle = install(unet, rra_processors(unet, gate_init="zero", clamp="inward"))
        wake(handle)
        handle.remove()
        handle.remove()  # a second time does no harm
        after = unet.attn_processors
        assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
        assert repr(unet) == shown and torch.equal(run(unet), plain)


def test_remove_runs_when_the_block_fails():
    unet = tiny_unet()
    before = unet.attn_processors
    with (
        pytest.raises(ZeroDivisionError),
        install(unet, rra_processors(unet, gate_init="zero", clamp="inward")),
    ):
        raise ZeroDivisionError
    assert all(unet.attn_processors[name] is before[name] for name in before)


def test_double_install_raises_and_foreign_weights_are_not_pushed_aside():
    unet = tiny_unet()
    with (
        install(unet, rra_processors(unet, gate_init="zero", clamp="inward")),
        pytest.raises(RuntimeError, match="already"),
    ):
        install(unet, rra_processors(unet, gate_init="zero", clamp="inward"))
    with (
        install(unet, rra_processors(unet, gate_init="zero", clamp="inward", sites=[])),
        pytest.raises(RuntimeError, match="already"),
    ):
        install(unet, rra_processors(unet, gate_init="zero", clamp="inward"))

    class Foreign(torch.nn.Module):
        pass

    unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(Foreign())
    with pytest.raises(UserError, match="Foreign"):
        install(unet, rra_processors(unet, gate_init="zero", clamp="inward"))


@pytest.mark.parametrize(
    "wrong", [dict(gate_init="ones", clamp="inward"), dict(gate_init="zero", clamp="native")]
)
def test_unknown_gate_is_refused_and_the_unet_is_left_as_it_was(wrong):
    unet = tiny_unet()
    before = unet.attn_processors
    with pytest.raises(ValueError, match="gate_init is zero or identity"):
        rra_processors(unet, **wrong)
    assert all(unet.attn_processors[name] is before[name] for name in before)


def test_no_warning_about_dropped_kwargs(caplog):
    unet, logger = tiny_unet(), logging.getLogger("diffusers")
    reference = a_reference(unet)
    logger.addHandler(caplog.handler)
    try:
        with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")):
            run(unet, reference=reference)
        with install(unet, rra_processors(unet, gate_init="zero", clamp="inward", sites=[])):
            run(unet, reference=reference)
        assert not caplog.records
        run(unet, reference=reference)  # stock processors do warn: the check above can fail
        assert any("not expected" in record.getMessage() for record in caplog.records)
    finally:
        logger.removeHandler(caplog.handler)


def test_context_is_opaque():
    context = ReferenceContext({})
    assert not isinstance(context, dict | list | tuple) and not dataclasses.is_dataclass(context)


# --- the gate
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["inward", "closed"])
def test_clamp01_values_and_gradient_at_the_bounds(kind, dtype):
    x = torch.tensor([-0.5, 0.0, 0.25, 1.0, 1.5], dtype=dtype, requires_grad=True)
    for sign in (1.0, -1.0):
        (grad,) = torch.autograd.grad((sign * clamp01(x, kind)).sum(), x)
        assert grad[1:4].tolist() == [sign] * 3
    assert clamp01(x, kind).tolist() == [0.0, 0.0, 0.25, 1.0, 1.0]


def test_only_the_inward_clamp_lets_the_returning_gradient_through():
    x = torch.tensor([-0.5, 1.5], requires_grad=True)
    passed = {
        (kind, sign): torch.autograd.grad((sign * clamp01(x, kind)).sum(), x)[0].tolist()
        for kind in ("inward", "closed")
        for sign in (1.0, -1.0)
    }
    assert passed["inward", -1.0] == [
        -1.0,
        0.0,
    ]  # descent raises x: -0.5 may return, 1.5 may not leave further
    assert passed["inward", 1.0] == [0.0, 1.0]
    assert passed["closed", 1.0] == passed["closed", -1.0] == [0.0, 0.0]


def test_a_token_below_zero_comes_back_with_the_inward_clamp_only():
    ends = {}
    for kind in ("inward", "closed"):
        x = torch.tensor([-0.2], requires_grad=True)
        for _ in range(20):
            (grad,) = torch.autograd.grad((clamp01(x, kind) - 0.5).square().sum(), x)
            x = (x - 0.1 * grad).detach().requires_grad_(True)
        ends[kind] = x.item()
    assert ends["inward"] > 0.2 and ends["closed"] == pytest.approx(-0.2)


def test_clamp01_survives_compilation():
    compiled = torch.compile(clamp01, backend="aot_eager", fullgraph=True)
    x = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5], requires_grad=True)
    (grad,) = torch.autograd.grad((-compiled(x, "inward")).sum(), x)
    assert grad.tolist() == [-1.0, -1.0, -1.0, -1.0, 0.0]


@pytest.mark.parametrize("clamp", ["inward", "closed"])
def test_gate_gradient_is_not_zero_at_the_zero_init(clamp):
    unet = tiny_unet()
    with install(unet, rra_processors(unet, gate_init="zero", clamp=clamp)) as handle:
        out = run(unet, reference=a_reference(unet))
        (out * randn(*out.shape, seed=9)).sum().backward()
        for name, processor in handle.processors.items():
            assert processor.fuse.weight.grad[-1].abs().max() > 0, name
            assert processor.fuse.bias.grad[-1].abs() > 0, name


def test_zero_init_trains_the_gate_first_and_identity_init_f_ra_first():
    for gate_init in ("zero", "identity"):
        unet = tiny_unet()
        with install(unet, rra_processors(unet, gate_init=gate_init, clamp="inward")) as handle:
            out = run(unet, reference=a_reference(unet))
            (out * randn(*out.shape, seed=9)).sum().backward()
            for processor in handle.processors.values():
                f_ra, gate = processor.fuse.weight.grad[:-1], processor.fuse.weight.grad[-1]
                assert (f_ra.abs().amax(1).min() > 0) == (gate_init == "identity")
                assert (gate.abs().max() > 1e-4) == (
                    gate_init == "zero"
                )  # identity: F_RA - F_SA is rounding


# --- what it computes
# -------------------------------------------------------------------------------------------------


def test_rra_is_eq_8_and_9_written_out():
    unet = tiny_unet()
    site = "up_blocks.2.attentions.1.transformer_blocks.0.attn1.processor"
    attn = unet.get_submodule(site.removesuffix(".processor"))
    reference = a_reference(unet, record_gates=True, mass_sites=rra_sites(unet))
    f_r, f_g = reference.features[site], randn(2, *reference.features[site].shape[1:], seed=8)
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")) as handle:
        wake(handle)
        processor = handle.processors[site]
        out = attn(f_g, reference=reference)
    q = heads(attn.to_q(f_g))
    o_s, _ = explicit(q, heads(attn.to_k(f_g)), heads(attn.to_v(f_g)))
    o_r, a_r = explicit(q, heads(processor.to_k_ref(f_r)), heads(processor.to_v_ref(f_r)))
    o_s, o_r = (x.transpose(1, 2).flatten(2) for x in (o_s, o_r))
    f_i = processor.fuse(torch.cat([o_r, o_s], -1))
    m_f = f_i[..., -1:].clamp(0, 1)
    torch.testing.assert_close(
        out, attn.to_out[0](o_s) * (1 - m_f) + f_i[..., :-1] * m_f, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(reference.gates[site], m_f[..., 0], atol=1e-5, rtol=0)
    rho = (a_r.mean(1) * square_mask_at(f_r.shape[1])[:, None]).sum(-1)
    torch.testing.assert_close(reference.mass[site], rho, atol=1e-5, rtol=0)


def test_projections_start_as_copies_that_do_not_share_memory():
    unet = tiny_unet().requires_grad_(False)
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")) as handle:
        for name, processor in handle.processors.items():
            attn = unet.get_submodule(name.removesuffix(".processor"))
            for ours, theirs in ((processor.to_k_ref, attn.to_k), (processor.to_v_ref, attn.to_v)):
                assert (
                    torch.equal(ours.weight, theirs.weight)
                    and ours.weight.data_ptr() != theirs.weight.data_ptr()
                )
            assert all(p.requires_grad for p in processor.parameters())


@pytest.mark.parametrize("d", [5, 8, 20, 40, 47])
@pytest.mark.parametrize("channels", [1, 3])
def test_fused_mass_equals_the_explicit_map_with_gradients(d, channels):
    q, k, v = (randn(2, 3, n, d, seed=i).requires_grad_(True) for i, n in enumerate((16, 25, 25)))
    extra = (randn(2, 1, 25, channels, seed=5) > 0).float()
    out, mass = attention_with_mass(q, k, v, extra)
    expected_out, attention = explicit(q, k, v)
    expected_mass = attention @ extra
    torch.testing.assert_close(out, expected_out, atol=1e-5, rtol=0)
    torch.testing.assert_close(mass, expected_mass, atol=1e-5, rtol=0)
    weights = randn(*out.shape, seed=6), randn(*mass.shape, seed=7)
    got = torch.autograd.grad((out * weights[0]).sum() + (mass * weights[1]).sum(), (q, k, v))
    wanted = torch.autograd.grad(
        (expected_out * weights[0]).sum() + (expected_mass * weights[1]).sum(), (q, k, v)
    )
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_fused_padding_keeps_every_head_dim_a_multiple_of_8(monkeypatch):
    seen = []
    stock = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: seen.append(a) or stock(*a, **k)
    )
    for d in (5, 8, 40, 80, 160):
        attention_with_mass(*(randn(1, 2, 4, d, seed=i) for i in range(3)), torch.ones(1, 1, 4, 1))
    assert [[x.shape[-1] for x in a] for a in seen] == [[w] * 3 for w in (8, 16, 48, 88, 168)]


@pytest.mark.parametrize("form", ["all", "masked"])
def test_reference_loss_through_the_unet_equals_eq_10_on_the_explicit_maps(form):
    unet = tiny_unet()
    sites = [site for site in rra_sites(unet) if site.startswith("up_blocks.2")]
    reference, target = (
        a_reference(unet, mass_sites=sites, nearest_mask=form == "masked"),
        a_mask(2).flip(-1),
    )
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")) as handle:
        wake(handle)
        inputs = attention_inputs(unet, [s.removesuffix(".processor") for s in sites], 2, reference)
        assert set(reference.mass) == set(sites)
        weights = [handle.processors[site].to_k_ref.weight for site in sites]
        maps = []
        for site in sites:
            attn, name = (
                unet.get_submodule(site.removesuffix(".processor")),
                site.removesuffix(".processor"),
            )
            k = heads(handle.processors[site].to_k_ref(reference.features[site]))
            maps.append(
                explicit(heads(attn.to_q(inputs[name])), k, k)[1].mean(1)
            )  # (B,N,M), head mean
    attention = torch.stack(maps).mean(0)
    if form == "masked":
        m_r, m_g = (F.interpolate(m, (8, 8)).flatten(1) for m in (a_mask(2), target))
        rho = (attention * m_r[:, None]).sum(-1)
        expected = (m_g * rho - m_g).square().mean(1)
    else:
        m_r = square_mask_at(64)
        m_g = m_r.reshape(2, 8, 8).flip(-1).flatten(1)
        expected = ((attention * m_r[:, None]).sum(-1) - m_g).square().mean(1)
    loss = reference_attention_loss(reference.mass, target, form=form)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    got, wanted = (
        torch.autograd.grad(x.sum(), weights, retain_graph=True) for x in (loss, expected)
    )
    for x, y in zip(got, wanted, strict=True):
        assert y.abs().max() > 0
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_reference_loss_averages_layers_then_resolutions():
    fine, coarse = torch.full((1, 256), 0.5), torch.full((1, 64), 0.25)
    mass = {"a": fine, "b": torch.zeros(1, 256), "c": coarse}
    ones = torch.ones(1, 1, 16, 16)
    expected = (0.75**2 + 0.75**2) / 2
    assert reference_attention_loss(mass, ones, form="all").item() == pytest.approx(expected)
    assert reference_attention_loss({"c": coarse}, 0 * ones, form="all").item() == pytest.approx(
        0.0625
    )
    assert (
        reference_attention_loss({"c": coarse}, 0 * ones, form="masked").item() == 0
    )  # nothing outside the subject


def test_a_small_subject_does_not_vanish_at_a_coarse_level():
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, :, 5, 6] = 1
    loss = reference_attention_loss({"a": torch.zeros(2, 16)}, mask, form="all")
    assert loss.tolist() == [1 / 16, 0]


def test_losses_refuse_an_empty_choice_a_wrong_batch_and_a_wrong_size():
    for loss in (cross_attention_loss, lambda m, t: reference_attention_loss(m, t, form="all")):
        for mass in ({}, {"a": torch.zeros(3, 64)}, {"a": torch.zeros(1, 50)}):
            with pytest.raises(ValueError, match="masks for attention maps|no level"):
                loss(mass, torch.ones(1, 1, 16, 16))


def test_odd_latents_are_halved_as_the_unet_does():
    mass = {"a": torch.zeros(1, 9 * 13), "b": torch.zeros(1, 5 * 7)}
    assert reference_attention_loss(mass, torch.ones(1, 1, 17, 25), form="all").item() == 1


def test_slot_mass_equals_the_explicit_cross_attention_map():
    unet = tiny_unet()
    sites = [
        name
        for name in unet.attn_processors
        if name.endswith("attn2.processor") and "down_blocks.1" in name
    ]
    slots = torch.zeros(2, TOKENS, dtype=torch.bool)
    slots[0, 3] = slots[1, 4] = slots[1, 5] = True
    reference = ReferenceContext({}, slots=slots, slot_sites=sites)
    text = randn(2, TOKENS, WIDTH, seed=3)
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")):
        inputs = attention_inputs(unet, [s.removesuffix(".processor") for s in sites], 2, reference)
    assert set(reference.slot_mass) == set(sites)
    for name, x in inputs.items():
        attn = unet.get_submodule(name)
        k, v = (heads(project(text)) for project in (attn.to_k, attn.to_v))
        _, attention = explicit(heads(attn.to_q(x)), k, v)
        expected = (attention.mean(1) * slots[:, None]).sum(-1)
        torch.testing.assert_close(
            reference.slot_mass[f"{name}.processor"], expected, atol=1e-5, rtol=0
        )


def test_cross_attention_loss_by_hand():
    slot_mass = {
        "a": torch.tensor([[0.2, 0.0, 0.1, 0.0]]),
        "b": torch.tensor([[0.2, 0.0, 0.3, 0.0]]),
    }
    mask = torch.tensor([1.0, 0, 0, 0]).reshape(1, 1, 2, 2)
    assert cross_attention_loss(slot_mass, mask).item() == pytest.approx(
        1 / 4
    )  # mean [.2 0 .2 0], over .2, minus mask
    nowhere = {"a": torch.zeros(1, 4, requires_grad=True)}
    (grad,) = torch.autograd.grad(
        cross_attention_loss(nowhere, mask).sum(), nowhere["a"], retain_graph=True
    )
    assert torch.isfinite(grad).all()


def test_gate_statistics_by_hand():
    gate = torch.tensor([[0.0, 0.2, 0.0, 1.0]])
    mask = torch.tensor([0.0, 1, 0, 1]).reshape(1, 1, 2, 2)
    assert gate_statistics({"a": gate}, mask) == {"a": pytest.approx((0.6, 0.0, 0.5))}


# --- batches
# --------------------------------------------------------------------------------------------------


def test_one_shared_reference_equals_the_same_one_repeated():
    unet = tiny_unet()
    shared = a_reference(unet, rows=1, mass_sites=rra_sites(unet))
    repeated = {site: x.expand(3, -1, -1).contiguous() for site, x in shared.features.items()}
    repeated = ReferenceContext(
        repeated, shared.mask.expand(3, -1, -1, -1), mass_sites=rra_sites(unet)
    )
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")) as handle:
        wake(handle)
        torch.testing.assert_close(
            run(unet, 3, shared), run(unet, 3, repeated), atol=1e-6, rtol=1e-6
        )
    for site in rra_sites(unet):
        assert shared.mass[site].shape[0] == 3
        torch.testing.assert_close(shared.mass[site], repeated.mass[site], atol=1e-6, rtol=0)


def test_references_side_by_side_are_one_of_all_their_tokens():
    """Two equal ones are looked at as one is; of two others the softmax runs over the tokens of
    both."""
    unet = tiny_unet()
    sites = rra_sites(unet)
    one, other = (a_reference(unet, rows=2, mass_sites=sites) for _ in range(2))
    other.features = {site: x.flip(1) * 0.5 for site, x in other.features.items()}

    def pair(a, b) -> ReferenceContext:
        rows = {
            site: torch.stack([x, b.features[site]], 1).flatten(0, 1)
            for site, x in a.features.items()
        }
        masks = torch.stack([a.mask, b.mask], 1).flatten(0, 1)
        return ReferenceContext(rows, masks, mass_sites=sites, count=2)

    twice, both = pair(one, one), pair(one, other)
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")) as handle:
        wake(handle)
        once = run(unet, 2, one)
        torch.testing.assert_close(run(unet, 2, twice), once, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(run(unet, 2, both), once, atol=1e-4)
        features, looking = both.at(sites[0], 2)
        assert looking == slice(0, 2)
        assert torch.equal(
            features, torch.cat([one.features[sites[0]], other.features[sites[0]]], 1)
        )
    for site in sites:
        torch.testing.assert_close(twice.mass[site], one.mass[site], atol=1e-5, rtol=0)


def test_each_row_of_the_reference_serves_samples_that_follow_one_another():
    """As at sampling: [uncond, cond] features for a batch [uncond, uncond, cond, cond]."""
    unet = tiny_unet()
    pair = a_reference(unet, rows=2, samples=4, mass_sites=rra_sites(unet))
    each = {site: x.repeat_interleave(2, 0) for site, x in pair.features.items()}
    each = ReferenceContext(each, pair.mask.repeat_interleave(2, 0), mass_sites=rra_sites(unet))
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")) as handle:
        wake(handle)
        torch.testing.assert_close(run(unet, 4, pair), run(unet, 4, each), atol=1e-6, rtol=1e-6)
    for site in rra_sites(unet):
        torch.testing.assert_close(pair.mass[site], each.mass[site], atol=1e-6, rtol=0)


def test_the_samples_that_look_need_not_be_the_first():
    unet = tiny_unet()
    plain = run(unet, 4)
    later = a_reference(unet, rows=1, samples=2)
    later.first = 2
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")) as handle:
        wake(handle)
        everywhere, some = run(unet, 4, a_reference(unet, rows=1)), run(unet, 4, later)
    assert torch.equal(some[:2], plain[:2])
    torch.testing.assert_close(some[2:], everywhere[2:], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(some[2:], plain[2:], atol=1e-3)


def test_reference_attention_can_be_left_out_of_the_finest_level():
    unet = tiny_unet()
    coarse = rra_sites(unet, ["mid_block", "up_blocks.1", "up_blocks.2"])
    assert len(coarse) == 7 and coarse == rra_sites(unet)[:7]
    with install(
        unet, rra_processors(unet, gate_init="zero", clamp="inward", sites=coarse)
    ) as handle:
        assert list(handle.processors) == coarse


@pytest.mark.parametrize(("rows", "samples"), [(2, None), (1, 1), (1, 2)])
def test_samples_without_a_reference_are_bit_identical_to_plain(rows, samples):
    unet = tiny_unet()
    plain = run(unet, 3)
    reference = a_reference(
        unet, rows=rows, samples=samples, record_gates=True, mass_sites=rra_sites(unet)
    )
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")) as handle:
        wake(handle)
        out = run(unet, 3, reference)
    n = samples or rows
    assert torch.equal(out[n:], plain[n:])
    assert all(not torch.allclose(out[i], plain[i], atol=1e-3) for i in range(n))
    assert all(len(x) == n for x in (*reference.gates.values(), *reference.mass.values()))


def test_features_that_do_not_fit_are_refused_by_name():
    unet = tiny_unet()
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")):
        with pytest.raises(
            ValueError, match="3 rows of reference features for 3 samples in a batch of 2"
        ):
            run(unet, 2, a_reference(unet, rows=3))
        with pytest.raises(KeyError, match="mid_block"):
            some = {k: v for k, v in a_reference(unet).features.items() if not k.startswith("mid")}
            run(unet, 2, ReferenceContext(some))
        attn = unet.mid_block.attentions[0].transformer_blocks[0].attn1
        with pytest.raises(ValueError, match="masks are not supported"):
            attn(randn(1, 4, 32), attention_mask=torch.zeros(1, 4))


# --- training
# --------------------------------------------------------------------------------------------------


def test_gradient_checkpointing_gives_the_same_loss_and_gradients():
    results, calls = [], []
    for checkpointing in (False, True):
        unet = tiny_unet().train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        reference = a_reference(unet, mass_sites=rra_sites(unet))
        with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")) as handle:
            wake(handle)
            count = []
            unet.get_submodule(
                rra_sites(unet)[-1].removesuffix(".processor")
            ).register_forward_pre_hook(lambda *_, count=count: count.append(1))
            out = run(unet, reference=reference)
            loss = (
                out.square().mean()
                + reference_attention_loss(reference.mass, a_mask(2), form="all").sum()
            )
            loss.backward()
            grads = {
                n: p.grad for site in handle.processors.values() for n, p in site.named_parameters()
            }
            grads |= {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}
        results.append((loss.detach(), grads))
        calls.append(len(count))
    assert calls == [1, 2]  # it was replayed
    assert (
        torch.equal(results[0][0], results[1][0]) and results[0][1].keys() == results[1][1].keys()
    )
    for name, grad in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], grad, atol=1e-7, rtol=1e-5, msg=name)


def test_start_token_gets_no_gradient_through_keys_and_values():
    unet = tiny_unet()
    for detach in (True, False):
        text = randn(2, TOKENS, WIDTH, seed=3).requires_grad_(True)
        with install(
            unet, rra_processors(unet, gate_init="zero", clamp="inward"), detach_start=detach
        ):
            out = run(unet, reference=a_reference(unet), text=text)
            (grad,) = torch.autograd.grad((out * randn(*out.shape, seed=9)).sum(), text)
        assert (grad[:, 0] == 0).all() == detach
        assert grad[:, 1:].abs().amax((0, 2)).min() > 0


def test_start_token_detach_is_for_cross_attention_only():
    unet = tiny_unet()
    attn = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    x = randn(1, 9, 16).requires_grad_(True)
    (wanted,) = torch.autograd.grad(attn(x).square().sum(), x)
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward")):
        (got,) = torch.autograd.grad(attn(x).square().sum(), x)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


def test_without_rra_only_the_keys_and_values_of_the_text_are_touched():
    unet = tiny_unet()
    plain = run(unet)
    with install(unet, rra_processors(unet, gate_init="zero", clamp="inward", sites=[])) as handle:
        assert not handle.processors
        assert torch.equal(run(unet, reference=a_reference(unet)), plain)


# --- the true size
# --------------------------------------------------------------------------------------------------


def test_sizes_at_sd_1_4():
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(SD14)
        handle = install(unet, rra_processors(unet, gate_init="identity", clamp="inward"))
    sites = rra_sites(unet)
    assert [site.split(".attn")[0] for site in sites[:2]] == [
        "mid_block.attentions.0.transformer_blocks.0",
        "up_blocks.1.attentions.0.transformer_blocks.0",
    ]
    assert [sum(site.startswith(f"up_blocks.{i}.") for site in sites) for i in range(4)] == [
        0,
        3,
        3,
        3,
    ]
    assert list(handle.processors) == sites and len(sites) == 10
    rra = sum(p.numel() for processor in handle.processors.values() for p in processor.parameters())
    kv = sum(
        p.numel() for n, p in unet.named_parameters() if ".attn2.to_k." in n or ".attn2.to_v." in n
    )
    assert (round(rra / 1e6, 2), round(kv / 1e6, 2)) == (32.38, 19.17)
    assert all(p.device.type == "meta" for p in unet.parameters())
