"""Files that are cut off, no JSON, no text, or that a full disk does not take. Whatever is to be read may be a pipe, a
folder or a device instead: it is refused at once, and the error says so."""

import contextlib
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from pelasr.cli.transcribe import read_languages
from pelasr.config import load_yaml
from pelasr.data.audio_index import read_index
from pelasr.data.features import INDEX, load_stats, read_feats
from pelasr.data.kaldi import data_sha256, parse, read_data_dir
from pelasr.data.tokenizer import Tokenizer, train_graphemes
from pelasr.done import Marker
from pelasr.errors import DataError, PelasrError, brief
from pelasr.files import (
    LINE,
    append,
    atomic_write,
    naming,
    read_bytes,
    read_json,
    read_json_lines,
    read_text,
    sha256_file,
    text_bytes,
)
from pelasr.score.decoded import read_text as read_reference
from pelasr.score.environment import read_environment
from pelasr.score.results import read_results
from pelasr.stages.experiment import load_experiments
from pelasr.stages.table import read_times
from pelasr.storage import read_description
from pelasr.train.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
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
    "utt2audio": lambda path: read_index(path.parent),
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
        (lambda path: read_json(path, "mend it"), "more than 16777216 bytes"),
        (text_bytes, f"line 1 has more than {LINE} bytes"),
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


def test_a_text_of_any_lines(tmp_path):
    for content in (b"", b"a", b"a\n", b"\n\na\r\n\xff\0"):
        (tmp_path / "a").write_bytes(content)
        assert text_bytes(tmp_path / "a") == content


def test_errors_cannot_drive_a_terminal():
    hostile = "a\x1b[2J\u202eb\ufeff\ud800\nc"
    assert str(PelasrError(hostile)) == r"a\x1b[2J\u202eb\ufeff\ud800\nc"
    assert DataError([hostile, "d"]).problems[1] == "d" and "\x1b" not in str(DataError(hostile))
    long = str(PelasrError(f"{'a' * 10**6}; cure: mend it"))
    assert len(long) < 2000 and long.startswith("aaa") and long.endswith("; cure: mend it")
    assert brief("a\n\x1b b") == r"a \x1b b" and str(PelasrError("हिन्दी ї")) == "हिन्दी ї"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.json: not valid JSON "),
        (b'{"done": tr', "a.json: not valid JSON "),
        (b'{"x": "\xff"}', "a.json: not valid JSON "),
        (b"[" * 100_000, "a.json: not valid JSON "),
        (b"null", "a.json: expected a dict, found None"),
        (b"[1]", r"a.json: expected a dict, found \[1\]"),
        (b'{"x": 1}', "a.json: the key 'y' is missing"),
    ],
)
def test_json_that_is_none_is_one_line_with_the_cure(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(PelasrError, match=f"{message}.*; mend it$") as caught:
        read_json(tmp_path / "a.json", "mend it", ("x", "y"))
    assert "\n" not in str(caught.value)


def test_json_and_text_are_read(tmp_path):
    (tmp_path / "a").write_text('["ж"]', encoding="utf-8")
    assert read_json(tmp_path / "a", "", kind=list) == ["ж"] and read_text(tmp_path / "a", "") == '["ж"]'
    (tmp_path / "b").write_bytes('{"a": "x\u2028y"}\nno\n\xff\n{"b'.encode("latin-1", "replace"))
    assert [line for _, line in read_json_lines(tmp_path / "b")] == [{"a": "x?y"}, None, None, None]
    (tmp_path / "c").write_bytes(b"")
    assert list(read_json_lines(tmp_path / "c")) == []
    append(tmp_path / "new/d", "1\n")
    append(tmp_path / "new/d", "2\n")
    assert list(read_json_lines(tmp_path / "new/d")) == [(1, 1), (2, 2)]


def test_errors_get_the_name_of_the_file():
    for given, wanted in ((OSError(28, "full"), "a"), (OSError(13, "no", "b"), "b"), (OSError("x"), None)):
        with pytest.raises(OSError) as caught, naming("a"):
            raise given
        assert caught.value.filename == wanted


def test_a_file_beside_is_not_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file/a", tmp_path):
        with pytest.raises(OSError) as caught, atomic_write(path) as stream:
            stream.write("x")
        assert ".tmp" not in str(caught.value.filename2 or caught.value.filename)


FULL = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from pelasr.storage import save_weights
from pelasr.train.events import Events
from pelasr.data.features import save_stats
from pelasr.score.results import KEYS, append_results
from pelasr.train.checkpoint import save_checkpoint
from pelasr.files import append, atomic_write

folder = Path(sys.argv[1])
(folder / "checkpoint").write_text("old")
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))


def many(path):
    events = Events(path)
    for step in range(1000):
        events.add_scalar("loss", 1.0, step)
    events.flush()


ways = {
    "checkpoint": lambda path: save_checkpoint(path, {"x": torch.zeros(10000)}),
    "weights": lambda path: save_weights(path, {"x": torch.zeros(10000)}),
    "stats": lambda path: save_stats(path, np.zeros(10000), np.zeros(10000)),
    "times": lambda path: append(path, "x" * 10000),
    "results": lambda path: append_results(path, [dict.fromkeys(KEYS, "x" * 1000)]),
    "events": many,
}
for name, way in ways.items():
    try:
        way(folder / name)
    except OSError as error:
        print(name, error.strerror, error.filename)
print((folder / "checkpoint").read_text(), *sorted(path.name for path in folder.glob(".*")))
"""


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    """A limit on the size of files stands for the disk. TensorBoard's own writer would wait for ever."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    names = ["checkpoint", "weights", "stats", "times", "results", "events"]
    assert done.stdout.splitlines() == [*(f"{name} File too large {tmp_path / name}" for name in names), "old"]
    assert done.stderr == ""
