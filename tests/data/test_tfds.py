import io
import json
import struct
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from data_sets import assert_same
from PIL import Image

from lira.data import tfds
from lira.data.dataset import DataError, Dataset
from lira.data.sources import load_dataset

CIFAR = Path(__file__).parents[3] / "shared/data/cifar10/cifar10-jpeg.tar.xz"


def prepare(data_dir, name, splits, features, keys=("image", "label"), *, register=False, configs=()):
    """Prepare a TFDS data set of examples `{split: [example, ...]}`, in this order, without TensorFlow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies' deprecations
        import tensorflow_datasets as tfds

        def info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=keys,
                disable_shuffling=True,
            )

        body = {
            "VERSION": tfds.core.Version("1.0.0"),
            "name": name,
            "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config) for config in configs],
            "_info": info,
            "_split_generators": lambda self, _: {split: self._generate_examples(split) for split in splits},
            "_generate_examples": lambda self, split: enumerate(splits[split]),
        }
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), body, skip_registration=not register)
        if not register:
            builder(data_dir=data_dir, file_format="array_record").download_and_prepare()


@pytest.fixture
def features():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
    return tfds.features


def rows(labels, start=0):
    return [{"x": np.full(3, start + row, np.float32), "y": label} for row, label in enumerate(labels)]


def prepare_table(data_dir, features, name="lira_table", *, splits=None, keys=("x", "y"), register=False):
    kinds = {
        "x": features.Tensor(shape=(3,), dtype=np.float32),
        "y": features.ClassLabel(names=["cat", "dog"]),
    }
    splits = splits or {"train": rows([0, 1, 1, 0]), "test": rows([1], 9)}
    prepare(data_dir, name, splits, kinds, keys, register=register)


def test_prepared_tables_are_found_by_their_files(tmp_path, features):
    prepare_table(tmp_path, features)
    expected = Dataset.from_arrays(
        np.repeat(np.arange(4.0), 3).reshape(4, 3), [0, 1, 1, 0], x_test=[[9, 9, 9]], y_test=[1]
    )
    for place in ("lira_table", "lira_table:1.0.0", "lira_table:1.*.*"):
        dataset = load_dataset(f"tfds:{place}", data_dir=str(tmp_path))
        assert_same(dataset, expected)
        assert (dataset.name, dataset.data_dir) == (f"tfds:{place}", str(tmp_path))


def test_tfds_is_cached_and_quiet(tmp_path, features, cache, monkeypatch, capfd):
    prepare_table(tmp_path, features)
    capfd.readouterr()
    first = load_dataset("tfds:lira_table", data_dir=str(tmp_path))
    monkeypatch.setattr(tfds, "_read_tfds", None)
    again = load_dataset("tfds:lira_table", data_dir=str(tmp_path))
    assert_same(again, first)
    assert again.class_names == first.class_names == ("cat", "dog")
    assert len(list(cache.iterdir())) == 1
    assert "".join(capfd.readouterr()) == ""


def test_tfrecord_files_are_read_without_tensorflow(tmp_path, features):
    """The same records in TFDS's default format, which TensorFlow alone can write."""
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue] (compiled)

    prepare_table(tmp_path, features)
    expected = load_dataset("tfds:lira_table", data_dir=str(tmp_path))
    root = tmp_path / "lira_table" / "1.0.0"
    for path in root.glob("*.array_record-*"):
        records = array_record_module.ArrayRecordReader(str(path)).read_all()
        framed = [struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0) for record in records]
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(b"".join(framed))
        path.unlink()
    info = json.loads((root / "dataset_info.json").read_text())
    (root / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    assert_same(load_dataset("tfds:lira_table", data_dir=str(tmp_path)), expected)
    (path,) = root.glob("*-train.tfrecord-*")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"tfds:lira_table cannot be read from .*: prepare it again"):
        load_dataset("tfds:lira_table", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": {"validation": rows([0, 1])}}, "has no split train, only validation"),
        ({"keys": None}, "neither supervised_keys nor features image and label, only x, y"),
        ({"splits": {"train": rows([0, 0])}}, "class 1 of 0..1 has no example"),
    ],
)
def test_unfit_tfds_data(tmp_path, features, options, message):
    prepare_table(tmp_path, features, **options)
    with pytest.raises(DataError, match=message):
        load_dataset("tfds:lira_table", data_dir=str(tmp_path))


def test_configurations_and_fractional_labels(tmp_path, features):
    kinds = {"x": features.Tensor(shape=(3,), dtype=np.float32), "y": features.Scalar(dtype=np.float32)}
    prepare(tmp_path, "lira_configs", {"train": rows([0, 1])}, kinds, ("x", "y"), configs=["whole"])
    assert load_dataset("tfds:lira_configs/whole:1.0.0", data_dir=str(tmp_path)).num_examples == 2
    assert load_dataset("tfds:lira_configs", data_dir=str(tmp_path)).num_examples == 2
    with pytest.raises(DataError, match="lira_configs/other is not prepared in"):
        load_dataset("tfds:lira_configs/other", data_dir=str(tmp_path))
    prepare(tmp_path, "lira_prices", {"train": rows([0, 1.5])}, kinds, ("x", "y"))
    with pytest.raises(DataError, match=r"y row 1 holds label 1\.5, not a whole number"):
        load_dataset("tfds:lira_prices", data_dir=str(tmp_path))


def test_images_of_several_sizes_are_refused(tmp_path, features):
    png = [io.BytesIO() for _ in range(2)]
    for size, file in zip((3, 4), png, strict=True):
        Image.new("L", (size, 3)).save(file, "PNG")
        file.seek(0)
    kinds = {"image": features.Image(shape=(None, None, 1)), "label": features.ClassLabel(num_classes=2)}
    examples = [{"image": file, "label": label} for label, file in enumerate(png)]
    prepare(tmp_path, "lira_sizes", {"train": examples}, kinds, keys=None)
    with pytest.raises(
        DataError, match=r"train examples 0 and 1 differ in shape: \(3, 3, 1\) and \(3, 4, 1\)"
    ):
        load_dataset("tfds:lira_sizes", data_dir=str(tmp_path))


def test_broken_tfds_files_are_one_line(tmp_path, features):
    prepare_table(tmp_path, features)
    (tmp_path / "lira_table" / "1.0.0" / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="tfds:lira_table cannot be opened in") as caught:
        load_dataset("tfds:lira_table", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "reason"),
    [("no_such_set", "no_such_set not found"), ("cifar10", "TensorFlow is not installed"), ("a b", None)],
)
def test_what_is_not_prepared_says_how_to_get_it(tmp_path, place, reason, monkeypatch):
    find_spec = tfds.importlib.util.find_spec
    monkeypatch.setattr(
        tfds.importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find_spec(name)
    )
    message = (
        "cannot be opened"
        if reason is None
        else rf'not prepared in .*{reason}.*pip install "lira\[tensorflow\]"'
    )
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(f"tfds:{place}", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_registered_builder_is_prepared_when_it_is_not_yet(tmp_path, features):
    prepare_table(tmp_path, features, name="lira_registered", register=True)
    assert not list(tmp_path.glob("lira_registered"))
    assert load_dataset("tfds:lira_registered", data_dir=str(tmp_path)).num_examples == 4


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    """The first 100 training and 20 test images of each class."""
    if not CIFAR.exists():
        pytest.skip(f"{CIFAR} is not there")
    root = tmp_path_factory.mktemp("cifar10")
    with tarfile.open(CIFAR, "r|xz") as archive:
        for member in archive:
            path = Path(member.name)
            if path.suffix == ".jpg" and int(path.stem) < (100 if "train" in path.parts else 20):
                archive.extract(member, root, filter="data")
    (train,) = root.glob("**/train")
    return train.parent


def test_cifar10_is_the_same_by_both_routes(cifar, tmp_path, features):
    classes = sorted(path.name for path in (cifar / "train").iterdir())
    splits = {
        split: [
            {"image": io.BytesIO(path.read_bytes()), "label": path.parent.name}
            for path in sorted((cifar / split).glob("*/*.jpg"))
        ]
        for split in ("train", "test")
    }
    kinds = {"image": features.Image(shape=(32, 32, 3)), "label": features.ClassLabel(names=classes)}
    prepare(tmp_path, "lira_cifar", splits, kinds)
    dataset = load_dataset(f"folder:{cifar}")
    assert dataset.x.shape == (1000, 32, 32, 3)
    assert dataset.num_test == 200
    assert_same(load_dataset("tfds:lira_cifar", data_dir=str(tmp_path)), dataset)
