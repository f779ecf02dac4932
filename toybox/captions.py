"""Captions: varied ones to train on, canonical ones to evaluate with.

They name what can be seen: main colour, pattern and its colour, emblem and its colour, place and
style. Shape bucket, proportions, period, phase and jitter have no words: only a photo can teach
those.
"""

from collections.abc import Sequence

import numpy as np

from toybox.instances import Instance

# the canonical phrase of each style first; {} is the subject with its article
STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of {}", "photo of {}", "a picture of {}"),
    "oil painting": ("an oil painting of {}", "oil painting of {}"),
    "watercolor": ("a watercolor painting of {}", "watercolor painting of {}"),
    "pencil sketch": ("a pencil sketch of {}", "pencil sketch of {}"),
    "pointillism": ("a pointillist painting of {}", "pointillist painting of {}"),
    "mosaic": ("a mosaic of {}", "mosaic of {}"),
    "pixel art": ("pixel art of {}",),
    "neon": ("a neon drawing of {}", "neon drawing of {}"),
}
# what the second colour is of: {} is the colour, or nothing
PATTERN_NOUNS: dict[str, str] = {
    "plain": "{} trim",
    "striped": "{} stripes",
    "banded": "{} bands",
    "dotted": "{} dots",
    "checkered": "{} checks",
    "zigzag": "{} zigzags",
    "two-tone": "a {} half",
}

# How many training captions of one subject name each thing. Pairs name colours and patterns only.
COLOUR_SHARE = 0.85
CONTEXT_SHARE = 0.85
PATTERN_SHARE = 0.7
EMBLEM_SHARE = 0.6
DETAIL_COLOUR_SHARE = 0.85  # of patterns and emblems come with their colour
ADJECTIVE_SHARE = 0.35  # of patterns are an adjective: "dotted", not "with purple dots"
PAIR_ADJECTIVE_SHARE = 0.3  # of the subjects of a pair have their pattern
AFTER_SHARE = 0.1  # "a mug in yellow" for "a yellow mug"
COMMA_SHARE = 0.5


def with_article(noun: str) -> str:
    """The noun phrase after "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _compose(phrase: str, subject: str, context: str | None, comma: bool = False) -> str:
    # not str.format: the subject may itself hold "{}", the slot of a prompt
    text = phrase.replace("{}", subject)
    return f"{text}{',' * comma} {context}" if context else text


def pattern_words(instance: Instance, colour: bool = True) -> str:
    """The pattern as a noun: "purple dots", "a purple half"; for a plain subject its trim."""
    noun = PATTERN_NOUNS[instance.pattern]
    words = noun.replace("{}", instance.colours[1] if colour else "").split()
    return " ".join(words).replace("a orange", "an orange")


def emblem_words(instance: Instance, colour: bool = True) -> str:
    """The emblem with its article: "a green ring"."""
    return with_article(f"{instance.colours[2]} {instance.emblem}" if colour else instance.emblem)


def describe(instance: Instance) -> str:
    """All that words can say of an instance, without an article.

    For example "yellow mug with purple dots and a green ring".
    """
    details = f"{pattern_words(instance)} and {emblem_words(instance)}"
    return f"{instance.colours[0]} {instance.class_name} with {details}"


def _vary(instance: Instance, rng: np.random.Generator) -> tuple[str, bool]:
    """A random description of one subject with its article; whether details follow the noun."""
    parts = (COLOUR_SHARE, PATTERN_SHARE, EMBLEM_SHARE, ADJECTIVE_SHARE, AFTER_SHARE)
    colour, pattern, emblem, adjective, after = rng.random(len(parts)) < parts
    pattern_coloured, emblem_coloured = rng.random(2) < DETAIL_COLOUR_SHARE
    if instance.pattern == "plain" and not pattern_coloured:
        adjective = True  # "with trim" alone says nothing

    before = []
    details = []
    if colour and not after:
        before.append(instance.colours[0])
    if pattern and adjective:
        before.append(instance.pattern)
    elif pattern:
        details.append(pattern_words(instance, bool(pattern_coloured)))
    if emblem:
        details.append(emblem_words(instance, bool(emblem_coloured)))

    text = with_article(" ".join([*before, instance.class_name]))
    if colour and after:
        text += f" in {instance.colours[0]}"
    if details:
        text += f" with {' and '.join(details)}"
    return text, bool(details)


def _vary_briefly(instance: Instance, rng: np.random.Generator) -> str:
    """A random description of one of two subjects: article, perhaps colour and pattern, noun."""
    colour, pattern = rng.random(2) < (COLOUR_SHARE, PAIR_ADJECTIVE_SHARE)
    words = []
    if colour:
        words.append(instance.colours[0])
    if pattern:
        words.append(instance.pattern)
    return with_article(" ".join([*words, instance.class_name]))


def caption(
    subjects: Sequence[Instance], context: str, style: str, rng: np.random.Generator
) -> str:
    """A training caption of one subject or of two, named from left to right.

    It leaves out some of what can be seen.
    """
    phrases = STYLE_PHRASES[style]
    phrase = phrases[int(rng.integers(len(phrases)))]
    place = context if rng.random() < CONTEXT_SHARE else None
    comma = rng.random() < COMMA_SHARE

    if len(subjects) > 1:
        text = " and ".join(_vary_briefly(subject, rng) for subject in subjects)
    else:
        text, details = _vary(subjects[0], rng)
        comma = comma and details
    return _compose(phrase, text, place, comma)


def plain_caption(noun: str, context: str | None, style: str, adjectives: str = "") -> str:
    """The canonical caption; `noun` is a noun phrase without its article, or the slot "{}"."""
    subject = with_article(f"{adjectives} {noun}" if adjectives else noun)
    return _compose(STYLE_PHRASES[style][0], subject, context)


def best_caption(instance: Instance, context: str | None, style: str) -> str:
    """The most that a user could say in words: colours, pattern, emblem, class, context, style."""
    return plain_caption(describe(instance), context, style)


def pair_caption(left: Instance, right: Instance, context: str | None, style: str) -> str:
    """The canonical caption of two subjects side by side, each with its main colour."""
    nouns = (f"{subject.colours[0]} {subject.class_name}" for subject in (left, right))
    text = " and ".join(with_article(noun) for noun in nouns)
    return _compose(STYLE_PHRASES[style][0], text, context)
