"""Options that would fail, or have no effect, hours later."""

import pytest

from pelasr.errors import PelasrError
from pelasr.train.options import TrainingOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epoch": 0}, "max_epoch: 0 is not a whole number"),
        ({"max_epoch": "ten"}, "max_epoch: 'ten'"),
        ({"accum_grad": 0}, "accum_grad: 0"),
        ({"val_interval": 0}, "val_interval: 0"),
        ({"keep_nbest_models": 0}, "keep_nbest_models: 0"),
        ({"batch_frames": 9, "batch_size": 16}, "batch_size: 16 has no effect with batch_frames"),
        ({"keep_last_models": 2, "keep_nbest_models": 3}, "keep_nbest_models: 3 has no effect"),
        ({"batch_frames": -1}, "batch_frames: -1 is not a whole number from 0 on"),
        ({"keep_last_models": 1.5}, "keep_last_models: 1.5"),
        ({"scheduler": "noam"}, "scheduler: 'noam'; known: cosine, inverse_sqrt"),
        ({"seed": 2**23}, "seed: 8388608"),
        ({"early_epoch": 5, "val_interval": 2}, "early_epoch: after epoch 5 there is no validation"),
        ({"early_epoch": 40, "max_epoch": 30}, "early_epoch: after epoch 40"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(PelasrError, match=message):
        TrainingOptions(**options)


def test_good_values_are_taken():
    assert TrainingOptions(early_epoch=6, val_interval=3, max_epoch=30).early_epoch == 6
    assert TrainingOptions(early_epoch=7, val_interval=3, max_epoch=7).early_epoch == 7
