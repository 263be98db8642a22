"""The nearest others, against distances of all rows to all in float64."""

import numpy as np
import pytest

from lira.attacks._nearest import TILE, nearest_others


def _distances(rows):
    rows = rows.astype(np.float64)
    squares = np.square(rows).sum(axis=1)
    distances = squares[:, None] + squares - 2 * rows @ rows.T
    np.fill_diagonal(distances, np.inf)
    return distances


@pytest.mark.parametrize("N", [60, 2 * TILE + 300])
def test_they_are_the_nearest_of_all(N):
    rows = np.random.default_rng(0).standard_normal((N, 7)).astype(np.float32)
    rows[1::5] += 50  # another cluster, far from the mean
    rows = rows[np.argsort(rows[:, 0])]  # and rows in order, so that a tile of its own is no sample
    found = nearest_others(rows, 50)
    wanted = np.argsort(_distances(rows), axis=1, kind="stable")[:, :50]
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(wanted, axis=1))


def test_what_float32_cannot_tell_apart_is_decided_in_float64():
    """From rows of norm 1e4 distances of about 1 are lost in a float32 product."""
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((64, 3)) + 6e3).astype(np.float32)
    found = nearest_others(rows, 50)
    wanted = np.argsort(_distances(rows - np.float32(6e3)), axis=1, kind="stable")[:, :50]
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(wanted, axis=1))


def test_equal_rows_have_each_other():
    rows = np.repeat(np.random.default_rng(2).standard_normal((20, 4)), 60, axis=0).astype(np.float32)
    found = nearest_others(rows, 50)
    assert (found // 60 == np.arange(len(rows))[:, None] // 60).all()
    assert (found != np.arange(len(rows))[:, None]).all()
    assert all(len(set(each)) == 50 for each in found)


def test_as_many_as_there_are():
    rows = np.random.default_rng(3).standard_normal((51, 2)).astype(np.float32)
    found = np.sort(nearest_others(rows, 50), axis=1)
    for row, others in enumerate(found):
        np.testing.assert_array_equal(others, np.delete(np.arange(51), row))
