"""What is broken of an unlearning is named and made again."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from unlearned_runs import dataset

import lira
from lira.engine.verify import verify
from lira.store.errors import RunError
from lira.unlearning.directory import Unlearning
from lira.unlearning.mend import mend_unlearning
from lira.unlearning.protocol import unlearn


def test_what_is_broken_is_named_and_made_again(done, tmp_path):
    place = Path(shutil.copytree(done.path, tmp_path / "u"))
    assert not verify(place, deep=True)
    unlearning = Unlearning.open(place)
    method = "unlearned_runs.nudge"
    before = {file: file.read_bytes() for file in place.rglob("*/c/*/*") if file.is_file()}
    broken = (
        f"methods/{method}/arrays/params/c/3/0",  # after the first request, which the second starts from
        "retrained/arrays/keep/c/6/0",
        "before/arrays/labels/c/0",
    )
    for each in broken:
        (place / each).write_bytes((place / each).read_bytes()[:-1])
    assert {each.place for each in verify(place)} == set(broken)
    assert len(mend_unlearning(place, dataset())) == 3
    unlearn(unlearning, dataset(), show_progress=False)
    assert not verify(place, deep=True)
    np.testing.assert_array_equal(unlearning.retrained.keep, done.retrained.keep)
    np.testing.assert_allclose(unlearning.method(method).phi, done.method(method).phi, rtol=1e-5)
    changed = {file for file, content in before.items() if file.read_bytes() != content}
    assert all("/c/3/" in str(file) for file in changed)


@pytest.mark.parametrize("what", ["forget/c/0/0", "forget/zarr.json", "forget"])
def test_requests_are_drawn_again_and_are_those_that_the_runs_were_made_by(done, tmp_path, what):
    place = Path(shutil.copytree(done.path, tmp_path / "u"))
    if (place / what).is_dir():
        shutil.rmtree(place / what)
    else:
        (place / what).write_bytes((place / what).read_bytes()[:-1])
    assert any(each.place.startswith("forget") for each in verify(place))
    other = dataclasses.replace(dataset(), x=dataset().x + 1)
    with pytest.raises(RunError, match="is a run of other data"):
        lira.mend(place, other)
    (said,) = lira.mend(place, dataset())
    assert said.startswith("forget is damaged or missing: ")
    assert not verify(place, deep=True)
    np.testing.assert_array_equal(Unlearning.open(place).requests, done.requests)
    assert not lira.mend(place, dataset())


def test_requests_that_come_out_otherwise_are_refused(done, tmp_path, monkeypatch):
    """As where the scores that they were drawn from have changed."""
    place = Path(shutil.copytree(done.path, tmp_path / "u"))
    shutil.rmtree(place / "forget")
    monkeypatch.setattr("lira.unlearning.mend.draw_requests", lambda *_: np.roll(done.requests, 1, axis=1))
    with pytest.raises(RunError, match=r"drawn again it is not what .*retrained was made by"):
        mend_unlearning(place, dataset())
    assert not (place / "forget").exists()
