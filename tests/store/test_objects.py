"""Runs on an S3 server: made once, written by one attempt, whatever fails, is refused or stands still."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from object_store import BUCKET, ObjectStore, bucket
from stored_runs import RECIPE, M, N, at_once, dataset, made, rows, write

from lira import scoring
from lira.attacks.suite import ATTACKS
from lira.cli import main
from lira.membership import keep_mask
from lira.store import claims, places, zarr
from lira.store.arrays import DIVERGED
from lira.store.errors import RunError, TakenError, WaitingWarning
from lira.store.mend import mend
from lira.store.objects import ObjectPlace, StoreError
from lira.store.places import is_free, new_directory
from lira.store.run import Run
from lira.store.verify import findings
from lira.store.zarr import read_rows, write_array

__all__ = ["bucket"]


def made_there(name: str = "run", **changes) -> Run:
    return Run.create(f"{BUCKET}/{name}", dataset(), RECIPE, **{"num_models": M, "signals": (), **changes})


def place_of(run: Run) -> ObjectPlace:
    return ObjectPlace.of(str(run.path))


def contents(place: ObjectPlace) -> dict[str, bytes]:
    return {key: (place / key).read_bytes() for key in place.below()}


def values_of(run: Run, model: int) -> set[float]:
    """Of which attempts a model's arrays are, by their values in `rows`."""
    phi, test, right = (
        run.arrays.read(name, np.array([model]))[0] for name in ("phi", "phi_test", "accuracy_in")
    )
    return {*phi.ravel().tolist(), *(test.ravel() - 0.5).tolist(), float(np.round(right * 10, 3))}


def expire_soon(monkeypatch) -> None:
    """Nobody renews a claim, so that a process that stands still need not be waited for."""
    monkeypatch.setattr(claims, "EXPIRY", 0.1)
    monkeypatch.setattr(claims, "RENEWAL", 60.0)


def test_a_run_is_as_on_a_file_system(bucket, tmp_path):
    there, here = made_there(), made(tmp_path, signals=())
    for run in (there, here):
        write(run, 0, 1, 3)
        write(run, 2, diverged=True)
        run.write_scores("lira_online", np.arange(2 * N, dtype=np.float32).reshape(2, N), "")
        run.add_session({"models": 4})
    for run in (Run.open(f"{BUCKET}/run/", dataset()), here):
        assert run.done.tolist() == [1, 1, DIVERGED, 1, 0, 0]
        assert run.models.tolist() == [0, 1]
        np.testing.assert_array_equal(run.phi, [np.full((N, 1), m) for m in (0, 1)])
        np.testing.assert_array_equal(run.scores("lira_online"), np.arange(2 * N).reshape(2, N))
        assert [session["models"] for session in run.provenance["sessions"]] == [4]
    of_arrays = {
        key: value
        for key, value in contents(place_of(there)).items()
        if key.startswith(("arrays/", "scores/"))
    }
    files = [
        file
        for name in ("arrays", "scores")
        for file in (tmp_path / "run" / name).rglob("*")
        if file.is_file()
    ]
    assert of_arrays == {file.relative_to(tmp_path / "run").as_posix(): file.read_bytes() for file in files}


def test_a_run_grows_and_is_refused_other_data(bucket, monkeypatch):
    expire_soon(monkeypatch)
    write(made_there(), 0, 1)
    for writes in (2, 9):
        bucket.fault = Dead(writes)
        with pytest.raises((RunError, StoreError), match=r"cannot be written: .*Injected$"):
            made_there(num_models=M + 2)
        bucket.fault = lambda method, key: None
        assert made_there().done.tolist() == [1, 1, *[0] * (M - 2)]
    grown = made_there(num_models=M + 2)
    np.testing.assert_array_equal(grown.memberships(np.arange(M + 2)), keep_mask(0, M + 2, N))
    assert grown.done.tolist() == [1, 1, *[0] * M]
    with pytest.raises(RunError, match="is a run of other data"):
        Run.open(grown.path, dataset(seed=1))
    with pytest.raises(RunError, match="a run does not shrink to 6"):
        made_there()
    with pytest.raises(RunError, match=r"is not a run directory \(it has no config.toml\)"):
        Run.open(f"{BUCKET}/elsewhere")


def test_what_others_keep_there_is_left_alone(bucket):
    (ObjectPlace.of(BUCKET) / "theirs/data").write_bytes(b"theirs")
    assert not is_free(ObjectPlace.of(f"{BUCKET}/theirs"))
    with pytest.raises(RunError, match="is not a run directory"):
        made_there("theirs")
    with pytest.raises(TakenError, match="exists already"), new_directory(ObjectPlace.of(f"{BUCKET}/theirs")):
        pass
    made_there("their")  # no prefix of a name is its directory
    assert contents(ObjectPlace.of(f"{BUCKET}/theirs")) == {"data": b"theirs"}


def test_scores_of_fewer_columns_leave_nothing_of_the_old_ones(bucket, monkeypatch):
    monkeypatch.setattr(zarr, "WHOLE", 4 * N)  # a chunk a row
    place = ObjectPlace.of(f"{BUCKET}/scores")
    places_of = {}
    for rows_there in (6, 2):
        write_array(place, np.full((rows_there, N), rows_there, np.float32), {"models": rows_there})
        places_of[rows_there] = place.below()
        assert (read_rows(place, np.arange(2), {"models": rows_there}) == rows_there).all()
    assert len(places_of[6]) == 7
    assert len(places_of[2]) == 3


@pytest.mark.filterwarnings(
    "ignore::lira.store.errors.WaitingWarning"
)  # on a busy machine they wait for long
def test_any_number_of_processes_makes_one_run(bucket):
    made_there("undisturbed")
    sizes = [M, M + 2, M, M + 4, M, M + 2]

    def make(i):
        with contextlib.suppress(RunError):  # others were faster, and a run does not shrink
            made_there(num_models=sizes[i])

    at_once(make, len(sizes))
    run = made_there(num_models=M + 4)
    np.testing.assert_array_equal(run.memberships(np.arange(M + 4)), keep_mask(0, M + 4, N))
    assert (run.done == 0).all()


def test_one_attempt_writes_all_arrays_of_a_model(bucket):
    run = made_there()
    wrote = at_once(lambda i: run.write_model(0, rows(10 + i), diverged=False))
    assert sum(wrote) == 1
    assert values_of(run, 0) == {10 + wrote.index(True)}


def writes_to_disturb(bucket: ObjectStore, run: Run) -> list[int]:
    """Of the writes that store a model, counted from 0: the first, one within, and the last ones."""
    before = bucket.writes
    run.write_model(run.config.num_models - 1, rows(0), diverged=False)
    count = bucket.writes - before
    return [0, 1, count // 2, *range(count - 4, count)]


def test_whoever_stood_still_mixes_nothing_into_what_its_successor_wrote(bucket, monkeypatch):
    """Held at one of its writes, until another has done its work."""
    expire_soon(monkeypatch)
    run, outcomes = made_there(num_models=8), []
    for model, number in enumerate(writes_to_disturb(bucket, run)):
        held, go_on, left = threading.Event(), threading.Event(), [number]

        def hold(method: str, key: str, held=held, go_on=go_on, left=left) -> None:
            if method in ("PUT", "DELETE") and not held.is_set():
                left[0] -= 1
                if left[0] < 0:
                    held.set()
                    go_on.wait(30)

        bucket.fault = hold
        with ThreadPoolExecutor(1) as threads:
            slow = threads.submit(run.write_model, model, rows(1), diverged=False)
            assert held.wait(30)
            first = run.write_model(model, rows(2), diverged=False)
            assert values_of(run, model) == {2 if first else 1}
            go_on.set()
            with contextlib.suppress(RunError):
                slow.result()
        assert values_of(run, model) == {2 if first else 1}
        assert run.done[model] == 1
        outcomes.append(first)
    # The last three: its last word on the claim, `done`, and the removal of the claim.
    assert outcomes == [True] * 5 + [False] * 2


def test_whoever_stood_still_puts_back_what_its_successor_would_have_written_too(bucket, monkeypatch):
    """An object that a successor finds as its own bytes is not written again, and S3 cannot tell that it was there."""
    expire_soon(monkeypatch)
    run = made_there()
    chunk = "run/arrays/phi/c/0/0/0"
    dead, held, go_on = claims.claimant(place_of(run) / ".claims/0")(), threading.Event(), threading.Event()
    assert dead is not None
    run.write_model(1, rows(2), diverged=False)  # whose bytes model 0 gets of one that then ends
    dead.write_all([(ObjectPlace.of(f"{BUCKET}/{chunk}"), (run.path / "arrays/phi/c/1/0/0").read_bytes())])
    seen = []

    def hold(method: str, key: str) -> None:
        if (method, key) == ("PUT", chunk) and not held.is_set():
            seen.append(key)
            if len(seen) == 2:  # the first is refused, for there is something; and then a renewal
                held.set()
                go_on.wait(30)

    bucket.fault = hold
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(run.write_model, 0, rows(1), diverged=False)
        assert held.wait(30)
        assert run.write_model(0, rows(2), diverged=False)
        go_on.set()
        with pytest.raises(RunError, match="another has taken its work over"):
            slow.result()
    assert values_of(run, 0) == {2}


def test_a_second_writer_waits_and_a_dead_one_is_not_in_the_way(bucket, monkeypatch):
    run = made_there()
    monkeypatch.setattr(claims, "RENEWAL", 0.05)
    monkeypatch.setattr(claims, "EXPIRY", 5.0)
    monkeypatch.setattr(places, "PATIENCE", 1.5)
    with (
        run.lock(),
        pytest.warns(WaitingWarning, match="another process is writing this run: waiting for it"),
        pytest.raises(RunError, match=r"another process has been writing this run for 2 s"),
        run.lock(),
    ):
        pass
    expire_soon(monkeypatch)
    dead = claims.claimant(place_of(run) / ".lock")()
    assert dead is not None
    with run.lock():
        pass
    with pytest.raises(
        RunError, match="this process stood still for more than 0 s, and another has taken its work over"
    ):
        dead.renew()


def test_a_lock_is_renewed_as_long_as_it_is_held(bucket, monkeypatch):
    run = made_there()
    monkeypatch.setattr(claims, "RENEWAL", 0.1)
    monkeypatch.setattr(claims, "EXPIRY", 2.5)
    other = claims.claimant(place_of(run) / ".lock")
    with run.lock():
        for _ in range(35):
            assert other() is None
            threading.Event().wait(0.1)
    assert other() is not None


class Dead:
    """A server that refuses everything from some write on."""

    def __init__(self, writes: int) -> None:
        self.left = writes

    def __call__(self, method: str, key: str) -> int | None:
        self.left -= method in ("PUT", "DELETE")
        return 500 if self.left < 0 else None


def test_a_model_is_whole_or_not_done_wherever_its_writing_ends(bucket, monkeypatch):
    expire_soon(monkeypatch)
    run = made_there(num_models=8)
    for model, number in enumerate(writes_to_disturb(bucket, run)):
        bucket.fault = Dead(number)
        with pytest.raises(RunError, match="Injected"):
            run.write_model(model, rows(1), diverged=False)
        bucket.fault = lambda method, key: None
        wrote = run.write_model(model, rows(2), diverged=False)
        assert run.done[model] == 1
        assert values_of(run, model) == {2 if wrote else 1}


@pytest.mark.parametrize("share", [0, 0.5, 0.97])
def test_a_directory_is_whole_or_no_run_wherever_its_making_ends(bucket, monkeypatch, share):
    expire_soon(monkeypatch)
    before = bucket.writes
    whole = contents(place_of(made_there("whole")))
    bucket.fault = Dead(int(share * (bucket.writes - before)))
    with pytest.raises((RunError, StoreError), match="Injected"):
        made_there()
    bucket.fault = lambda method, key: None
    place = ObjectPlace.of(f"{BUCKET}/run")
    if not (place / "config.toml").exists():
        with pytest.raises(RunError, match="is not a run directory"):
            Run.open(place)
    assert contents(place_of(made_there())).keys() == whole.keys()
    write(Run.open(place, dataset()), 0)


@pytest.mark.parametrize("status", [403, 500])
def test_a_store_that_does_not_answer_is_no_damage(bucket, capsys, status):
    run = made_there()
    write(run, *range(M))
    run.write_scores("lira_online", np.zeros((M, N), np.float32), "")
    bucket.fault = lambda method, key: status if "arrays/" in key or "scores/" in key else None
    for ask in (lambda: run.done, lambda: run.scores("lira_online"), lambda: np.asarray(run.phi)):
        with pytest.raises(StoreError, match=r"cannot be read: .*Injected"):
            ask()
    assert main(["report", str(run.path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lira: error: s3://bucket/run/arrays/")
    assert "Injected" in said
    assert said.count("\n") == 1
    assert "damaged" not in said


def test_damage_is_seen(bucket):
    run = made_there()
    write(run, 0, 1)
    chunk = run.path / "arrays/phi/c/1/0/0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(RunError, match="arrays/phi: is damaged"):
        np.asarray(run.phi)
    chunk.unlink()
    with pytest.raises(RunError, match="arrays/phi: is damaged"):
        np.asarray(run.phi)


CONFIG = """
dataset = "npz:{data}"
num_models = 6
signals = []
[recipe]
model = "mlp"
epochs = 1
batch_size = 10
learning_rate = 0.05
[execution]
width = 8
"""


@pytest.mark.filterwarnings("ignore")
def test_the_command_goes_on_where_a_write_was_refused(bucket, tmp_path, capsys, monkeypatch):
    few = ("lira_online", "lira_offline", "global_threshold")  # the others take seconds to compile
    monkeypatch.setattr(scoring, "ATTACKS", {name: ATTACKS[name] for name in few})
    x = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(N) % 2)
    (tmp_path / "config.toml").write_text(CONFIG.format(data=tmp_path / "data.npz"))
    there, here = f"{BUCKET}/run", tmp_path / "copy"
    run = ["run", str(tmp_path / "config.toml"), "--run-dir"]
    bucket.fault = lambda method, key: 403 if (method, key) == ("PUT", "run/arrays/phi/c/3/0/0") else None
    assert main([*run, there]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"lira: error: {there}: cannot be written: ")
    assert "PERMISSION_DENIED: Injected" in said[-1]
    assert Run.open(there).done[:4].tolist() == [1, 1, 1, 0]
    before = {key: value for key, value in contents(ObjectPlace.of(there)).items() if "/c/1" in key}
    bucket.fault = lambda method, key: threading.Event().wait(0.002) and None  # slow
    assert main([*run, there]) == 0
    capsys.readouterr()
    assert main(["run", "--run-dir", there]) == 0, "by the configuration that is there"
    complete = f"{there}: is complete: 6 models trained, scored and reported; nothing to do"
    assert capsys.readouterr().out.splitlines()[0] == complete
    after = contents(ObjectPlace.of(there))
    assert {key: after[key] for key in before} == before, "a finished model is not touched"
    for key in after:
        if key.startswith(("arrays/", "config.toml", "provenance.json")):
            (here / key).parent.mkdir(parents=True, exist_ok=True)
            (here / key).write_bytes(after[key])
    assert main(["report", str(here)]) == 0
    for name in ("metrics.json", "records.json", "records.csv"):
        assert after[name] == (here / name).read_bytes(), "as of a copy on this machine"
    assert {"report.html", "roc.png", "attacks.png"} <= after.keys()
    for verb in ("train", "score"):
        assert main([verb, there]) == 0


def test_damage_there_is_named_and_mended(bucket):
    run = made_there()
    write(run, *range(M))
    assert [each for each in findings(run.path) if each.status == "broken"] == []
    (run.path / "arrays/phi/c/1/0/0").unlink()
    (run.path / "arrays/labels/c/0").write_bytes(b"1234")
    broken = {each.place: each.what for each in findings(run.path) if each.status == "broken"}
    assert broken == {"arrays/phi/c/1/0/0": "is missing", "arrays/labels/c/0": f"is not of {4 * N + 4} bytes"}
    said = mend(run.path, dataset())
    assert any(each.startswith("arrays/labels/c/0") and "moved to broken/" in each for each in said)
    assert (run.path / "broken/arrays/labels/c/0").read_bytes() == b"1234"
    assert run.done.tolist() == [1, 0, *[1] * (M - 2)]
    np.testing.assert_array_equal(run.labels, dataset().y)
    assert [each for each in findings(run.path) if each.status == "broken"] == []
