"""Whatever is to be read may be a pipe, a folder or a device instead: it is refused at once, and the error says so."""

import contextlib
import os
import signal
import tracemalloc
from pathlib import Path

import pytest

from pelasr.config import load_yaml
from pelasr.data import data_sha256, parse, read_data_dir
from pelasr.done import Marker
from pelasr.environment import read_environment
from pelasr.errors import DataError, PelasrError, brief
from pelasr.experiment import load_experiments
from pelasr.features import INDEX, load_stats, read_feats
from pelasr.files import LINE, read_bytes, read_json, read_text, sha256_file
from pelasr.results import read_results
from pelasr.score import read_text as read_reference
from pelasr.sealed import load_checkpoint, read_description
from pelasr.table import read_times
from pelasr.text import Tokenizer, train_graphemes
from pelasr.transcribe import read_languages

DATA_FILES = {"wav.scp": "u1 a.wav", "segments": "u1 u1 0 1", "text": "u1 a", "text.de": "u1 b", "utt2spk": "u1 s"}
DATA_FILES |= {"utt2lang": "u1 hi"}
READERS = {  # the name of a file, and what reads it from a path
    "wav.scp": lambda path: read_data_dir(path.parent),
    **{name: lambda path: read_data_dir(path.parent) for name in DATA_FILES},
    "text again": lambda path: data_sha256([path.parent]),
    "lang-file": lambda path: read_languages(path, ["a"]),
    "conf.yaml": load_yaml,
    "experiments.yaml": load_experiments,
    "backbone.yaml": lambda path: read_description(path, "mend it"),
    "tokens.txt": lambda path: Tokenizer.load(path.parent),
    "spm.model": lambda path: Tokenizer.load(path.parent),
    **{name: lambda path: read_feats(path.parent) for name in INDEX},
    "stats.npz": load_stats,
    "last.ckpt": load_checkpoint,
    "done.json": lambda path: Marker(path, {}, strict=True),
    "environment.json": read_environment,
    "times.jsonl": read_times,
    "results.jsonl": read_results,
    "reference": read_reference,
    "any": sha256_file,
}


@contextlib.contextmanager
def at_once():
    """An error where something waits."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(5)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(("make", "what"), [(pipe, "a named pipe"), (Path.mkdir, "a folder"), (device, "a device")])
@pytest.mark.parametrize(("name", "read"), READERS.items(), ids=READERS)
def test_what_is_no_file_is_refused_at_once(tmp_path, name, read, make, what):
    name = name.split()[0]
    if name in DATA_FILES:
        for file, line in DATA_FILES.items():
            (tmp_path / file).write_text(f"{line}\n")
    if name == "spm.model":
        Tokenizer(train_graphemes(["ab"])).save(tmp_path)
    if name in INDEX:
        for file in INDEX:
            (tmp_path / file).touch()
    path = tmp_path / name
    path.unlink(missing_ok=True)
    make(path)
    with at_once(), pytest.raises(PelasrError, match=f"no such file, but {what}") as caught:
        read(path)
    line = str(caught.value).splitlines()[0]
    assert line.startswith(f"{path}: ") and line.isprintable()


def test_a_data_directory_of_pipes_has_a_problem_for_each(tmp_path):
    for file in DATA_FILES:
        os.mkfifo(tmp_path / file)
    with at_once():
        problems = parse(tmp_path).problems
    assert [problem.path for problem in problems] == [
        str(tmp_path / file) for file in ("wav.scp", "segments", "text", "utt2spk", "utt2lang", "text.de")
    ]


def test_sizes_are_bounded(tmp_path):
    path = tmp_path / "a"
    path.touch()
    os.truncate(path, 1 << 40)  # sparse
    tracemalloc.start()
    for read, message in (
        (read_bytes, "more than 16777216 bytes"),
        (read_json, "more than 16777216 bytes"),
        (read_text, f"line 1 has more than {LINE} bytes"),
        (load_yaml, "more than 1048576 bytes"),
        (lambda path: read_languages(path, ["a"]), "line 1 has more than"),
        (lambda path: data_sha256([path.parent]), "line 1 has more than"),
    ):
        path.rename(tmp_path / "text")
        path = tmp_path / "text"
        with pytest.raises(PelasrError, match=message):
            read(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    with pytest.raises(DataError, match="text: line 1 has more than"):
        read_data_dir(tmp_path)


def test_json_that_is_none(tmp_path):
    for content in (b"", b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(PelasrError, match="a.json: no JSON"):
            read_json(tmp_path / "a.json")


def test_a_text_of_any_lines(tmp_path):
    for content in (b"", b"a", b"a\n", b"\n\na\r\n\xff\0"):
        (tmp_path / "a").write_bytes(content)
        assert read_text(tmp_path / "a") == content


def test_errors_cannot_drive_a_terminal():
    hostile = "a\x1b[2J\u202eb\ufeff\ud800\nc"
    assert str(PelasrError(hostile)) == r"a\x1b[2J\u202eb\ufeff\ud800\nc"
    assert DataError([hostile, "d"]).problems[1] == "d" and "\x1b" not in str(DataError(hostile))
    long = str(PelasrError(f"{'a' * 10**6}; cure: mend it"))
    assert len(long) < 2000 and long.startswith("aaa") and long.endswith("; cure: mend it")
    assert brief("a\n\x1b b") == r"a \x1b b" and str(PelasrError("हिन्दी ї")) == "हिन्दी ї"
