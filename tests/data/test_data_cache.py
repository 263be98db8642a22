import os
import shutil
from pathlib import Path

import pytest
from data_sets import assert_same
from PIL import Image

from lira.data import cache as data_cache
from lira.data import folder as image_folder
from lira.data.sources import load_dataset


def test_the_second_load_decodes_nothing(folder, decoded, cache):
    first = load_dataset(f"folder:{folder}")
    assert decoded
    decoded.clear()
    second = load_dataset(f"folder:{folder}")
    assert not decoded
    assert_same(first, second)
    assert first.name == second.name
    assert [path.name.startswith(".") for path in cache.iterdir()] == [False]


@pytest.mark.parametrize("change", ["contents", "added", "renamed", "removed"])
def test_a_changed_folder_is_decoded_anew(folder, decoded, change):
    before = load_dataset(f"folder:{folder}")
    decoded.clear()
    image = folder / "train" / "bee" / "2.png"
    match change:
        case "contents":
            Image.new("L", (4, 3), 7).save(image)
        case "added":
            Image.new("L", (4, 3), 7).save(folder / "train" / "bee" / "3.png")
        case "renamed":
            image.rename(folder / "train" / "ant" / "9.png")
        case "removed":
            image.unlink()
    after = load_dataset(f"folder:{folder}")
    assert decoded
    assert after.fingerprint != before.fingerprint


@pytest.fixture
def raw(folder):
    """An image of the folder that is not compressed, so that another one has as many bytes."""
    image = folder / "train" / "bee" / "2.png"
    Image.new("L", (4, 3), 5).save(image, format="BMP")
    return image


def flip_pixel(image):
    content = image.read_bytes()
    image.write_bytes(content[:-1] + bytes([content[-1] ^ 128]))


@pytest.mark.parametrize("how", ["written in place", "renamed over it"])
def test_a_file_that_was_replaced_with_size_and_time_kept_is_decoded_anew(folder, raw, how):
    before, stat = load_dataset(f"folder:{folder}"), raw.stat()
    if how == "written in place":
        flip_pixel(raw)
    else:
        shutil.copy(raw, folder / "spare")
        flip_pixel(folder / "spare")
        (folder / "spare").replace(raw)
    os.utime(raw, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (raw.stat().st_size, raw.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert load_dataset(f"folder:{folder}").fingerprint != before.fingerprint


def test_the_bytes_alone_tell_where_a_run_begins(folder, raw, decoded, monkeypatch):
    # As on a file system that knows no times and no inodes.
    monkeypatch.setattr(image_folder, "what_changes", lambda stat: (stat.st_size,))
    before = load_dataset(f"folder:{folder}")
    flip_pixel(raw)
    assert_same(load_dataset(f"folder:{folder}"), before)
    after = load_dataset(f"folder:{folder}", reread=True)
    assert after.fingerprint != before.fingerprint
    for reread in (False, True):  # what is kept is now of these bytes
        decoded.clear()
        assert_same(load_dataset(f"folder:{folder}", reread=reread), after)
        assert not decoded


def test_what_was_read_by_other_rules_is_read_anew(folder, decoded, monkeypatch):
    load_dataset(f"folder:{folder}")
    decoded.clear()
    monkeypatch.setattr(data_cache, "READING", data_cache.READING + 1)
    load_dataset(f"folder:{folder}")
    assert decoded


@pytest.mark.parametrize("harm", ["flipped bit", "truncated", "empty", "lost", "no fingerprint"])
def test_a_damaged_entry_is_rebuilt(folder, decoded, cache, harm):
    before = load_dataset(f"folder:{folder}")
    (entry,) = cache.iterdir()
    contents = (entry / "x.npy").read_bytes()
    match harm:
        case "flipped bit":
            (entry / "x.npy").write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
        case "truncated":
            (entry / "x.npy").write_bytes(contents[:-1])
        case "empty":
            (entry / "x.npy").write_bytes(b"")
        case "lost":
            (entry / "x.npy").unlink()
        case "no fingerprint":
            (entry / "fingerprint").unlink()
    for expect_decoding in (True, False):
        decoded.clear()
        assert_same(load_dataset(f"folder:{folder}"), before)
        assert bool(decoded) == expect_decoding


def test_a_write_that_is_cut_off_leaves_no_entry(folder, cache, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            load_dataset(f"folder:{folder}")
    assert not list(cache.iterdir())
    assert load_dataset(f"folder:{folder}").num_examples == 6


def test_an_unwritable_cache_only_warns(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIRA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be kept in .*set LIRA_CACHE") as caught:
        dataset = load_dataset(f"folder:{folder}")
    assert len(caught) == 1
    assert dataset.num_examples == 6
