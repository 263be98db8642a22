import numpy as np
import pytest

from lira.engine.share import models_in_words, models_of_process, scheduled_share


@pytest.mark.parametrize(("num_models", "count"), [(256, 16), (256, 7), (6, 4), (24, 1), (1024, 100)])
def test_shares_are_whole_pairs_and_together_all_models(num_models, count):
    shares = [models_of_process(num_models, share=f"{i}/{count}") for i in range(count)]
    np.testing.assert_array_equal(np.concatenate(shares), np.arange(num_models))
    assert all(len(share) % 2 == 0 and (not len(share) or share[0] % 2 == 0) for share in shares)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 2


def test_models_by_name():
    np.testing.assert_array_equal(models_of_process(256, "64:128"), np.arange(64, 128))
    np.testing.assert_array_equal(models_of_process(8, environment={}), np.arange(8))


@pytest.mark.parametrize(
    ("models", "share", "message"),
    [
        ("0:300", "", r"--models must be FIRST:STOP within 0:256.*got 0:300"),
        ("8:8", "", "--models must be FIRST:STOP"),
        ("8", "", "--models must be FIRST:STOP"),
        ("-2:8", "", "--models must be FIRST:STOP"),
        ("", "16/16", r"counted from 0, such as 0/16 to 15/16; got 16/16"),
        ("", "3", "--share must be INDEX/COUNT"),
        ("", "0/0", "--share must be INDEX/COUNT"),
        ("0:2", "0/2", "cannot both be given"),
    ],
)
def test_mistakes_are_named(models, share, message):
    with pytest.raises(ValueError, match=message):
        models_of_process(256, models, share, {})


def test_a_scheduler_tells_each_process_its_place():
    slurm = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert [scheduled_share({**slurm, "SLURM_ARRAY_TASK_ID": str(i)}) for i in (1, 3, 5, 7)] == [
        f"{i}/4" for i in range(4)
    ]
    kubernetes = {"JOB_COMPLETION_INDEX": "3", "JOB_COMPLETIONS": "8"}
    np.testing.assert_array_equal(models_of_process(64, environment=kubernetes), np.arange(24, 32))
    np.testing.assert_array_equal(models_of_process(64, "0:4", environment=kubernetes), np.arange(4))
    with pytest.raises(ValueError, match=r"JOB_COMPLETION_INDEX is 3.*set JOB_COMPLETIONS"):
        scheduled_share({"JOB_COMPLETION_INDEX": "3"})
    assert scheduled_share({}) == ""


def test_models_in_words():
    assert models_in_words(np.arange(64), 256) == "models 0:64 of 256"
    assert models_in_words(np.arange(256), 256) == ""
