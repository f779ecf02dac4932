"""A learned subject: what it consists of; how a model takes it in and gives it back."""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eqdiff.base.identity import Identity, changes
from eqdiff.base.load import Base
from eqdiff.concept.compress import expand, is_compressed, start_values
from eqdiff.errors import UserError, require
from eqdiff.methods.registry import METHODS
from eqdiff.model import Customized
from eqdiff.reader import Places
from eqdiff.settings.groups import Recipe
from eqdiff.settings.train import recipe_in

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class References:
    """What sampling attends to, so that it needs no photos. Whoever has it can decode the photos.

    latents: (n,4,h,w), scaled means. masks: (n,1,h,w). noise: (1,4,h,w), fixed for the subject.
    names: of the photos. n is 0 where the file was told not to carry the photos; it then holds
    the noise alone.
    """

    latents: Tensor
    masks: Tensor
    noise: Tensor
    names: tuple[str, ...]


# of a method that attends to none
NO_REFERENCES = References(
    torch.zeros(0, 4, 1, 1), torch.zeros(0, 1, 1, 1), torch.zeros(1, 4, 1, 1), ()
)


@dataclass(frozen=True)
class Concept:
    """A learned subject.

    parameters: the concept parameters by name, as the file has them; a compressed concept has
    factors (see `compress`). settings: those of the training. base_name, base_fingerprint: of the
    base it was trained on. step: steps trained. hash: of the file it was read from. kept_energy:
    how much of the change the factors keep, 0 to 1; None if it is not compressed. identity: of the
    base, more than its fingerprint; None in a file of an older version. places: of several subjects
    that are drawn together, see `several.together`; {} for one.
    """

    parameters: dict[str, Tensor]
    references: References
    settings: dict[str, Any]
    base_name: str
    base_fingerprint: str
    step: int
    hash: str = ""
    kept_energy: float | None = None
    identity: Identity | None = None
    places: Places = field(default_factory=dict)

    @cached_property
    def recipe(self) -> Recipe:
        """The settings that say how the concept is drawn."""
        return recipe_in(self.settings)

    @property
    def compressed(self) -> bool:
        """Whether the parameters hold factors."""
        return is_compressed(self.parameters)


def capture_concept(
    model: Customized, references: References, settings: dict[str, Any], step: int
) -> Concept:
    """The concept that `model` carries now. Tensors are copies on the CPU, in fp32."""
    parameters = {
        name: parameter.detach().float().cpu().clone()
        for name, parameter in model.concept_parameters().items()
    }

    return Concept(
        parameters=parameters,
        references=references,
        settings=settings,
        base_name=model.base_name,
        base_fingerprint=model.base_fingerprint,
        step=step,
        identity=model.base_identity,
    )


def model_for(concept: Concept, base: Base, kind: type[Customized] | None = None) -> Customized:
    """`base` carrying the concept. kind: of the model (default: that of the concept's method).

    Raises UserError if the concept was trained on another base, or its parameters do not fit.
    """
    if not is_same(concept, base.fingerprint, base.identity):
        raise UserError(
            f"this concept was trained on the base {concept.base_name} "
            f"({concept.base_fingerprint}), not on {base.name} ({base.fingerprint}"
            f"{_hint(concept, base)}); name its own with --pretrained_model_name_or_path"
        )
    changed = changes(concept.identity, base.identity) if concept.identity else []
    if changed:
        LOG.warning(
            "%s has changed since this concept was trained on it: %s; what is drawn may be wrong",
            base.name,
            "; ".join(changed),
        )

    recipe = concept.recipe
    method = METHODS[recipe.method]
    width = base.text_encoder.get_input_embeddings().embedding_dim
    rows = torch.zeros(recipe.token_rows, width)

    model = (kind or method.model)(base, recipe, rows, concept.places)
    apply(concept, model)
    if method.references:
        _require_resolution(concept, base, model)
    return model


def is_same(concept: Concept, fingerprint: str, identity: Identity) -> bool:
    """Whether a concept was trained on the base with this fingerprint and identity.

    Where both identities know the weights they decide; files of older versions have the fingerprint
    alone.
    """
    if concept.identity and concept.identity.weights and identity.weights:
        return concept.identity.weights == identity.weights
    return concept.base_fingerprint == fingerprint


def require_same_base(concept: Concept, model: Customized, file: Path) -> None:
    """Raises UserError unless `model` is on the concept's base, its schedule and tokenizer too.

    file: where the concept lies, for the message.
    """
    require(
        is_same(concept, model.base_fingerprint, model.base_identity),
        f"{file}: of a training on the base {concept.base_name} with other weights; "
        "name it with --pretrained_model_name_or_path",
    )
    changed = changes(concept.identity, model.base_identity) if concept.identity else []
    require(
        not changed,
        f"{file}: the base {model.base_name} has changed since: {'; '.join(changed)}; "
        "put that back, or start anew with --overwrite",
    )


def _hint(concept: Concept, base: Base) -> str:
    """Why a base may count as another one although it has the right name."""
    if base.fingerprint == concept.base_fingerprint:
        return ": a few of its weights have changed since"
    dtype = str(base.unet.dtype).removeprefix("torch.")
    if dtype == "float32":
        return ""
    return (
        f", loaded in {dtype}, which rounds it: if it is the same base, load it without a dtype, "
        f"and call .to(torch.{dtype}) after load_concept"
    )


def _require_resolution(concept: Concept, base: Base, model: Customized) -> None:
    """Raises UserError unless the references have the size of the concept's latents."""
    factor = 2 ** (len(base.vae.config.block_out_channels) - 1)
    side = concept.recipe.resolution // factor
    expected = (base.unet.config.in_channels, side, side)
    shape = tuple(concept.references.noise.shape[1:])

    if shape != expected:
        model.detach()
        raise UserError(
            f"this concept does not fit the base {base.name}: references {shape} and not {expected}"
        )


@torch.no_grad()
def apply(concept: Concept, model: Customized) -> None:
    """Puts the concept's values into `model`, all of them and nothing else.

    Raises UserError if keys or shapes differ, or a compressed value is not finite. The model is
    then taken apart again.
    """
    parameters = model.concept_parameters()
    values = concept.parameters
    if concept.compressed:
        values = expand(values, start_values(model))
        broken = [name for name, value in values.items() if not value.isfinite().all()]
        if broken:
            model.detach()
            raise UserError(f"this concept is damaged: {broken[0]} is not finite; train it again")

    shared = [name for name in parameters if name in values]
    differing = sorted(set(parameters) ^ set(values))
    differing += [name for name in shared if parameters[name].shape != values[name].shape]
    if differing:
        model.detach()
        others = len(differing) - 1
        names = f"{differing[0]} and {others} more differ" if others else f"{differing[0]} differs"
        raise UserError(
            f"this concept does not fit the base {model.base_name}: {names}; "
            "name the base it was trained on with --pretrained_model_name_or_path"
        )

    for name, parameter in parameters.items():
        parameter.copy_(values[name])
