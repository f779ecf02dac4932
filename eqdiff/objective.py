"""The training objective: the algorithm of the paper's Sec. 4, line by line (Eq. 5-10).

Batch -> loss. Nothing is drawn here: all that is random comes in the Batch, see batch.py.

Departures from the paper: it gives no weight for L_ra and no loss on class images, and both are
here as in the release. The release's loss on cross-attention is off by default. The target is the
velocity, or the latent itself, where the base predicts that. Ours, off by default: predictions of
the frozen UNet in place of class images, and class images with several captions in turn.

Axes: B batch, the subject's samples first, N text tokens, D text width, K captions of class images,
Q image tokens of a UNet level, h, w latent size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eqdiff.attention_loss import cross_attention_loss, reference_attention_loss
from eqdiff.batch import SIZE_PREFIXES, Batch
from eqdiff.context import ReferenceContext
from eqdiff.errors import require
from eqdiff.masking import add_noise, at_level, masked_mse, masked_noising, velocity
from eqdiff.model import Customized
from eqdiff.reference import capture
from eqdiff.settings.groups import Losses

# name -> weight, value
Terms = dict[str, tuple[float, Tensor]]
# layer -> mean inside, mean outside, dead share
GateStatistics = dict[str, tuple[float, float, float]]


class Objective(nn.Module):
    """Batch -> named losses, "loss" being the total.

    It holds the model, so that one wrapper serves all processes. A method overrides
    `further_terms`.
    """

    def __init__(
        self, model: Customized, config: Losses, class_captions: Sequence[str] = ()
    ) -> None:
        """class_captions: of the class images in turn; default: `class_prompt` for all.

        Raises UserError if the UNet has no layers of the names that a loss is to look at, or if
        predictions are to be matched and there is no frozen UNet.
        """
        super().__init__()
        self.model = model
        self.config = config
        self.errors: tuple[Tensor, Tensor] | None = None  # of the last batch: see `forward`

        # captions: y of the subject with its slots, then two texts without it, which never change
        word = config.class_word or ""
        prefixes = [prefix for prefix, _ in SIZE_PREFIXES] if config.size_prefixes else [""]
        wordings = [prefix + config.instance_prompt for prefix in prefixes]
        self.ids, self.slots = model.tokenize(wordings, word)  # (wordings, N) each
        # L_x looks at the placeholder itself, where `slot_by` whitespace may miss it
        self.columns = model.placeholders(wordings, word)  # (wordings, N)
        captions = class_captions or [config.class_prompt.replace("{}", word)]
        texts = [*captions, config.reference_prompt.replace("{}", word)]
        plain = model.encode_plain(texts)
        self.class_text, self.reference_text = plain[:-1], plain[-1:]  # (K,N,D), (1,N,D)

        matched = config.prior_kind == "prediction"
        require(
            not matched or model.reference_unet is not None,
            "--prior_kind prediction: it needs the frozen UNet of --rra, which is off here; "
            "take --prior_kind images",
        )

        # layers that the two losses on attention look at
        self.ra_sites: list[str] = []
        if model.sites and config.ra_loss_weight:
            self.ra_sites = layers_named(model.sites, config.ra_loss_layers, "ra_loss_layers")
        self.cross_sites: list[str] = []
        if config.cross_loss_weight:
            layers = model.unet.attn_processors
            cross = [name for name in layers if name.endswith(".attn2.processor")]
            self.cross_sites = layers_named(cross, config.cross_loss_layers, "cross_loss_layers")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name: "loss", "diffusion", "prior" and those of `further_terms`.

        `errors` then holds t and the diffusion loss of each of the subject's samples, (Bi,) each.
        """
        n = len(batch.caption)
        context = self.context(batch)
        prediction = self.predict(batch, context)
        error = self.error(prediction, batch)  # Eq. 7, (B,)

        self.errors = batch.t[:n], error[:n].detach()

        terms: Terms = {"diffusion": (1.0, error[:n].mean())}
        if len(error) > n:
            terms["prior"] = (self.config.prior_loss_weight, error[n:].mean())
        terms |= self.further_terms(batch, context)

        total = sum(weight * value for weight, value in terms.values())
        return {"loss": total, **{name: value for name, (_, value) in terms.items()}}

    def context(
        self, batch: Batch, *, record_gates: bool = False, mass_sites: list[str] | None = None
    ) -> ReferenceContext:
        """The reference branch (Sec. 4.3): z^r_t goes through the frozen UNet, which gives F^r.

        mass_sites: RRA layers that report their attention on the reference's subject (default:
        those that L_ra looks at).
        """
        shape = (len(batch.z0), self.ids.shape[1])
        columns = torch.zeros(shape, dtype=torch.bool, device=batch.z0.device)  # (B,N)
        columns[: len(batch.caption)] = self.columns[batch.caption]
        count = self.config.num_references

        return ReferenceContext(
            self._reference_features(batch),
            mask=batch.mask_r,
            count=count,
            nearest_mask=self.config.ra_loss_form == "masked",
            samples=len(batch.z_r) // count or None,
            mass_sites=self.ra_sites if mass_sites is None else mass_sites,
            slots=columns,
            slot_sites=self.cross_sites,
            record_gates=record_gates,
        )

    def _reference_features(self, batch: Batch) -> dict[str, Tensor]:
        """F^r of Eq. 8 by layer, without gradient; {} without RRA."""
        model = self.model
        if model.reference_unet is None:
            return {}
        z_r = add_noise(batch.z_r, batch.noise_r, model.alphas_cumprod[batch.t_r])  # z^r_t
        text = self.reference_text.expand(len(z_r), -1, -1)
        return capture(model.reference_unet, model.sites, z_r, batch.t_r, text)

    def predict(self, batch: Batch, context: ReferenceContext) -> Tensor:
        """eps_theta(z'_t, t, tau(y)) of the batch, or v: (B,4,h,w)."""
        alpha_bar = self.model.alphas_cumprod[batch.t]
        z_t = masked_noising(batch.z0, batch.noise, alpha_bar, batch.noised)  # Eq. 6
        text = self.caption(batch)
        return self.model.predict(z_t, batch.t, text, context)  # Eq. 8-9, in its layers

    def caption(self, batch: Batch) -> Tensor:
        """tau(y) of the subject's samples, then of the class images: (B,N,D)."""
        n = len(batch.caption)
        ids = self.ids[batch.caption]
        slots = self.slots[batch.caption]
        text = self.model.encode(ids, slots, batch.bands[:n])  # Eq. 5
        return torch.cat([text, self.class_caption(batch)])

    def class_caption(self, batch: Batch) -> Tensor:
        """tau of the class images' captions, which they have in turn: (B - Bi,N,D)."""
        return self.class_text[batch.class_image % len(self.class_text)]

    def make_aids(self, photos: int) -> dict[str, nn.Parameter]:
        """What is trained beside the concept and thrown away with the training, by name."""
        return {}

    # Eq. 7.
    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """The diffusion loss of each sample (B,), of what was predicted (B,4,h,w)."""
        return masked_mse(prediction, self.target(batch), batch.mask)

    def target(self, batch: Batch) -> Tensor:
        """What is to be predicted (B,4,h,w): `noise_target`, or what the frozen UNet predicts."""
        target = self.noise_target(batch)
        if self.config.prior_kind == "images":
            return target
        n = len(batch.caption)
        return torch.cat([target[:n], self.frozen_prediction(batch)])

    # Ours, not the paper's: the class is held without class images. The trained UNet is to say of a
    # noised photo, under the class caption, what the base says. Photos, because that is where the
    # other losses pull; late in the schedule hardly anything of them is left, and all pictures of
    # the class are alike.
    @torch.no_grad()
    def frozen_prediction(self, batch: Batch) -> Tensor:
        """What the frozen UNet predicts for the samples behind the subject's: (B - Bi,4,h,w)."""
        n = len(batch.caption)
        unet = self.model.reference_unet
        t = batch.t[n:]
        z_t = add_noise(batch.z0[n:], batch.noise[n:], self.model.alphas_cumprod[t])
        text = self.class_text.expand(len(t), -1, -1)
        return unet(z_t.to(unet.dtype), t, text.to(unet.dtype), return_dict=False)[0]

    def noise_target(self, batch: Batch) -> Tensor:
        """What the base predicts: eps of Eq. 7 or, if its scheduler says so, v or z0. (B,4,h,w)."""
        if self.model.scheduler.config.prediction_type == "v_prediction":
            return velocity(batch.z0, batch.noise, self.model.alphas_cumprod[batch.t])
        is_latent = self.model.scheduler.config.prediction_type == "sample"
        return batch.z0 if is_latent else batch.noise

    def further_terms(self, batch: Batch, context: ReferenceContext) -> Terms:
        """What a method adds to the diffusion loss. Here L_ra (Eq. 10), and the release's L_x."""
        config = self.config
        n = len(batch.caption)
        terms: Terms = {}

        if self.ra_sites:
            rho = {name: mass[:n] for name, mass in context.mass.items()}
            # Eq. 10
            l_ra = reference_attention_loss(rho, batch.subject_mask, form=config.ra_loss_form)
            terms["reference_attention"] = (config.ra_loss_weight, l_ra.mean())

        if self.cross_sites:
            slot_mass = {name: mass[:n] for name, mass in context.slot_mass.items()}
            l_cross = cross_attention_loss(slot_mass, batch.subject_mask)
            terms["cross_attention"] = (config.cross_loss_weight, l_cross.mean())
        return terms

    @torch.no_grad()
    def inspect(self, batch: Batch) -> dict[str, GateStatistics | float]:
        """What RRA does to the subject's samples; {} without RRA.

        "gate": see `gate_statistics`. "mass": how much of the attention of the subject's tokens
        falls on the reference's subject, in [0, 1], the mean over all RRA layers.
        """
        if not self.model.sites:
            return {}
        n = len(batch.caption)
        context = self.context(batch, record_gates=True, mass_sites=self.model.sites)
        self.predict(batch, context)

        gates = {name: gate[:n] for name, gate in context.gates.items()}
        mass = {name: rho[:n] for name, rho in context.mass.items()}
        shares = [inside for inside, _, _ in gate_statistics(mass, batch.subject_mask).values()]
        return {
            "gate": gate_statistics(gates, batch.subject_mask),
            "mass": sum(shares) / len(shares),
        }


def layers_named(names: Sequence[str], prefixes: Sequence[str], flag: str) -> list[str]:
    """Those of `names` that start with one of `prefixes`. Raises UserError if none does."""
    matches = [name for name in names if name.startswith(tuple(prefixes))]
    require(
        matches,
        f"--{flag} {' '.join(prefixes)}: no such attention layers in this UNet; "
        f"it has {names[0]} ...",
    )
    return matches


def gate_statistics(gates: dict[str, Tensor], mask: Tensor) -> GateStatistics:
    """gates: layer -> M_f (B,Q) in [0, 1]; mask (B,1,h,w) of the subject.

    Layer -> mean gate in the subject, mean gate outside (nan: no token is outside), and the share
    of tokens whose gate is 0, the dead ones.
    """
    parts = {}
    for name, gate in gates.items():
        inside = at_level(mask, gate.shape[1], binary=True).bool()  # (B,Q)
        dead = (gate == 0).float().mean()
        parts[name] = torch.stack([gate[inside].mean(), gate[~inside].mean(), dead])

    # read at the end: on a GPU each reading waits for all that was queued
    return {name: tuple(part.tolist()) for name, part in parts.items()}
