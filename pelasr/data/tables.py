"""The files of a data directory: lines of `id value`, and what may be wrong with lines, encoding and order."""

import codecs
import re
from typing import NamedTuple

from pelasr.errors import printable

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class Entry(NamedTuple):
    """The value of an id in a file, and its line number from 1."""

    line: int
    value: str


class Fault(NamedTuple):
    """What is wrong at a line (0: the whole file) with an id (empty: the line), and the kind of problem."""

    line: int
    name: str
    what: str
    kind: str


def read_table(content: bytes, paths: bool, quoted: str) -> tuple[dict[str, Entry], list[Fault]]:
    """The entries of a file by id, in its order, and its faults. Values that are `paths` may be any bytes. `quoted` is
    the file's name for the shell."""
    content, faults = _in_utf8(content, quoted)
    # Bytes are split at newlines alone: str.splitlines would also cut at U+2028 and the like within a text.
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    if number := next((number for number, line in enumerate(lines, 1) if line.endswith(b"\r")), 0):
        faults.append(Fault(number, "", f"Windows line ends; cure: sed -i 's/\\r$//' {quoted}", "line-format"))
    lines = [line.strip(b" \t\r") for line in lines]
    all_utf8 = is_utf8(_decode(content))
    faults += _empty([number for number, line in enumerate(lines, 1) if not line], quoted)
    table: dict[str, Entry] = {}
    last, is_sorted = "", True
    not_utf8: list[Fault] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        name, value = (re.split("[ \t]+", _decode(line), maxsplit=1) + [""])[:2]
        if not all_utf8 and (not is_utf8(name) or not (paths or is_utf8(value))):
            not_utf8.append(Fault(number, name, "", "not-utf8"))
        if name in table:
            cure = _rewrite("awk '!seen[$1]++'", quoted)
            what = (
                f"id is already on line {table[name].line}; cure: keep one of the two lines; always the first: {cure}"
            )
            faults.append(Fault(number, name, what, "duplicate"))
            continue
        if is_sorted and name < last:  # code point order of str is the byte order of UTF-8, that of LC_ALL=C
            is_sorted = False
            what = f"not sorted: comes after {printable(last)}; cure: LC_ALL=C sort -o {quoted} {quoted}"
            faults.append(Fault(number, name, what, "unsorted"))
        table[name] = Entry(number, value)
        last = name
    cure = _cure_of_encoding(lines, quoted) if not_utf8 else ""
    return table, faults + [fault._replace(what=f"not UTF-8; cure: {cure}") for fault in not_utf8]


def _in_utf8(content: bytes, quoted: str) -> tuple[bytes, list[Fault]]:
    """The content of a file without a byte-order mark, in UTF-8 if it is UTF-16, in lines, and what was wrong."""
    faults = []
    if encoding := encoding_of(content):
        faults.append(Fault(0, "", f"{encoding}, not UTF-8; cure: {iconv(encoding, quoted)}", "not-utf8"))
        content = content.decode(encoding, "replace").encode()
    if content.startswith(codecs.BOM_UTF8):
        what = f"byte-order mark at the start; cure: sed -i '1s/^\\xEF\\xBB\\xBF//' {quoted}"
        faults.append(Fault(1, "", what, "line-format"))
        content = content.removeprefix(codecs.BOM_UTF8)
    if b"\r" in content and b"\n" not in content:
        faults.append(Fault(0, "", f"line ends of old Macs; cure: sed -i 's/\\r/\\n/g' {quoted}", "line-format"))
        content = content.replace(b"\r", b"\n")
    return content, faults


def _empty(lines: list[int], quoted: str) -> list[Fault]:
    """Empty lines are one fault: taken out one by one they would move the others."""
    if not lines:
        return []
    which = f"{lines[0]}d" if len(lines) == 1 else r"/^[[:blank:]\r]*$/d"
    count = f" ({len(lines)} of them)" if len(lines) > 1 else ""
    return [Fault(lines[0], "", f"empty line{count}; cure: sed -i '{which}' {quoted}", "line-format")]


def _cure_of_encoding(lines: list[bytes], quoted: str) -> str:
    """The cure for lines that are not UTF-8. Where others are, converting the file would spoil these."""
    if any(not line.isascii() and is_utf8(_decode(line)) for line in lines):
        return "write the line again, as other lines of the file are UTF-8"
    return f"{iconv('ENCODING', quoted)}, where ENCODING is the file's, such as ISO-8859-1"


def _decode(line: bytes) -> str:
    """Text, in which bytes that are not UTF-8 are kept as Python keeps those of a file's name."""
    return line.decode("utf-8", "surrogateescape")


def iconv(encoding: str, quoted: str) -> str:
    """The command that turns a file into UTF-8."""
    return _rewrite(f"iconv -f {encoding} -t UTF-8", quoted)


def _rewrite(command: str, quoted: str) -> str:
    # Not text.new, which would be translations if the command failed.
    return f"{command} {quoted} > {quoted}~ && mv {quoted}~ {quoted}"


def encoding_of(content: bytes) -> str:
    """Name of the encoding, for iconv, of a file that is UTF-16 or UTF-32, or an empty string.

    Without a byte-order mark UTF-16 is what becomes lines of words in it, in which no character is NUL.
    """
    for mark, name in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return name
    if content.count(b"\0") * 100 < len(content):  # every space and line end has one
        return ""
    for name in ("UTF-16LE", "UTF-16BE"):
        try:
            text = content.decode(name)
        except UnicodeDecodeError:
            continue
        if " " in text and "\0" not in text and ("\n" in text or b"\n" not in content):
            return name
    return ""


def without_offset(audio: str) -> str:
    """The file of a value of `wav.scp`: that of an archive without the offset of the entry."""
    return re.sub(r":\d+$", "", audio)


def is_utf8(text: str) -> bool:
    """Whether a text can be written: it holds no bytes that were not UTF-8 where it was read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
