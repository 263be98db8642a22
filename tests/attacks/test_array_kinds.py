"""The same numbers give the same scores, however an array holds them, and whatever was scored before."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from array_kinds import SINGLE, read_only, strided
from shadow_pools import NUM_POINTS, make_pool

from lira.attacks import FewModelsWarning, FlooredVarianceWarning, pmia
from lira.attacks.suite import ATTACKS, Pool, call_attack

SIGNALS = ("phi", "entropy", "modified_entropy", "phi@0.5", "logits")


def _mapped(path, values):
    np.save(path, values)
    return np.load(path, mmap_mode="r")


@pytest.fixture(scope="module")
def plain():
    """A pool of small multiples of 1/4, exact in half precision and, times four, in a byte; by field."""
    rng = np.random.default_rng(0)
    paired, outside = make_pool(0, "pair", 10, 2), make_pool(0, "outside", 10, 2)
    assert outside.target is not None
    assert outside.target_population is not None

    def quarters(values):
        return (np.round(4 * values) / 4).astype(np.float32)

    def signals(phi):
        others = quarters(rng.uniform(0, 2, (3, *phi.shape)))
        return dict(
            zip(SIGNALS, (quarters(phi), *others, quarters(rng.normal(size=(*phi.shape, 3)))), strict=True)
        )

    features = quarters(rng.normal(size=(2, paired.phi.shape[1], 3)))
    return paired.keep, {
        "signals": signals(paired.phi),
        "target": signals(outside.target),
        "population": quarters(paired.population),
        "target_population": quarters(outside.target_population),
        "features": features[0],
        "population_features": features[1, :NUM_POINTS],
        "labels": np.arange(paired.phi.shape[1], dtype=np.float32) % 3,
    }


def _scores(plain, convert, names=tuple(ATTACKS), *, outside=False, as_keep=np.asarray):
    keep, fields = plain

    def converted(field) -> Any:
        if isinstance(field, dict):
            return {name: convert(values) for name, values in field.items()}
        return convert(field)

    given = [name for name in fields if outside or not name.startswith("target")]
    pool = Pool(keep=as_keep(keep), **{name: converted(fields[name]) for name in given})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewModelsWarning)
        warnings.simplefilter("ignore", FlooredVarianceWarning)
        return {name: call_attack(ATTACKS[name], pool) for name in names}


def _assert_equal(scores, expected, kind):
    for name, values in scores.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=f"{name}, {kind}")


DOUBLE = {
    "double": lambda values: values.astype(np.float64),
    "byte-swapped double": lambda values: values.astype(">f8"),
    "long double": lambda values: values.astype(np.longdouble),
}
# One of each way to read; the others read as one of these.
SOME = (
    "lira_online_fixed",
    "rmia_offline",
    "attack_p",
    "shadow_logistic",
    "quantile_regression",
    "loss_threshold",
)


def test_scores_do_not_depend_on_how_an_array_holds_its_numbers(plain, tmp_path):
    # The plain ones come first, so that a program which was compiled for them may meet all others.
    expected = _scores(plain, np.asarray)
    files = iter(range(1000))
    mapped = {"mapped": lambda values: _mapped(tmp_path / f"{next(files)}.npy", values.astype(">f4"))}
    for kind, convert in {**SINGLE, **mapped}.items():
        _assert_equal(_scores(plain, convert), expected, kind)
    for kind, convert in DOUBLE.items():
        _assert_equal(_scores(plain, convert, SOME), expected, kind)
    for as_keep in (np.asfortranarray, strided, read_only, jnp.asarray):
        _assert_equal(_scores(plain, np.asarray, as_keep=as_keep), expected, f"keep {as_keep}")
    whole = _scores(plain, lambda values: 4 * values)
    _assert_equal(_scores(plain, lambda values: (4 * values).astype("i1")), whole, "bytes")
    for dtype in ("<i4", ">i4", ">i8"):
        scores = _scores(plain, lambda values, dtype=dtype: (4 * values).astype(dtype), SOME)
        _assert_equal(scores, whole, dtype)


def test_nor_do_those_of_outside_targets(plain):
    expected = _scores(plain, np.asarray, SOME, outside=True)
    for kind, convert in SINGLE.items():
        _assert_equal(_scores(plain, convert, SOME, outside=True), expected, kind)


def test_lists_are_refused_by_name(plain):
    """Not by an attribute that they lack."""
    for outside in (False, True):
        for name in SOME:
            with pytest.raises(ValueError, match=r"must be an array; got list: np.asarray"):
                _scores(plain, np.ndarray.tolist, (name,), outside=outside)


def test_what_is_masked_or_no_number_is_refused_by_every_attack(plain):
    """What stood under a mask was taken for values; the classifiers read words and the real part of complex numbers."""
    for convert, said in (
        (lambda values: np.ma.masked_array(values, mask=values == values.max()), "masked elements"),
        (lambda values: values.astype(str), "must be real numbers"),
        (lambda values: values.astype(complex), "must be real numbers"),
    ):
        for name in ATTACKS:
            with pytest.raises(ValueError, match=said):
                _scores(plain, convert, (name,))
    hidden = np.ma.masked_array(plain[0], mask=np.eye(*plain[0].shape))
    for name in ("lira_online", "rmia_offline", "attack_p", "shadow_logistic", "loss_threshold"):
        with pytest.raises(ValueError, match="keep holds masked elements"):
            ATTACKS[name].function(np.zeros((*hidden.shape, 1)), hidden)
    with pytest.raises(ValueError, match="keep must be an array; got list"):
        _scores(plain, np.asarray, SOME[:1], as_keep=np.ndarray.tolist)


@pytest.mark.parametrize("unknown", [np.nan, np.ma.masked])
def test_labels_that_are_not_known_are_no_class(plain, unknown):
    keep, fields = plain
    labels = np.ma.masked_array(fields["labels"].copy())
    labels[2] = unknown
    labels = np.asarray(labels) if unknown is not np.ma.masked else labels
    with pytest.raises(ValueError, match=r"example 2 is NaN|labels holds masked elements"):
        pmia(fields["signals"]["phi"], keep, proxy="class", labels=labels, fixed=True)


@pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning"
)
def test_what_is_too_large_for_float64_is_refused_and_never_nan(plain):
    """NaN is the score of an example that is left out."""

    def said(name):
        try:
            scores = _scores(plain, lambda values: values.astype(np.float64) * 1e300, (name,))[name]
        except ValueError as error:
            return str(error)
        return "NaN" if np.isnan(scores).any() else ""

    answers = {name: said(name) for name in ATTACKS}
    for name in ("lira_online", "lira_online_multivariate", "bavaria_online", "pmia_class"):
        assert "phi is too large for float64" in answers[name], name
    assert "NaN" not in answers.values()


@pytest.mark.parametrize("name", ["rmia_online", "rmia_offline"])
def test_ratios_of_any_size_in_float32_have_finite_scores(plain, name):
    """From log R of 1e32 on a step's part was a whole one, and odds were divided by 0."""
    found = _scores(plain, lambda values: (values * 1e37).astype(np.float32), (name,))[name]
    assert np.isfinite(found).all()
    assert (found > 0).all()
