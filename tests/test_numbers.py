"""What holds numbers gives them up, tensors of every kind among them."""

import ml_dtypes
import numpy as np
import pytest
from array_kinds import Tensor

import lira
from lira.numbers import as_array, native_floats

VALUES = np.array([[0.5, -1.25], [3.0, 0.0]], np.float32)


@pytest.mark.parametrize("held", [(), ("gradient",), ("device",), ("gradient", "device", "negation")])
def test_tensors_give_up_their_values(held):
    np.testing.assert_array_equal(as_array(Tensor(VALUES, "float32", held)), VALUES)
    np.testing.assert_array_equal(as_array([Tensor(row, "float32", held) for row in VALUES]), VALUES)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("uint8", np.uint8), ("bool", np.bool_), ("int64", np.int64), ("float16", np.float16)]
)
def test_and_stay_of_their_kind(kind, dtype):
    values = np.array([[0, 1]], dtype)
    assert as_array(Tensor(values, kind)).dtype == dtype


def test_bfloat16_is_what_jax_has_it_as():
    found = as_array(Tensor(VALUES, "bfloat16"))
    assert found.dtype == ml_dtypes.bfloat16
    assert native_floats(found).dtype == np.float32
    np.testing.assert_array_equal(native_floats(found), VALUES)


def test_a_data_set_of_tensors_is_that_of_arrays():
    """Bytes stay images, and halves are what they say."""
    rng = np.random.default_rng(0)
    images, y = rng.integers(0, 256, (6, 4, 4, 3)).astype(np.uint8), np.arange(6) % 2
    made = lira.Dataset.from_arrays(Tensor(images, "uint8", ("device",)), Tensor(y, "int64", ("device",)))
    assert made.fingerprint == lira.Dataset.from_arrays(images, y).fingerprint
    x = np.round(rng.normal(size=(6, 3)) * 4).astype(np.float32) / 4
    made = lira.Dataset.from_arrays(Tensor(x, "bfloat16", ("gradient",)), y)
    assert made.fingerprint == lira.Dataset.from_arrays(x, y).fingerprint


def test_masked_values_are_refused():
    """What stands below a mask was read as a value."""
    masked = np.ma.masked_array(VALUES, VALUES == 0)
    with pytest.raises(ValueError, match="masked values, of which nothing is known: fill them in"):
        as_array(masked)
    with pytest.raises(ValueError, match="x has masked values"):
        lira.Dataset.from_arrays(masked, [0, 1])
    np.testing.assert_array_equal(as_array(np.ma.masked_array(VALUES)), VALUES)
    with pytest.raises(ValueError, match="x has rows of different lengths"):
        lira.Dataset.from_arrays([[1, 2], [3]], [0, 1])


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "float64"])
def test_pytorchs_own_are_as_those_above(kind):
    torch = pytest.importorskip("torch")
    held = torch.tensor(VALUES).to(getattr(torch, kind)).requires_grad_()
    for tensor in (held, held.T.contiguous().T, torch._neg_view(-held), held.detach().to_sparse()):
        found = as_array(tensor)
        assert found.dtype.name == kind
        np.testing.assert_array_equal(native_floats(found), VALUES)
