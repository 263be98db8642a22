import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
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
        (
            "cnn-fast",
            (1, 32, 32, 3),
            9 * (1024 * (3 * 32 + 32 * 64) + 256 * (64 * 64 + 64 * 256) + 64 * 2 * 256**2 + 16 * 256**2)
            + 2560,
        ),
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "mlp,vgg"], "bench knows the models mlp, cnn, cnn-fast, resnet18, wrn-28-2; got vgg"),
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


@pytest.mark.parametrize("training", [True, False])
def test_torch_peer_of_the_fast_network_is_the_same_function(training):
    torch = pytest.importorskip("torch")
    from lira.bench_torch import _model

    dataset, _, _ = bench.workload("cnn-fast", "float32")
    torch.manual_seed(0)
    peer: Any = _model("cnn-fast", dataset)
    for norm in peer.norms:
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            torch.nn.init.uniform_(values, 0.5, 1.5)
    norms = {
        f"BatchNorm_{i}": {"scale": norm.weight, "bias": norm.bias, "mean": norm.running_mean}
        | {"var": norm.running_var}
        for i, norm in enumerate(peer.norms)
    }
    params = {f"Conv_{i}": {"kernel": conv.weight.permute(2, 3, 1, 0)} for i, conv in enumerate(peer.convs)}
    params["Dense_0"] = {"kernel": peer.head.weight.T, "bias": peer.head.bias}
    params |= {name: {key: norm[key] for key in ("scale", "bias")} for name, norm in norms.items()}
    statistics = {name: {key: norm[key] for key in ("mean", "var")} for name, norm in norms.items()}
    params, statistics = jax.tree.map(lambda t: jnp.asarray(t.detach().numpy()), (params, statistics))
    module = build_model("cnn-fast", 10)
    x = np.random.default_rng(1).normal(size=(8, 32, 32, 3)).astype(np.float32)
    weight = np.random.default_rng(2).normal(size=(8, 10)).astype(np.float32)

    @partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        variables = {"params": params, "batch_stats": statistics}
        logits, updated = module.apply(variables, x, train=training, mutable=["batch_stats"])
        return jnp.sum(logits * weight), (logits, updated["batch_stats"])

    (_, (logits, updated)), gradient = jax.jit(loss)(params)
    peer.train(training)
    theirs = peer(torch.from_numpy(x).permute(0, 3, 1, 2))
    (theirs * torch.from_numpy(weight)).sum().backward()
    np.testing.assert_allclose(logits, theirs.detach(), rtol=1e-3, atol=1e-4)
    for i, (conv, norm) in enumerate(zip(peer.convs, peer.norms, strict=True)):
        ours, expected = gradient[f"Conv_{i}"]["kernel"], conv.weight.grad.permute(2, 3, 1, 0).numpy()
        assert np.linalg.norm(ours - expected) < 1e-3 * np.linalg.norm(expected), f"convolution {i}"
        mean = updated[f"BatchNorm_{i}"]["mean"]
        np.testing.assert_allclose(mean, norm.running_mean, rtol=1e-4, atol=1e-5)
