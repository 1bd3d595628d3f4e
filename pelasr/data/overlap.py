"""What train and other sets share: the same audio, or the same sentence, flatters a model's figures."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from os.path import abspath
from typing import NamedTuple

from pelasr.data.kaldi import Utterance
from pelasr.data.tokenizer import normalise
from pelasr.errors import counted, printable

SHOWN = 3
TOUCH = 0.1  # seconds by which neighbouring segments of a recording may overlap


class Heard(NamedTuple):
    """An utterance of a data directory whose audio is good, and a hash of its samples."""

    directory: str
    utterance: Utterance
    digest: str

    def __str__(self) -> str:
        return printable(f"{self.utterance.id} of {self.directory}")


def shared(train: Sequence[Heard], others: Mapping[str, Sequence[Heard]]) -> list[str]:
    """Warnings, for each of the other sets that shares audio, or transcripts in the same language, with train."""
    by_audio, by_text = {item.digest: item for item in train}, {_sentence(item): item for item in train}
    spans = _spans(train)
    lines = []
    for name, heard in others.items():
        same_audio = [(item, by_audio.get(item.digest) or _overlapping(item, spans)) for item in heard]
        same_text = [(item, by_text.get(_sentence(item))) for item in heard]
        lines += _warning(name, "audio", same_audio) + _warning(name, "a transcript", same_text)
    return lines


def _sentence(item: Heard) -> tuple[str, str]:
    return item.utterance.language, normalise(item.utterance.text)


class Spans(NamedTuple):
    """The segments of a recording: starts, sorted, and of those up to each the one that ends last."""

    starts: list[float]
    last: list[Heard]


def _start(item: Heard) -> float:
    return item.utterance.start or 0.0


def _end(item: Heard) -> float:
    return float("inf") if item.utterance.end is None else item.utterance.end


def _spans(train: Iterable[Heard]) -> dict[str, Spans]:
    recordings: dict[str, list[Heard]] = {}
    for item in train:
        recordings.setdefault(abspath(item.utterance.audio), []).append(item)
    found = {}
    for audio, items in recordings.items():
        items.sort(key=_start)
        found[audio] = Spans(list(map(_start, items)), list(accumulate(items, lambda a, b: max(a, b, key=_end))))
    return found


def _overlapping(item: Heard, spans: Mapping[str, Spans]) -> Heard | None:
    """An utterance of the same recording, and of the same time in it."""
    there = spans.get(abspath(item.utterance.audio))
    before = bisect_left(there.starts, _end(item) - TOUCH) if there else 0
    if there is None or not before:
        return None
    found = there.last[before - 1]
    return found if _end(found) - TOUCH > _start(item) else None


def _warning(name: str, what: str, pairs: Sequence[tuple[Heard, Heard | None]]) -> list[str]:
    found = [f"{item} is that of {other}" for item, other in pairs if other is not None]
    if not found:
        return []
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    which = f"{len(found)} of {counted(len(pairs), 'utterance')} of {name}"
    return [f"{which} have {what} that train has too, which flatters figures: {'; '.join(found[:SHOWN])}{more}"]
