import json
from functools import partial

import jax
import numpy as np
import pytest

from lira import bench
from lira.cli import main
from lira.membership import keep_mask
from lira.models import build_model
from lira.training import Recipe, init_model, model_key

IMAGE = np.zeros((1, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("mlp", (1, 8, 8, 1), 64 * 128 + 128 * 128 + 128 * 10),
        # Pixels of each layer's output times what one output takes.
        ("cnn", (1, 32, 32, 3), 1024 * 27 * 32 + 256 * 288 * 64 + 64 * 576 * 128 + 8192 * 10),
        # As published for CIFAR-sized inputs, in millions: 556 and 214.
        ("resnet18", (1, 32, 32, 3), pytest.approx(556e6, rel=2e-3)),
        ("wrn-28-2", (1, 32, 32, 3), pytest.approx(214e6, rel=4e-3)),
    ],
)
def test_multiply_adds_of_a_forward_pass(name, shape, expected):
    assert sum(bench.multiply_adds(build_model(name, 10), np.zeros(shape, np.uint8))) == expected


def test_first_layers_input_gradient_is_not_counted():
    layers = [64 * 128, 128 * 128, 128 * 10]
    expected = 6 * sum(layers) - 2 * layers[0]
    assert bench.flop_per_image(build_model("mlp", 10), np.zeros((1, 8, 8, 1), np.uint8)) == expected


def test_bench_of_the_mlp_fills_every_row(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "_scoring", partial(bench._scoring, M=64, N=5000))
    out = tmp_path / "bench.json"
    assert main(["bench", "--models", "mlp", "--repeats", "2", "--seconds", "0.05", "--out", str(out)]) == 0
    assert "mlp" in capsys.readouterr().out
    result = json.loads(out.read_text())
    rows = {row["side"]: row for row in result["rows"]}
    assert {"lira", "jax_loop", "vmap_plain"} <= rows.keys()
    for row in rows.values():
        speed = row["images_per_s"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        assert row["mfu"] == pytest.approx(
            speed["median"] * row["flop_per_image"] / result["matmul_flop_per_s"]
        )
        assert row["models_per_hour"] == pytest.approx(3600 * speed["median"] / (60 * 898))
        assert 0.1 < row["accuracy"] <= 1
    assert rows["lira"]["lira_over_it"] == {"median": 1, "min": 1, "max": 1}
    assert result["scoring"]["ratio"] > 100
    assert result["device"].endswith(f" cores of {bench.processor()}")
    assert set(result["cache_bytes"]) <= {"L1", "L2", "L3", "L4"}


def test_processor_is_named_with_what_tells_its_kind(tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("model name\t: Some CPU\nflags\t\t: fpu avx512f amx_tile\n\nmodel name\t: Some CPU\n")
    assert bench.processor(told) == "Some CPU avx512f amx_tile"
    assert bench.processor(tmp_path / "none")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "mlp,vgg"], "bench knows the models mlp, cnn, resnet18, wrn-28-2; got vgg"),
        (["--repeats", "0"], "bench needs at least one repeat of some seconds; got 0 of 4.0"),
        (["--seconds", "soon"], "invalid float value: 'soon'"),
    ],
)
def test_bad_flags_are_one_line(flags, message, capsys):
    assert main(["bench", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_refit_loop_is_lira():
    """The slow side computes what the fast side does: the Gaussians' log-likelihood ratio, with medians."""
    keep = keep_mask(0, 16, 20)
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(16, 20, 2)) + keep[..., None]
    scores = bench._refit(phi, keep, 3)
    others = np.delete(np.arange(16), 3)
    for n in (0, 7, 19):
        total = 0.0
        for q in range(2):
            logs = []
            for side in (True, False):
                values = phi[others, n, q][keep[others, n] == side]
                mean, variance = np.median(values), np.mean((values - values.mean()) ** 2)
                logs.append(-0.5 * np.log(variance) - 0.5 * (phi[3, n, q] - mean) ** 2 / variance)
            total += (logs[0] - logs[1]) / 2
        assert scores[n] == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("name", bench.MODELS)
def test_torch_peer_has_the_same_parameters_and_learns(name):
    pytest.importorskip("torch")
    from lira.bench_torch import TorchLoop

    dataset, recipe, _ = bench.workload(name, "float32")
    loop = TorchLoop(recipe, dataset)
    module = build_model(name, dataset.num_classes)
    state = jax.eval_shape(lambda: init_model(module, Recipe(), 1, model_key(0, 0), dataset.x[:1]))
    ours = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(p.numel() for p in loop.model.parameters()) == ours
    loop.train(1)
    assert 0 <= loop.accuracy() <= 1
