"""Small data sets that tests make, and when two are the same."""

import numpy as np
from PIL import Image

from lira.data.dataset import Dataset


def table(num_examples=6, **changes):
    arrays = {"x": np.arange(2.0 * num_examples).reshape(-1, 2), "y": np.arange(num_examples) % 2}
    return Dataset.from_arrays(**(arrays | changes))


def arrays_of(dataset):
    return {key: getattr(dataset, key) for key in ("x", "y", "x_test", "y_test")}


def assert_same(one, other):
    for (key, ours), theirs in zip(arrays_of(one).items(), arrays_of(other).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=key, strict=ours is not None)
    assert one.num_classes == other.num_classes
    assert one.fingerprint == other.fingerprint


def write_images(root, *, test=True, mode="L", size=(4, 3), seed=0):
    """Two classes of three random PNGs, and one in test/; returns the pixels in order `[6, 3, 4, ...]`."""
    rng = np.random.default_rng(seed)
    pixels = []
    for split, label, count in [("train", "ant", 3), ("train", "bee", 3)] + [("test", "bee", 1)] * test:
        for number in range(count):
            path = root / split / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            channels = () if mode == "L" else (3,)
            image = rng.integers(0, 256, (size[1], size[0], *channels), np.uint8)
            Image.fromarray(image).save(path)
            pixels.append(image)
    return np.stack(pixels)
