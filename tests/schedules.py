"""How authors of fine-tunes configure their scheduler: a row is what lies in scheduler_config.json.

Add a row for a base that you met; every test of test_schedulers.py then draws with it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
}
STOCK = {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
ZERO_SNR = {
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}
DISTILLED = {"original_inference_steps": 50, "timestep_scaling": 10.0, "set_alpha_to_one": True}
SDE = {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}


def _row(scheduler: str, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    config: dict[str, Any] = {"_class_name": f"{scheduler}Scheduler", **STABLE_DIFFUSION}
    for part in parts:
        config |= part
    return config | more


POPULAR = {
    "PNDM, as SD 1.4 and 1.5 have it": _row("PNDM", STOCK, skip_prk_steps=True),
    "DDIM": _row("DDIM", STOCK),
    "DDPM": _row("DDPM", variance_type="fixed_small", clip_sample=True),
    "Euler": _row("EulerDiscrete", STOCK, interpolation_type="linear", timestep_spacing="leading"),
    "Euler ancestral": _row("EulerAncestralDiscrete", STOCK),
    "LMS": _row("LMSDiscrete"),
    "Heun": _row("HeunDiscrete", use_karras_sigmas=True),
    "DPM++ 2M Karras": _row(
        "DPMSolverMultistep",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lambda_min_clipped=float("-inf"),
        use_karras_sigmas=True,
        variance_type=None,
        thresholding=False,
    ),
    "UniPC": _row("UniPCMultistep", solver_type="bh2", disable_corrector=[], solver_p=None),
    "KDPM2": _row("KDPM2Discrete"),
    "v-prediction with zero terminal SNR": _row("DDIM", STOCK, ZERO_SNR),
    "LCM": _row("LCM", DISTILLED),
}
FURTHER = {
    "PNDM with its first steps": _row("PNDM", skip_prk_steps=False, steps_offset=1),
    "Euler with zero terminal SNR": _row("EulerDiscrete", ZERO_SNR),
    "v-prediction as SD 2.1 has it": _row("DDIM", STOCK, prediction_type="v_prediction"),
    "SDE DPM++": _row("DPMSolverMultistep", SDE),
    "SDE of torchsde": _row("DPMSolverSDE", use_karras_sigmas=True),
    "DPM++ single step": _row("DPMSolverSinglestep", lower_order_final=True),
    "DPM of old": _row("DPMSolverMultistep", algorithm_type="dpmsolver"),
    "DEIS, as Dreamshaper has it": _row(
        "DEISMultistep", algorithm_type="deis", solver_type="logrho"
    ),
    "KDPM2 ancestral": _row("KDPM2AncestralDiscrete"),
    "TCD": _row("TCD", DISTILLED),
    "the latent itself predicted": _row("DDIM", STOCK, prediction_type="sample"),
    "betas of a cosine": _row("DDPM", beta_schedule="squaredcos_cap_v2"),
    "betas that only DDPM knows": _row("DDPM", beta_schedule="sigmoid"),
    "betas that only Heun knows": _row("HeunDiscrete", beta_schedule="exp"),
    "betas one by one": _row("DDIM", STOCK, trained_betas=[0.002] * 1000),
    "a hundred timesteps": _row("DDIM", STOCK, num_train_timesteps=100),
    "dynamic thresholds": _row("DPMSolverMultistep", thresholding=True),
    "zero terminal SNR for noise, never visited": _row(
        "DDIM", STOCK, rescale_betas_zero_snr=True, timestep_spacing="leading"
    ),
}
SCHEDULES = POPULAR | FURTHER
# what none of them can be
BROKEN = {
    "no timesteps": ("num_train_timesteps is 0", {"num_train_timesteps": 0}),
    "timesteps in words": ("num_train_timesteps is 'many'", {"num_train_timesteps": "many"}),
    "half a timestep": ("num_train_timesteps is 1000.5", {"num_train_timesteps": 1000.5}),
    "fewer than none": ("num_train_timesteps is -5", {"num_train_timesteps": -5}),
    "betas for half of them": ("500 betas", {"trained_betas": [0.002] * 500}),
    "betas in words": ("scheduler_config.json", {"beta_end": "x"}),
    "betas that are no numbers": ("not in 0 to 1", {"beta_end": float("nan")}),
    "betas beyond 1": ("not in 0 to 1", {"beta_end": 4}),
    "betas of nobody": ("scheduler_config.json", {"beta_schedule": "mine"}),
    "steps laid out by nobody": ("mine", {"timestep_spacing": "mine"}),
    "a flow": ("flow_prediction", {"prediction_type": "flow_prediction"}),
}


def with_schedule(base: Path, folder: Path, config: dict[str, Any]) -> Path:
    """A base with the parts of `base`, linked, and another scheduler_config.json."""
    folder.mkdir(parents=True)
    for part in base.iterdir():
        if part.name not in ("scheduler", "model_index.json"):
            (folder / part.name).symlink_to(part)

    index = json.loads((base / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", config["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return folder


def edit(path: Path, **changes: Any) -> None:
    """Other values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def copied(base: Path, folder: Path) -> Path:
    """A copy of a base to spoil."""
    return Path(shutil.copytree(base, folder))
