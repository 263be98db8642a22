"""Scores, signals and memberships that are not as they must be: what to do is said."""

import re
from typing import Any

import numpy as np
import pytest

from lira.attacks import lira_online_fixed
from lira.metrics import roc
from lira.reporting.plots import plot_roc


@pytest.mark.parametrize(
    ("keep", "what"),
    [
        (np.array([[1, 0, 1]]), "of 0 and 1 keep.astype(bool)"),
        (np.array([[0, 2]]), "of indices of members make a mask"),
        (np.array([[True], [False], [True]]), "transpose it"),
    ],
)
def test_memberships_of_another_kind_are_told_what_to_do(keep, what):
    scores = np.array([[0.1, 0.2, 0.3]])
    with pytest.raises(ValueError, match=re.escape(what)):
        roc(scores, keep)
    with pytest.raises(ValueError, match=re.escape(what)):
        lira_online_fixed(scores[..., None], keep)


def test_values_without_their_axes_are_told_what_to_do():
    keep = np.array([[True, False]])
    with pytest.raises(ValueError, match=re.escape("of one target scores[None] and keep[None]")):
        roc(np.array([0.1, 0.2]), keep[0])
    with pytest.raises(ValueError, match=re.escape("of one query phi[:, :, None]")):
        lira_online_fixed(np.zeros((1, 2)), keep)
    lists: Any = [[[0.1], [0.2]]]
    with pytest.raises(ValueError, match=re.escape("phi must be an array; got list: np.asarray(phi)")):
        lira_online_fixed(lists, keep)


def test_a_curve_alone_is_drawn():
    curve = roc(np.array([[0.1, 0.2, 0.3]]), np.array([[True, False, True]]))
    assert [line.get_gid() for line in plot_roc(curve).lines][:1] == ["attack"]
