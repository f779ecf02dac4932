"""Captions: varied ones to train on, canonical ones to evaluate with."""

import numpy as np

from toybox.instances import Instance

# the canonical phrase of each style first; {} is the subject with its article
STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of {}", "photo of {}"),
    "oil painting": ("an oil painting of {}", "oil painting of {}"),
    "watercolor": ("a watercolor painting of {}", "watercolor painting of {}"),
    "pencil sketch": ("a pencil sketch of {}", "pencil sketch of {}"),
    "pointillism": ("a pointillist painting of {}", "pointillist painting of {}"),
    "mosaic": ("a mosaic of {}", "mosaic of {}"),
    "pixel art": ("pixel art of {}",),
    "neon": ("a neon drawing of {}", "neon drawing of {}"),
}
CONTEXT_SHARE, COLOUR_SHARE, PATTERN_SHARE = 0.85, 0.45, 0.35


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _compose(phrase: str, noun: str, context: str | None) -> str:
    # not str.format: the noun may itself be "{}", the slot of a prompt
    text = phrase.replace("{}", _with_article(noun))
    return f"{text} {context}" if context else text


def caption(instance: Instance, context: str, style: str, rng: np.random.Generator) -> str:
    """A training caption: one of the style's phrases, some of colour, pattern and context left out."""
    phrases = STYLE_PHRASES[style]
    phrase = phrases[int(rng.integers(len(phrases)))]
    show_context, show_colour, show_pattern = rng.random(3) < (CONTEXT_SHARE, COLOUR_SHARE, PATTERN_SHARE)
    words = [instance.colours[0]] * bool(show_colour) + [instance.pattern] * bool(show_pattern)
    return _compose(phrase, " ".join([*words, instance.class_name]), context if show_context else None)


def plain_caption(class_name: str, context: str | None, style: str, adjectives: str = "") -> str:
    """The canonical caption; `class_name` may be any noun phrase without its article, or the slot "{}"."""
    noun = f"{adjectives} {class_name}" if adjectives else class_name
    return _compose(STYLE_PHRASES[style][0], noun, context)


def best_caption(instance: Instance, context: str | None, style: str) -> str:
    """The most that a user could say in words: main colour, pattern, class, context, style."""
    return plain_caption(instance.class_name, context, style, f"{instance.colours[0]} {instance.pattern}")
