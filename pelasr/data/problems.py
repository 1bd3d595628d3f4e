"""What is wrong with data: one fault, and a list of many that can be read."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pelasr.errors import counted, printable

# Faults of a file as a whole: dropping utterances does not mend them.
STRUCTURAL = frozenset({"missing-file", "not-utf8", "line-format", "duplicate", "unsorted", "empty", "no-language"})
DROP = "or drop it with --skip_bad true"  # what ends a cure
SHOWN = 3  # of the same fault: more are one line
VARYING = re.compile(r"\S*[\d/']\S*")  # words of a message that are an utterance's own: numbers, paths, what is quoted


@dataclass(frozen=True)
class Problem:
    """One fault, at a `line` (0: the whole file) of a `file` (empty: the directory). `utterance` may be empty; `what`
    says what is wrong and how to cure it."""

    directory: str
    file: str
    line: int
    utterance: str
    what: str
    kind: str

    @property
    def droppable(self) -> bool:
        """Whether leaving out the utterance mends it."""
        return bool(self.utterance) and self.kind not in STRUCTURAL

    @property
    def path(self) -> str:
        """The file or directory, as it can be printed."""
        return printable(os.path.join(self.directory, self.file) if self.file else self.directory)

    @property
    def reason(self) -> str:
        """All but the utterance."""
        return f"{self._where}: {self.what} [{self.kind}]"

    @property
    def _where(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path

    def __str__(self) -> str:
        name = f"utterance {printable(self.utterance)}: " if self.utterance else ""
        return f"{self._where}: {name}{self.what} [{self.kind}]"


def condense(problems: Iterable[Problem], listing: Path | None = None) -> list[str]:
    """The problems as lines, in which the same fault more than three times is one line with its count and examples.

    `listing` is a file that has them all.
    """
    groups: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        # Faults of whole files are the same where they say the same; others where they are in the same file.
        place = (problem.path, "") if problem.line else ("", problem.what)
        groups.setdefault((*place, problem.kind), []).append(problem)
    return [line for group in groups.values() for part in _alike(group) for line in _lines(part, listing)]


def _alike(group: list[Problem]) -> list[list[Problem]]:
    """The faults of a kind by what is said of them; where they differ too much, all of them together."""
    same = {what: VARYING.sub("", what) for what in {problem.what for problem in group}}
    parts: dict[str, list[Problem]] = {}
    for problem in group:
        parts.setdefault(same[problem.what], []).append(problem)
    return list(parts.values()) if len(parts) <= SHOWN else [group]


def _lines(part: list[Problem], listing: Path | None) -> list[str]:
    if len(part) <= SHOWN:
        return list(map(str, part))
    first = part[0]
    everything = f"; all of them: {listing}" if listing else ""
    if not first.line:
        shown = ", ".join(problem.path for problem in part[:SHOWN])
        return [f"{shown} and {len(part) - SHOWN} more: {first.what}{everything} [{first.kind}]"]
    shown = ", ".join(f"{printable(p.utterance) or '-'} (line {p.line})" for p in part[:SHOWN])
    noun = "utterance" if all(problem.utterance for problem in part) else "line"
    of_first = "" if all(problem.what == first.what for problem in part) else " the first:"
    return [
        f"{first.path}: {counted(len(part), noun)}, such as {shown}:{of_first} {first.what}{everything} [{first.kind}]"
    ]
