"""Audit models that another framework trained, end to end: scikit-learn's, or PyTorch's where it is installed.

Command:   python experiments/audit_elsewhere.py sklearn audits/sklearn
           python experiments/audit_elsewhere.py pytorch audits/pytorch      (pip install "lira[bench]")
Duration:  about a minute each on 2 CPU cores.
Expected:  LiRA finds several times as many members at 0.1 % FPR as the global threshold. Measured: experiments/README.md.

What it takes to audit anything: train models on random halves of the data, ask every model about *every* example in one
order, and keep three arrays: what each was trained on, the labels, and the answers.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import lira
from lira.cli import main

MODELS, EPOCHS = 64, 60


def train_sklearn(x: np.ndarray, y: np.ndarray, seed: int):
    """A function from examples to class probabilities."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier((64,), max_iter=EPOCHS, batch_size=64, learning_rate_init=0.01, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y).predict_proba


def train_pytorch(x: np.ndarray, y: np.ndarray, seed: int):
    """A function from examples to logits: nothing is lost in them, so they are what to keep."""
    import torch

    torch.manual_seed(seed)
    inputs, labels = torch.tensor(x), torch.tensor(y, dtype=torch.int64)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()

    @torch.no_grad()
    def ask(examples: np.ndarray) -> np.ndarray:
        return model.eval()(torch.tensor(examples)).numpy()

    return ask


def run(framework: str, out: str) -> int:
    train, kind = {"sklearn": (train_sklearn, "confidences"), "pytorch": (train_pytorch, "logits")}[framework]
    x, y = load_digits(return_X_y=True)
    x = (x / 8 - 1).astype(np.float32)
    # Complementary pairs, so that a target can be left out with its mate; any other random halves do as well.
    keep = lira.keep_mask(0, MODELS, len(y))
    answers = np.stack([train(x[held], y[held], seed)(x) for seed, held in enumerate(keep)])
    files = Path(f"{out}-arrays")
    files.mkdir(parents=True, exist_ok=True)
    for name, array in (("keep", keep), ("labels", y), (kind, answers)):
        np.save(files / f"{name}.npy", array)
    arguments = [f"--{kind}", f"{files}/{kind}.npy", "--keep", f"{files}/keep.npy"]
    arguments += ["--labels", f"{files}/labels.npy", "--out", out]
    print("lira audit", *arguments)
    return main(["audit", *arguments])


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
