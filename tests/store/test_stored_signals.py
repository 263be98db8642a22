from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stored_runs import M, N, made, rows

from lira.store import zarr
from lira.store.zarr import StoredSignal


def test_a_stored_signal_of_some_examples_is_that_of_all_at_these(tmp_path):
    run = made(tmp_path)
    values = np.random.default_rng(0).normal(size=(M, N, 1)).astype(np.float32)
    for index in range(M):
        run.write_model(index, {**rows(index), "phi": values[index]}, diverged=False)
    examples = np.array([0, 3, 4, 17, 39])
    signal = run.signal("phi", np.array([1, 4]), examples)
    assert signal.shape == (2, 5, 1)
    expected = values[[1, 4]][:, examples]
    np.testing.assert_array_equal(np.asarray(signal), expected)
    for a, b in ((0, 5), (1, 3), (4, 5), (2, 2)):
        np.testing.assert_array_equal(signal[:, a:b], expected[:, a:b])
    np.testing.assert_array_equal(signal[:1, ::2], expected[:1, ::2])


def test_slices_of_any_ends_are_those_of_the_array(tmp_path, monkeypatch):
    """Within a chunk, across its end, from the last one, of none; each after each other, so that what is kept may be another's."""
    monkeypatch.setattr(zarr, "BLOCK", 4)
    run = made(tmp_path)
    values = np.random.default_rng(0).normal(size=(M, N, 1)).astype(np.float32)
    for index in range(M):
        run.write_model(index, {**rows(index), "phi": values[index]}, diverged=False)
    models, examples = np.array([4, 1]), np.arange(1, 24, 2)[:11]
    for signal, expected in (
        (run.signal("phi", models), values[models]),
        (run.signal("phi", models, examples), values[models][:, examples]),
    ):
        ends = (0, 2, 4, 5, 9, 11)
        for start, stop, step in ((a, b, c) for a in ends for b in ends for c in (1, 3)):
            np.testing.assert_array_equal(signal[:, start:stop:step], expected[:, start:stop:step])
        np.testing.assert_array_equal(signal[:, -3:], expected[:, -3:])
        with pytest.raises(IndexError, match="examples are read in ascending order"):
            signal[:, ::-1]


def test_threads_that_share_a_stored_signal_each_read_what_they_ask_for(monkeypatch):
    """Attacks that run side by side walk through one signal, each at its own pace."""
    values = np.arange(8, dtype=np.float32)[None]

    class Shared(StoredSignal):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "_cached" and value and value[0] == 0:
                assert self[:, 4:8][0, 0] == 4, "as another thread may at any moment"

        def _read(self, start, stop):
            return values[:, start:stop]

    monkeypatch.setattr(zarr, "BLOCK", 4)
    signal = Shared(SimpleNamespace(shape=values.shape), np.arange(1), "here")  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(signal[:, 1:3], [[1, 2]])


def test_a_few_examples_do_not_hold_the_chunk_that_they_were_read_in():
    class Drawn(StoredSignal):
        def _read(self, start, stop):
            return np.arange(start, stop, dtype=np.float32)[None].repeat(3, axis=0)

    store: Any = SimpleNamespace(shape=(3, 20_000))
    signal = Drawn(store, np.arange(3), "here")
    held = [signal[:, at : at + 1] for at in (5, 9_000, 19_999)] + [signal[1:2, : zarr.BLOCK]]
    np.testing.assert_array_equal(np.concatenate([each[0] for each in held[:3]]), [5, 9_000, 19_999])
    for each in held:
        assert each.base is None or each.base.nbytes == each.nbytes
