import json
import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira.bench import machine, scoring, sides, throughput
from lira.cli import main
from lira.engine import device
from lira.engine.calibrate import programs_for
from lira.learning.learner import Learner, model_key
from lira.learning.models import build_model
from lira.learning.recipe import Recipe
from lira.learning.training import init_model
from lira.membership import keep_mask
from lira.store.config import Execution

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
    assert sum(machine.multiply_adds(build_model(name, 10), np.zeros(shape, np.uint8))) == expected


def test_first_layers_input_gradient_is_not_counted():
    layers = [64 * 128, 128 * 128, 128 * 10]
    expected = 6 * sum(layers) - 2 * layers[0]
    assert machine.flop_per_image(build_model("mlp", 10), np.zeros((1, 8, 8, 1), np.uint8)) == expected


def test_bench_of_the_mlp_fills_every_row(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(throughput, "scoring_times", partial(throughput.scoring_times, M=64, N=5000))
    # No width is searched for.
    pinned = Execution(width=8)
    monkeypatch.setattr(
        sides,
        "programs_for",
        lambda config, dataset, models: programs_for(replace(config, execution=pinned), dataset, models),
    )
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
        assert row["ms_per_step_and_model"] == pytest.approx(1e3 * 64 / speed["median"])
    assert rows["lira"]["lira_over_it"] == {"median": 1, "min": 1, "max": 1}
    assert result["scoring"]["ratio"] > 100
    assert result["device"].endswith(f" cores of {device.processor()}")
    assert set(result["cache_bytes"]) <= {"L1", "L2", "L3", "L4"}


def test_processor_is_named_with_what_tells_its_kind(tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("model name\t: Some CPU\nflags\t\t: fpu avx512f amx_tile\n\nmodel name\t: Some CPU\n")
    assert device.processor(told) == "Some CPU avx512f amx_tile"
    assert device.processor(tmp_path / "none")


def faked(monkeypatch, seconds=1e-3):
    """Sides that take a given time a step, so that rows can be told without training anything."""
    made = []

    def side(name, recipe, dataset):
        made.append((recipe.model, name))
        facts = {"bytes_per_image": None, "compile_s": 0.0, "memory_bytes": None}
        return sides.Side(lambda steps: time.sleep(seconds * steps), lambda: 0.5, 1, facts)

    monkeypatch.setattr(sides, "side", side)
    monkeypatch.setattr(throughput, "matmul_rate", lambda precision: 1e12)
    monkeypatch.setattr(throughput, "copy_rate", lambda: 1e9)
    monkeypatch.setattr(throughput, "scoring_times", partial(throughput.scoring_times, M=64, N=5000))
    return made


def absent(monkeypatch, name):
    real = sides.find_spec
    monkeypatch.setattr(sides, "find_spec", lambda wanted: None if wanted == name else real(wanted))


def test_a_side_without_its_framework_is_skipped_by_name(monkeypatch):
    made = faked(monkeypatch)
    absent(monkeypatch, "torch")
    sides = ["jax_loop", "torch_loop", "torch_graphs"]
    result = throughput.bench(["mlp"], beside=sides, repeats=1, seconds=0.01)
    assert made == [("mlp", "lira"), ("mlp", "jax_loop")]
    assert [row["side"] for row in result["rows"]] == ["lira", "jax_loop"]
    why = "PyTorch is not installed: pip install 'lira[bench]'"
    assert result["skipped"] == [
        {"model": "mlp", "side": name, "why": why} for name in ("torch_loop", "torch_graphs")
    ]


def test_cuda_graphs_need_a_cuda_device(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sides.why_absent("torch_graphs") == "PyTorch finds no CUDA device"
    assert sides.why_absent("torch_loop") is None
    assert sides.why_absent("jax_loop") is None


def test_what_another_framework_cannot_do_costs_its_rows_alone(monkeypatch):
    faked(monkeypatch)
    plain = sides.side

    broken = {"torch_loop"}

    def side(name, recipe, dataset):
        if name in broken:
            raise RuntimeError("CUDA error: an illegal\nmemory access")
        return plain(name, recipe, dataset)

    monkeypatch.setattr(sides, "side", side)
    monkeypatch.setattr(sides, "why_absent", lambda name: None)
    rows_of = partial(throughput.model_rows, "mlp", repeats=1, seconds=0.01, precision="float32")
    rows, skipped = rows_of(["torch_loop", "torch_graphs"])
    assert [row["side"] for row in rows] == ["lira", "torch_graphs"]
    assert skipped == [{"model": "mlp", "side": "torch_loop", "why": "CUDA error: an illegal memory access"}]
    broken.add("lira")
    with pytest.raises(RuntimeError, match="illegal"):
        rows_of([])


def test_the_table_says_once_what_was_skipped(monkeypatch):
    faked(monkeypatch)
    absent(monkeypatch, "torch")
    result = throughput.bench(["mlp", "cnn"], beside=["torch_graphs"], repeats=1, seconds=0.01)
    caption = str(throughput.table(result).caption)
    assert (
        caption.count(
            "Skipped: torch_graphs of mlp, cnn (PyTorch is not installed: pip install 'lira[bench]')."
        )
        == 1
    )
    assert "Skipped" not in str(throughput.table({**result, "skipped": []}).caption)


def test_rows_are_in_the_file_as_soon_as_their_model_is_done(tmp_path, monkeypatch):
    """Cut off while the second model is timed, the first one's figures are there."""
    out = tmp_path / "bench.json"
    faked(monkeypatch)
    plain, seen = sides.side, []

    def side(name, recipe, dataset):
        seen.append(json.loads(out.read_text())["rows"] if out.exists() else None)
        if recipe.model == "cnn":
            raise KeyboardInterrupt
        return plain(name, recipe, dataset)

    monkeypatch.setattr(sides, "side", side)
    flags = ["--models", "mlp,cnn", "--beside", "", "--repeats", "1", "--seconds", "0.01", "--out", str(out)]
    assert main(["bench", *flags]) == 130
    result = json.loads(out.read_text())
    assert seen == [None, result["rows"]]
    assert [(row["model"], row["side"]) for row in result["rows"]] == [("mlp", "lira")]
    assert result["scoring"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "mlp,vgg"], "bench knows the models mlp, cnn, cnn-fast, resnet18, wrn-28-2; got vgg"),
        (
            ["--beside", "jax_loop,tinygrad"],
            "bench knows the sides jax_loop, vmap_plain, torch_loop, torch_graphs; got tinygrad",
        ),
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
    scores = scoring._refit(phi, keep, 3)
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


@pytest.mark.parametrize("name", throughput.MODELS)
def test_torch_peer_has_the_same_parameters_and_learns(name):
    pytest.importorskip("torch")
    from lira.bench.torch_loop import TorchLoop

    dataset, recipe, _ = throughput.workload(name, "float32")
    dataset = replace(
        dataset, x=dataset.x[:40], y=dataset.y[:40]
    )  # images enough for a step and its accuracy
    loop = TorchLoop(replace(recipe, batch_size=10), dataset)
    module = build_model(name, dataset.num_classes)
    state = jax.eval_shape(lambda: init_model(Learner(module, Recipe(), 1), model_key(0, 0), dataset.x[:1]))
    ours = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(p.numel() for p in loop.model.parameters()) == ours
    loop.train(1)
    assert 0 <= loop.accuracy() <= 1


@pytest.mark.parametrize("training", [True, False])
def test_torch_peer_of_the_fast_network_is_the_same_function(training):
    torch = pytest.importorskip("torch")
    from lira.bench.torch_loop import _model

    dataset, _, _ = throughput.workload("cnn-fast", "float32")
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


def test_a_captured_step_trains():
    """Each replay draws another batch and moves the weights; without a CUDA device there is nothing to capture."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    from lira.bench.torch_loop import TorchLoop

    dataset, recipe, _ = throughput.workload("mlp", "float32")
    loop = TorchLoop(recipe, dataset, graphs=True)
    before = [p.detach().clone() for p in loop.model.parameters()]
    loop.train(1)
    after = [p.detach().clone() for p in loop.model.parameters()]
    loop.train(200)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert loop.accuracy() > 0.8
