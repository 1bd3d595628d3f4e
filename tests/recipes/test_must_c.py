"""The data script of egs/must_c/st1, on a corpus laid out as MuST-C is."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from must_c import make_must_c, write_talk

from pelasr.data.audio import load_audio
from pelasr.data.kaldi import read_data_dir
from pelasr.data.validate import validate
from pelasr.errors import DataError, PelasrError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "egs/must_c/st1/local/data.py"
specification = importlib.util.spec_from_file_location("must_c_data", SCRIPT)
must_c_data = importlib.util.module_from_spec(specification)
specification.loader.exec_module(must_c_data)
PAIRS = ["en-de", "en-fr"]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return make_must_c(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def corpus(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "corpus"))


def make(corpus, tmp_path, pairs=PAIRS, skip_bad=False):
    must_c_data.make_data_dirs(corpus, tmp_path / "data", pairs, skip_bad)
    return tmp_path / "data"


def faults(corpus, tmp_path, **options):
    """The problems of a corpus, of which nothing may have been written."""
    with pytest.raises(DataError) as caught:
        make(corpus, tmp_path, **options)
    assert not (tmp_path / "data").exists()
    assert all("cure: " in problem and "\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def only_fault(corpus, tmp_path, **options):
    (problem,) = faults(corpus, tmp_path, **options)
    return problem


def edit(path, number, line):
    """Replace a line; None takes it out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number - 1 : number] = [] if line is None else [line]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_every_segment_with_its_texts_and_its_audio(corpus, tmp_path):
    data = make(corpus, tmp_path)
    names = [f"{split}_{pair}" for split in ("dev", "test", "train") for pair in PAIRS]
    assert sorted(path.name for path in data.iterdir()) == names
    assert not list(data.glob("*/skipped.txt"))
    folder = corpus / "en-de/data/tst-COMMON"
    written = read_data_dir(data / "test_en-de")
    assert [u.id for u in written] == [f"en-de_ted_4_000000{n}" for n in (1, 2, 3, 4)]
    second = written[1]
    lines = {ending: (folder / f"txt/tst-COMMON.{ending}").read_text().splitlines()[1] for ending in ("en", "de")}
    assert (second.text, second.translations) == (lines["en"], {"de": lines["de"]})
    assert lines["en"].endswith(".") and lines["en"] != lines["de"]
    assert (second.language, second.speaker, second.recording) == ("en", "spk.4", "en-de_ted_4")
    recording, _ = soundfile.read(folder / "wav/ted_4.wav", dtype="float32")
    first_end = 0.3 + len(written[0].text.split()) * 0.25
    start, end = first_end + 0.3, first_end + 0.3 + len(second.text.split()) * 0.25
    assert (second.start, second.end) == (pytest.approx(start), pytest.approx(end))
    np.testing.assert_array_equal(load_audio(second), recording[round(start * 16000) : round(end * 16000)])


def test_the_directories_are_valid(corpus, tmp_path):
    data = make(corpus, tmp_path)
    targets = {data / f"train_{pair}": [pair[3:]] for pair in PAIRS}
    report = validate(targets, languages=["en"], targets=targets)
    assert report.problems == [] and report.warnings == []
    assert report.languages["en"].utterances == 16


def test_keys_of_the_first_version_suffice_and_texts_are_normalised(corpus, tmp_path):
    folder = corpus / "en-fr/data/dev/txt"
    edit(folder / "dev.yaml", 1, "- {duration: 0.500000, offset: 0, rW: 2, speaker_id: 7, wav: ted_3.wav}")
    edit(folder / "dev.fr", 1, " cafe\u0301\u00a0: non ! ")
    (folder / "dev.en").write_bytes((folder / "dev.en").read_bytes().replace(b"\n", "\u2028a\u0085b\r\n".encode()))
    utterance = read_data_dir(make(corpus, tmp_path) / "dev_en-fr")[0]
    assert utterance.translations == {"fr": "caf\u00e9 : non !"} and utterance.text.endswith(". a b")
    assert (utterance.speaker, utterance.start, utterance.end) == ("7", 0.0, 0.5)


def test_a_pair_that_is_not_there(corpus, tmp_path):
    problem = only_fault(corpus, tmp_path, pairs=["en-de", "en-dee"])
    assert problem.startswith(f"{corpus}/en-dee/data: no such folder; did you mean en-de? cure: use a pair that is")
    assert "(en-de en-fr), or fetch MuST-C" in problem
    assert "cure: use a pair that is there (none)" in only_fault(tmp_path, tmp_path, pairs=["de"])


def test_missing_files(corpus, tmp_path):
    folder = corpus / "en-de/data"
    (folder / "train/txt/train.de").unlink()
    shutil.rmtree(folder / "train/wav")
    shutil.rmtree(folder / "dev")
    assert [problem.split(";")[0] for problem in faults(corpus, tmp_path, skip_bad=True)] == [
        f"{folder}/train/wav: no such folder",
        f"{folder}/train/txt/train.de: no such file",
        f"{folder}/dev: no such folder",
    ]


def test_counts_that_differ(corpus, tmp_path):
    folder = corpus / "en-de/data/train/txt"
    edit(folder / "train.de", 3, None)
    problem = only_fault(corpus, tmp_path, skip_bad=True)
    expected = f"{folder}/train.yaml: 8 segments, but 8 lines in train.en and 7 lines in train.de; cure: "
    assert problem.startswith(expected)
    edit(folder / "train.yaml", 8, None)
    assert "train.yaml: 7 segments, but 8 lines in train.en and 7 " in only_fault(corpus, tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "- {duration: 3.5, offset: 1",
        "- {duration: 3.5, offset: 1, wav: ted_1.wav}",
        "- {duration: 3.5, offset: one, speaker_id: spk.1, wav: ted_1.wav}",
        "- {duration: 3.5, offset: , speaker_id: spk.1, wav: ted_1.wav}",
        "duration: 3.5",
        "- 3.5",
        "- {} - {}",
        "",
    ],
)
def test_unreadable_entries(corpus, tmp_path, line):
    edit(corpus / "en-de/data/train/txt/train.yaml", 2, line)
    edit(corpus / "en-de/data/train/txt/train.yaml", 5, line)
    first, second = faults(corpus, tmp_path, skip_bad=True)
    assert first.startswith(f"{corpus}/en-de/data/train/txt/train.yaml:2: {line!r} is not of the form `- {{duration: ")
    assert "train.yaml:5: " in second


def test_texts_that_are_not_utf8(corpus, tmp_path):
    (corpus / "en-de/data/dev/txt/dev.de").write_bytes("a\nb\nc\nd\u00e9\n".encode("latin-1"))
    assert "dev.de:4: not UTF-8; cure" in only_fault(corpus, tmp_path, skip_bad=True)


def spoil(corpus):
    """Put a fault into one segment after the other of the training set of en-de; the folder of it is returned."""
    folder = corpus / "en-de/data/train"
    (folder / "wav/ted_2.wav").unlink()  # segments 5 to 8
    edit(folder / "txt/train.yaml", 1, "- {duration: 0.5, offset: 90, speaker_id: spk.1, wav: ted_1.wav}")
    edit(folder / "txt/train.de", 2, " \u00a0")
    edit(folder / "txt/train.en", 3, "")
    return folder


def test_faults_of_segments_are_listed_together(corpus, tmp_path):
    folder = spoil(corpus)
    talk = soundfile.info(folder / "wav/ted_1.wav").duration
    beyond, translation, transcript, missing = faults(corpus, tmp_path)
    assert beyond.startswith(
        f"{folder}/txt/train.yaml:1: segment from 90 to 90.5 s, but ted_1.wav has {talk:.2f} s; cure"
    )
    assert translation.startswith(f"{folder}/txt/train.de:2: empty line; cure")
    assert transcript.startswith(f"{folder}/txt/train.en:3: empty line; cure")
    assert missing.startswith(f"{folder}/txt/train.yaml:5: {folder}/wav/ted_2.wav: no such audio file; cure")


def test_bad_segments_are_dropped_when_asked(corpus, tmp_path, capsys):
    folder = spoil(corpus)
    data = make(corpus, tmp_path, skip_bad=True)
    assert [u.id for u in read_data_dir(data / "train_en-de")] == ["en-de_ted_1_0000004"]
    assert len(read_data_dir(data / "train_en-fr")) == 8
    skipped = (data / "train_en-de/skipped.txt").read_text().splitlines()
    assert [line.split()[0][-9:] for line in skipped[:3]] == [f"1_000000{n}" for n in (1, 2, 3)]
    assert [line.split()[0][-9:] for line in skipped[3:]] == [f"2_000000{n}" for n in (5, 6, 7, 8)]
    assert skipped[1].startswith(f"en-de_ted_1_0000002 {folder}/txt/train.de:2: empty line")
    assert f"{data}/train_en-de: 7 segments dropped, listed in" in capsys.readouterr().err
    shutil.copytree(corpus / "en-fr/data/train/wav", folder / "wav", dirs_exist_ok=True)
    make(corpus, tmp_path, skip_bad=True)
    assert len((data / "train_en-de/skipped.txt").read_text().splitlines()) == 3


def test_a_set_without_good_segments(corpus, tmp_path):
    (corpus / "en-de/data/dev/wav/ted_3.wav").write_bytes(b"junk" * 20)
    assert "dev.yaml:1: Error opening" in only_fault(corpus, tmp_path)
    assert f"{corpus}/en-de/data/dev: no good segments; cure" in only_fault(corpus, tmp_path, skip_bad=True)
    for ending in ("yaml", "en", "de"):
        (corpus / f"en-de/data/dev/txt/dev.{ending}").write_text("")
    assert f"{corpus}/en-de/data/dev: no good segments; cure" in only_fault(corpus, tmp_path)


@pytest.mark.parametrize(("offset", "duration"), [(-1, 0.5), (0, 0), (0, -1), ("nan", 1), (0, "nan"), ("inf", 1)])
def test_impossible_times(corpus, tmp_path, offset, duration):
    entry = f"- {{duration: {duration}, offset: {offset}, speaker_id: spk.1, wav: ted_1.wav}}"
    edit(corpus / "en-de/data/train/txt/train.yaml", 1, entry)
    assert "train.yaml:1: segment from " in only_fault(corpus, tmp_path)


def test_a_segment_may_end_a_little_after_the_talk(corpus, tmp_path):
    folder = corpus / "en-de/data/train"
    for over, good in ((0.09, True), (0.11, False)):
        offset = soundfile.info(folder / "wav/ted_1.wav").duration + over - 0.5
        entry = f"- {{duration: 0.5, offset: {offset:.6f}, speaker_id: spk.1, wav: ted_1.wav}}"
        edit(folder / "txt/train.yaml", 1, entry)
        assert ("en-de_ted_1_0000001" in must_c_data.read_set(folder, "en-de").bad) != good


def test_many_segments_are_read_fast(tmp_path):
    count = 5000
    for name in ("wav", "txt"):
        (tmp_path / "train" / name).mkdir(parents=True)
    lines = write_talk(tmp_path / "train/wav/ted_1.wav", [["one"]], 0.5) * count
    for ending, content in (("yaml", lines), ("en", ["One."] * count), ("de", ["Eins."] * count)):
        (tmp_path / f"train/txt/train.{ending}").write_text("\n".join(content))
    start = time.process_time()
    assert len(must_c_data.read_set(tmp_path / "train", "en-de").utterances) == count
    assert time.process_time() - start < 3


def run(*options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, env=environment)


def test_the_command(corpus, tmp_path):
    options = ["--must_c", corpus, "--data", tmp_path / "data", "--pairs", "en-de en-fr"]
    done = run(*options)
    assert (done.returncode, done.stderr) == (0, "") and len(list((tmp_path / "data").iterdir())) == 6
    spoil(corpus)
    failed = run(*options)
    assert failed.returncode == 1 and failed.stderr.startswith("error: ") and "train.en:3" in failed.stderr
    assert run(*options, "--skip_bad", "true").returncode == 0


def test_without_the_corpus_it_says_how_to_get_it(tmp_path):
    with pytest.raises(PelasrError, match="where is MuST-C[?] fetch MuST-C v1"):
        make(None, tmp_path)
