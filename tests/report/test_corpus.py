"""What a results page says of the data."""

import numpy as np
import pytest

from pelasr.data.features import write_archive
from pelasr.data.kaldi import Utterance, write_data_dir
from pelasr.data.place import Place
from pelasr.errors import PelasrError
from pelasr.report.corpus import read_corpus, write_corpus


def write(folder, count, speakers, language="en", **translations):
    """A data directory; without speakers every utterance is its own."""
    utterances = []
    for number in range(count):
        name = f"u{number}"
        speaker = f"s{number % speakers}" if speakers else name
        utterances.append(Utterance(name, name, f"{name}.wav", None, None, "a", speaker, language, translations))
    write_data_dir(folder, utterances)


def test_utterances_hours_and_speakers(tmp_path):
    assert read_corpus(tmp_path / "exp") == {}
    write(tmp_path / "data/train_hi", 12, 5, "hi")
    write(tmp_path / "data/test_hi", 4, 0, "hi")
    write(tmp_path / "data/test_pa", 3, 3, "pa")
    feats = np.zeros((300, 80), dtype=np.float32)  # 3 s
    write_archive(tmp_path / "dump/train_hi", [(f"u{number}", feats) for number in range(12)])
    place = Place(tmp_path / "data", tmp_path / "dump", tmp_path / "exp", ["hi"])
    write_corpus(place, ["train", "test"], ["pa"])
    assert read_corpus(tmp_path / "exp") == {
        "made_with": "",
        "languages": [
            {
                "name": "hi",
                "sets": {
                    "train": {"utterances": 12, "hours": 0.01, "speakers": 5},
                    "test": {"utterances": 4, "hours": None, "speakers": None},
                },
            },
            {"name": "pa", "sets": {"train": None, "test": {"utterances": 3, "hours": None, "speakers": 3}}},
        ],
    }
    (tmp_path / "exp/made_with").write_text("--size 'tiny'\n--speeds '0.9 1.1'\n")
    write_corpus(place, ["test"])
    assert read_corpus(tmp_path / "exp")["made_with"] == "--size tiny --speeds '0.9 1.1'"
    (tmp_path / "exp/corpus.json").write_text("{")
    with pytest.raises(PelasrError, match="corpus.json: not valid JSON"):
        read_corpus(tmp_path / "exp")


def test_pairs_that_share_their_speech_count_once(tmp_path):
    write(tmp_path / "data/test_en", 2, 1, de="b", fr="c")
    write(tmp_path / "data/test_en-sv", 3, 1, sv="b")
    place = Place(tmp_path / "data", tmp_path / "dump", tmp_path / "exp", ["en-de", "en-fr", "en-sv"])
    write_corpus(place, ["test"])
    found = [
        (group["name"], group["sets"]["test"]["utterances"]) for group in read_corpus(tmp_path / "exp")["languages"]
    ]
    assert found == [("en into de fr", 2), ("en-sv", 3)]
