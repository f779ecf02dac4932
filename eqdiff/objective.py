"""The training objective: the paper's algorithm box, line by line (Sec. 4, Eq. 3-10). Draws nothing: see `latents`."""

import torch
from torch import Tensor, nn

from eqdiff.attention import ReferenceContext
from eqdiff.attention_loss import at_level, cross_attention_loss, reference_attention_loss
from eqdiff.config import TrainConfig, UserError
from eqdiff.latents import SIZE_PREFIXES, Batch
from eqdiff.masking import add_noise, masked_mse, masked_noising, velocity
from eqdiff.model import EqDiff
from eqdiff.reference import capture


def layers_named(names: list[str], prefixes: tuple[str, ...], flag: str) -> list[str]:
    """Those of `names` that start with one of `prefixes`. UserError: none does."""
    found = [name for name in names if name.startswith(tuple(prefixes))]
    if not found:
        raise UserError(f"--{flag} {' '.join(prefixes)}: no such attention layers in this UNet; it has {names[0]} ...")
    return found


class Objective(nn.Module):
    """Batch -> named losses, "loss" being the total. Holds the model, so that one wrapper serves all processes."""

    def __init__(self, model: EqDiff, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        word = config.class_word or ""
        wordings = [p + config.instance_prompt for p, _ in SIZE_PREFIXES] if config.size_prefixes else []
        self.ids, self.slots = model.tokenize(wordings or [config.instance_prompt], word)
        texts = [config.class_prompt.replace("{}", word), config.reference_prompt.replace("{}", word)]
        self.class_text, self.reference_text = model.encode_plain(texts).split(1)  # (1,N,D) each, constant
        cross = [name for name in model.unet.attn_processors if name.endswith(".attn2.processor")]
        with_ra = model.sites and config.ra_loss_weight
        self.ra_sites = layers_named(model.sites, config.ra_loss_layers, "ra_loss_layers") if with_ra else []
        with_cross = config.cross_loss_weight
        self.cross_sites = layers_named(cross, config.cross_loss_layers, "cross_loss_layers") if with_cross else []

    def context(
        self, batch: Batch, *, record_gates: bool = False, mass_sites: list[str] | None = None
    ) -> ReferenceContext:
        """The reference branch (Sec. 4.3): z^r_t through the frozen UNet, its features, without gradient."""
        slots = torch.zeros(len(batch.z0), self.ids.shape[1], dtype=torch.bool, device=batch.z0.device)
        slots[: len(batch.caption)] = self.slots[batch.caption]
        features, model = {}, self.model
        if model.reference_unet is not None:
            z_r = add_noise(batch.z_r, batch.noise_r, model.alphas_cumprod[batch.t_r])
            text = self.reference_text.expand(len(z_r), -1, -1)
            features = capture(model.reference_unet, model.sites, z_r, batch.t_r, text)
        return ReferenceContext(
            features,
            batch.mask_r,
            mass_sites=self.ra_sites if mass_sites is None else mass_sites,
            nearest_mask=self.config.ra_loss_form == "masked",
            slots=slots,
            slot_sites=self.cross_sites,
            samples=len(batch.z_r) // self.config.num_references or None,
            count=self.config.num_references,
            record_gates=record_gates,
        )

    def predict(self, batch: Batch, context: ReferenceContext) -> Tensor:
        """eps_theta(z'_t, t, tau(y)) of the batch, or v: (B,4,h,w)."""
        model, n = self.model, len(batch.caption)
        text = model.encode(self.ids[batch.caption], self.slots[batch.caption], batch.bands[:n])  # Eq. 5
        text = torch.cat([text, self.class_text.expand(len(batch.z0) - n, -1, -1)])
        alpha_bar = model.alphas_cumprod[batch.t]
        noising = self.config.masking == "noise"
        mask = batch.mask if noising else torch.ones_like(batch.mask)
        z_t = masked_noising(batch.z0, batch.noise, alpha_bar, mask)  # Eq. 6
        return model.predict(z_t, batch.t, text, context)

    def target(self, batch: Batch) -> Tensor:
        """What the base predicts, as its scheduler says: the noise or, in place of eps in Eq. 7, v. (B,4,h,w)."""
        if self.model.scheduler.config.prediction_type == "v_prediction":
            return velocity(batch.z0, batch.noise, self.model.alphas_cumprod[batch.t])
        return batch.noise

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config, n = self.config, len(batch.caption)
        context = self.context(batch)
        error = masked_mse(self.predict(batch, context), self.target(batch), batch.mask)  # Eq. 7, (B,)
        losses = {"diffusion": error[:n].mean()}
        weights = {"diffusion": 1.0}
        if len(error) > n:
            losses["prior"], weights["prior"] = error[n:].mean(), config.prior_loss_weight
        if self.ra_sites:
            mass = {name: rho[:n] for name, rho in context.mass.items()}
            l_ra = reference_attention_loss(mass, batch.subject_mask, form=config.ra_loss_form)  # Eq. 10
            losses["reference_attention"], weights["reference_attention"] = l_ra.mean(), config.ra_loss_weight
        if self.cross_sites:
            slot_mass = {name: a[:n] for name, a in context.slot_mass.items()}
            losses["cross_attention"] = cross_attention_loss(slot_mass, batch.subject_mask).mean()
            weights["cross_attention"] = config.cross_loss_weight
        total = sum(weights[name] * value for name, value in losses.items())
        return {"loss": total, **losses}

    @torch.no_grad()
    def inspect(self, batch: Batch) -> dict[str, dict[str, tuple[float, float, float]] | float]:
        """On the subject's samples: per layer the gate inside, outside, dead share; and how much of the attention of
        the subject's tokens falls on the reference's subject (mean over all RRA layers). {} without RRA."""
        if not self.model.sites:
            return {}
        n = len(batch.caption)
        context = self.context(batch, record_gates=True, mass_sites=self.model.sites)
        self.predict(batch, context)
        gates = {name: gate[:n] for name, gate in context.gates.items()}
        mass = {name: rho[:n] for name, rho in context.mass.items()}
        shares = [inside for inside, _, _ in gate_statistics(mass, batch.subject_mask).values()]
        return {"gate": gate_statistics(gates, batch.subject_mask), "mass": sum(shares) / len(shares)}


def gate_statistics(gates: dict[str, Tensor], mask: Tensor) -> dict[str, tuple[float, float, float]]:
    """Layer -> mean gate in the subject, mean outside (nan: no tokens there), share of tokens with gate 0 (dead)."""
    inside = {name: at_level(mask, gate.shape[1], nearest=False).bool() for name, gate in gates.items()}
    parts = {n: (g[inside[n]].mean(), g[~inside[n]].mean(), (g == 0).float().mean()) for n, g in gates.items()}
    return {name: tuple(torch.stack(part).tolist()) for name, part in parts.items()}
