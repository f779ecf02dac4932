"""What only a GPU can show; skipped without one."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from eqdiff.processors import attention_with_mass

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
QUICK = ("--validation_steps", "0", "--num_class_images", "4", "--reference_pool", "4")
FAST = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


@pytest.mark.parametrize(("tokens", "d"), [(4096, 40), (1024, 80), (256, 160), (64, 160)])
def test_reference_attention_never_needs_the_math_kernel(tokens: int, d: int) -> None:
    """At the levels of SD 1.x at 512 pixels, forward and backward; the math kernel would build the
    N x N map."""
    q, k, v = (
        torch.randn(2, 8, tokens, d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    mask = (torch.rand(2, 1, tokens, 1, device="cuda") < 0.3).bfloat16()
    with sdpa_kernel(FAST):
        out, mass = attention_with_mass(q, k, v, mask)
        (out.float().square().mean() + mass.float().mean()).backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


def test_a_whole_training_step_never_needs_the_math_kernel(tiny_base, tiny_subject) -> None:
    from helpers import tiny_objective

    from eqdiff.batch import draw_batch
    from eqdiff.objective import Objective

    objective, latents = tiny_objective(tiny_base, tiny_subject, gate_init="identity")
    objective.model.to_dtype(torch.bfloat16)
    objective.model.to("cuda")
    objective = Objective(objective.model, objective.config)  # as training: after the model moved
    batch = draw_batch(latents, objective.config, 1000, torch.Generator().manual_seed(0)).to(
        torch.device("cuda")
    )
    with sdpa_kernel(FAST), torch.autocast("cuda", torch.bfloat16):
        loss = objective(batch)["loss"]
        loss.backward()
    assert torch.isfinite(loss)


def test_a_default_training_on_the_bundled_base_stays_finite(tmp_path) -> None:
    """In bf16, with 64 and 256 tokens: where cuDNN's attention gave NaN in the backward pass."""
    from helpers import run_train

    run_train(["--output_dir", str(tmp_path / "out"), "--max_train_steps", "30", *QUICK])
    assert (tmp_path / "out" / "concept.safetensors").is_file()
