"""Learning rates by step, and when a history ends a training."""

import math

import pytest

from pelasr.errors import PelasrError
from pelasr.train.options import TrainingOptions
from pelasr.train.schedule import best_entry, decay_start, factor, is_candidate, metric_of, rank

WSD = {"scheduler": "wsd", "decay_epochs": 4, "max_epoch": 20}


def history(errors, metric="wer", losses=None):
    losses = losses or [1.0] * len(errors)
    dev = [{"loss": loss, metric: error} for loss, error in zip(losses, errors, strict=True)]
    found = [{"epoch": epoch, "dev": {"hi": scores}, "mean": scores} for epoch, scores in enumerate(dev)]
    return [entry | {"candidates": ["hi", "mean"]} for entry in found]


def test_rank():
    assert rank({"loss": 2.0, "wer": 10.0}) < rank({"loss": 1.0, "wer": 11.0})
    assert rank({"loss": 1.0, "cer": 10.0}) < rank({"loss": 2.0, "cer": 10.0})
    assert rank({"loss": 9.0, "bleu": 30.0}) < rank({"loss": 1.0, "bleu": 20.0})
    marked = [{"loss": 9.0, "right": value, "higher_is_better": 1} for value in (30.0, 20.0)]
    assert rank(marked[0]) < rank(marked[1]) and metric_of(marked[0]) == "right"
    found = history([90, 50, 40, 40, 40], losses=[1, 1, 3, 2, 2])
    assert best_entry(found, "hi")["epoch"] == best_entry(found, "mean")["epoch"] == 3


def test_the_rate_goes_down_after_patience():
    options = TrainingOptions(**WSD, patience=3)
    errors = [90, 80, 70, 71, 72]
    assert decay_start(history(errors), "hi", options) is None
    assert decay_start(history([*errors, 70.5]), "hi", options) == 5
    assert decay_start(history([*errors, 70.5, 1]), "hi", options) == 5  # what comes later does not count
    better_loss = history([*errors, 70], losses=[1, 1, 1, 1, 1, 0.5])  # the same error, another loss
    assert decay_start(better_loss, "hi", options) is None


def test_the_rate_goes_down_in_time():
    options = TrainingOptions(**WSD, patience=3)
    falling = [100 - epoch for epoch in range(21)]
    assert decay_start(history(falling[:16]), "hi", options) is None
    assert decay_start(history(falling), "mean", options) == 16
    assert decay_start(history([50] * 21), "hi", TrainingOptions(**WSD)) == 16  # without patience


def test_a_short_training_slows_down_from_its_start():
    options = TrainingOptions(scheduler="wsd", decay_epochs=8, patience=3, max_epoch=2, warmup_steps=0)
    assert (
        decay_start(history([90]), "hi", options) == 0 and decay_start(history([90, 80]), "hi", options, first=1) == 1
    )
    assert [factor(options, step, 5, 0) for step in (0, 5, 10)] == [1.0, 0.5, 0.0]


def test_only_slowed_weights_are_candidates():
    """The best of many validations at a constant rate is the best by chance."""
    wsd, cosine = TrainingOptions(**WSD), TrainingOptions()
    assert [is_candidate(epoch, None, wsd) for epoch in (0, 1, 9)] == [True, False, False]
    assert [is_candidate(epoch, 5, wsd) for epoch in (0, 5, 6, 9)] == [True, False, True, True]
    assert is_candidate(3, None, cosine)
    found = history([90, 10, 40, 30, 35])
    for entry in found[1:3]:
        entry["candidates"] = ["mean"]
    assert best_entry(found, "hi")["epoch"] == 3 and best_entry(found, "mean")["epoch"] == 1


def test_bleu_rises():
    options = TrainingOptions(**WSD, patience=2)
    assert decay_start(history([1, 5, 9, 9.5], "bleu"), "hi", options) is None
    assert decay_start(history([1, 5, 4, 3], "bleu"), "hi", options) == 3


def test_a_continued_training_must_beat_the_earlier_one_and_has_its_own_patience():
    options = TrainingOptions(**WSD, patience=3)
    before = [90, 40, 50, 50, 50, 50]
    assert decay_start(history(before), "hi", options, first=5) is None
    assert decay_start(history([*before, 45, 44, 43]), "hi", options, first=5) == 8
    assert decay_start(history([*before, 45, 39, 43]), "hi", options, first=5) is None
    long = [*before, *(39 - n for n in range(30))]
    assert decay_start(history(long), "hi", options, first=5) == 21


def test_factors():
    options = TrainingOptions(**WSD, patience=3, warmup_steps=10)
    assert [factor(options, step, 5, None) for step in (0, 4, 9, 10, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert [factor(options, step, 5, 6) for step in (20, 30, 40, 49, 50, 60)] == pytest.approx(
        [1.0, 1.0, 0.5, 0.05, 0.0, 0.0]
    )
    cosine = TrainingOptions(max_epoch=20, warmup_steps=0)
    assert [factor(cosine, step, 5, None) for step in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])
    root = TrainingOptions(scheduler="inverse_sqrt", warmup_steps=4)
    assert factor(root, 15, 5, None) == pytest.approx(math.sqrt(4 / 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "wsd"}, "decay_epochs: 0; with scheduler wsd"),
        ({"patience": 3}, "patience, decay_epochs: have no effect with scheduler cosine"),
        ({"scheduler": "newbob"}, "scheduler: 'newbob'; known: cosine, inverse_sqrt, wsd"),
        ({"scheduler": "wsd", "decay_epochs": 3, "patience": -1}, "patience: -1 is not a whole number"),
    ],
)
def test_options_without_sense(options, message):
    with pytest.raises(PelasrError, match=message):
        TrainingOptions(**options)
