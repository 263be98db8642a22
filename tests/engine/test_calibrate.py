import json

import pytest

from lira.engine.calibrate import _read_choice, _write_choice

CHOICE = {"width": 4, "lowering": "patches", "widest": 8, "why": "images/s", "images": 0.0}


def test_a_choice_is_read_as_it_was_written(tmp_path):
    _write_choice(tmp_path / "choice.json", CHOICE)
    assert _read_choice(tmp_path / "choice.json") == CHOICE


@pytest.mark.parametrize(
    "content",
    ["[1]", "3", "null", '"width"', "{}", "[" * 100_000, "{", ""]
    + [json.dumps({**CHOICE, **change}) for change in ({"width": "4"}, {"width": 0}, {"widest": None})]
    + [
        json.dumps({**CHOICE, **change})
        for change in ({"lowering": [1]}, {"why": 3}, {"width": True}, {"images": "0"})
    ],
)
def test_anything_else_is_no_choice(tmp_path, content):
    (tmp_path / "choice.json").write_text(content)
    assert _read_choice(tmp_path / "choice.json") is None
