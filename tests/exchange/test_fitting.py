"""What `train` returns and what it is asked about: PyTorch's modules, tensors and data sets, by what stands in for them."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from array_kinds import Tensor
from scipy.special import log_softmax

import lira
from lira.exchange.reading import AuditError
from lira.store.errors import RunError

N, C = 60, 5
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, 4)), RNG.integers(0, C, N)

pytestmark = pytest.mark.usefixtures("unreported")


def trained(train, place, x: Any = X):
    return lira.audit_training(
        train, x, Y, num_models=4, run_dir=place / "run", workers=1, show_progress=False
    )


class Module:
    """As PyTorch's modules: while it trains it drops half of what it knows."""

    def __init__(self, model):
        self.values = np.random.default_rng(model).normal(size=(4, C))
        self.training = True
        self.rng = np.random.default_rng(model)

    def eval(self):
        self.training = False

    def __call__(self, x):
        dropped = self.rng.integers(0, 2, (len(x), 1)) if self.training else 1
        return Tensor((np.asarray(x) @ self.values * dropped).astype(np.float32), "float32", ("gradient",))


def test_a_module_is_asked_without_its_dropout(tmp_path):
    trained(lambda model, members: Module(model), tmp_path)
    stored = np.asarray(lira.Run.open(tmp_path / "run").phi)[3, :, 0]
    log_p = log_softmax((X @ Module(3).values).astype(np.float32).astype(np.float64), axis=1)[np.arange(N), Y]
    np.testing.assert_allclose(stored, log_p - np.log(-np.expm1(log_p)), atol=1e-5)


def test_answers_that_differ_when_asked_again_are_told(tmp_path):
    def train(model, members):
        net = Module(model)
        return lambda x: net(x)

    with pytest.warns(
        UserWarning, match=r"4 of 4 models answer a few examples otherwise .* Return model.eval\(\)"
    ):
        trained(train, tmp_path)


class Pairs:
    """As a data set of PyTorch."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i], Y[i]


class Loader:
    dataset, batch_size = Pairs(), 4

    def __len__(self):
        return N // 4


class Output(dict):
    logits = np.zeros((N, C), np.float32)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (Pairs(), r"x: is Pairs, .* torch.stack\(\[each for each, _ in data\]\)"),
        (Loader(), r"x: is Loader, .* in loader.dataset\]\)"),
        ([Tensor(row) for row in X], r"x: is a list of tensors: give one, torch.stack\(x\)"),
    ],
)
def test_examples_without_rows_are_told_what_to_give(x, says, tmp_path):
    with pytest.raises(AuditError, match=says):
        trained(lambda model, members: Module(model), tmp_path, x)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "train returned NoneType, and must return how its model is asked"),
        (np.zeros((N, C)), "train returned ndarray"),
        (lambda x: (np.zeros((len(x), C)), None), r"answered with tuple: .* lambda x: model\(x\)\[0\]"),
        (lambda x: {"scores": np.zeros((len(x), C))}, r"answered with dict: .* model\(x\)\['scores'\]"),
        (lambda x: Output(), r"answered with Output: .* model\(x\).logits"),
    ],
)
def test_what_is_no_model_is_told_what_to_return(returned, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        trained(lambda model, members: returned, tmp_path)


def test_a_model_in_the_place_of_the_function_is_told(tmp_path):
    model: Any = type("Net", (), {"state_dict": dict, "__call__": lambda self, x: x})()
    with pytest.raises(AuditError, match="train is Net: give a function that makes a model"):
        trained(model, tmp_path)


def test_inputs_by_name_are_rows_of_each(tmp_path):
    """As tokenizers give them."""
    seen = []

    def train(model, members):
        def ask(x):
            seen.append({name: len(each) for name, each in x.items()})
            return x["left"] @ np.ones((4, C)) + x["right"]

        return ask

    x = {"left": X, "right": np.random.default_rng(1).normal(size=(N, C))}
    trained(train, tmp_path, x)
    assert seen[0] == {"left": N, "right": N}
    with pytest.raises(RunError, match="of other data"):
        trained(train, tmp_path, {**x, "right": x["right"] + 1})


def test_tensors_of_pytorch(tmp_path):
    """Logits that carry gradients, of half precision, are what log-softmax in float64 says of them."""
    torch = pytest.importorskip("torch")
    x = torch.tensor(X, dtype=torch.bfloat16)

    def train(model, members):
        torch.manual_seed(model)
        return torch.nn.Linear(4, C).to(torch.bfloat16)

    lira.audit_training(train, x, torch.tensor(Y), num_models=4, run_dir=tmp_path / "run", workers=1)
    logits = train(3, None)(x).detach().float().numpy().astype(np.float64)
    log_p = log_softmax(logits, axis=1)[np.arange(N), Y]
    phi = log_p - np.log(-np.expm1(log_p))
    np.testing.assert_allclose(np.asarray(lira.Run.open(tmp_path / "run").phi)[3, :, 0], phi, atol=1e-5)


def test_workers_import_no_jax():
    """It would cost each of them a second, and the memory."""
    code = "import sys, lira.exchange.fitting; print({'jax', 'tensorstore'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout == "set()\n"
