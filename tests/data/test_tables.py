"""One file of a data directory: its encoding, its lines and their order."""

import pytest

from pelasr.data.tables import encoding_of, read_table

TEXTS = {
    "English": "u1 hello there\nu2 a\n",
    "Hindi": "u1 नमस्ते दुनिया\nu2 जग\n",
    "Punjabi, whose letters are 0A..": "u1 ਸਤ ਸ੍ਰੀ ਅਕਾਲ ਅਆ ਅ\nu2 ਅ\n",
    "Chinese, with 4E00": "u1 一一一 你好\nu2 一\n",
    "one line": "u1 x",
    "of Windows": "u1 x\r\nu2 y\r\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_utf16_is_told_from_utf8(text):
    for encoding, name in (("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE")):
        assert encoding_of(text.encode(encoding)) == name
    assert encoding_of("\ufeff".encode("utf-16-be") + text.encode("utf-16-be")) == "UTF-16"
    assert encoding_of(text.encode("utf-32")) == "UTF-32"
    assert encoding_of(text.encode()) == encoding_of(text.encode("utf-8-sig")) == ""


@pytest.mark.parametrize("content", [b"", b"u1 a\0b\n", b"u1 \0a\nu2 \0\n", b"u1 a\0\n", b"\0" * 64, b"u1 \xe9\n"])
def test_stray_nuls_are_no_utf16(content):
    assert encoding_of(content) == ""


def test_the_entries_of_utf16_are_read_all_the_same():
    table, faults = read_table("u2 b\r\nu1 é\r\n".encode("utf-16"), False, "text")
    assert {name: value for name, (_, value) in table.items()} == {"u2": "b", "u1": "é"}
    assert [fault.what.split(";")[0] for fault in faults] == [
        "UTF-16, not UTF-8",
        "Windows line ends",
        "not sorted: comes after u2",
    ]


def test_paths_keep_their_bytes_and_ids_may_not():
    table, faults = read_table(b"a x\xe9.wav\nb\xe9 y.wav\n", True, "wav.scp")
    assert table["a"].value.encode("utf-8", "surrogateescape") == b"x\xe9.wav"
    assert [(fault.line, fault.kind) for fault in faults] == [(2, "not-utf8")]
    assert [fault.line for fault in read_table(b"a x\xe9\nb y\n", False, "text")[1]] == [1]


def test_one_cure_for_all_empty_lines():
    (one,) = read_table(b"a x\n\nb y\n", False, "text")[1]
    assert (one.line, one.what) == (2, "empty line; cure: sed -i '2d' text")
    (several,) = read_table(b"\na x\n \t\nb y\n\r\n"[:-2] + b"\n", False, "text")[1]
    assert several.what.startswith("empty line (3 of them); cure: sed -i '/^[[:blank:]\\r]*$/d' text")
