import io
import os
import struct
import zlib

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
        (tmp_path / "train" / "ant" / f"{number}.SVG").write_bytes(b"<svg/>")
    (tmp_path / "test" / "bee" / "notes").write_text("")
    with pytest.warns(
        UserWarning, match=r"left out 5 \.svg, 1 no extension, taken 7 \.png: images end in \.bmp"
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


def deep_colours(kind):
    """An image of 4 x 2 pixels, 16 bits a channel, that Pillow writes in no way."""
    if kind in ("rgb", "la", "rgba"):
        colour, channels = {"rgb": (2, 3), "la": (4, 2), "rgba": (6, 4)}[kind]
        rows = b"".join(b"\0" + b"\xff" * (4 * channels * 2) for _ in range(2))

        def chunk(name, data):
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = struct.pack(">IIBBBBB", 4, 2, 16, colour, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return ".png", b"\x89PNG\r\n\x1a\n" + body
    if kind == "ppm":
        return ".ppm", b"P6 4 2 65535\n" + bytes(4 * 2 * 3 * 2)
    if kind == "plain ppm":
        return ".ppm", b"P3 4 2 1023\n" + b"1000 " * 24
    tags = [(256, 4), (257, 2), (258, 122), (259, 1), (262, 2), (273, 128), (277, 3), (278, 2), (279, 48)]
    entries = b"".join(
        struct.pack("<HHII", tag, 3, 3, value) if tag == 258 else struct.pack("<HHIHH", tag, 3, 1, value, 0)
        for tag, value in tags
    )
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return ".tif", header + struct.pack("<HHH", 16, 16, 16) + bytes(48)


@pytest.mark.parametrize("kind", ["rgb", "la", "rgba", "ppm", "plain ppm", "tiff"])
def test_colours_of_16_bits_are_refused_and_not_halved(tmp_path, kind):
    extension, content = deep_colours(kind)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.size, image.mode in ("RGB", "RGBA")) == ((4, 2), True), "Pillow reads it, as 8 bits"
        image.load()
    for name in "ab":
        path = tmp_path / "train" / name / f"0{extension}"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a/0\{extension} has colours of 16 bits a channel.* npz:"):
        load_dataset(f"folder:{tmp_path}")


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


def test_images_are_read_as_they_are_shown(tmp_path):
    """A phone that is held upright stores its image lying, and says so."""
    shown = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(shown).save(tmp_path / "train" / name / "0.png")
    turned = {3: np.rot90(shown, 2), 6: np.rot90(shown), 8: np.rot90(shown, -1)}
    for orientation, stored in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(stored.copy()).save(tmp_path / "train" / "a" / f"{orientation}.png", exif=exif)
    dataset = load_dataset(f"folder:{tmp_path}")
    np.testing.assert_array_equal(dataset.x, np.broadcast_to(shown, (5, 6, 4, 3)))


@pytest.mark.parametrize("extension", [".gif", ".jfif"])
def test_other_names_of_formats(tmp_path, extension):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        kind = {".jfif": "JPEG"}.get(extension)
        Image.new("L", (4, 4), 7).save(tmp_path / "train" / name / f"0{extension}", format=kind)
    assert (load_dataset(f"folder:{tmp_path}").x == 7).all()


def test_what_lies_where_nothing_is_looked_for_is_told(tmp_path):
    for name in ("train/a", "train/b", "val/a", "Test/b", "notes"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (4, 4), 7).save(tmp_path / name / "0.png")
    Image.new("L", (4, 4), 7).save(tmp_path / "train" / "loose.png")
    held_out = "left out Test, val: examples are in train, and those held out in test"
    loose = "left out 1 .png beside the classes, taken 2 .png"
    with pytest.warns(UserWarning, match=held_out), pytest.warns(UserWarning, match=loose):
        assert load_dataset(f"folder:{tmp_path}").num_examples == 2


UNFIT = {
    "frames": ("train/a/1.tif", r"train/a/1.tif holds 2 images, of which the first would be read"),
    "classes alone": ("", r"has no directory train: .*; if a, b are its classes, move them into .*/train"),
    "capital": ("", r"has no directory train: .*, in small letters"),
    "one class": ("", r"has the directory of one class, a, and a data set needs at least 2 classes"),
    "others": ("train/a/0.npy", r"train/a has no image, but 1 .npy: add some, convert them"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_refused_folder_is_told_what_to_do(tmp_path, case):
    root = {"classes alone": "", "capital": "Train"}.get(case, "train")
    for name in ("a",) if case == "one class" else ("a", "b"):
        (tmp_path / root / name).mkdir(parents=True)
        if (case, name) != ("others", "a"):
            Image.new("L", (4, 4), 7).save(tmp_path / root / name / "0.png")
    if case == "frames":
        images = [Image.new("L", (4, 4), shade) for shade in (7, 8)]
        images[0].save(tmp_path / UNFIT[case][0], save_all=True, append_images=images[1:])
    if case == "others":
        np.save(tmp_path / UNFIT[case][0], np.zeros(3))
    with pytest.raises(DataError, match=UNFIT[case][1]):
        load_dataset(f"folder:{tmp_path}")


def test_what_archives_and_servers_add_is_no_class(tmp_path):
    write_images(tmp_path)
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
        (tmp_path / "train" / name).mkdir()
        (tmp_path / "test" / name).mkdir()
    (tmp_path / "train" / "ant" / "._0.png").write_bytes(b"x")
    assert load_dataset(f"folder:{tmp_path}").class_names == ("ant", "bee")


def test_images_a_directory_too_deep_are_told(tmp_path):
    write_images(tmp_path)
    (tmp_path / "train" / "cat" / "more").mkdir(parents=True)
    with pytest.raises(DataError, match="train/cat has no image, but 1 directory: "):
        load_dataset(f"folder:{tmp_path}")
