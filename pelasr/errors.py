"""Errors a user can cure: the command line prints them as one line, without a traceback."""

import difflib
from collections.abc import Iterable

BEGIN, END = 1200, 700  # characters of a longer message that are shown: it ends with the cure


class PelasrError(Exception):
    """Something the user can mend. The message names the file, line or utterance, and the cure.

    What cannot be printed is escaped: a name or a value of a file from anywhere must not drive a terminal, or fill it.
    """

    def __init__(self, message: str):
        super().__init__(_line(message))


class TooShortError(PelasrError):
    """Audio that is too short for a model."""


class DataError(PelasrError):
    """Bad data: `problems` has one line for each thing found, so that all can be mended at once."""

    def __init__(self, problems: str | list[str]):
        given = [problems] if isinstance(problems, str) else problems
        self.problems = ["\n".join(map(_line, problem.split("\n"))) for problem in given]
        Exception.__init__(self, "\n".join(self.problems))


def _line(message: str) -> str:
    text = printable(message)
    return text if len(text) <= BEGIN + END else f"{text[:BEGIN]} [...] {text[-END:]}"


def brief(value: object, most: int = 40) -> str:
    """A value in a message: one line of at most `most` characters, those that cannot be printed escaped."""
    text = " ".join(str(value).split())
    return printable(text if len(text) <= most else f"{text[: most - 3]}...")


def printable(text: str) -> str:
    """A text in a message or a line of output: what cannot be printed is escaped, bytes of a file's name that are not
    UTF-8 too. Joiners, which names in some scripts have, are left."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    is_byte = 0xDC80 <= code <= 0xDCFF  # how Python holds a byte that is not UTF-8
    return f"\\x{code - 0xDC00:02x}" if is_byte else ascii(character)[1:-1]


def counted(number: int, noun: str) -> str:
    """`1 problem`, `2 problems`, `3 data directories`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that lists the known names, the most alike first where there is one."""
    known = sorted(map(str, known))
    alike = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {alike[0]!r}? " if alike else ""
    return f"{hint}known: {brief(', '.join(known), 2000)}"
