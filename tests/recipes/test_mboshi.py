"""The data script of the Mboshi recipes, on a corpus laid out as the published one is."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pelasr.data.audio import load_audio
from pelasr.data.kaldi import read_data_dir
from pelasr.data.validate import validate
from pelasr.errors import DataError, PelasrError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "egs/mboshi/st1/local/data.py"
specification = importlib.util.spec_from_file_location("mboshi_data", SCRIPT)
mboshi_data = importlib.util.module_from_spec(specification)
specification.loader.exec_module(mboshi_data)
SPEAKERS = ["abiayi", "kouarata", "martial"]
TRAIN = [f"{speaker}_2015-09-08_Dico18_{number:02d}" for speaker in SPEAKERS for number in range(12)]
HELD_OUT = ["abiayi_2015-09-08_Dico18_07", "kouarata_2015-09-08_Dico18_03"]  # by the hash of their names
DEV = ["abiayi_2015-09-08_Dico1_1", "martial_2015-09-08_Dico1_1"]


@pytest.fixture
def corpus(tmp_path) -> Path:
    for part, names in (("train", TRAIN), ("dev", DEV)):
        folder = tmp_path / "corpus" / part
        folder.mkdir(parents=True)
        for seed, name in enumerate(names):
            samples = np.random.default_rng(seed).uniform(-0.5, 0.5, 8000)
            soundfile.write(folder / f"{name}.wav", samples, 16000)
            (folder / f"{name}.mb.cleaned").write_text(f"wa\u0301 ngá {seed}\n", encoding="utf-8")
            (folder / f"{name}.mb").write_text("Wá ngá.\r\n", encoding="utf-8")
            (folder / f"{name}.fr.cleaned").write_text(f"la lampe s&apos;  est éteinte {seed}\n", encoding="utf-8")
    return tmp_path / "corpus"


def faults(corpus, tmp_path):
    """The problems of a corpus, of which nothing may have been written."""
    with pytest.raises(DataError) as caught:
        mboshi_data.make_data_dirs(corpus, tmp_path / "data", skip_bad=False)
    assert not (tmp_path / "data").exists()
    return caught.value.problems


def test_sets_texts_and_speakers(corpus, tmp_path):
    data = tmp_path / "data"
    mboshi_data.make_data_dirs(corpus, data, skip_bad=False)
    sets = {name: read_data_dir(data / f"{name}_mb") for name in ("train", "dev", "test")}
    assert [u.id for u in sets["test"]] == DEV
    assert [u.id for u in sets["dev"]] == HELD_OUT
    assert [u.id for u in sets["train"]] == [name for name in TRAIN if name not in HELD_OUT]
    first = sets["test"][0]
    assert (first.text, first.translations) == ("wá ngá 0", {"fr": "la lampe s' est éteinte 0"})
    assert (first.speaker, first.language) == ("abiayi", "mb")
    assert first.audio == f"{corpus}/dev/{DEV[0]}.wav"
    targets = {data / f"{name}_mb": ["fr"] for name in sets}
    assert validate(targets, languages=["mb"], targets=targets).problems == []
    assert not list(data.glob("*/skipped.txt"))


def test_a_tenth_of_every_speaker_is_for_dev_whatever_else_is_there():
    for speaker in SPEAKERS:
        names = [f"{speaker}_2015-09-08-11-33-57_Dico18_{number}" for number in range(2000)]
        assert 160 < sum(mboshi_data.split_of("train", name) == "dev" for name in names) < 240
    assert all(mboshi_data.split_of("dev", name) == "test" for name in TRAIN)


def spoil(corpus):
    """A fault for each of the first five utterances, of which none is for dev; returns their folder."""
    folder = corpus / "train"
    (folder / f"{TRAIN[0]}.wav").unlink()
    (folder / f"{TRAIN[1]}.fr.cleaned").unlink()
    (folder / f"{TRAIN[2]}.mb.cleaned").write_text(" \n")
    (folder / f"{TRAIN[3]}.wav").write_bytes(b"")
    (folder / f"{TRAIN[4]}.fr.cleaned").write_bytes("\u00e9".encode("latin-1"))
    return folder


def test_faults_are_listed_together(corpus, tmp_path):
    folder = spoil(corpus)
    found = faults(corpus, tmp_path)
    assert [problem.partition("; cure: ")[0] for problem in found] == [
        f"{folder}/{TRAIN[0]}.wav: missing",
        f"{folder}/{TRAIN[1]}.fr.cleaned: missing",
        f"{folder}/{TRAIN[2]}.mb.cleaned:1: empty",
        f"{folder}/{TRAIN[3]}.wav: empty",
        f"{folder}/{TRAIN[4]}.fr.cleaned: not UTF-8",
    ]
    assert all("cure: fetch it again" in problem for problem in found)


def test_bad_utterances_are_dropped_when_asked(corpus, tmp_path, capsys):
    folder = spoil(corpus)
    for bad in (TRAIN[:5], TRAIN[:4]):  # the second time, the fifth is mended
        mboshi_data.make_data_dirs(corpus, tmp_path / "data", skip_bad=True)
        names = {u.id for split in ("train", "dev") for u in read_data_dir(tmp_path / f"data/{split}_mb")}
        assert names == set(TRAIN) - set(bad)
        skipped = (tmp_path / "data/train_mb/skipped.txt").read_text().splitlines()
        assert [line.split()[0] for line in skipped] == bad
        (folder / f"{TRAIN[4]}.fr.cleaned").write_text("oui\n")
    assert "train_mb: 5 utterances dropped, listed in" in capsys.readouterr().err


def test_copies_at_other_speeds(corpus, tmp_path):
    data = tmp_path / "data"
    (corpus / f"train/{TRAIN[1]}.wav").write_bytes(b"not audio")
    mboshi_data.make_data_dirs(corpus, data, skip_bad=False, speeds=[0.8, 1.25])
    train = {u.id: u for u in read_data_dir(data / "train_mb")}
    names = [name for name in TRAIN if name not in HELD_OUT]
    assert set(train) == {f"{prefix}{name}" for prefix in ("", "sp0.8-", "sp1.25-") for name in names}
    for name, seconds in ((TRAIN[0], 0.5), (f"sp0.8-{TRAIN[0]}", 0.625), (f"sp1.25-{TRAIN[0]}", 0.4)):
        assert len(load_audio(train[name])) == 16000 * seconds
        assert train[name].text == "wá ngá 0"
    assert train[f"sp0.8-{TRAIN[0]}"].speaker == "sp0.8-abiayi"
    assert [u.id for split in ("dev", "test") for u in read_data_dir(data / f"{split}_mb")] == HELD_OUT + DEV
    found = [problem.utterance for problem in validate([data / "train_mb"], languages=["mb"]).problems]
    assert found == [TRAIN[1], f"sp0.8-{TRAIN[1]}", f"sp1.25-{TRAIN[1]}"]
    copy = data / f"speed/sp0.8-{TRAIN[0]}.wav"
    before = copy.stat().st_mtime_ns
    mboshi_data.make_data_dirs(corpus, data, skip_bad=False, speeds=[0.8, 1.25])
    assert copy.stat().st_mtime_ns == before  # so that the next stages are not repeated


def run(*options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, env=environment)


def test_the_command(corpus, tmp_path):
    done = run("--mboshi", corpus, "--data", tmp_path / "data")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["dev_mb", "test_mb", "train_mb"]
    missing = run()
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: where is the Mboshi corpus? git clone https://github.com/besacier/mboshi-")


def test_a_folder_without_the_corpus(tmp_path):
    with pytest.raises(PelasrError, match="no good utterances for train_mb in .*; git clone"):
        mboshi_data.make_data_dirs(tmp_path, tmp_path / "data", skip_bad=True)


def test_both_recipes_have_the_same_script():
    assert (ROOT / "egs/mboshi/asr1/local/data.py").samefile(SCRIPT)
