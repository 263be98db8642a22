import os

import numpy as np
import pytest
from data_sets import write_images
from PIL import Image

from lira.data.dataset import DataError, Dataset
from lira.data.sources import load_dataset


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_folders_of_images(tmp_path, mode, channels):
    pixels = write_images(tmp_path, mode=mode).reshape(7, 3, 4, channels)
    (tmp_path / "train" / "ant" / ".0.png").write_text("hidden")
    (tmp_path / "train" / ".git").mkdir()
    (tmp_path / "train" / "README").write_text("not a class")
    dataset = load_dataset(f"folder:{tmp_path}")
    np.testing.assert_array_equal(dataset.x, pixels[:6], strict=True)
    np.testing.assert_array_equal(dataset.y, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(dataset.x_test, pixels[6:])
    np.testing.assert_array_equal(dataset.y_test, [1])
    assert dataset.name == f"folder:{tmp_path}"


def test_folders_know_their_classes_and_files(tmp_path):
    write_images(tmp_path)
    source = f"folder:{tmp_path}"
    names = [f"train/{label}/{number}.png" for label in ("ant", "bee") for number in range(3)]
    for dataset in (load_dataset(source), load_dataset(source)):  # decoded, and from the cache
        assert dataset.class_names == ("ant", "bee")
        assert list(dataset.files) == names
    part = load_dataset(source, num_examples=4)
    rows = [int(np.flatnonzero((dataset.x == x).all(axis=(1, 2, 3)))[0]) for x in part.x]
    assert list(part.files) == [names[row] for row in rows] == [names[row] for row in (0, 1, 3, 4)]
    assert part.class_names == dataset.class_names


def test_names_are_no_part_of_the_fingerprint_and_must_be_as_many():
    plain = Dataset.from_arrays([[0.5], [1.5], [2.5]], [0, 1, 1])
    named = Dataset.from_arrays(
        [[0.5], [1.5], [2.5]], [0, 1, 1], class_names=["a", "b"], files=["x", "y", "z"]
    )
    assert (plain.class_names, plain.files) == ((), ())
    assert (named.class_names, named.files) == (("a", "b"), ("x", "y", "z"))
    assert named.fingerprint == plain.fingerprint
    with pytest.raises(DataError, match="class_names holds 1 names for 2: give one for each class"):
        Dataset.from_arrays([[0.5], [1.5]], [0, 1], class_names=["a"])
    with pytest.raises(DataError, match="files holds 3 names for 2: give one for each example"):
        Dataset.from_arrays([[0.5], [1.5]], [0, 1], files=["a", "b", "c"])


def test_folders_without_test(tmp_path):
    write_images(tmp_path, test=False)
    assert load_dataset(f"folder:{tmp_path}").num_test == 0


def test_one_colour_image_makes_all_of_them_rgb(tmp_path):
    pixels = write_images(tmp_path)
    colour = np.full((3, 4, 3), (1, 2, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "train" / "bee" / "3.png")
    Image.fromarray(np.eye(3, 4) > 0).save(tmp_path / "train" / "bee" / "4.png")  # one bit a pixel
    dataset = load_dataset(f"folder:{tmp_path}")
    np.testing.assert_array_equal(dataset.x[:6], np.repeat(pixels[:6, ..., None], 3, axis=-1))
    np.testing.assert_array_equal(dataset.x[6], colour)
    np.testing.assert_array_equal(dataset.x[7, ..., 2], 255 * np.eye(3, 4))


def test_what_is_left_out_is_counted_by_extension(tmp_path):
    write_images(tmp_path)
    for number in range(5):
        (tmp_path / "train" / "ant" / f"{number}.GIF").write_bytes(b"GIF89a")
    (tmp_path / "test" / "bee" / "notes").write_text("")
    with pytest.warns(
        UserWarning, match=r"left out 5 \.gif, 1 no extension, taken 7 \.png: images end in \.bmp"
    ) as caught:
        assert load_dataset(f"folder:{tmp_path}").num_examples == 6
    assert len(caught) == 1


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_images_of_16_bits_become_floats(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 3, 4), np.uint16)
    pixels[0, 0, :2] = 0, 65535
    for row, image in enumerate(pixels):
        path = tmp_path / "train" / "ab"[row % 2] / f"{row}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    for dataset in (load_dataset(f"folder:{tmp_path}"), load_dataset(f"folder:{tmp_path}")):
        expected = pixels[[0, 2, 1, 3], ..., None] / 32767.5 - 1
        np.testing.assert_allclose(dataset.x, expected, atol=1e-6)
        assert (dataset.x.dtype, dataset.x.min(), dataset.x.max()) == (np.float32, -1, 1)


def with_alpha(path, mode, transparent):
    """Save a black image of 4 x 3 pixels, of which the first is transparent or not, in a mode with alpha."""
    alpha = np.full((3, 4), 255, np.uint8)
    alpha[0, 0] = 7 if transparent else 255
    match mode:
        case "palette":
            pixels = np.zeros((3, 4), np.uint8)
            pixels[0, 0] = transparent
            image = Image.fromarray(pixels, "P")
            image.putpalette([0, 0, 0, 9, 9, 9])
            image.save(path, transparency=1)
        case "key":
            pixels = np.zeros((3, 4), np.uint8)
            pixels[0, 0] = 5 * transparent
            Image.fromarray(pixels).save(path, transparency=5)
        case "deep key":
            pixels = np.zeros((3, 4), np.uint16)
            pixels[0, 0] = 500 * transparent
            Image.fromarray(pixels).save(path, transparency=500)
        case "LA":
            Image.fromarray(np.stack([0 * alpha, alpha], axis=-1)).save(path)
        case "RGBA":
            Image.fromarray(np.stack([0 * alpha] * 3 + [alpha], axis=-1)).save(path)


@pytest.mark.parametrize(
    ("mode", "channels"), [("palette", 3), ("key", 1), ("deep key", 1), ("LA", 1), ("RGBA", 3)]
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_opaque_alpha_is_dropped_and_any_other_is_refused(tmp_path, mode, channels):
    """A black glyph on nothing would be a black image."""
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        with_alpha(tmp_path / "train" / name / "0.png", mode, transparent=False)
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.x.shape == (2, 3, 4, channels)
    assert (dataset.x == (-1 if mode == "deep key" else 0)).all()
    with_alpha(tmp_path / "train" / "b" / "1.png", mode, transparent=True)
    with pytest.raises(
        DataError, match=r"b/1\.png has transparent pixels, .*: flatten it, as by .*-alpha remove"
    ):
        load_dataset(f"folder:{tmp_path}")


def damage(root, case):
    ant = root / "train" / "ant"
    match case:
        case "size":
            Image.new("L", (5, 3)).save(ant / "1.png")
        case "broken":
            (ant / "1.png").write_bytes((ant / "0.png").read_bytes()[:40])
        case "deep":
            Image.fromarray(np.zeros((3, 4), np.uint16)).save(ant / "1.png")
        case "deep first":
            Image.fromarray(np.zeros((3, 4), np.uint16)).save(ant / "0.png")
        case "32 bits":
            Image.fromarray(np.zeros((3, 4), np.float32)).save(ant / "1.tif")
        case "empty class":
            (root / "train" / "cat").mkdir()
        case "test class":
            (root / "test" / "cat").mkdir()
        case "layout":
            (root / "train").rename(root / "training")
        case "dead link":
            (ant / "3.png").symlink_to("nowhere")
        case "fifo":
            os.mkfifo(ant / "3.png")
        case "no classes":
            (root / "train").rename(root / "training")
            (root / "train").mkdir()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("size", r"differ in size: .*ant/0\.png is 4 x 3 and .*ant/1\.png is 5 x 3"),
        ("broken", r"ant/1\.png cannot be read as an image"),
        ("deep", r"ant/1\.png has 16 bits a channel and .*ant/0\.png 8: convert them to one depth"),
        ("deep first", r"ant/0\.png has 16 bits a channel and .*ant/1\.png 8: convert them to one depth"),
        ("32 bits", r"ant/1\.tif has 32 bits a channel"),
        ("empty class", r"train/cat has no image.*\.jpg \.pgm \.png"),
        ("test class", r"test/cat is not a class of train/"),
        ("layout", r"no directory train: expected are train/<class>/\* and test/<class>/\*"),
        ("dead link", r"folder:.* cannot be read .*No such file.*ant/3\.png"),
        ("fifo", r"ant/3\.png is no regular file"),
        ("no classes", "train has no class directories"),
    ],
)
def test_unfit_folders(tmp_path, cache, case, message):
    write_images(tmp_path / "images")
    damage(tmp_path / "images", case)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(f"folder:{tmp_path}/images")
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("*"))
