"""Stage 3 with `--dump false`: features are computed while training, to the same numbers."""

import os
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from places import place
from safetensors.torch import load_file
from small_runs import SMALL
from tiny_data import write_set
from tiny_speech import noise

from pelasr.cli.main import main
from pelasr.data.features import INDEX
from pelasr.data.hears import USUAL, LogMel, Waveform
from pelasr.data.speech import is_dumped, speech_sha256
from pelasr.errors import PelasrError
from pelasr.stages.stats import make_features, make_stats

DUMPED = {"done.json", "feats.ark", *INDEX}
INDEXED = {"audio.json", "utt2audio"}
LANGS = ["--langs", "hi ta"]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """Two places after stages 3, 4 and 6, with features and without."""
    found = []
    for name, options in (("with", []), ("without", ["--dump", "false"])):
        folder = tmp_path_factory.mktemp(name)
        (folder / "conf").mkdir()
        (folder / "conf/experiments.yaml").write_text("A1: {description: a backbone}\n")
        config = {"backbone": "rnnt", **SMALL, "max_epoch": 1}
        (folder / "conf/a.yaml").write_text("".join(f"{key}: {value}\n" for key, value in config.items()))
        workers = ["--num_workers", "2"] if options else []
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for seed, (language, part) in enumerate(product(("hi", "ta"), ("train", "dev", "test"))):
                write_set(Path(f"data/{part}_{language}"), language, 6 if part == "train" else 2, seed=10 * seed)
            main(["tokens", *LANGS])
            main(["stats", *LANGS, *options, "--nj", "1"])
            main(["train", *LANGS, "--config", "conf/a.yaml", "--exp", "A1", *workers])
            main(["decode", *LANGS, "--exp", "A1"])
        found.append(folder)
    return found[0], found[1]


def test_no_features_are_written(places):
    for folder, files in zip(places, (DUMPED, INDEXED), strict=True):
        for name in ("train", "dev", "test"):
            assert {path.name for path in (folder / f"dump/{name}_hi").iterdir()} == files


def test_the_same_statistics_weights_and_texts(places):
    one, other = places
    stats = [np.load(folder / "exp/stats.npz") for folder in places]
    assert all(np.array_equal(stats[0][key], stats[1][key]) for key in ("mean", "std"))
    weights = [load_file(folder / "exp/A1/backbone.safetensors") for folder in places]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for file in ("text", "scores"):
        path = f"exp/A1/decode/test_ta/{file}"
        assert (one / path).read_bytes() == (other / path).read_bytes()


def test_run_again_it_is_made_already(places, monkeypatch, capsys):
    monkeypatch.chdir(places[1])
    main(["stats", *LANGS, "--dump", "false"])
    main(["train", *LANGS, "--config", "conf/a.yaml", "--exp", "A1"])
    main(["decode", *LANGS, "--exp", "A1"])
    assert capsys.readouterr().out.count("already") == 3


def test_touched_audio_is_read_again_and_is_the_same(places, monkeypatch, capsys, tmp_path):
    shutil.copytree(places[1], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    os.utime("data/train_ta/3.wav")
    with pytest.raises(SystemExit, match="the index of the audio is not of data/train_ta as it is; run stage 3"):
        main(["train", *LANGS, "--config", "conf/a.yaml", "--exp", "A1"])
    main(["stats", *LANGS, "--dump", "false", "--nj", "1"])
    main(["train", *LANGS, "--config", "conf/a.yaml", "--exp", "A1"])
    assert "is trained already" in capsys.readouterr().out


def files(where) -> set[str]:
    return {path.name for path in (where.dump / "train_xx").iterdir()}


def test_from_one_to_the_other_and_back(tmp_path):
    where = place(tmp_path, "none")
    data, dump = where.data / "train_xx", where.dump / "train_xx"
    assert make_stats(where, ["train"], 1, USUAL, dump=False) and files(where) == INDEXED
    assert not make_stats(where, ["train"], 1, USUAL, dump=False)
    assert not make_features(where, ["train"], 1, USUAL, dump=None)  # what is there will do
    first = (where.stats).read_bytes()
    assert make_stats(where, ["train"], 1, USUAL) and files(where) == INDEXED | DUMPED
    assert where.stats.read_bytes() == first
    assert not make_features(where, ["train"], 1, USUAL, dump=False)  # there are features, which are read
    assert is_dumped(dump, USUAL)
    soundfile.write(tmp_path / "train.wav", noise(0.5, 3), 16000)
    with pytest.raises(PelasrError, match="run stage 3"):
        speech_sha256(data, dump, USUAL)
    assert make_stats(where, ["train"], 1, USUAL, dump=False) and files(where) == INDEXED  # none of other audio
    assert where.stats.read_bytes() != first
    speech_sha256(data, dump, USUAL)


def test_side_by_side(tmp_path):
    """Features for one backbone, and the index for others, which hear the waveform or other channels."""
    where = place(tmp_path, "none")
    assert make_stats(where, ["train"], 1, USUAL)
    assert make_stats(where, ["train"], 1, Waveform()) and not make_stats(where, ["train"], 1, Waveform())
    assert files(where) == DUMPED | INDEXED and not make_stats(where, ["train"], 1, USUAL)
    other = replace(where, exp=tmp_path / "other")
    assert make_stats(other, ["train"], 1, LogMel(40), dump=False)
    assert np.load(other.stats)["mean"].shape == (40,) and np.load(where.stats)["mean"].shape == (80,)
    assert files(where) == DUMPED | INDEXED and is_dumped(where.dump / "train_xx", USUAL)
