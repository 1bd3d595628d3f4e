"""Done-files: what a stage read, whether it ended, and whether what it made is still there."""

import json

import pytest

from pelasr.done import Marker
from pelasr.errors import PelasrError
from pelasr.files import sha256_json


def test_inputs_decide(tmp_path):
    path, inputs = tmp_path / "stage" / "done.json", {"data": "abc", "shape": (1, 2), "none": None}
    assert not Marker(path, inputs).done and Marker(path, inputs).changed == []
    Marker(path, inputs).write(done=False)
    assert not Marker(path, inputs).done
    Marker(path, inputs).write(done=True)
    assert Marker(path, inputs).done and Marker(path, inputs).changed == []
    other = Marker(path, {"data": "abd", "shape": [1, 2], "none": None})
    assert not other.done and other.changed == ['data: "abc" -> "abd"']
    assert not Marker(path, {"data": "abc", "shape": (1, 2), "alpha": 0.5}).done


def test_an_option_that_is_gone_and_was_null(tmp_path):
    """What was finished with it stays finished, with the hash that other files know it by."""
    path, before = tmp_path / "adapt.json", Marker(tmp_path / "adapt.json", {"data": 1, "gone": None})
    before.write(done=True)
    now = Marker(path, {"data": 1})
    assert now.done and now.sha256 == before.sha256
    now.write(done=True)
    assert Marker(path, {"data": 1}).sha256 == before.sha256
    before = Marker(path, {"data": 1, "gone": 3})
    before.write(done=True)
    assert not Marker(path, {"data": 1}).done and Marker(path, {"data": 1}).changed == ["gone: 3 -> null"]


def test_long_values_are_cut_in_messages(tmp_path):
    path = tmp_path / "done.json"
    Marker(path, {"text": "a" * 1000}).write(done=True)
    (line,) = Marker(path, {"text": "b" * 1000}).changed
    assert len(line) < 150


def test_two_processes_cannot_work_in_one_folder(tmp_path):
    first = Marker(tmp_path / "A1/train.json", {"lr": 1})
    first.lock()
    with pytest.raises(PelasrError, match="A1: another process is training here"):
        Marker(tmp_path / "A1/train.json", {"lr": 1}).lock()
    first._lock.close()
    Marker(tmp_path / "A1/train.json", {"lr": 1}).lock()


@pytest.mark.parametrize("damage", ["deleted", "cut", "altered", "replaced by a folder"])
def test_outputs_are_looked_at(tmp_path, damage):
    """Small files by their hash, archives by their size."""
    text, archive = tmp_path / "out/tokens.txt", tmp_path / "out/feats.ark"
    text.parent.mkdir()
    text.write_text("abc")
    archive.write_bytes(b"12345")
    Marker(tmp_path / "done.json", {"data": 1}).write(done=True, outputs=[text, archive])
    marker = Marker(tmp_path / "done.json", {"data": 1})
    assert marker.done and marker.damaged == []
    for path in [text] if damage == "altered" else [text, archive]:
        before = path.read_bytes()
        path.unlink()
        if damage == "cut":
            path.write_bytes(before[:-1])
        elif damage == "altered":
            path.write_bytes(b"abd")
        elif damage != "deleted":
            path.mkdir()
        assert marker.finished and not marker.done and marker.damaged == [path]
        with pytest.raises(PelasrError, match=f"{path.name}: (damaged|missing)"):
            marker.check_outputs()
        if path.is_dir():
            path.rmdir()
        path.write_bytes(before)
        assert marker.done


def test_a_moved_folder_is_still_done(tmp_path):
    output = tmp_path / "exp/A1/weights"
    output.parent.mkdir(parents=True)
    output.write_text("abc")
    Marker(tmp_path / "exp/A1/train.json", {}).write(done=True, outputs=[output])
    (tmp_path / "exp").rename(tmp_path / "elsewhere")
    assert Marker(tmp_path / "elsewhere/A1/train.json", {}).done


def test_beginning_again_remembers_what_was_made(tmp_path):
    (tmp_path / "snapshots").mkdir()
    output = tmp_path / "snapshots/a"
    output.write_text("abc")
    Marker(tmp_path / "done.json", {"n": 1}).write(done=True, outputs=[output])
    marker = Marker(tmp_path / "done.json", {"n": 2})
    marker.write(done=False)
    again = Marker(tmp_path / "done.json", {"n": 2})
    assert not again.finished and list(again.made("snapshots")) == ["snapshots/a"] and again.made("snap") == {}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"5", b'{"done": true}', b"\xff\xfe", b'{"done": 1, "inputs": {}}']
)
def test_a_damaged_done_file(tmp_path, content):
    """Of a short stage it is as good as none; of a training it is an error, for the training must not be lost."""
    path = tmp_path / "A1/train.json"
    path.parent.mkdir()
    path.write_bytes(content)
    assert not Marker(path, {}).done
    with pytest.raises(PelasrError, match=r"train.json: damaged, .* restore the file") as caught:
        Marker(path, {}, strict=True)
    assert str(caught.value).isprintable()


def test_what_is_written(tmp_path):
    Marker(tmp_path / "done.json", {"a": 1}).write(done=True, outputs=[])
    content = {"done": True, "inputs": {"a": 1}, "outputs": {}}
    assert json.loads((tmp_path / "done.json").read_text()) == {**content, "sha256": sha256_json(content)}
