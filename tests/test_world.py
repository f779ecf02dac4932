"""The drawn world: deterministic, masks exact, tables disjoint, captions honest."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from toybox.captions import best_caption, caption, plain_caption
from toybox.classes import CLASSES, SIZE, sprite
from toybox.contexts import CONTEXTS
from toybox.instances import CLASS_NAMES, PATTERNS, TABLES, instance, table_of
from toybox.styles import STYLES
from toybox.world import Scene, draw, held_out, pose, random_scene, render_many, shadow, subject_layer

TRIPLES = list(product(CLASS_NAMES, CONTEXTS, STYLES))


def test_same_seed_same_picture():
    scenes = [random_scene(np.random.default_rng(3)) for _ in range(2)]
    assert scenes[0] == scenes[1]
    first = draw(scenes[0])
    sprite.cache_clear()
    second = draw(scenes[1])
    assert np.array_equal(first.image, second.image) and np.array_equal(first.mask, second.mask)


def test_another_seed_another_picture():
    who = instance("train", "mug", 0)
    images, _ = render_many([Scene(who, "on the beach", "photo", seed) for seed in (1, 2)])
    assert not np.array_equal(*images)


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_photo_differs_from_background_only_in_mask_and_shadow(class_name):
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
def test_subject_is_large_and_inside_the_frame(class_name):
    for index in range(6):
        mask = draw(Scene(instance("train", class_name, index), "in the snow", "photo", index)).mask
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        longer = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.6 * SIZE <= longer <= 0.95 * SIZE
        assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def test_no_dev_or_test_attributes_in_training():
    sizes = {"train": 300, "dev": 50, "test": 50}
    seen = {t: [instance(t, c, i).attributes for c in CLASS_NAMES for i in range(sizes[t])] for t in TABLES}
    for table, rows in seen.items():
        assert len(set(rows)) == len(rows) == sizes[table] * len(CLASS_NAMES)
        assert {table_of(row) for row in rows} == {table}
    assert not set(seen["train"]) & (set(seen["dev"]) | set(seen["test"]))
    assert not set(seen["dev"]) & set(seen["test"])


def test_unknown_table_is_refused():
    with pytest.raises(ValueError, match="validation"):
        instance("validation", "mug", 0)


def test_held_out_is_balanced():
    out = [triple for triple in TRIPLES if held_out(*triple)]
    assert len(out) == len(TRIPLES) // 10
    for axis, names in enumerate((CLASS_NAMES, CONTEXTS, STYLES)):
        counts = Counter(triple[axis] for triple in out)
        assert set(counts) == set(names) and len(set(counts.values())) == 1


def test_random_scenes_avoid_held_out_triples_and_favour_photos():
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(1000)]
    assert not any(held_out(s.instance.class_name, s.context, s.style) for s in scenes)
    assert 0.22 < np.mean([s.style == "photo" for s in scenes]) < 0.38


def test_every_caption_names_the_class():
    rng = np.random.default_rng(0)
    shown = Counter()
    for class_name, context, style in TRIPLES:
        who = instance("train", class_name, int(rng.integers(50)))
        text = caption(who, context, style, rng)
        assert text.replace(f" {context}", "").endswith(f" {class_name}")
        shown["context"] += context in text
        shown["pattern"] += f" {who.pattern} " in text
        best = best_caption(who, context, style)
        assert all(word in best for word in (who.colours[0], who.pattern, class_name, context))
    assert 0.8 < shown["context"] / len(TRIPLES) < 0.9 and 0.3 < shown["pattern"] / len(TRIPLES) < 0.4


def test_plain_captions_mind_the_article_and_the_slot():
    assert plain_caption("mug", "on the beach", "photo", "orange") == "a photo of an orange mug on the beach"
    assert plain_caption("{}", "in a galaxy", "oil painting") == "an oil painting of a {} in a galaxy"
    assert plain_caption("fish", None, "pixel art") == "pixel art of a fish"


def test_every_style_and_context_draws():
    for number, (context, style) in enumerate(product(CONTEXTS, STYLES)):
        image = draw(Scene(instance("dev", CLASS_NAMES[number % 10], number % 3), context, style, number)).image
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        assert image.std() > 8


def test_tables_of_functions_are_complete():
    assert tuple(CLASSES) == CLASS_NAMES and len(CONTEXTS) == 10 and len(STYLES) == 8
    drawn = {instance("train", "car", i).pattern for i in range(100)}
    assert drawn == set(PATTERNS)
