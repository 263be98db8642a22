"""The script of the checks that need a card: what it does without one, and what of it does not depend on one."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData

import lira
from lira.reporting.published import PUBLISHED
from lira.store.imported import run_of_models

SCRIPT = Path(__file__).parents[2] / "experiments/benchmarks/gpu.py"
specification = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
assert specification is not None
assert specification.loader is not None
gpu = importlib.util.module_from_spec(specification)
# The modules beside the script; behind everything else, for some are called like packages.
sys.path.append(str(SCRIPT.parent))
specification.loader.exec_module(gpu)
gpu_parts = importlib.import_module("gpu_parts")


def sitting(tmp_path, part="some part", **options):
    given = {"until": time.time() + 60, "data": "", "run_dir": tmp_path / "run", "toy": True, **options}
    out = tmp_path / "gpu.json"
    if not out.exists():
        out.write_text('[{"parts": {}}]')
    return gpu.Sitting(part, out, **given)


def found(tmp_path):
    return json.loads((tmp_path / "gpu.json").read_text())


# --- A sitting ------------------------------------------------------------------------------------------------------


def test_a_sitting_of_one_part_from_anywhere(tmp_path):
    """As a user starts it, in another directory and with nothing on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    flags = ["--toy", "--parts", "scoring", "--out", str(tmp_path / "gpu.json"), "--budget", "3000"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (only,) = found(tmp_path)
    assert list(only)[:6] == ["date", "cards", "processor", "cores", "python", "versions"]
    assert only["versions"]["lira"] == lira.__version__
    assert only["toy"]
    scored = only["parts"]["scoring"]
    assert scored["status"] == "done"
    for name in ("lira_online", "lira_online_fixed"):
        for where in ("host", "device"):
            times = scored[name][f"phi on {where}"]
            assert len(times["all"]) == 5
            assert times["median"] == sorted(times["all"])[2] > 0


def test_what_is_there_when_a_sitting_is_cut_off(tmp_path, monkeypatch):
    """The first sitting stays as it was, and the parts of this one that were done are told."""
    out = tmp_path / "gpu.json"
    arguments = Namespace(out=out, budget=100.0, toy=True, data="")
    chosen = [gpu.Part(name, lambda sitting: None, 10) for name in ("one", "two", "three")]
    told = []

    def in_a_process(name, until, seconds):
        if name == "two" and len(told) > 2:
            raise KeyboardInterrupt
        told.append((name, until, seconds))
        gpu.record(out, name, {"figure": len(told)})
        return "failed with status 1" if name == "two" else "done"

    monkeypatch.setattr(gpu, "in_a_process", in_a_process)
    monkeypatch.setattr(gpu, "time", Namespace(time=lambda: 1000.0))
    assert gpu.sit(arguments, chosen) == 1
    # All but what the later parts need, and each is told to stop before it is stopped.
    assert told == [("one", 1075, 80), ("two", 1085, 90), ("three", 1095, 100)]
    first = found(tmp_path)[0]
    assert [part["status"] for part in first["parts"].values()] == ["done", "failed with status 1", "done"]
    assert [part["figure"] for part in first["parts"].values()] == [1, 2, 3]
    with pytest.raises(KeyboardInterrupt):
        gpu.sit(arguments, chosen)
    assert found(tmp_path)[0] == first
    assert {name: part["figure"] for name, part in found(tmp_path)[1]["parts"].items()} == {"one": 4}


def test_without_time_parts_are_skipped_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "in_a_process", lambda *_: pytest.fail("there was no time"))
    arguments = Namespace(out=tmp_path / "gpu.json", budget=1.0, toy=True, data="")
    assert gpu.sit(arguments, [gpu.Part("one", lambda sitting: None, 10)]) == 0
    assert found(tmp_path)[0]["parts"]["one"]["status"] == "skipped: no time was left"


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (200, 140),  # more than all need: the slack goes to who comes first
        (100, 40),
        (70, 20),  # less than all need: its own, at the cost of the last ones
        (15, 15),
    ],
)
def test_time_for_a_part(left, expected):
    one, two, three = (
        gpu.Part(name, lambda sitting: None, s) for name, s in (("a", 20), ("b", 25), ("c", 35))
    )
    assert gpu.allowed(left, one, [two, three]) == expected


def test_what_is_kept_for_all_parts_is_under_ten_minutes(monkeypatch):
    monkeypatch.setattr(gpu.sides, "find_spec", lambda name: None)  # without PyTorch
    assert sum(part.seconds for part in gpu.parts(gpu.FULL)) <= 600
    for sizes in (gpu.FULL, gpu.TOY):
        parts = gpu.parts(sizes)
        assert len({part.name for part in parts}) == len(parts)
        assert parts[0].name == "device"
        assert parts[-1].name == "shadows"
    assert {f"bench_{model}" for model in gpu_parts.throughput.MODELS} <= {
        part.name for part in gpu.parts(gpu.FULL)
    }


@pytest.mark.parametrize(
    ("body", "limit", "expected"),
    [
        ("sleep 60", 0.3, "cut after 0 s"),
        ("exit 4", 30, "failed with status 4"),
        ("exit 0", 30, "done"),
        (f"exit {gpu.NOT_ALL}", 30, "not all done"),
    ],
)
def test_a_part_is_a_process_that_is_ended_in_time(tmp_path, monkeypatch, body, limit, expected):
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/told\nexec {body}\n'
        if "sleep" in body
        else f"#!/bin/sh\n{body}\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(gpu.sys, "executable", str(program))
    monkeypatch.setattr(gpu.sys, "argv", ["gpu.py", "--toy"])
    began = time.time()
    assert gpu.in_a_process("device", 12.5, limit) == expected
    assert time.time() - began < 20
    if "sleep" in body:
        assert (tmp_path / "told").read_text().split()[1:] == ["--toy", "--part", "device", "--until", "12.5"]


def test_a_part_says_why_it_did_not_get_to_its_end(tmp_path):
    def broken(sitting):
        sitting.keep(figure=1)
        raise RuntimeError("no card\nthere")

    def hurried(sitting):
        sitting.needs(1e6, "the second half")

    assert gpu.do_part(gpu.Part("a", broken, 1), sitting(tmp_path, "a")) == 1
    assert gpu.do_part(gpu.Part("b", hurried, 1), sitting(tmp_path, "b", toy=False)) == gpu.NOT_ALL
    parts = found(tmp_path)[0]["parts"]
    assert parts["a"] == {"figure": 1, "error": "RuntimeError: no card there"}
    assert parts["b"]["not_done"].startswith("the second half: ")
    assert "it takes about 1000000" in parts["b"]["not_done"]


@pytest.mark.parametrize("name", ["evaluation", "shadows"])
def test_parts_that_need_cifar_are_skipped_without_it(tmp_path, name):
    part = next(part for part in gpu.parts(gpu.FULL) if part.name == name)
    assert gpu.do_part(part, sitting(tmp_path, name, toy=False, until=time.time() + 1e4)) == gpu.NOT_ALL
    assert found(tmp_path)[0]["parts"][name] == {"not_done": "needs CIFAR-10: --data folder:PATH"}


def test_an_unknown_part_is_named(capsys, monkeypatch):
    monkeypatch.setattr(gpu.sys, "argv", ["gpu.py", "--parts", "device,colour"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "no part is called colour; there are device, digits," in capsys.readouterr().err


def test_training_is_interrupted_when_its_time_is_over():
    began = time.time()
    with gpu_parts.interrupted_after(0.2):
        time.sleep(30)
    assert time.time() - began < 10
    with gpu_parts.interrupted_after(0.2):
        pass
    time.sleep(0.4)  # nothing comes afterwards


# --- What parts are made of -----------------------------------------------------------------------------------------

CARD = """
planes {
  name: "/device:GPU:0"
  lines {
    name: "Stream #14(Compute,Memset)"
    events { metadata_id: 1 duration_ps: 2000000 }
    events { metadata_id: 2 duration_ps: 1000000 }
    events { metadata_id: 1 duration_ps: 4000000 }
    events { metadata_id: 1 duration_ps: 6000000 }
  }
  lines { name: "Stream #15(MemcpyD2H)" events { metadata_id: 3 duration_ps: 500000 } }
  lines { name: "XLA Modules" events { metadata_id: 4 duration_ps: 900000000 } }
  event_metadata { key: 1 value { id: 1 name: "gemm" } }
  event_metadata { key: 2 value { id: 2 name: "loop_add_fusion" } }
  event_metadata { key: 3 value { id: 3 name: "MemcpyD2H" } }
  event_metadata { key: 4 value { id: 4 name: "jit_lowered" } }
}
planes {
  name: "/host:CPU"
  lines { name: "python" events { metadata_id: 1 duration_ps: 70000000 } }
  event_metadata { key: 1 value { id: 1 name: "ExecuteHelper" } }
}
"""


def test_kernels_of_a_card_are_those_of_its_streams():
    serialized = ProfileData.text_proto_to_serialized_xspace(CARD)
    result = gpu_parts.by_kernel([ProfileData.from_serialized_xspace(serialized)], steps=2)
    assert result["kernels_per_step"] == 5 / 2
    assert result["ms_within_kernels"] == pytest.approx(13.5e-3 / 2)
    assert result["kernels"] == [
        {"kernel": "gemm", "per_step": 1.5, "us_per_step": 6.0},
        {"kernel": "loop_add_fusion", "per_step": 0.5, "us_per_step": 0.5},
        {"kernel": "MemcpyD2H", "per_step": 0.5, "us_per_step": 0.25},
    ]


def test_operations_of_a_cpu_without_loops(tmp_path):
    """A loop of five sines: they are counted, and the loop about them is not counted once more."""
    looped = jax.jit(lambda a: jax.lax.fori_loop(0, 5, lambda i, a: jnp.sin(a @ a), a))
    a = jnp.ones((200, 200))
    looped(a).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        looped(a).block_until_ready()
    traces = [ProfileData.from_file(str(file)) for file in tmp_path.rglob("*.xplane.pb")]
    kernels = {row["kernel"]: row["per_step"] for row in gpu_parts.by_kernel(traces, steps=1)["kernels"]}
    assert 5 in kernels.values()
    assert not [name for name in kernels if name.startswith("while")]


def test_a_shadow_model_without_its_mate_is_shown(tmp_path):
    """A sitting may be over before the second one is trained."""
    data = lira.Dataset.from_arrays(np.eye(40, dtype=np.float32), np.arange(40) % 2)
    run = lira.Run.create(tmp_path / "run", data, lira.Recipe(epochs=1, batch_size=10), num_models=4)
    lira.train(run, data, among=np.arange(1), show_progress=False)
    shown = gpu_parts.shown(run)
    assert shown["models_in_pairs"] == 0
    assert shown["accuracy_in"] == [pytest.approx(run.accuracy("in", np.arange(1))[0], abs=1e-5)]
    assert [session["models"] for session in shown["sessions"]] == [1]


def test_what_shadow_models_show(tmp_path, monkeypatch):
    """TPR from scores and memberships by counting; of two queries, whatever the run has."""
    monkeypatch.setattr(lira.attacks, "lira_online", lambda phi, keep: np.asarray(phi).mean(axis=2))
    for name in ("lira_online_fixed", "lira_offline", "lira_offline_fixed", "global_threshold"):
        monkeypatch.setattr(lira.attacks, name, lira.attacks.lira_online)
    rng = np.random.default_rng(0)
    M, N, Q = 16, 400, 3
    keep = lira.keep_mask(0, M, N)
    phi = rng.normal(size=(M, N, Q)).astype(np.float32) + np.float32(2) * keep[..., None]
    accuracy = {"accuracy_in": 0.75, "accuracy_out": 0.5, "accuracy_test": 0.25}
    rows = [
        {"phi": row, **{name: np.array(value, np.float32) for name, value in accuracy.items()}} for row in phi
    ]
    source = {"path": "drawn", "file": "-", "layout": "-", "requested": M}
    few = run_of_models(tmp_path / "few", keep[:4], np.zeros(N, int), rows[:4], source=source)
    few.add_session({"models": 4, "seconds": 60.0})
    few.add_session({"models": 0, "seconds": 20.0})
    shown = gpu_parts.shown(few)
    assert shown["models_in_pairs"] == 4
    assert [session["seconds"] for session in shown["sessions"]] == [60, 20]
    assert shown["accuracy_in"] == [0.75] * 4
    assert shown["accuracy_test"] == [0.25] * 4
    assert "published" not in shown

    run = run_of_models(tmp_path / "run", keep, np.zeros(N, int), rows, source=source)
    shown = gpu_parts.shown(run)
    for queries in (2, Q):
        (row,) = [
            row
            for row in shown["tpr_at_0.1%_fpr"]
            if (row["attack"], row["queries"]) == ("lira_online", queries)
        ]
        scores = phi[..., :queries].mean(axis=2)
        others = np.sort(scores[~keep])[::-1]
        threshold = others[int(0.001 * len(others))]  # so many false positives are allowed
        assert row["tpr"] == pytest.approx((scores[keep] > threshold).mean())
        assert row["low"] < row["tpr"] < row["high"]
    small = [each for each in shown["published"] if each["models"] == 16 and each["attack"] == "lira_online"]
    assert small == [
        {
            "attack": each.attack,
            "models": 16,
            "queries": 2,
            "source": each.source,
            "tpr": each.figures["0.001"],
        }
        for each in PUBLISHED
        if (each.dataset, each.model, each.models, each.attack) == ("cifar10", "wrn-28-2", 16, "lira_online")
    ]
    assert small
