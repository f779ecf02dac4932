"""Several subjects in one prompt, without training them together: their concepts side by side."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from eqdiff.concept.concept import Concept, is_same
from eqdiff.concept.file import load_concept
from eqdiff.errors import require
from eqdiff.methods.registry import METHODS
from eqdiff.settings.groups import FREE, Recipe
from eqdiff.settings.options import names_of
from eqdiff.settings.prompts import places_of
from eqdiff.settings.sample import find_concept, name_of


def load_together(concepts: Sequence[str | Path | Concept]) -> Concept:
    """Concept files, folders of trainings or concepts as they are, as `together` makes one of them.

    Those that come as they are have no name. Raises UserError if one is no concept, or they cannot
    be drawn together.
    """
    found = []
    names = []
    for concept in concepts:
        path = None if isinstance(concept, Concept) else find_concept(str(concept))
        found.append(concept if path is None else load_concept(path))
        names.append("" if path is None else name_of(path))
    return together(found, names)


def together(concepts: Sequence[Concept], names: Sequence[str]) -> Concept:
    """One concept of several, which says in `places` how a prompt names each.

    names: of the concepts, in their order; one that two have names none. How it is drawn (guidance,
    steps) is the first one's. A single concept is itself.

    Raises UserError if they cannot be drawn together: of a method that carries one alone, of
    different bases, or trained with different settings of the recipe.
    """
    if len(concepts) == 1:
        return concepts[0]

    first = concepts[0]
    for concept, name in zip(concepts, names, strict=True):
        method = concept.recipe.method
        able = ", ".join(known for known, kind in METHODS.items() if kind.several)
        require(
            METHODS[method].several,
            f"--concept {name}: it is of --method {method}; of several concepts each must be of "
            f"{able}, which needs no joint training",
        )
        _require_like(concept, first, name)

    words = [concept.recipe.class_word or "" for concept in concepts]
    shared = first.parameters
    stacked = {name: torch.cat([c.parameters[name] for c in concepts]) for name in shared}
    return dataclasses.replace(
        first,
        parameters=stacked,
        settings={**first.settings, "class_word": " and ".join(words)},
        hash="+".join(concept.hash for concept in concepts),
        places={name: (n, words[n - 1]) for name, n in places_of(names).items()},
    )


def _require_like(concept: Concept, first: Concept, name: str) -> None:
    """Raises UserError unless both are of one base and one recipe, up to their class words."""
    same = concept.base_fingerprint == first.base_fingerprint
    if first.identity is not None:
        same = is_same(concept, first.base_fingerprint, first.identity)
    bases = f"the base {concept.base_name}, the first one of {first.base_name}"
    require(same, f"--concept {name}: it was trained on {bases}; of several all need the same base")

    free = {"class_word", *names_of(Recipe, FREE)}
    fields = [field.name for field in dataclasses.fields(Recipe) if field.name not in free]
    other = [f for f in fields if getattr(concept.recipe, f) != getattr(first.recipe, f)]
    message = f"--concept {name}: its {other[:1]} differs from the first one's; train all alike"
    require(not other, message)

    shapes = [{n: v.shape for n, v in c.parameters.items()} for c in (concept, first)]
    require(shapes[0] == shapes[1], f"--concept {name}: its tensors differ from the first one's")
