"""The drawn world: deterministic, masks exact, tables disjoint, captions honest."""

from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest

from toybox.canvas import SIZE
from toybox.captions import best_caption, caption, describe, pair_caption, plain_caption
from toybox.classes import CLASSES, sprite
from toybox.contexts import CONTEXTS
from toybox.instances import CLASS_NAMES, PATTERNS, TABLES, index_of, instance, table_of
from toybox.styles import STYLES
from toybox.world import (
    Scene,
    draw,
    held_out,
    held_out_pair,
    layers_of,
    pose,
    random_scene,
    render_many,
    shadow,
    subject_layer,
)

TRIPLES = list(product(CLASS_NAMES, CONTEXTS, STYLES))


def test_same_seed_same_picture() -> None:
    scenes = [random_scene(np.random.default_rng(3)) for _ in range(2)]
    assert scenes[0] == scenes[1]

    first = draw(scenes[0])
    sprite.cache_clear()
    second = draw(scenes[1])
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, second.mask)


def test_another_seed_another_picture() -> None:
    mug = instance("train", "mug", 0)
    images, _ = render_many([Scene(mug, "on the beach", "photo", seed) for seed in (1, 2)])
    assert not np.array_equal(*images)


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_photo_differs_from_background_only_in_mask_and_shadow(class_name: str) -> None:
    scene = Scene(instance("train", class_name, 5), "on pink fabric", "photo", 11)
    picture = draw(scene)

    background = CONTEXTS[scene.context](np.random.default_rng([scene.seed, 1]))
    _, cover = subject_layer(scene.instance, pose(scene.seed))
    shaded = background * (1 - shadow(cover))[..., None]

    differs = np.abs(picture.image / 255 - shaded).max(-1) > 0.01
    assert not differs[cover == 0].any()
    assert np.array_equal(picture.mask == 255, cover > 0.5)
    assert set(np.unique(picture.mask)) == {0, 255}

    # well above the shadow the bare background shows
    assert np.allclose(shaded[: SIZE // 8], background[: SIZE // 8], atol=0.01)


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_subject_is_large_and_inside_the_frame(class_name: str) -> None:
    for index in range(6):
        mask = draw(Scene(instance("train", class_name, index), "in the snow", "photo", index)).mask
        rows = np.flatnonzero(mask.any(1))
        columns = np.flatnonzero(mask.any(0))
        longer = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.6 * SIZE <= longer <= 0.95 * SIZE
        border = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
        assert not any(edge.any() for edge in border)


def test_no_dev_or_test_attributes_in_training() -> None:
    seen = {}
    for table, size in {"train": 1500, "dev": 200, "test": 50}.items():
        rows = [instance(table, name, i).attributes for name in CLASS_NAMES for i in range(size)]
        assert len(set(rows)) == len(rows) == size * len(CLASS_NAMES)
        assert {table_of(row) for row in rows} == {table}
        seen[table] = set(rows)

    assert set(seen) == set(TABLES)
    for one, other in combinations(seen.values(), 2):
        assert not one & other


def test_unknown_table_is_refused() -> None:
    with pytest.raises(ValueError, match="validation"):
        instance("validation", "mug", 0)


def test_held_out_is_balanced() -> None:
    out = [triple for triple in TRIPLES if held_out(*triple)]
    assert len(out) == len(TRIPLES) // 10
    for axis, names in enumerate((CLASS_NAMES, CONTEXTS, STYLES)):
        counts = Counter(triple[axis] for triple in out)
        assert set(counts) == set(names) and len(set(counts.values())) == 1


def test_random_scenes_avoid_held_out_triples_and_favour_photos() -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(1000)]
    assert not any(held_out(s.instance.class_name, s.context, s.style) for s in scenes)
    assert 0.22 < np.mean([s.style == "photo" for s in scenes]) < 0.38


def test_an_instance_knows_its_index() -> None:
    assert [index_of(instance("train", "fish", i), "train") for i in (0, 7, 1499)] == [0, 7, 1499]


def test_two_subjects_stand_side_by_side_each_in_its_half() -> None:
    for seed in range(12):
        scene = random_scene(np.random.default_rng(seed), pair_share=1.0)
        assert len({subject.class_name for subject in scene.subjects}) == 2

        (_, left), (_, right) = layers_of(scene)
        assert not left[:, SIZE // 2 + 3 :].any()
        assert not right[:, : SIZE // 2 - 3].any()
        assert min(left.max(), right.max()) == 1
        assert np.array_equal(draw(scene).mask > 0, np.maximum(left, right) > 0.5)


def test_training_never_sees_ten_of_the_orders_of_two_classes() -> None:
    orders = [(a, b) for a in CLASS_NAMES for b in CLASS_NAMES if a != b]
    out = [order for order in orders if held_out_pair(*order)]
    assert len(out) == 10
    assert {a for a, _ in out} == {b for _, b in out} == set(CLASS_NAMES)

    rng = np.random.default_rng(1)
    scenes = [random_scene(rng, pair_share=0.5) for _ in range(400)]
    pairs = [
        tuple(subject.class_name for subject in scene.subjects) for scene in scenes if scene.other
    ]
    assert 150 < len(pairs) < 250
    assert not set(pairs) & set(out)


def test_captions_name_what_can_be_seen_and_at_times_leave_it_out() -> None:
    rng = np.random.default_rng(0)
    counts = Counter()
    for class_name, context, style in TRIPLES:
        subject = instance("train", class_name, int(rng.integers(50)))
        main, second, third = subject.colours
        best = best_caption(subject, context, style)
        words = (*subject.colours, subject.emblem, class_name, context)
        assert all(word in best for word in words)

        text = caption([subject], context, style, rng)
        noun = text.split(" with ")[0]
        assert class_name in noun.replace(",", "").split()
        counts["context"] += context in text
        counts["colour"] += f"{main} " in noun or f"in {main}" in text
        counts["emblem"] += subject.emblem in text
        counts["emblem's colour"] += f"{third} {subject.emblem}" in text
        counts["second"] += f" {second} " in f" {text} "

    share = {name: count / len(TRIPLES) for name, count in counts.items()}
    assert 0.8 < share["context"] < 0.9
    assert 0.8 < share["colour"] < 0.9
    assert 0.55 < share["emblem"] < 0.65
    assert 0.45 < share["emblem's colour"] < 0.56
    assert 0.3 < share["second"] < 0.6


def test_a_pattern_has_its_words() -> None:
    nouns = {"striped": "stripes", "dotted": "dots", "plain": "trim", "two-tone": "half"}
    mugs = [instance("dev", "mug", i) for i in range(200)]
    assert {mug.pattern for mug in mugs} == set(PATTERNS)
    for mug in mugs:
        assert nouns.get(mug.pattern, "") in describe(mug)

    texts = [describe(instance("dev", name, i)) for name in CLASS_NAMES for i in range(200)]
    assert " a orange" not in " ".join(texts)


def test_two_subjects_are_named_from_left_to_right() -> None:
    mug = instance("dev", "mug", 0)
    cat = instance("dev", "cat", 0)
    text = caption([mug, cat], "in the snow", "photo", np.random.default_rng(0))
    assert text.index("mug") < text.index("cat")

    end = f"{mug.colours[0]} mug and a {cat.colours[0]} cat in the snow"
    assert pair_caption(mug, cat, "in the snow", "photo").endswith(end)


def test_plain_captions_mind_the_article_and_the_slot() -> None:
    orange = plain_caption("mug", "on the beach", "photo", "orange")
    assert orange == "a photo of an orange mug on the beach"
    slot = plain_caption("{}", "in a galaxy", "oil painting")
    assert slot == "an oil painting of a {} in a galaxy"
    assert plain_caption("fish", None, "pixel art") == "pixel art of a fish"


def test_every_style_and_context_draws() -> None:
    for number, (context, style) in enumerate(product(CONTEXTS, STYLES)):
        subject = instance("dev", CLASS_NAMES[number % 10], number % 3)
        image = draw(Scene(subject, context, style, number)).image
        assert image.shape == (SIZE, SIZE, 3)
        assert image.dtype == np.uint8
        assert image.std() > 8


def test_tables_of_functions_are_complete() -> None:
    assert tuple(CLASSES) == CLASS_NAMES
    assert len(CONTEXTS) == 10
    assert len(STYLES) == 8
    drawn = {instance("train", "car", i).pattern for i in range(100)}
    assert drawn == set(PATTERNS)
