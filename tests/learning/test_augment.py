import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lira.learning.augment import Queries, augment, check_augmentation, query_views

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


def naive_shift(image, down, right):
    """Move an image, filling the border by reflection, pixel by pixel."""
    height, width = image.shape[:2]

    def mirror(i, n):
        return -i if i < 0 else 2 * (n - 1) - i if i >= n else i

    moved = np.empty_like(image)
    for r in range(height):
        for c in range(width):
            moved[r, c] = image[mirror(r - down, height), mirror(c - right, width)]
    return moved


@pytest.mark.parametrize(
    ("mirror", "shift", "count"), [(False, 0, 1), (True, 0, 2), (False, 1, 9), (True, 1, 18), (True, 2, 50)]
)
def test_queries_are_all_mirrors_and_shifts_with_the_clean_image_first(mirror, shift, count):
    queries = Queries(mirror=mirror, shift=shift)
    views = np.asarray(query_views(jnp.asarray(IMAGES), queries))
    assert views.shape == (count, *IMAGES.shape)
    assert len(set(queries.views)) == count == (1 + mirror) * (2 * shift + 1) ** 2
    np.testing.assert_array_equal(views[0], IMAGES)
    for view, (mirrored, down, right) in zip(views, queries.views, strict=True):
        for image, seen in zip(IMAGES, view, strict=True):
            expected = naive_shift(image, down, right)
            np.testing.assert_array_equal(seen, expected[:, ::-1] if mirrored else expected)


def test_tabular_examples_have_their_one_query():
    features = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(query_views(jnp.asarray(features), Queries()), features[None])


@given(st.integers(0, 2**31 - 1))
def test_augmented_image_is_one_of_the_mirrored_shifts(seed):
    image = IMAGES[0]
    seen = np.asarray(augment(jax.random.key(seed), jnp.asarray(image), flip=True, crop_pad=2))
    options = [naive_shift(image, d, r)[:, ::f] for d in range(-2, 3) for r in range(-2, 3) for f in (1, -1)]
    assert any(np.array_equal(seen, option) for option in options)


def test_every_mirror_and_shift_occurs_as_often_as_any_other():
    image = jnp.arange(6 * 7).reshape(6, 7, 1)
    draw = jax.jit(jax.vmap(lambda k: augment(k, image, flip=True, crop_pad=1)))
    seen = np.asarray(draw(jax.random.split(jax.random.key(0), 9000)))
    _, counts = np.unique(seen.reshape(9000, -1), axis=0, return_counts=True)
    assert len(counts) == 18
    assert abs(counts - 500).max() < 5 * np.sqrt(500)


def test_nothing_asked_changes_nothing():
    seen = augment(jax.random.key(0), jnp.asarray(IMAGES[0]), flip=False, crop_pad=0)
    np.testing.assert_array_equal(seen, IMAGES[0])


def test_images_are_needed_and_reflection_is_bounded():
    with pytest.raises(ValueError, match=r"queries.mirror and queries.shift need images.*shape \[64\]"):
        Queries(mirror=True).check((64,), 10)
    with pytest.raises(ValueError, match=r"recipe.flip and recipe.crop_pad need images"):
        check_augmentation(True, 0, (64,))
    with pytest.raises(ValueError, match=r"reflect at most 5 pixels of 6 x 7; got 6"):
        check_augmentation(False, 6, (6, 7, 3))
    with pytest.raises(ValueError, match=r"queries.shift must not be negative; got -1"):
        Queries(shift=-1)
    Queries(shift=5).check((6, 7, 3), 10)
