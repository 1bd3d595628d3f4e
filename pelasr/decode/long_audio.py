"""Audio of any length as pieces: cut, searched in batches of like length, joined again."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from pelasr.data.hears import RATE, Hears, num_frames

SHORTEST = RATE * 25 // 1000  # samples, a window of the features; what is shorter is not searched
WINDOW = 60_000  # feature frames of the pieces that are gathered before they are searched
BATCH = 30_000  # feature frames of a batch, padding included, if the backbone says nothing else


@dataclass
class Piece:
    """A part of one audio, from `start` to `end` of its `duration`, in seconds; the `last` one ends the audio.

    `feats`: what is heard of it (T, C), until it is searched; `score`: that of its text by the search, None if it was
    too short to be searched; `seconds`: time spent on it.
    """

    language: str
    start: float
    end: float
    duration: float
    last: bool
    feats: np.ndarray | None
    text: str = ""
    score: float | None = None
    seconds: float = 0.0

    @property
    def frames(self) -> int:
        """Of 10 ms, as long as it has features."""
        return num_frames(round((self.end - self.start) * RATE)) if self.feats is not None else 0

    @property
    def share(self) -> float:
        """Which part of its audio it is."""
        return (self.end - self.start) / self.duration if self.duration else 1.0


@dataclass(frozen=True)
class Transcript:
    """What was found in one audio of `duration` seconds; `score` is the sum of its segments', `seconds` the time spent
    on it. Audio that was too short to be searched has no segments."""

    language: str
    text: str
    score: float
    duration: float
    seconds: float
    segments: list[Piece]


def windows(
    audio: Iterable[np.ndarray], languages: Sequence[str], longest: Mapping[str, float], hears: Hears
) -> Iterator[list[Piece]]:
    """The pieces of audios, samples (N,) at 16 kHz each, in order; as many at once as it takes to fill batches. Audios
    are asked for one by one, so that no more than one is held.

    `longest`: seconds of a piece at most, of each language.
    """
    window: list[Piece] = []
    frames, start = 0, time.monotonic()
    for samples, language in zip(audio, languages, strict=True):
        for piece in _pieces(samples, language, longest[language], hears):
            now = time.monotonic()
            piece.seconds, start = now - start, now
            frames += piece.frames
            window.append(piece)
            if frames >= WINDOW:
                yield window
                window, frames, start = [], 0, time.monotonic()
    if window:
        yield window


def _pieces(samples: np.ndarray, language: str, longest: float, hears: Hears) -> Iterator[Piece]:
    shortest = max(SHORTEST, hears.shortest)
    for start, end in cut(samples, RATE, longest):
        feats = hears(samples[start:end]) if end - start >= shortest else None
        last = end == len(samples)
        yield Piece(language, start / RATE, end / RATE, len(samples) / RATE, last, feats)


def batches(pieces: Iterable[Piece], most: int | None = None) -> Iterator[list[Piece]]:
    """Pieces in batches of like length, longest first, of `most` (BATCH) frames where one piece alone has not more."""
    batch: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: -piece.frames):
        if batch and (len(batch) + 1) * batch[0].frames > (most or BATCH):
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def join(windows: Iterable[list[Piece]]) -> Iterator[Transcript]:
    """Searched pieces, in order, to a transcript of each audio."""
    parts: list[Piece] = []
    for piece in chain.from_iterable(windows):
        parts.append(piece)
        if piece.last:
            found = [part for part in parts if part.score is not None]
            text = " ".join(part.text for part in found if part.text)
            score, seconds = sum(part.score or 0.0 for part in found), sum(part.seconds for part in parts)
            yield Transcript(piece.language, text, score, piece.duration, seconds, found)
            parts = []


HOP, SMOOTHED = 0.01, 0.3  # seconds between the places where it may be cut, and around each that count


def cut(samples: np.ndarray, rate: int, longest: float) -> list[tuple[int, int]]:
    """Pieces (first sample, sample after the last) of audio (N,), of `longest` seconds at most, which together are all
    of it.

    Each is cut off at the quietest place in the second half of what it might be; of equally quiet ones at that in their
    middle. Audio of up to `longest` seconds is one piece; of longer audio none is shorter than a quarter of that.
    """
    hop, most = round(HOP * rate), round(longest * rate)
    if len(samples) <= most:
        return [(0, len(samples))]
    loudness = _loudness(samples, hop)
    pieces, start = [], 0
    while len(samples) - start > most:
        first, last = start + most // 2, min(start + most, len(samples) - most // 4)
        places = np.arange(-(-first // hop), last // hop + 1)
        quietest = places[loudness[places] == loudness[places].min()]
        pieces.append((start, int(quietest[len(quietest) // 2]) * hop))
        start = pieces[-1][1]
    return [*pieces, (start, len(samples))]


def _loudness(samples: np.ndarray, hop: int) -> np.ndarray:
    """Energy around every `hop`-th sample, the first one included: the nearest samples count most."""
    parts = samples[: len(samples) // hop * hop].reshape(-1, hop)
    energy = np.einsum("nh,nh->n", parts, parts, dtype=np.float64)
    half = round(SMOOTHED / HOP / 2)
    # Not a running sum, whose rounding would drown a quiet pause in what came before.
    return np.convolve(energy, np.hanning(2 * half + 2)[1:-1])[half - 1 : half + len(energy)]
