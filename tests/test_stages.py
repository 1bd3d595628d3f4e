"""What the stages decide by themselves: which checks apply to which data."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pelasr.config import load_yaml
from pelasr.data import Utterance, write_data_dir
from pelasr.errors import DataError
from pelasr.experiment import Place
from pelasr.stages import validate_data

ROOT = Path(__file__).parents[1]


def place(folder: Path, fast: str) -> Place:
    """Half a second of noise in each set; in the set `fast` it is said to be fifty letters."""
    for name in ("train", "dev", "test"):
        audio = folder / f"{name}.wav"
        soundfile.write(audio, np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
        text = "ab" * 25 if name == fast else "ab"
        write_data_dir(folder / f"data/{name}_xx", [Utterance("u", "u", str(audio), None, None, text, "s", "xx")])
    return Place(folder / "data", folder / "dump", folder / "exp", ["xx"])


def validate(where: Place, config: str, skip_bad: bool = False) -> bool:
    return validate_data(where, ["train", "dev", "test"], load_yaml(ROOT / "conf" / config), skip_bad, nj=1)


def test_training_with_ctc_wants_a_frame_for_each_label(tmp_path):
    with pytest.raises(DataError, match="train_xx/wav.scp:1: utterance u: too short for its text"):
        validate(place(tmp_path, "train"), "rnnt_mini.yaml")


@pytest.mark.parametrize(("fast", "config"), [("train", "rnnt_kannan2019.yaml"), ("test", "rnnt_mini.yaml")])
def test_without_ctc_and_in_other_sets_speech_may_be_fast(tmp_path, fast, config):
    assert validate(place(tmp_path, fast), config)


def test_audio_that_changed_in_place_is_checked_again(tmp_path):
    where = place(tmp_path, "none")
    assert validate(where, "rnnt_mini.yaml")
    assert not validate(where, "rnnt_mini.yaml")
    soundfile.write(tmp_path / "dev.wav", np.zeros(8000), 16000)
    with pytest.raises(DataError, match="dev_xx/wav.scp:1: utterance u: .*silence"):
        validate(where, "rnnt_mini.yaml")
