"""records.csv and what stands beside it, against loops over the examples, and read back by csv, pandas and Zarr."""

import csv
import functools
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
from PIL import Image
from scipy import stats

import lira
from lira import scoring
from lira.attacks.suite import ATTACKS
from lira.cli import main
from lira.membership import keep_mask
from lira.metrics import roc
from lira.reporting.measured import lowest_resolved, measure
from lira.reporting.records import records_csv, records_of
from lira.reporting.write import write_records, write_report
from lira.store import places, zarr
from lira.store.imported import run_of_models

T, N = 8, 300
NAMES = [
    "plain",
    "a,b",
    'say "b"',
    "two\nlines",
    "Ünï 猫",
    " space ",
    "cr\rhere",
    "caf\udce9.png",
    "=1+1",
    "0",
]


def pool(seed=0, targets=T, examples=N):
    """Three attacks in whole numbers, with ties and infinities."""
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, 16, examples)[:targets]
    gap = rng.exponential(1.5, examples)
    scores = {}
    for i, name in enumerate(("lira_online", "base", "global_threshold")):
        values = np.round(rng.normal(size=keep.shape) + (i + 1) * gap * keep).astype(np.float32)
        values[rng.uniform(size=keep.shape) < 0.001] = np.inf
        values[rng.uniform(size=keep.shape) < 0.01] = -np.inf
        scores[name] = values
    return scores, keep


@functools.cache
def exact_interval(found, held):
    return stats.binomtest(found, held).proportion_ci(0.95, method="exact")


def read(content):
    """The rows of a CSV file by column, as text."""
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def contents(path: Path) -> dict[Path, bytes]:
    return {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}


def read_zarr(place: Path) -> np.ndarray:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(place)}}
    return np.asarray(ts.open(spec, open=True).result().read().result())


def test_every_row_is_what_a_loop_over_the_models_finds():
    scores, keep = pool()
    labels = np.random.default_rng(1).integers(-1, 3, N)
    records = records_of(scores.items(), keep, fpr=0.01, labels=labels, class_names=["x", "y", "z"])
    rows = read(records_csv(records))
    assert [row["index"] for row in rows] == [str(i) for i in range(N)]
    keys = {}
    for name, values in scores.items():
        threshold = sorted(values[~keep], reverse=True)[int(0.01 * (~keep).sum())]
        for n, row in enumerate(rows):
            held = [t for t in range(T) if keep[t, n]]
            found = sum(values[t, n] > threshold for t in held)
            interval = exact_interval(int(found), len(held))
            figures = [float(row[f"{name}_{end}"]) for end in ("tpr", "low", "high")]
            assert figures == pytest.approx([found / len(held), interval.low, interval.high], rel=1e-5)
            assert row["models_in"] == "4"
            assert row["label"] == ("" if labels[n] < 0 else str(labels[n]))
            assert row["class_name"] == ("" if labels[n] < 0 else "xyz"[labels[n]])
            assert row["file"] == ""
            finite = values[np.isfinite(values)]
            clipped = np.clip(values[:, n], min(0, finite.min()) - 1, max(0, finite.max()) + 1)
            gap = clipped[held].mean(dtype=float) - clipped[~keep[:, n]].mean(dtype=float)
            keys.setdefault(name, []).append((found / len(held), gap))
    best = keys[records.headline]
    assert [int(row["rank"]) for row in rows] == [1 + sum(o > key for o in best) for key in best]
    tops = {
        name: {n for n, key in enumerate(mine) if sum(o >= key for o in mine) <= 3}
        for name, mine in keys.items()
    }
    for i, one in enumerate(tops.values()):
        for j, other in enumerate(tops.values()):
            expected = len(one & other) / len(one | other) if one | other else np.nan
            np.testing.assert_equal(records.agreement[i, j], expected)


def test_ranked_by_the_attack_that_heads_the_report():
    for seed, examples in ((0, N), (1, N), (2, 20)):  # of the last no rate is resolvable
        scores, keep = pool(seed, examples=examples)
        records = records_of(scores.items(), keep)
        evaluation = measure(scores, keep)
        assert records.headline == evaluation.headline
        point = lowest_resolved(evaluation.attacks[records.headline])
        assert records.fpr == (point.fpr if point else 0)
        reverse = dict(reversed(scores.items()))
        assert records_of(reverse.items(), keep, headline=list(scores)[-1]).headline == list(scores)[-1]
    with pytest.raises(ValueError, match="scores holds no rmia_online"):
        records_of(scores.items(), keep, headline="rmia_online")


def test_finite_scores_have_the_thresholds_of_the_roc():
    scores, keep = pool()
    scores = {name: np.nan_to_num(values, posinf=9, neginf=-9) for name, values in scores.items()}
    records = records_of(scores.items(), keep, fpr=0.01)
    for name, values in scores.items():
        called = values >= roc(values, keep).tpr_at(0.01).threshold
        np.testing.assert_array_equal(records.attacks[name].rates.found, (called & keep).sum(axis=0))


def test_names_come_back_whatever_they_hold():
    scores, keep = pool(examples=20)
    labels, files = np.arange(20) % 10, [f"{name}/{i}" for i, name in enumerate(NAMES * 2)]
    records = records_of(scores.items(), keep, labels=labels, class_names=NAMES, files=files)
    rows = read(records_csv(records))
    shown = [name.replace("\udce9", "\\udce9") for name in NAMES]  # a byte that is no UTF-8
    assert [row["class_name"] for row in rows] == shown * 2
    assert [row["file"] for row in rows] == [f"{name}/{i}" for i, name in enumerate(shown * 2)]


def test_pandas_reads_it(tmp_path):
    pandas = pytest.importorskip("pandas")
    scores, keep = pool(examples=20)
    files = [f"{name}/{i}" for i, name in enumerate(NAMES * 2)]
    records = records_of(scores.items(), keep, labels=np.arange(20) % 10, class_names=NAMES, files=files)
    write_records(tmp_path, records)
    table = pandas.read_csv(tmp_path / "records.csv")
    assert table["index"].tolist() == list(range(20))
    assert table["file"].tolist() == [name.replace("\udce9", "\\udce9") for name in files]
    np.testing.assert_allclose(table["base_tpr"], records.attacks["base"].rates.tpr, rtol=1e-5)
    assert table["label"].dtype == table["rank"].dtype == np.int64


def test_one_target_has_scores_and_what_they_cost():
    scores, keep = pool(targets=1, examples=200)
    p_value = np.random.default_rng(0).uniform(size=(1, 200)).astype(np.float32)
    records = records_of(scores.items(), keep, fpr=0.05, p_value=("lira_online", p_value))
    rows = read(records_csv(records))
    assert not any(column.endswith(("_tpr", "_low", "_high")) or column == "top_halves" for column in rows[0])
    for name, values in scores.items():
        nonmembers = values[0][~keep[0]]
        for n, row in enumerate(rows):
            assert np.float32(row[f"{name}_score"]) == values[0, n]
            expected = np.mean(nonmembers >= values[0, n])
            assert float(row[f"{name}_fpr"]) == pytest.approx(expected, rel=1e-5)
    best = scores[records.headline][0]
    threshold = sorted(best[~keep[0]], reverse=True)[int(0.05 * (~keep).sum())]
    for n, row in enumerate(rows):
        assert int(row["rank"]) == 1 + np.sum(best > best[n])
        assert (row["member"], row["verdict"]) == (str(int(keep[0, n])), str(int(best[n] > threshold)))
        assert np.float32(row["p_value"]) == p_value[0, n]


@pytest.mark.parametrize("targets", [2, 3, 5])
def test_few_targets_have_wide_intervals_and_no_crash(targets):
    scores, keep = pool(targets=targets, examples=50)
    keep[:, 0], keep[:, 1] = False, True
    records = records_of(scores.items(), keep)
    rows = read(records_csv(records))
    assert (rows[0]["models_in"], rows[0]["rank"], rows[0]["base_tpr"]) == ("0", "", "")
    assert (rows[1]["models_in"], rows[1]["label"]) == (str(targets), "")
    high = float(rows[1]["base_high"]) - float(rows[1]["base_low"])
    assert high >= 1 - 0.025 ** (1 / targets) - 1e-6


def test_targets_stand_in_the_order_of_their_models(tmp_path):
    scores, keep = pool()
    models = [4, 6, 0, 2, 1, 3, 9, 8]
    p_value = np.random.default_rng(0).uniform(size=keep.shape).astype(np.float32)
    records = records_of(scores.items(), keep, p_value=("lira_online", p_value), models=models)
    write_records(tmp_path, records)
    order = np.argsort(models)
    best = scores[records.headline]
    for name, expected in {"score": best, "member": keep, "p_value": p_value}.items():
        np.testing.assert_array_equal(read_zarr(tmp_path / "records" / name), expected[order])
    called = read_zarr(tmp_path / "records/verdict")
    np.testing.assert_array_equal(called, (best > records.attacks[records.headline].bar)[order])
    group = json.loads((tmp_path / "records/zarr.json").read_text())
    assert (group["node_type"], group["attributes"]["models"]) == ("group", sorted(models))
    # Without p-values those of before do not stay.
    write_records(tmp_path, records_of(scores.items(), keep))
    assert sorted(each.name for each in (tmp_path / "records").iterdir()) == [
        *("member", "score", "verdict", "zarr.json")
    ]
    document = json.loads((tmp_path / "records.json").read_text())
    columns = (tmp_path / "records.csv").read_text().splitlines()[0].split(",")
    explained = {name.replace("ATTACK", attack) for name in document["columns"] for attack in scores}
    assert set(columns) == explained
    assert document["agreement"]["base"]["base"] in (1, None)


def test_what_does_not_fit_is_refused_before_an_attack_is_read():
    scores, keep = pool()
    unread = iter(scores.items())
    with pytest.raises(ValueError, match=r"fpr is a fraction between 0 and 1; got 1\.5"):
        records_of(unread, keep, fpr=1.5)
    with pytest.raises(ValueError, match=r"p_value must be \[8, 300\] like keep; got \[8, 299\]"):
        records_of(unread, keep, p_value=("lira_online", np.zeros((T, N - 1))))
    assert len(list(unread)) == len(scores)
    with pytest.raises(ValueError, match="scores holds no attack"):
        records_of([], keep)


def test_a_failing_write_leaves_the_old_records(tmp_path, monkeypatch):
    scores, keep = pool()
    write_records(tmp_path, records_of(scores.items(), keep))
    before = contents(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(places.os, "fsync", full)
    monkeypatch.setattr(zarr, "create_array", full)
    with pytest.raises(ValueError, match="records: cannot be written: No space left on device"):
        write_records(tmp_path, records_of(scores.items(), keep, fpr=0.1))
    assert contents(tmp_path) == before


def test_titles_name_class_and_file_in_lines_that_fit():
    scores, keep = pool(examples=20)
    files = [f"train/cat/{'long_' * 20}{i}.png" for i in range(20)]
    records = records_of(
        scores.items(), keep, labels=np.arange(20) % 2, class_names=["cat", "dog"], files=files
    )
    first, second = records.title_of(3).split("\n")
    assert first == "example 3, class dog"
    assert second.endswith("_3.png")
    assert len(second) <= 35
    assert records_of(scores.items(), keep).title_of(3) == "example 3"


def test_the_page_lists_the_most_vulnerable_by_name(tmp_path):
    scores, keep = pool()
    files = [f"train/<b>/{i}.png" for i in range(N)]
    records = records_of(scores.items(), keep, labels=np.arange(N) % 2, class_names=["<i>", "b"], files=files)
    write_report(tmp_path, measure(scores, keep), records=records)
    page = (tmp_path / "report.html").read_text()
    assert 'href="records.csv"' in page
    assert (tmp_path / "records.csv").read_bytes() == records_csv(records)
    first = np.argsort(records.ranks, kind="stable")[:20]
    section = page[page.index('<h2 id="vulnerable">') :]
    section = section[: section.index("</section>")]
    for example in first:
        assert f"train/&lt;b&gt;/{example}.png" in section
    assert section.count(".png") == 20
    assert "<b>" not in page
    assert "<i>" not in page


# --- Runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _few_attacks_are_enough(monkeypatch):
    few = ("lira_online_fixed", "lira_offline_fixed", "global_threshold")
    monkeypatch.setattr(scoring, "ATTACKS", {name: ATTACKS[name] for name in few})


@pytest.fixture
def folder_run(tmp_path):
    """Four MLPs on a folder of images whose names are not plain."""
    rng = np.random.default_rng(0)
    for label in ("cat, black", "dög"):
        (tmp_path / "data/train" / label).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (4, 4)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data/train" / label / f'{i:02} "x".png')
    dataset = lira.load_dataset(f"folder:{tmp_path / 'data'}", num_examples=36)
    run = lira.Run.create(
        tmp_path / "run",
        dataset,
        lira.Recipe(epochs=1, batch_size=9),
        num_models=4,
        execution=lira.Execution(width=2),
    )
    lira.train(run, dataset, show_progress=False)
    return run, dataset


@pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning", "ignore:.*is left out:UserWarning")
def test_records_of_a_run(folder_run, capsys):
    run, dataset = folder_run
    found = lira.records(run, dataset)
    rows = read((run.path / "records.csv").read_bytes())
    assert [row["file"] for row in rows] == list(dataset.files)
    assert [row["class_name"] for row in rows] == [dataset.class_names[label] for label in dataset.y]
    score = run.scores(found.headline)
    np.testing.assert_array_equal(read_zarr(run.path / "records/score"), score)
    before = {name: (run.path / name).read_bytes() for name in ("records.csv", "records.json")}
    # The command does the same, on a run that holds nothing but its scores.
    for name in before:
        (run.path / name).unlink()
    assert main(["records", str(run.path)]) == 0
    assert "36 examples ranked by" in capsys.readouterr().out
    assert {name: (run.path / name).read_bytes() for name in before} == before
    assert main(["records", str(run.path), "--fpr", "0.1"]) == 0
    assert json.loads((run.path / "records.json").read_text())["fpr"] == 0.1
    now = (run.path / "records.csv").read_bytes()
    for bad in ("7", "x"):
        assert main(["records", str(run.path), "--fpr", bad]) == 2
    assert (run.path / "records.csv").read_bytes() == now
    other = lira.Dataset.from_arrays(255 - dataset.x, dataset.y, files=dataset.files)
    with pytest.raises(ValueError, match="is a run of other data: folder:"):
        lira.records(run, other)
    assert (run.path / "records.csv").read_bytes() == now
    # An image that has changed since: the command goes on without names.
    changed = Path(dataset.name.removeprefix("folder:"), dataset.files[0])
    pixels = np.random.default_rng(9).integers(0, 256, (4, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(changed)
    assert main(["records", str(run.path)]) == 0
    assert "is not as it was trained on" in capsys.readouterr().err
    assert {row["file"] for row in read((run.path / "records.csv").read_bytes())} == {""}


@pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning", "ignore:.*is left out:UserWarning")
def test_records_follow_a_run_that_grows(folder_run, capsys):
    run, dataset = folder_run
    lira.records(run, dataset)
    grown = lira.Run.create(
        run.path, dataset, run.config.recipe, num_models=6, execution=lira.Execution(width=2)
    )
    lira.train(grown, dataset, show_progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        lira.report(grown, dataset)
    document = json.loads((run.path / "records.json").read_text())
    assert document["models"] == list(range(6))
    assert {row["models_in"] for row in read((run.path / "records.csv").read_bytes())} == {"3"}
    assert read_zarr(run.path / "records/score").shape == (6, 36)
    assert "cat, black" in (run.path / "report.html").read_text()


def test_records_of_imported_models_without_labels(tmp_path):
    rng = np.random.default_rng(0)
    keep = rng.uniform(size=(5, 40)) < 0.5
    keep[:2, 0], keep[:, 1] = True, False
    phi = (rng.normal(size=(5, 40, 1)) + keep[..., None]).astype(np.float32)
    accuracies = dict.fromkeys(("accuracy_in", "accuracy_out", "accuracy_test"), np.array(np.nan, np.float32))
    run = run_of_models(
        tmp_path / "run",
        keep,
        np.full(40, -1),
        ({"phi": row, **accuracies} for row in phi),
        source={"path": "elsewhere", "file": "x", "layout": "carlini"},
    )
    assert main(["records", str(run.path)]) == 0
    table = read((run.path / "records.csv").read_bytes())
    assert {(row["label"], row["class_name"], row["file"]) for row in table} == {("", "", "")}
    assert [int(row["models_in"]) for row in table] == keep.sum(axis=0).tolist()
    assert (table[1]["rank"], table[1]["global_threshold_tpr"]) == ("", "")
    named = lira.Dataset.from_arrays(np.ones((40, 2)), np.arange(40) % 2, class_names=["no", "yes"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        lira.records(run, named)  # nothing contradicts these labels, but none is known
    assert {row["class_name"] for row in read((run.path / "records.csv").read_bytes())} == {""}
