"""The audio of utterances: any file that libsndfile reads, or an entry of a Kaldi archive, in whole or in part."""

import os
import re
from collections.abc import Callable
from math import gcd

import numpy as np

from pelasr.data import Utterance, audio_fault
from pelasr.errors import DataError

ARCHIVE = re.compile(r".+:\d+")


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

    with soundfile.SoundFile(path) as stream:
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
    if native == rate:
        return samples
    from scipy.signal import resample_poly

    common = gcd(rate, native)
    return resample_poly(samples, rate // common, native // common).astype(np.float32)
