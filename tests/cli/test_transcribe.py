"""`pelasr transcribe` and `pelasr translate`, as they are typed."""

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_speech import RATE, make_recogniser, make_translator, noise

import pelasr
from pelasr.cli.main import main
from pelasr.cli.transcribe import find_audio, read_languages
from pelasr.errors import PelasrError

ROOT = Path(__file__).parents[2]
SHORT_WINDOWS = """
import pelasr.decode.long_audio
from pelasr.cli.main import main
pelasr.decode.long_audio.WINDOW = 1
main()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Experiments A1, A5 and 2; a file of a second and one of 20 s, and a folder of three with other things in it."""
    folder = tmp_path_factory.mktemp("transcribe")
    make_recogniser(folder / "exp")
    make_translator(folder / "exp")
    soundfile.write(folder / "one.wav", noise(1.0, 1), RATE, subtype="FLOAT")
    soundfile.write(folder / "long.flac", np.stack([noise(20.0, 2)] * 2, axis=1), RATE)
    inner = folder / "dir/inner"
    inner.mkdir(parents=True)
    for number, path in enumerate([inner / "b.WAV", folder / "dir/c.flac", folder / "dir/a.wav"]):
        soundfile.write(path, noise(1.2, 3 + number), RATE)
    (inner / "notes.txt").write_text("no audio")
    (folder / "dir/._a.wav").write_text("what another system leaves")
    (folder / "junk.wav").write_text("junk")
    soundfile.write(folder / "click.wav", np.zeros(100), RATE)
    return folder


@pytest.fixture(autouse=True)
def there(made, monkeypatch):
    monkeypatch.chdir(made)


def run(capsys, *arguments: str) -> tuple[list[str], str, int | str | None]:
    """Lines of the output, what is on stderr, and the exit code (or the message that goes with 1)."""
    code: int | str | None = 0
    try:
        main(arguments)
    except SystemExit as stop:
        code = stop.code
    found = capsys.readouterr()
    return found.out.splitlines(), found.err, code


def test_files_and_folders(capsys):
    lines, err, code = run(capsys, "transcribe", "--model", "exp/A5", "--lang", "uk", "one.wav", "dir", "long.flac")
    names = ["one.wav", "dir/a.wav", "dir/c.flac", "dir/inner/b.WAV", "long.flac"]
    texts = pelasr.load("exp/A5").decode(names, "uk")
    assert lines == [f"{name} {text}" for name, text in zip(names, texts, strict=True)]
    assert err == "" and code == 0 and len(set(texts)) == 5


def test_languages_of_files(capsys):
    Path("utt2lang").write_text("dir/a.wav hi\na ur\nc.flac ur\nb  uk\n\none hi\n")
    lines, _, code = run(capsys, "transcribe", "--model", "exp/A5", "--lang-file", "utt2lang", "dir", "one.wav")
    names, languages = ["dir/a.wav", "dir/c.flac", "dir/inner/b.WAV", "one.wav"], ["hi", "ur", "uk", "hi"]
    texts = pelasr.load("exp/A5").decode(names, languages)
    assert lines == [f"{name} {text}" for name, text in zip(names, texts, strict=True)] and code == 0


def test_json_has_scores_and_times(capsys):
    lines, _, code = run(capsys, "transcribe", "--model", "exp/A5", "--lang", "hi", "--json", "long.flac", "one.wav")
    long, one = map(json.loads, lines)
    texts = pelasr.load("exp/A5").decode(["long.flac", "one.wav"], "hi")
    assert [long["text"], one["text"]] == texts and code == 0
    assert (long["file"], long["language"], long["duration"]) == ("long.flac", "hi", 20.0)
    segments = long["segments"]
    assert len(segments) > 2 and segments[0]["start"] == 0.0 and segments[-1]["end"] == 20.0
    assert all(before["end"] == after["start"] for before, after in zip(segments, segments[1:], strict=False))
    assert " ".join(part["text"] for part in segments if part["text"]) == long["text"]
    assert long["score"] == pytest.approx(sum(part["score"] for part in segments), abs=1e-3) and long["score"] < 0
    assert one["segments"] == [{"start": 0.0, "end": 1.0, "text": one["text"], "score": one["score"]}]
    assert one["seconds"] > 0 and 0 < long["seconds"] < 60


def test_translation(capsys):
    for options in ([], ["--beam_size", "1"]):
        lines, _, code = run(capsys, "translate", "--model", "exp/2", "--lang", "en-fr", "one.wav", *options)
        beam_size = int(options[1]) if options else 5
        assert lines == [f"one.wav {pelasr.load('exp/2').decode(['one.wav'], 'en-fr', beam_size)[0]}"] and code == 0


def test_the_backbone_alone_and_packs_from_elsewhere(capsys):
    alone, *_ = run(capsys, "transcribe", "--model", "exp/A5", "--lang", "hi", "--no-adapter", "one.wav")
    assert alone == [f"one.wav {pelasr.load('exp/A1').decode(['one.wav'], 'hi')[0]}"]
    elsewhere, *_ = run(capsys, "transcribe", "--model", "exp/A1", "--packs", "exp/A5/packs", "--lang", "hi", "one.wav")
    assert elsewhere == [f"one.wav {pelasr.load('exp/A5').decode(['one.wav'], 'hi')[0]}"] != alone
    _, err, code = run(capsys, "transcribe", "--model", "exp/A1", "--lang", "xx", "one.wav")
    assert err == "warning: xx: the backbone was trained on hi ur pa, not on it\n" and code == 0


def test_what_cannot_be_read_does_not_lose_the_rest(capsys):
    given = ["one.wav", "junk.wav", "click.wav", "none.wav", "dir/a.wav"]
    lines, err, code = run(capsys, "transcribe", "--model", "exp/A5", "--lang", "hi", *given)
    texts = pelasr.load("exp/A5").decode(["one.wav", "dir/a.wav"], "hi")
    assert lines == [f"one.wav {texts[0]}", "click.wav", f"dir/a.wav {texts[1]}"]
    assert err == "warning: click.wav: 6 ms of audio are too short: its text is empty\n"
    first, second, last = str(code).splitlines()
    assert first.startswith("error: junk.wav: unreadable audio") and second.startswith("none.wav: no such audio file")
    assert last == "2 of 5 files could not be read" and "wav.scp" not in str(code)


@pytest.mark.parametrize("options", [["--lang", "hi"], ["--lang-file", "raw.lang"], ["--lang", "hi", "--json"]])
def test_names_of_files_may_be_any_bytes(capsys, tmp_path, options):
    """They are read, and printed escaped."""
    shutil.copy("one.wav", os.fsencode(tmp_path) + b"/caf\xe9.wav")
    (tmp_path / os.fsdecode(b"bad\xe9.wav")).write_bytes(b"junk")
    Path("raw.lang").write_bytes(b"caf\xe9 hi\nbad\xe9.wav hi\n")
    lines, _, code = run(capsys, "transcribe", "--model", "exp/A5", *options, str(tmp_path))
    (line,) = lines
    text = pelasr.load("exp/A5").decode(["one.wav"], "hi")[0]
    if "--json" in options:
        assert json.loads(line)["file"] == f"{tmp_path}/caf\\xe9.wav" and json.loads(line)["text"] == text
    else:
        assert line == f"{tmp_path}/caf\\xe9.wav {text}"
    assert str(code).startswith(f"error: {tmp_path}/bad\\xe9.wav: unreadable audio") and "1 of 2 files" in str(code)


def test_a_list_of_languages_in_utf16_is_called_so(tmp_path):
    (tmp_path / "langs").write_text("a hi\n", encoding="utf-16")
    with pytest.raises(PelasrError, match="langs: UTF-16, not UTF-8; cure: iconv -f UTF-16 -t UTF-8 "):
        read_languages(tmp_path / "langs", ["a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transcribe", "--lang", "en-de", "one.wav"], "transcribe: 'en-de' is a pair"),
        (["translate", "--lang", "hi", "one.wav"], "translate: 'hi' is no pair"),
        (["translate", "--lang", "en-de", "one.wav"], "exp/A5 transcribes languages, not 'en-de'; known: hi, uk, ur"),
        (["transcribe", "--lang", "pa", "one.wav"], "exp/A5: no pack of 'pa'; known: hi, uk, ur"),
        (["transcribe", "--lang", "-", "one.wav"], "'-' is no language"),
        (["transcribe", "--lang-file", "few", "one.wav", "dir"], "few: no language of dir/a.wav; add a line `a lang"),
        (["transcribe", "--lang-file", "none", "one.wav"], "none: cannot be read"),
        (["transcribe", "--lang", "hi", "--packs", "dir", "one.wav"], "dir: no packs here"),
        (["transcribe", "--lang", "hi", "--beam_size", "3", "one.wav"], "--beam_size 3: an RNN-T is searched greedily"),
        (["transcribe", "--lang", "hi", "--lm", "{lang}.arpa", "one.wav"], "hi.arpa: "),
        (["transcribe", "--lang", "hi", "--word_bonus", "1", "one.wav"], "of which language model? Name it with --lm"),
        (["transcribe", "--lang", "hi", "exp"], "exp: no audio files in this folder"),
    ],
)
def test_a_wrong_command_is_one_line_before_anything_is_decoded(capsys, arguments, message):
    Path("few").write_text("one hi\n")
    lines, err, code = run(capsys, *arguments, "--model", "exp/A5")
    assert lines == [] and err == "" and message in str(code) and "\n" not in str(code)


def test_a_file_has_one_language(tmp_path):
    for text, message in (("a hi\na ur\n", ":2: a is ur here and hi above"), ("\na\n", ":2: want `name language`")):
        (tmp_path / "langs").write_text(text)
        with pytest.raises(PelasrError, match=f"langs{message}"):
            read_languages(tmp_path / "langs", ["a"])
    (tmp_path / "langs").write_text("a b.wav hi\n- ur\n")
    assert read_languages(tmp_path / "langs", ["x/a b.wav", "-"]) == ["hi", "ur"]


def test_what_is_named_is_not_judged_by_its_name(tmp_path):
    (tmp_path / "speech").write_bytes(b"")
    given = [str(tmp_path / "speech"), "-", str(tmp_path / "none")]
    assert find_audio(given) == given


COMMAND = [sys.executable, "-m", "pelasr", "transcribe", "--model", "exp/A5", "--lang", "hi"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_a_pipe_while_a_terminal_shows_progress():
    """The bar goes to the terminal, the text to the pipe and nowhere else."""
    terminal, slave = pty.openpty()
    with open("long.flac", "rb") as audio:
        command = [*COMMAND, "-", "one.wav"]
        done = subprocess.run(command, env=ENVIRONMENT, stdin=audio, stdout=subprocess.PIPE, stderr=slave, check=True)
    os.close(slave)
    shown = ""
    with contextlib.suppress(OSError), open(terminal, closefd=False) as screen:  # it ends with an error
        for line in screen:
            shown += line
    os.close(terminal)
    texts = pelasr.load("exp/A5").decode(["long.flac", "one.wav"], "hi")
    assert done.stdout.decode().splitlines() == [f"- {texts[0]}", f"one.wav {texts[1]}"]
    assert "transcribe" in shown and "100%" in shown and texts[1] not in shown


def test_a_line_is_written_as_soon_as_it_is_known(tmp_path):
    """The second file is a pipe that does not end before the first one's line is there."""
    shutil.copy("long.flac", tmp_path / "a.flac")
    command = [sys.executable, "-c", SHORT_WINDOWS, *COMMAND[3:], str(tmp_path / "a.flac"), "-"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(f"{tmp_path}/a.flac ".encode())
        rest, _ = process.communicate(Path("one.wav").read_bytes())
    assert rest.startswith(b"- ") and process.returncode == 0


def test_interrupted_it_says_how_far_it_came(tmp_path):
    """What is done is printed; the same command would do it again, so nothing is said of going on."""
    shutil.copy("one.wav", tmp_path / "a.wav")
    command = [sys.executable, "-c", SHORT_WINDOWS, *COMMAND[3:], str(tmp_path / "a.wav"), "-"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=ENVIRONMENT, text=True, **pipes) as process:
        assert process.stdout.readline().startswith(f"{tmp_path}/a.wav ")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert told.splitlines()[-1] == "interrupted; 1 of 2 files are done" and process.returncode == 130


def test_closed_standard_input_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it after `<&-`
    lines, _, code = run(capsys, "transcribe", "--model", "exp/A5", "--lang", "hi", "-")
    assert lines == [] and str(code).startswith("error: standard input: unreadable audio")


def test_dashes_are_underscores(capsys):
    texts = pelasr.load("exp/A1").decode(["one.wav"], "hi")
    for alone in ("--no-adapter", "--no_adapter"):
        lines, _, code = run(capsys, "transcribe", "--model=exp/A5", "--lang=hi", alone, "--beam-size=1", "one.wav")
        assert lines == [f"one.wav {texts[0]}"] and code == 0
