"""Data sets that tensorflow-datasets prepared, read without TensorFlow where it is not installed."""

import contextlib
import dataclasses
import importlib.util
import io
import logging
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lira.data.cache import cached, what_changes
from lira.data.dataset import DataError, Dataset
from lira.data.paths import one_line

__all__ = ["load_tfds"]


# ---- tensorflow-datasets ----


def load_tfds(place: str, data_dir: str, *, reread: bool = False) -> Dataset:
    with _quiet():
        builder = _find_tfds(place, data_dir)
    root = Path(os.path.abspath(builder.data_path))
    places = sorted(root.iterdir())
    listing = [(path.name, what_changes(path.stat())) for path in places]
    dataset = cached(
        f"tfds:{place}",
        ["tfds", str(root), listing],
        [path for path in places if path.is_file()],
        lambda: _read_tfds(builder, place),
        reread=reread,
    )
    names = _class_names(builder)
    return dataclasses.replace(
        dataset,
        data_dir=data_dir and os.path.abspath(data_dir),
        class_names=names if len(names) == dataset.num_classes else (),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS's prints, log lines and its dependencies' warnings from the user; progress bars stay."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _find_tfds(place: str, data_dir: str) -> Any:
    """The builder of a prepared data set, found by its files alone; prepared first where there are none."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    looked_in = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return builder_from_files(place, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError:
        pass  # not prepared yet
    except Exception as error:
        raise DataError(f"tfds:{place} cannot be opened in {looked_in} ({one_line(error)})") from error
    try:
        builder = tfds.builder(place, data_dir=data_dir or None, file_format="array_record")
        # The stock builders reach their files through TensorFlow, and would notice only after the download.
        stock = type(builder).__module__.startswith("tensorflow_datasets.")
        if stock and importlib.util.find_spec("tensorflow") is None:
            raise ModuleNotFoundError("TensorFlow is not installed")
        builder.download_and_prepare()
        return builder
    except Exception as error:
        raise DataError(
            f"tfds:{place} is not prepared in {looked_in} and cannot be prepared here ({one_line(error)}): "
            f'pip install "lira[tensorflow]" and try again with network access, or prepare it on another machine with '
            f"tfds.builder({place!r}, file_format='array_record').download_and_prepare() and pass that data_dir"
        ) from error


def _read_tfds(builder: Any, place: str) -> Dataset:
    """Read the splits train and test (if any) of a prepared builder, in stored order."""
    splits, features = builder.info.splits, builder.info.features
    keys = builder.info.supervised_keys or ("image", "label")
    if "train" not in splits:
        raise DataError(f"tfds:{place} has no split train, only {', '.join(splits)}: pass its arrays by npz:")
    if len(keys) != 2 or not all(key in features for key in keys):
        raise DataError(
            f"tfds:{place} has neither supervised_keys nor features image and label, only "
            f"{', '.join(sorted(features))}: pass its arrays by npz:"
        )
    try:
        with _quiet():
            x, y = _read_split(builder, "train", *keys)
            x_test, y_test = _read_split(builder, "test", *keys) if "test" in splits else (None, None)
    except Exception as error:
        raise DataError(
            f"tfds:{place} cannot be read from {builder.data_path} ({one_line(error)}): prepare it again"
        ) from error
    num_classes = getattr(features[keys[1]], "num_classes", None)
    return Dataset.from_arrays(
        x, y, x_test=x_test, y_test=y_test, name=f"tfds:{place}", num_classes=num_classes
    )


def _class_names(builder: Any) -> tuple[str, ...]:
    """The names of the label's classes; empty where the label is a plain number."""
    label = builder.info.features[(builder.info.supervised_keys or ("image", "label"))[1]]
    return tuple(label.names) if getattr(label, "num_classes", None) else ()


def _read_split(builder: Any, split: str, x_key: str, y_key: str) -> tuple[np.ndarray, np.ndarray]:
    count = builder.info.splits[split].num_examples
    x, labels = np.empty(0), []
    for row, example in enumerate(_examples(builder, split)):
        value = np.asarray(example[x_key])
        if row == 0:
            x = np.empty((count, *value.shape), dtype=value.dtype)
        if value.shape != x.shape[1:]:
            raise ValueError(f"{split} examples 0 and {row} differ in shape: {x.shape[1:]} and {value.shape}")
        x[row] = value
        labels.append(example[y_key])
    if len(labels) != count:
        raise ValueError(f"split {split} holds {len(labels)} examples in place of {count}")
    return x, np.array(labels)


def _examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """The decoded examples of a split; TFDS would read TFRecord files, its default, by TensorFlow alone."""
    formats = {each.value for each in builder.info.available_file_formats()}
    if formats != {"tfrecord"}:
        yield from builder.as_data_source(split)
        return
    for path in builder.info.splits[split].filepaths:
        # A record is its length (8 bytes), a checksum (4), the data, another checksum (4).
        data, start = path.read_bytes(), 0
        while start < len(data):
            stop = start + 12 + struct.unpack_from("<Q", data, start)[0]
            yield builder.info.features.deserialize_example_np(data[start + 12 : stop])
            start = stop + 4
