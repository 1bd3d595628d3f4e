"""Files that hold their own hash: what was written comes back, whatever else is refused in one line."""

import hashlib

import pytest
import torch

from pelasr.config import LIMIT
from pelasr.errors import PelasrError
from pelasr.storage import read_description, write_description
from pelasr.train.checkpoint import load_checkpoint, save_checkpoint

SHARED = [1, 2]
DESCRIPTION = {
    "language": "no",
    "numbers": [0, -1, 1e-5, 1e16, 1.0, float("inf"), 10**30],
    "words": ["1e-3", "2024-01-01", "null", "yes", "0x1", "~", "", " a", "a: b", "#", "12:30:45"],
    "characters": [chr(code) for code in (0x20, 0x27, 0x60, 0xA0, 0x301, 0x200D, 0x202E, 0xFEFF, 0x1F600, 0xFFFF)],
    "nothing": None,
    "nested": {"encoder": {"a": True}, "decoder": {}},
    "the same": SHARED,
    "twice": SHARED,
}


def seal(path, body: bytes) -> None:
    """What a hostile hand can write: any content, with its hash."""
    path.write_bytes(body + b"sha256: " + hashlib.sha256(body).hexdigest().encode() + b"\n")


def refused(path, message):
    with pytest.raises(PelasrError, match=message) as caught:
        read_description(path, "mend it")
    text = str(caught.value)
    assert text.isprintable() and len(text) < 400
    assert text.startswith(str(path)) and text.endswith(("mend it", "run the stage that makes it"))


def test_round_trip(tmp_path):
    path = tmp_path / "a.yaml"
    write_description(path, DESCRIPTION)
    assert read_description(path, "") == DESCRIPTION
    assert "&" not in path.read_text()
    seal(path, path.read_bytes().rpartition(b"sha256: ")[0])
    assert read_description(path, "") == DESCRIPTION


def test_every_bit_counts(tmp_path):
    path = tmp_path / "a.yaml"
    write_description(path, {"a": 1, "b": "c"})
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        altered = bytearray(content)
        altered[bit // 8] ^= 1 << bit % 8
        path.write_bytes(altered)
        refused(path, "altered, incomplete or of another version")
    for altered in (
        b"",
        content[:-1],
        content[:-70],
        content + b"\n",
        content + b"c: d\n",
        content * 2,
        b"# \n" + content,
    ):
        path.write_bytes(altered)
        refused(path, "altered, incomplete")


@pytest.mark.parametrize(
    "body",
    [
        b"a: &x [1]\nb: *x\n",
        b"a: &x 1\n",
        b"a: !!python/object/apply:os.system [ls]\n",
        b"a: !!set {b}\n",
        b"a: " + b"[" * 11 + b"]" * 11 + b"\n",
        b"a: " + b"[" * 300_000 + b"\n",
        b"a: {" * 1000 + b"\n",
        b"a: [" + b"1," * 60_000 + b"1]\n",
        b"a: " + b"9" * 5000 + b"\n",
        b"a: 1" + b":59" * 100_000 + b"\n",
        b"a: 2024-99-99\n",
        b"a: \xff\n",
        b"a: \x00\n",
        b"a: 'b\n",
        b"a: b: c\n",
        b"- a\n",
        b"just words\n",
        b"\n",
        b"---\na: 1\n---\nb: 2\n",
        b"? [a]\n: b\n? {c: d}\n: e\n",
        b"a: 1\na: 2\n",
    ],
    ids=range(21),
)
def test_hostile_descriptions_with_the_right_hash(tmp_path, body):
    path = tmp_path / "a.yaml"
    seal(path, body)
    refused(path, "no valid description|expected `key: value` lines")


def test_sizes_and_kinds_of_files(tmp_path):
    refused(tmp_path / "a.yaml", "no such file")
    refused(tmp_path, "no such file")
    seal(tmp_path / "a.yaml", b"a: " + b"b" * LIMIT + b"\n")
    refused(tmp_path / "a.yaml", "more than 1048576 bytes")


def test_checkpoints(tmp_path):
    path = tmp_path / "last.ckpt"
    state = {"trained": {"a": torch.arange(6.0).view(2, 3)}, "place": {"epoch": 3}}
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["trained"]["a"], state["trained"]["a"]) and loaded["place"] == {"epoch": 3}
    content = path.read_bytes()
    altered = [content[:size] for size in (0, 5, 32, 40, len(content) - 1)] + [content + b"\0", content[1:]]
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        altered.append(bytes(flipped))
    for each in altered:
        path.write_bytes(each)
        with pytest.raises(PelasrError, match="last.ckpt: cannot go on from it: altered or incomplete; delete it"):
            load_checkpoint(path)
