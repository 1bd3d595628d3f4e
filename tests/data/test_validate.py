from dataclasses import replace

import kaldiio
import numpy as np
import pytest
import soundfile

from pelasr.data.kaldi import Utterance, read_data_dir, write_data_dir
from pelasr.data.validate import Language, drop, validate
from pelasr.errors import DataError


def noise(seconds=1.0, rate=16000):
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)


def make(directory, audio=None, texts=None, language="hi", rate=16000, count=3):
    """Utterances u0 u1 u2 of one second; `audio` and `texts` replace those of some."""
    directory.mkdir(parents=True)
    utterances = []
    for name in (f"u{number}" for number in range(count)):
        path = directory / f"{name}.wav"
        soundfile.write(path, (audio or {}).get(name, noise(1, rate)), rate, subtype="FLOAT")
        text = (texts or {}).get(name, "ab cd")
        utterances.append(Utterance(name, name, str(path), None, None, text, "s", language))
    write_data_dir(directory, utterances)
    return directory


def add_segments(directory, lines, recording):
    (directory / "segments").write_text("".join(f"{line}\n" for line in lines))
    (directory / "wav.scp").write_text(f"r {recording}\n")


def only_problem(report):
    (problem,) = report.problems
    assert "cure: " in problem.what and "\n" not in str(problem)
    return str(problem)


def test_good_data_has_no_problem_and_is_counted(tmp_path):
    dirs = [make(tmp_path / "hi", rate=8000), make(tmp_path / "mr", language="mr", count=2)]
    report = validate(dirs, subsampling=6, languages=["hi", "mr"])
    assert report.problems == [] and report.warnings == []
    assert report.languages == {"hi": Language(3, 3 / 3600), "mr": Language(2, 2 / 3600)}


def bad_audio(directory):
    """Every way in which audio can be bad, as edits of a good directory, with what must be said."""
    nan, infinite = noise(), noise()
    nan[7], infinite[8:10] = np.nan, np.inf
    soundfile.write(directory / "u1.wav", noise(), 16000, subtype="FLOAT")
    path = directory / "u1.wav"
    return {
        "missing": (lambda: path.unlink(), "unreadable", "no such audio file"),
        "junk": (lambda: path.write_bytes(b"junk" * 20), "unreadable", "unreadable audio"),
        "no bytes": (lambda: path.write_bytes(b""), "unreadable", "unreadable audio"),
        "empty": (lambda: soundfile.write(path, np.zeros(0), 16000), "zero-length", "no samples"),
        "nan": (
            lambda: soundfile.write(path, nan, 16000, subtype="FLOAT"),
            "not-finite",
            "NaN or infinite samples (1)",
        ),
        "inf": (lambda: soundfile.write(path, infinite, 16000, subtype="FLOAT"), "not-finite", "samples (2)"),
        "silence": (lambda: soundfile.write(path, np.zeros(16000), 16000), "silence", "digital silence"),
        "blip": (
            lambda: soundfile.write(path, noise(0.02), 16000),
            "too-short",
            "20 ms, less than one window of 25 ms",
        ),
    }


@pytest.mark.parametrize("case", ["missing", "junk", "no bytes", "empty", "nan", "inf", "silence", "blip"])
def test_bad_audio(tmp_path, case):
    directory = make(tmp_path / "d")
    edit, kind, words = bad_audio(directory)[case]
    edit()
    report = validate([directory])
    problem = only_problem(report)
    assert problem.startswith(f"{directory}/wav.scp:2: utterance u1: ") and problem.endswith(f"[{kind}]")
    assert words in problem and "--skip_bad true" in problem
    assert list(report.bad_in(directory)) == ["u1"]


def test_too_short_for_its_text(tmp_path):
    # 0.5 s: 51 feature frames, 9 encoder frames at 60 ms.
    audio = {"u0": noise(0.5), "u1": noise(0.5), "u2": noise(0.5)}
    directory = make(tmp_path / "d", audio, {"u0": "abcdefghi", "u1": "abcdefghij", "u2": "aabcdefgh"})
    report = validate([directory], subsampling=6)
    assert list(report.bad_in(directory)) == ["u1", "u2"]
    assert "u1: too short for its text: 0.50 s are 9 encoder frames, the CTC loss needs 10 (10 labels" in str(
        report.problems[0]
    )
    assert "needs 10 (9 labels and 1 blanks" in str(report.problems[1]) and "cure: " in str(report.problems[1])
    assert validate([directory], subsampling=5).problems == []
    assert validate([directory]).problems == []


def test_empty_text(tmp_path):
    directory = make(tmp_path / "d", texts={"u1": ""})
    assert only_problem(validate([directory])).startswith(f"{directory}/text:2: utterance u1: empty text; cure: ")


def test_not_nfc(tmp_path):
    directory = make(tmp_path / "d", texts={"u2": "cafe\u0301"})
    problem = only_problem(validate([directory]))
    assert problem.startswith(f"{directory}/text:3: utterance u2: text is not NFC; cure: uconv -x any-nfc")


def test_not_utf8(tmp_path):
    directory = make(tmp_path / "d")
    (directory / "text").write_bytes("u0 a\nu1 caf\u00e9\nu2 b\n".encode("latin-1"))
    report = validate([directory])
    assert only_problem(report).startswith(f"{directory}/text:2: utterance u1: not UTF-8; cure: iconv")
    assert report.bad_in(directory) == {}


def test_unknown_language(tmp_path):
    directory = make(tmp_path / "d", language="hin")
    report = validate([directory], languages=["hi", "mr"])
    assert len(report.bad_in(directory)) == 3
    problem = str(report.problems[0])
    assert problem.startswith(f"{directory}/utt2lang:1: utterance u0: unknown language hin; did you mean hi? cure: use")
    assert validate([directory]).problems == []


def test_all_problems_of_all_files_are_reported_at_once(tmp_path):
    directory = make(tmp_path / "d", {"u0": np.zeros(16000)}, {"u1": ""}, language="xx")
    (directory / "u2.wav").unlink()
    (directory / "utt2spk").write_text("u1 s\nu0 s\nu0 s\n")
    other = make(tmp_path / "e", {"u1": np.zeros(0)})
    (other / "utt2lang").unlink()
    report = validate([directory, other, tmp_path / "none"], subsampling=6, languages=["hi"])
    kinds = [problem.kind for problem in report.problems]
    expected = ["unsorted", "duplicate", "missing-id", "empty-text", *["unknown-language"] * 3, "silence", "unreadable"]
    assert kinds == [*expected, "missing-file", "zero-length", "missing-file"]
    assert set(report.bad_in(other)) == {"u1"} and set(report.bad_in(f"{directory}/")) == {"u0", "u1", "u2"}
    assert "awk" in str(report.problems[-3]) and "no such data directory" in str(report.problems[-1])


def test_segments(tmp_path):
    directory = make(tmp_path / "d")
    add_segments(directory, ["u0 r 0.5 1.05", "u1 r 0.5 1.2", "u2 r 1.0 1.05"], directory / "u0.wav")
    report = validate([directory])
    assert list(report.bad_in(directory)) == ["u1", "u2"]
    first, second = map(str, report.problems)
    assert first.startswith(f"{directory}/segments:2: utterance u1: segment ends at 1.20 s, but")
    assert "has 1.00 s; cure: correct the segment" in first
    assert "segments:3: utterance u2: " in second and "has no samples there" in second
    assert report.languages["hi"].hours == pytest.approx(0.5 / 3600)


def test_a_recording_of_many_segments_is_read_once(tmp_path, monkeypatch):
    import pelasr.data.validate

    directory = make(tmp_path / "d", count=4)
    add_segments(directory, [f"u{n} r 0.{n} 0.{n + 1}" for n in range(4)], directory / "u0.wav")
    read = []
    true_read = pelasr.data.validate.read_audio
    monkeypatch.setattr(pelasr.data.validate, "read_audio", lambda audio: read.append(audio) or true_read(audio))
    assert validate([directory]).problems == []
    assert len(read) == 1


def test_an_unused_recording_is_a_warning(tmp_path):
    directory = make(tmp_path / "d", count=1)
    add_segments(directory, ["u0 r 0 1"], f"{directory}/u0.wav\nspare {directory}/u0.wav")
    report = validate([directory])
    assert report.problems == []
    assert report.warnings == [f"{directory}/wav.scp:2: recording spare has no segment: it is not used"]


def test_kaldi_archives(tmp_path):
    directory = make(tmp_path / "d")
    samples = {"u0": noise(), "u1": np.zeros(16000), "u2": noise()}
    kaldiio.save_ark(
        str(tmp_path / "a.ark"),
        {name: (16000, (audio * 32767).astype(np.int16)) for name, audio in samples.items()},
        scp=str(directory / "wav.scp"),
    )
    report = validate([directory])
    assert only_problem(report).endswith("[silence]") and list(report.bad_in(directory)) == ["u1"]


def test_processes_give_the_same_report(tmp_path):
    directory = make(tmp_path / "d", {"u3": np.zeros(16000), "u50": noise(0.01)}, count=70)
    one, two = (validate([directory], subsampling=6, nj=nj) for nj in (1, 2))
    assert one == two and list(one.bad_in(directory)) == ["u3", "u50"]


def test_drop(tmp_path):
    directory = make(tmp_path / "d", {"u1": np.zeros(16000)}, count=4)
    (directory / "text").write_text("u0 a\nu1 a\nu2 \nu3 a\nu4 a\n")
    report = validate([directory])
    assert list(report.bad_in(directory)) == ["u4", "u2", "u1"]
    drop(directory, report.bad_in(directory))
    assert [utterance.id for utterance in read_data_dir(directory)] == ["u0", "u3"]
    assert validate([directory]).problems == []
    skipped = (directory / "skipped.txt").read_text().splitlines()
    assert [line.split()[0] for line in skipped] == ["u1", "u2", "u4"]
    assert "digital silence" in skipped[0] and "empty text" in skipped[1] and "not in wav.scp" in skipped[2]
    drop(directory, {"u3": "noisy", "elsewhere": "not of this directory"})
    assert (directory / "skipped.txt").read_text().splitlines() == sorted([*skipped, "u3 noisy"])


def test_drop_refuses_what_it_cannot_mend(tmp_path):
    directory = make(tmp_path / "d")
    (directory / "utt2spk").write_text("u1 s\nu0 s\nu2 s\n")
    with pytest.raises(DataError, match="LC_ALL=C sort"):
        drop(directory, {"u1": "bad"})
    assert not (directory / "skipped.txt").exists()
    with pytest.raises(DataError, match="all utterances are bad"):
        drop(make(tmp_path / "e"), {"u0": "a", "u1": "b", "u2": "c"})


def test_drop_keeps_segments(tmp_path):
    directory = make(tmp_path / "d")
    add_segments(directory, ["u0 r 0 0.5", "u1 r 0.5 9", "u2 r 0.5 1"], directory / "u0.wav")
    drop(directory, validate([directory]).bad_in(directory))
    assert [(u.id, u.recording, u.start, u.end) for u in read_data_dir(directory)] == [
        ("u0", "r", 0.0, 0.5),
        ("u2", "r", 0.5, 1.0),
    ]


def make_translated(directory, audio=None, **translations):
    """Utterances u0 u1 u2 with their translations, target=[three texts]."""
    make(directory, audio)
    of = lambda number: {target: texts[number] for target, texts in translations.items()}  # noqa: E731
    write_data_dir(directory, [replace(u, translations=of(n)) for n, u in enumerate(read_data_dir(directory))])
    return directory


def test_translations_are_checked(tmp_path):
    directory = make_translated(tmp_path / "d", de=["a", "", "c"], fr=["a", "b", "cafe\u0301"])
    report = validate([directory])
    empty, composed = map(str, report.problems)
    assert empty.startswith(f"{directory}/text.de:2: utterance u1: empty text; cure: write its translation")
    assert composed.startswith(f"{directory}/text.fr:3: utterance u2: text is not NFC; cure: uconv")
    assert f"-o {directory}/text.fr.new {directory}/text.fr && mv" in composed
    assert list(report.bad_in(directory)) == ["u1", "u2"]


def test_missing_translations_are_one_problem_of_the_directory(tmp_path):
    directory = make_translated(tmp_path / "d", de=["a", "b", "c"], deu=["a", "b", "c"])
    wanted = {directory: ["de"], tmp_path / "elsewhere": ["fr"]}
    assert validate([directory], targets=wanted).problems == []
    report = validate([f"{directory}/"], targets={directory: ["de", "dex", "fr"]})
    first, second = map(str, report.problems)
    assert first.startswith(f"{directory}/text.dex: no translations into dex (there are: de deu); did you mean de")
    assert second.startswith(f"{directory}/text.fr: no translations into fr (there are: de deu); cure: ")
    assert report.bad_in(directory) == {}
    bare = validate([make(tmp_path / "bare")], targets={tmp_path / "bare": ["de"]})
    assert "no translations into de (there are: none); cure: " in only_problem(bare)
    none = validate([tmp_path / "none"], targets={tmp_path / "none": ["de"]})
    assert "no such data directory" in str(none.problems[0]) and len(none.problems) == 1


def test_faults_of_audio_are_found_with_translations(tmp_path):
    directory = make_translated(tmp_path / "d", {"u1": np.zeros(16000)}, de=["a", "b", "c"])
    (directory / "u2.wav").unlink()
    add_segments(directory, ["u0 r 0.5 1.2", "u1 q 0 1", "u2 p 0 1"], directory / "u0.wav")
    with open(directory / "wav.scp", "w") as stream:
        stream.writelines(f"{r} {directory}/{u}.wav\n" for r, u in (("p", "u2"), ("q", "u1"), ("r", "u0")))
    kinds = {problem.utterance: problem.kind for problem in validate([directory], targets={directory: ["de"]}).problems}
    assert kinds == {"u0": "segment", "u1": "silence", "u2": "unreadable"}


def test_drop_keeps_translations(tmp_path):
    directory = make_translated(tmp_path / "d", de=["A.", "", "C."], fr=["Un", "Deux", "Trois"])
    drop(directory, validate([directory]).bad_in(directory))
    assert [u.translations for u in read_data_dir(directory)] == [{"de": "A.", "fr": "Un"}, {"de": "C.", "fr": "Trois"}]
    assert "text.de:2: empty text" in (directory / "skipped.txt").read_text()
