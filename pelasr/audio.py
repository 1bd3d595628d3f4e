"""The audio of utterances: any file that libsndfile reads, or an entry of a Kaldi archive, in whole or in part."""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pelasr.data import Utterance, audio_fault
from pelasr.errors import DataError, printable
from pelasr.files import openable

ARCHIVE = re.compile(r".+:\d+")
BLOCK = 1 << 20  # samples of a file that are read at once
STEEP = 0x40  # libsoxr's SOXR_STEEP_FILTER, for which Python's soxr has no name: 3 dB at 7.6 kHz would be lost without


def read_audio(audio: str, start: float | None = None, end: float | None = None) -> tuple[np.ndarray, int]:
    """Samples of a `wav.scp` value, float32 (N,) mono in [-1, 1], and their rate in Hz, from `start` to `end` seconds.

    Raises DataError if the file is missing or cannot be decoded.
    """
    if fault := audio_fault(audio):
        raise DataError(fault)
    is_archive = ARCHIVE.fullmatch(audio) is not None
    path = audio.rpartition(":")[0] if is_archive else audio
    if not os.path.isfile(path):
        where = "" if os.path.isabs(path) else f" (looked for from {os.getcwd()})"
        raise DataError(f"{path}: no such audio file{where}; cure: correct the path in wav.scp")
    read: Callable = _read_archive if is_archive else _read_soundfile
    try:
        samples, rate = read(audio, start, end)
    except Exception as error:  # decoders raise nearly anything on a damaged file, and the file is at fault
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{audio}: unreadable audio ({reason}); cure: convert or fetch the file again") from error
    return samples.mean(axis=1, dtype=np.float32) if samples.ndim == 2 else samples, rate


def _span(start: float | None, end: float | None, rate: int, length: int) -> tuple[int, int]:
    """Sample indices of a segment, within the recording."""
    first = min(round((start or 0.0) * rate), length)
    return first, max(first, length if end is None else min(round(end * rate), length))


def _read_soundfile(path: str, start: float | None, end: float | None) -> tuple[np.ndarray, int]:
    import soundfile

    with soundfile.SoundFile(openable(path)) as stream:
        first, last = _span(start, end, stream.samplerate, stream.frames)
        if first:
            stream.seek(first)
        return stream.read(last - first, dtype="float32", always_2d=True), stream.samplerate


def _read_archive(spec: str, start: float | None, end: float | None) -> tuple[np.ndarray, int]:
    import kaldiio

    content = kaldiio.load_mat(spec)
    if not isinstance(content, tuple):
        raise ValueError("the archive holds no audio at this offset")
    rate, samples = content
    first, last = _span(start, end, rate, len(samples))
    samples = samples[first:last]
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min), rate
    return samples.astype(np.float32), rate


def load_audio(utterance: Utterance, rate: int = 16000) -> np.ndarray:
    """The audio of an utterance, float32 (N,) mono in [-1, 1], resampled to `rate` Hz. Raises DataError."""
    try:
        samples, native = read_audio(utterance.audio, utterance.start, utterance.end)
    except DataError as error:
        raise DataError(f"utterance {utterance.id}: {error}") from error
    if not len(samples):
        raise DataError(f"utterance {utterance.id}: {utterance.audio}: no samples; cure: drop the utterance")
    return resample(samples, native, rate)


def resample(samples: np.ndarray, native: int, rate: int) -> np.ndarray:
    """Samples (N,) at `native` Hz to float32 (ceil(N * rate / native),) at `rate` Hz, without delay.

    Up to 0.975 of half the lower rate nothing is lost, and less than a millionth of what lies above half of it is left.
    """
    return samples if native == rate else np.concatenate([*_resampled([samples], native, rate)])


def read_file(source: str | Path | BinaryIO, rate: int = 16000) -> np.ndarray:
    """All of an audio file, or of a stream of the bytes of one, as float32 (N,) mono in [-1, 1] at `rate` Hz.

    The values are those of `load_audio`, but the file is read block by block and never held as it is.
    Raises DataError if it is missing, cannot be decoded, or holds values that are not finite.
    """
    import soundfile

    is_path = isinstance(source, str | Path)
    name = printable(str(source)) if is_path else "standard input"
    if is_path and not os.path.isfile(source):
        raise DataError(f"{name}: no such audio file; cure: correct the path")
    try:
        with soundfile.SoundFile(openable(str(source)) if is_path else io.BytesIO(source.read())) as stream:
            blocks = _resampled(_blocks(stream), stream.samplerate, rate)
            samples = np.concatenate([np.zeros(0, dtype=np.float32), *blocks])
    except Exception as error:  # as in `read_audio`; libsndfile's own words name what was opened, a buffer too
        reason = " ".join(str(getattr(error, "error_string", error)).split()) or type(error).__name__
        raise DataError(f"{name}: unreadable audio ({reason}); cure: convert or fetch the file again") from error
    if not np.isfinite(samples).all():
        raise DataError(f"{name}: holds samples that are no finite numbers; cure: convert or fetch the file again")
    return samples


def _blocks(stream) -> Iterator[np.ndarray]:
    """A soundfile.SoundFile from its beginning to its end, mono, float32 (N,) each."""
    while len(block := stream.read(BLOCK, dtype="float32", always_2d=True)):
        yield block.mean(axis=1, dtype=np.float32)


def _resampled(blocks: Iterable[np.ndarray], native: int, rate: int) -> Iterator[np.ndarray]:
    """What `resample` makes of the joined blocks, in parts: bit for bit the same, whatever the blocks are."""
    if native == rate:
        yield from blocks
        return
    from soxr import soxr_ext

    stream = soxr_ext.CSoxr(native, rate, 1, soxr_ext.SOXR_FLOAT32_I, soxr_ext.HQ | STEEP, False)
    given = made = 0
    for block in blocks:
        part = stream.process_float32(block[:, None], False)[:, 0]
        given, made = given + len(block), made + len(part)
        yield part
    silence = np.zeros((-(-native // rate), 1), dtype=np.float32)  # or the last sample might be missing
    yield stream.process_float32(silence, True)[: -(-given * rate // native) - made, 0]
