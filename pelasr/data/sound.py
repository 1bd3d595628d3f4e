"""Audio files as libsndfile reads them, strictly: what a header says is compared with the bytes that there are before
anything is allocated, and with the samples that come out of them afterwards."""

import io
import os
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from pelasr.data.archive import Part
from pelasr.files import check_holes, open_file, openable

RATES = (1_000, 384_000)  # Hz
CHANNELS = 64
AT_ONCE = 1 << 31  # samples that are read at once: 37 hours at 16 kHz
# Samples that compressed bytes can be: of speech at most 24 to a byte in MP3, 64 in Opus. Silence is compressed to
# nearly nothing, so some are granted in any case: 70 minutes at 16 kHz.
DENSEST, GRANTED = 128, 1 << 26
WIDTHS = {
    "PCM_S8": 1,
    "PCM_U8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
    "ULAW": 1,
    "ALAW": 1,
}
UNKNOWN = 1 << 62  # frames from which on libsndfile means that it does not know
STREAMED = (1 << 31, 1 << 32)  # bytes of samples, about so many, that are written where nobody knows yet
CHUNKS = 1000  # of a WAV file, before its samples
# Formats whose header has the number of samples, and how many of them may be missing: encoders of MP3 disagree whether
# the frame with the count is counted itself.
MISSING = dict.fromkeys(("WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "AU", "CAF", "NIST"), 0) | {"MP3": 2 * 1152}


@dataclass
class Sound:
    """An audio file that is open: `rate` in Hz, `frames` (samples of a channel) as its header says or libsndfile
    estimates, None if neither is so; so many of them may be `missing` (None: any number)."""

    rate: int
    frames: int | None
    missing: int | None
    _most: int
    _stream: Any

    def blocks(self, first: int, last: int, size: int) -> Iterator[np.ndarray]:
        """Samples `first` to `last`, the mean of the channels, in blocks of `size`, float32 (N,) each.

        Raises ValueError where the file ends before the sample that its header says is the last.
        """
        import soundfile

        last = min(last, sys.maxsize if self.frames is None else self.frames)
        if last - first > AT_ONCE and self.frames is not None:
            raise ValueError(f"{last - first:,} samples are more than can be read at once; cut it into pieces")
        if first >= last:
            return
        if first:
            self._stream.seek(first)
        # soundfile seeks to where it is after every read, which in a FLAC file that is cut off it cannot.
        self._stream.seekable = lambda: False
        found, reason = first, ""
        while found < last:
            try:
                block = self._stream.read(min(size, last - found), dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                found, reason = self._stream.tell(), f" ({error.error_string})"
                break
            if not len(block):
                break
            found += len(block)
            if found > self._most:
                raise ValueError(f"more than {self._most:,} samples in so small a file")
            yield block.mean(axis=1, dtype=np.float32)
        if reason and self.frames is None:
            raise ValueError(f"damaged after {found:,} samples{reason}")
        if self.frames is not None and self.missing is not None and found + self.missing < last:
            raise ValueError(f"damaged or cut off: {found:,} samples, {self.frames:,} by its header{reason}")


@contextmanager
def open_sound(source: str | Part) -> Iterator[Sound]:
    """Open an audio file by its path, or part of a file.

    Raises ValueError for what is no audio, and for what its header says of rate, channels and length if that cannot be;
    PelasrError if the path leads to no file.
    """
    import soundfile

    with open_file(source) if isinstance(source, str) else nullcontext(source) as raw:
        if isinstance(source, str):
            check_holes(source)
        if not (size := raw.seek(0, io.SEEK_END)):
            raise ValueError("an empty file")
        chunk = find_samples(raw, size)
        is_estimate = not _counts_frames(raw)
        raw.seek(0)
        try:  # by an absolute path, because libsndfile takes `-` for standard input
            file: Any = openable(os.path.abspath(source)) if isinstance(source, str) else source
            stream = soundfile.SoundFile(file)
        except soundfile.LibsndfileError as error:
            raise ValueError(error.error_string) from None
        with stream:
            most = _check(stream, size, chunk)
            frames = stream.frames if stream.frames < UNKNOWN else None
            missing = None if is_estimate and stream.format == "MP3" else MISSING.get(stream.format)
            yield Sound(stream.samplerate, frames, missing, most, stream)


def _check(stream: Any, size: int, chunk: tuple[int, int] | None) -> int:
    """Raise ValueError for what cannot be in `size` bytes; returns the samples that can be."""
    rate, channels, frames = stream.samplerate, stream.channels, stream.frames
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"a rate of {rate:,} Hz; want {RATES[0]:,} to {RATES[1]:,}")
    if channels > CHANNELS:
        raise ValueError(f"{channels} channels; want {CHANNELS} at most")
    width = WIDTHS.get(stream.subtype) if stream.format != "FLAC" else None
    most = size // (channels * width) if width else GRANTED + DENSEST * size
    if UNKNOWN > frames > most:
        raise ValueError(f"{frames:,} samples by its header, more than {size:,} bytes can be")
    if chunk is not None:
        said, there = chunk[1], size - chunk[0]
        if said > there and not is_streamed(said):
            said = said // (channels * width) if width else frames * said // max(there, 1)
            raise ValueError(f"cut off: {frames:,} samples, {said:,} by its header")
    return most


def is_streamed(said: int) -> bool:
    """Whether a WAV file's bytes of samples are what a program writes that does not know them yet."""
    return said == 0 or any(abs(said - size) <= 1 << 16 for size in STREAMED)


def find_samples(raw: io.BufferedIOBase | Part, size: int) -> tuple[int, int] | None:
    """Where the samples of a WAV file begin, and how many bytes they are by the header; None for other files."""
    raw.seek(0)
    head, position, large = raw.read(12), 12, 0
    if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        return None
    for _ in range(CHUNKS):
        raw.seek(position)
        if position + 8 > size:
            return None
        name, length = struct.unpack("<4sI", raw.read(8))
        position += 8
        if name == b"ds64":  # an RF64 file's sizes of 64 bits: of the file, of the samples, ...
            large = int.from_bytes(raw.read(16)[8:], "little")
        if name == b"data":
            return position, large if head[:4] == b"RF64" and length == 0xFFFFFFFF else length
        position += length + length % 2
    return None


def received(content: bytes) -> Part:
    """An audio file that came through a pipe. A WAV file whose header says that it has no samples, because the program
    that wrote it could not go back, has all that follow."""
    found = find_samples(io.BytesIO(content), len(content))
    if found is not None and found[1] == 0:
        content = content[: found[0] - 4] + b"\xff" * 4 + content[found[0] :]
    return Part(io.BytesIO(content), 0, len(content))


def _counts_frames(raw: io.BufferedIOBase | Part) -> bool:
    """Whether the first frame of an MP3 file says how many there are; otherwise libsndfile estimates their number."""
    raw.seek(0)
    head, start = raw.read(10), 0
    if head[:3] == b"ID3" and len(head) == 10:  # a tag, with its size in digits of 7 bits
        start = 10 + sum(digit << shift for digit, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    raw.seek(start)
    frame = raw.read(64)
    found = re.search(rb"VBRI|(?:Xing|Info)...[\x01\x03\x05\x07\x09\x0b\x0d\x0f]", frame, re.DOTALL)  # bit 1: frames
    return found is not None
