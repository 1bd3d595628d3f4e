"""Spoilt data directories: stage 1 names every fault, and its cures, followed to the letter, mend them."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pelasr.data.kaldi import Utterance, read_data_dir, write_data_dir
from pelasr.data.place import Place
from pelasr.errors import DataError
from pelasr.stages.data import validate_data

SETS = ["train", "dev", "test"]
COUNT = 5
FILES = ("wav.scp", "text", "utt2spk", "utt2lang")
COMMAND = re.compile(
    r"((?:LC_ALL=C sort|sed -i|perl|iconv|uconv|awk|rm) .*?)(?=, or drop|; all of them| \[[\w-]+\]$|, where)"
)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Good data in Hindi and Marathi: five utterances in each set."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "wav").mkdir()
    for number, (name, language) in enumerate((name, language) for name in SETS for language in ("hi", "mr")):
        utterances = []
        for index in range(COUNT):
            id = f"{name}-{language}-{index}"
            audio = np.random.default_rng([number, index]).uniform(-0.3, 0.3, 4000)
            soundfile.write(folder / f"wav/{id}.wav", audio, 16000)
            text = f"नमस्ते {chr(0x61 + number)}{chr(0x61 + index)}"
            utterances.append(Utterance(id, id, f"wav/{id}.wav", None, None, text, "s", language))
        write_data_dir(folder / f"data/{name}_{language}", utterances)
    return folder


@pytest.fixture
def place(good, tmp_path, monkeypatch) -> Place:
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Place(Path("data"), Path("dump"), Path("exp"), ["hi", "mr"])


def check(place: Place, skip_bad: bool = False) -> list[str]:
    """The lines that stage 1 ends with, none if the data are good."""
    try:
        validate_data(place, SETS, {}, skip_bad, nj=1)
    except DataError as error:
        assert "\n" not in "".join(error.problems) and str(error).isprintable() is ("\n" not in str(error))
        return error.problems
    return []


def follow(lines: list[str]) -> None:
    """Run the commands of all cures, in their order."""
    for command in dict.fromkeys(found for line in lines for found in COMMAND.findall(line)):
        command = command.replace("ENCODING", "ISO-8859-1")
        subprocess.run(["bash", "-c", command], check=True)


def edit(file: str, change: Callable[[bytes], bytes]) -> None:
    path = Path("data", file)
    path.write_bytes(change(path.read_bytes()))


def add(text: str, lines: int = 1, file: str = "train_hi/text") -> None:
    """Put something at the end of the first lines of a file."""
    edit(file, lambda content: content.replace(b"\n", f"{text}\n".encode(), lines))


def each(change: Callable[[bytes], bytes], folder: str = "train_hi", files: tuple[str, ...] = FILES) -> None:
    for file in files:
        edit(f"{folder}/{file}", change)


def recode(encoding: str) -> Callable[[bytes], bytes]:
    return lambda content: content.decode().encode(encoding)


def windows(content: bytes) -> bytes:
    return content.replace(b"\n", b"\r\n")


def mirrored(content: bytes) -> bytes:
    return b"".join(reversed(content.splitlines(keepends=True)))


REMOVE = "cure: perl -CSD -i -pe 's/[\\x{%s}]//g' data/train_hi/text"
# Name: what is done to good data, what must be said, and (mended) whether the cures alone make the data good again.
MENDED = {
    "NUL": (lambda: add("\0"), ["train_hi/text:1: utterance train-hi-0: text has U+0000 NULL; " + REMOVE % "0"]),
    "zero width": (lambda: add("\u200b"), ["text has U+200B ZERO WIDTH SPACE; " + REMOVE % "200B"]),
    "soft hyphens": (
        lambda: add(" a\u00adb", 5),
        ["train_hi/text: 5 utterances, such as train-hi-0 (line 1), ", "U+00AD SOFT HYPHEN", "; all of them: exp/prob"],
    ),
    "byte-order marks in texts": (
        lambda: add(" \ufeffa", 2),
        ["text:2: utterance train-hi-1: text has U+FEFF ZERO WI"],
    ),
    "direction marks": (lambda: add("\u200f", 2), ["U+200F RIGHT-TO-LEFT MARK"]),
    "private use": (lambda: add("\ue000"), ["U+E000 PRIVATE USE"]),
    "unassigned": (lambda: add("\u0378"), ["U+0378 unassigned in Unicode"]),
    "line separators": (lambda: add("\u2028a"), ["U+2028 LINE SEPARATOR; cure: perl -CSD -i -pe 's/[\\x{2028}]/ /g'"]),
    "many": (
        lambda: add("\x07\u202ax\u202c\x85y", 5),
        ["U+0007 BELL, U+202A LEFT-TO-RIGHT EMBEDDING, U+202C POP DIRECTIONAL FORMATTING, U+0085 CONTROL"],
    ),
    "carriage returns within": (lambda: add("\rx"), ["U+000D CARRIAGE RETURN"]),
    "not composed": (lambda: add(" cafe\u0301", 4), ["train_hi/text: 4 utterances, such as", "not NFC; cure: uconv"]),
    "UTF-16": (
        lambda: edit("train_hi/text", recode("utf-16")),
        [
            "data/train_hi/text: UTF-16, not UTF-8; cure: iconv -f UTF-16 -t UTF-8 data/train_hi/text > ",
            "1 problem in 1",
        ],
    ),
    "UTF-16 of Windows": (
        lambda: each(lambda c: windows(c).decode().encode("utf-16")),
        ["8 problems in 1 data direct"],
    ),
    "UTF-16 without a mark": (lambda: each(recode("utf-16-le")), ["text: UTF-16LE, not", "wav.scp: UTF-16LE, not"]),
    "UTF-16BE without a mark": (lambda: each(recode("utf-16-be"), files=("text",)), ["iconv -f UTF-16BE"]),
    "UTF-32": (lambda: edit("train_hi/text", recode("utf-32")), ["data/train_hi/text: UTF-32, not UTF-8"]),
    "Latin-1": (
        lambda: edit("dev_hi/text", lambda _: "".join(f"dev-hi-{n} é{n}\n" for n in range(5)).encode("latin-1")),
        [
            "dev_hi/text: 5 utterances",
            "not UTF-8; cure: iconv -f ENCODING -t UTF-8",
            "where ENCODING is the file's, such",
        ],
    ),
    "Windows, marked, turned round, twice": (
        lambda: edit("train_hi/text", lambda c: b"\xef\xbb\xbf" + windows(mirrored(c) + c.splitlines(True)[0])),
        [
            "byte-order mark at the start",
            "Windows line ends",
            "not sorted",
            "id is already on line 5",
            "4 problems in 1",
        ],
    ),
    "line ends of old Macs": (
        lambda: edit("dev_mr/text", lambda c: c.replace(b"\n", b"\r")),
        ["line ends of old Macs"],
    ),
    "empty lines": (lambda: edit("train_hi/text", lambda c: c.replace(b"\n", b"\n \n")), ["empty line (5 of them); "]),
    "every line twice": (
        lambda: edit("train_hi/text", lambda c: b"".join(2 * line for line in c.splitlines(True))),
        ["train_hi/text: 5 utterances", "the first: id is already on line 1; cure: keep one", "awk '!seen[$1]++'"],
    ),
    "no speakers": (lambda: os.unlink("data/train_hi/utt2spk"), ["data/train_hi/utt2spk: missing; cure: write lines"]),
    "empty utt2lang": (
        lambda: edit("dev_hi/utt2lang", lambda _: b""),
        ["utt2lang: empty", "if all are in hi: rm data"],
    ),
    "all in another language": (
        lambda: edit("train_hi/utt2lang", lambda c: c.replace(b" hi", b" mr")),
        ["train_hi/utt2lang: the set train has no utterance in hi: there are 5 utterances in mr; cure: correct"],
    ),
    "all in an unknown language": (
        lambda: edit("dev_mr/utt2lang", lambda c: c.replace(b" mr", b" mar")),
        ["dev_mr/utt2lang: the set dev has no utterance in mr: there are 5 utterances in mar; cure: correct"],
    ),
}
DROPPED = {
    "id with zero width": (
        lambda: each(lambda c: c.replace(b"hi-2", "hi-2\u200b".encode())),
        ["wav.scp:3: utterance train-hi-2\\u200b: U+200B ZERO WIDTH SPACE within the id 'train-hi-2\\u200b'"],
    ),
    "language with zero width": (
        lambda: edit("train_hi/utt2lang", lambda c: c.replace(b"-2 hi", "-2 hi\u200b".encode())),
        ["language is 'hi\\u200b', want one word", "unknown language hi\\u200b; did you mean hi?"],
    ),
    "another language": (
        lambda: edit("train_hi/utt2lang", lambda c: c.replace(b"-2 hi", b"-2 mr")),
        ["utt2lang:3: utterance train-hi-2: in mr, but the directory is for hi; cure: correct it"],
    ),
    "quotes": (
        lambda: edit("dev_hi/wav.scp", lambda c: c.replace(b"wav/dev-hi-1.wav", "“wav/dev-hi-1.wav”".encode())),
        ["dev_hi/wav.scp:2: utterance dev-hi-1: the path is in quotes: “wav/dev-hi-1.wav”; cure: take the"],
    ),
    "a name that no file has": (
        lambda: edit("dev_hi/wav.scp", lambda c: c.replace(b"wav/dev-hi-1", b"wav/\xe9")),
        ["utterance dev-hi-1: no audio file wav/\\xe9.wav, whose name is not UTF-8; cure: correct the path"],
    ),
    "damaged, with a name that is not UTF-8": (
        lambda: (
            Path(os.fsdecode(b"wav/\xe9.wav")).write_text("junk"),
            edit("dev_hi/wav.scp", lambda c: c.replace(b"wav/dev-hi-1", b"wav/\xe9")),
        ),
        ["utterance dev-hi-1: wav/\\xe9.wav: unreadable audio"],
    ),
    "a segment of a no-break space": (
        lambda: Path("data/dev_hi/segments").write_text(
            "".join(f"dev-hi-{n} " + ("\u00a0\n" if n else "dev-hi-0 0 0.2\n") for n in range(5)), encoding="utf-8"
        ),
        ["dev_hi/segments: 4 utterances, such as dev-hi-1 (line 2), ", "segment is '\\xa0'; cure: write `dev-hi-1 rec"],
    ),
}
LEFT = {
    "nothing in a directory": (
        lambda: each(lambda _: b"", "dev_hi"),
        [
            "data/dev_hi: the set dev has no utterance in hi: its files are empty; cure: ",
            "1 problem in 1 data directory",
        ],
    ),
    "nothing in a file": (lambda: edit("dev_hi/text", lambda _: b""), ["dev_hi/text: empty; cure: write lines of `ut"]),
    "no data": (
        lambda: shutil.rmtree("data"),
        ["data/train_hi, data/train_mr, data/dev_hi and 3 more: no such data d"],
    ),
    "one line in another encoding": (
        lambda: edit("train_hi/text", lambda c: c.replace("नमस्ते".encode(), b"\xe9", 1)),
        ["text:1: utterance train-hi-0: not UTF-8; cure: write the line again, as other lines of the file are UTF-8"],
    ),
    "no sound": (
        lambda: [soundfile.write(f"wav/dev-hi-{n}.wav", np.zeros(4000), 16000) for n in range(COUNT)],
        [
            "dev_hi/wav.scp: 5 utterances",
            "the first: wav/dev-hi-0.wav is digital silence",
            "no utterance is good, so none",
        ],
    ),
    "commands": (
        lambda: edit("dev_hi/wav.scp", lambda c: re.sub(b"(wav/.*)", rb"sox \1 -t wav - |", c)),
        [
            "dev_hi/wav.scp: 5 utterances",
            "the first: 'sox wav/dev-hi-0.wav -t wav - |' is a command",
            "none can be drop",
        ],
    ),
}


def said(place: Place, spoil: Callable[[], object], expected: list[str]) -> list[str]:
    spoil()
    lines = check(place)
    missing = [words for words in expected if not any(words in line for line in lines)]
    assert not missing, "\n".join(lines)
    return lines


@pytest.mark.parametrize("case", MENDED)
def test_the_cure_mends_it(place, case):
    lines = said(place, *MENDED[case])
    follow(lines)
    assert check(place) == []
    for folder in place.dirs(*SETS):
        assert len(read_data_dir(folder, folder.name[-2:])) == COUNT


@pytest.mark.parametrize("case", DROPPED)
def test_it_can_be_dropped(place, case):
    lines = said(place, *DROPPED[case])
    assert re.fullmatch(r"mend them, or drop \d utterances? with --skip_bad true", lines[-1])
    assert check(place, skip_bad=True) == []


@pytest.mark.parametrize("case", LEFT)
def test_what_dropping_does_not_help_has_no_such_hint(place, case):
    lines = said(place, *LEFT[case])
    assert "--skip_bad" not in "".join(lines)
    before = {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
    assert check(place, skip_bad=True) == lines
    assert before == {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}


def test_everything_is_said_at_once(place):
    """Files of two sets, a third set's line ends, an undefined language, audio and texts, in one go."""
    os.unlink("data/train_hi/utt2spk")
    os.unlink("data/dev_hi/utt2spk")
    edit("test_mr/text", windows)
    each(lambda _: b"", "dev_mr")
    add("\0", file="train_mr/text")
    edit("train_mr/utt2lang", lambda c: c.replace(b"-4 mr", b"-4 hi"))
    os.unlink("wav/test-hi-3.wav")
    lines = check(replace(place, languages=["hi", "mr", "ur"]))
    expected = [
        "train_hi/utt2spk: missing",
        "dev_hi/utt2spk: missing",
        "test_mr/text:1: Windows",
        "dev_mr: the set dev",
    ]
    expected += [
        "train_ur: no such",
        "dev_ur: no such",
        "test_ur: no such",
        "U+0000",
        "in hi, but",
        "no such audio file",
    ]
    for words in expected:
        assert sum(words in line for line in lines) == 1, words
    assert lines[-2:] == [
        "10 problems in 9 data directories",
        "mend them, or drop 3 utterances with --skip_bad true; what else is wrong must be mended first",
    ]
    assert check(replace(place, languages=["hi", "mr", "ur"]), skip_bad=True)[-1] == "7 problems in 7 data directories"


def test_a_fault_of_many_is_a_line_and_a_file(place):
    for number in range(COUNT):
        os.unlink(f"wav/train-hi-{number}.wav")
    (line, count, hint) = check(place)
    assert line.startswith(
        "data/train_hi/wav.scp: 5 utterances, such as train-hi-0 (line 1), train-hi-1 (line 2), train-"
    )
    assert "the first: wav/train-hi-0.wav: no such audio file" in line and "; all of them: exp/problems.txt [" in line
    assert count == "5 problems in 1 data directory" and hint.startswith("data/train_hi: no utterance is good")
    listed = Path("exp/problems.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[1] for line in listed] == ["1", "2", "3", "4", "5"]
    assert "utterance train-hi-4: wav/train-hi-4.wav: no such audio file" in listed[4]


def test_the_file_of_problems_goes_with_them(place):
    good = Path("data/train_hi/text").read_bytes()
    assert check(place) == []
    add("\0")
    assert check(place) and Path("exp/problems.txt").exists()
    Path("data/train_hi/text").write_bytes(good)
    assert check(place) == [] and not Path("exp/problems.txt").exists()


def test_pairs_have_utterances_in_their_source_language(place):
    utterances = [replace(u, translations={"de": "Ja"}) for u in read_data_dir("data/train_hi")]
    for name in SETS:
        write_data_dir(f"data/{name}_hi-de", [replace(u, language="mr") for u in utterances])
    (first, *_) = check(replace(place, languages=["hi-de"]))
    assert first.startswith(
        "data/train_hi-de/utt2lang: the set train has no utterance in hi: there are 5 utterances in mr;"
    )
    for name in SETS:
        os.unlink(f"data/{name}_hi-de/utt2lang")
    assert check(replace(place, languages=["hi-de"])) == []


def test_shared_audio_and_sentences_are_warnings(place, capsys):
    shutil.copy("wav/train-mr-2.wav", "wav/dev-hi-3.wav")
    edit("test_hi/wav.scp", lambda c: c.replace(b"wav/test-hi-0", b"wav/train-hi-1"))
    edit("test_hi/text", lambda c: re.sub("नमस्ते ..".encode(), "नमस्ते aa".encode(), c))
    edit("test_mr/text", lambda c: re.sub("नमस्ते ..".encode(), "नमस्ते aa".encode(), c))  # another language's
    assert check(place) == []
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == [
        "warning: 1 of 10 utterances of dev have audio that train has too, which flatters figures: "
        "dev-hi-3 of data/dev_hi is that of train-mr-2 of data/train_mr",
        "warning: 1 of 10 utterances of test have audio that train has too, which flatters figures: "
        "test-hi-0 of data/test_hi is that of train-hi-1 of data/train_hi",
        "warning: 5 of 10 utterances of test have a transcript that train has too, which flatters figures: "
        + "; ".join(f"test-hi-{n} of data/test_hi is that of train-hi-0 of data/train_hi" for n in range(3))
        + " and 2 more",
    ]


def test_names_of_files_may_be_any_bytes(place):
    os.rename("wav/dev-hi-1.wav", b"wav/\xe9.wav")
    edit("dev_hi/wav.scp", lambda c: c.replace(b"wav/dev-hi-1", b"wav/\xe9"))
    assert check(place) == []


def test_counts_are_of_what_is_kept(place, capsys):
    add("\0", 2)
    assert check(place, skip_bad=True) == []
    assert "hi, train: 3 utterances, 0.00 h" in capsys.readouterr().out.splitlines()
