"""Files that are cut off, no JSON, no text, or that a full disk does not take."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pelasr.errors import PelasrError
from pelasr.files import append, atomic_write, naming, read_json, read_lines, read_text

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.json: not valid JSON "),
        (b'{"done": tr', "a.json: not valid JSON "),
        (b'{"x": "\xff"}', "a.json: not UTF-8 "),
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
    assert [line for _, line in read_lines(tmp_path / "b")] == [{"a": "x?y"}, None, None, None]
    (tmp_path / "c").write_bytes(b"")
    assert list(read_lines(tmp_path / "c")) == []
    append(tmp_path / "new/d", "1\n")
    append(tmp_path / "new/d", "2\n")
    assert list(read_lines(tmp_path / "new/d")) == [(1, 1), (2, 2)]


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
from pelasr.backbones import save_weights
from pelasr.events import Events
from pelasr.features import save_stats
from pelasr.results import KEYS, append_results
from pelasr.sealed import save_checkpoint
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
