"""The settings of a training, as done-files have them."""

from pelasr.train.inputs import training_settings, with_settings
from pelasr.train.options import TrainingOptions


def test_settings_are_read_back():
    training = TrainingOptions(max_epoch=7, optim_conf={"betas": (0.9, 0.98)}, num_workers=3)
    found = training_settings(training)
    again = with_settings(TrainingOptions(num_workers=5), found)
    assert again.max_epoch == 7 and again.num_workers == 5  # which has no effect on what comes out
    assert training_settings(again) == found


def test_an_option_that_is_gone():
    """Done-files of before may have it, as null."""
    found = training_settings(TrainingOptions(max_epoch=7)) | {"temperature": None}
    assert with_settings(TrainingOptions(), found) == TrainingOptions(max_epoch=7)
