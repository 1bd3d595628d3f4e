"""The audio of utterances: any file that libsndfile reads, or an entry of a Kaldi archive, in whole or in part."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pelasr.data.archive import ENTRY, open_audio
from pelasr.data.kaldi import Utterance, audio_fault
from pelasr.data.sound import open_sound, received
from pelasr.errors import DataError, brief, printable
from pelasr.files import no_file

BLOCK = 1 << 20  # samples of a file that are read at once
STEEP = 0x40  # libsoxr's SOXR_STEEP_FILTER, for which Python's soxr has no name: 3 dB at 7.6 kHz would be lost without


def read_audio(audio: str, start: float | None = None, end: float | None = None) -> tuple[np.ndarray, int]:
    """Samples of a `wav.scp` value, float32 (N,) mono in [-1, 1], and their rate in Hz, from `start` to `end` seconds.

    Raises DataError if the file is missing, cannot be decoded, or has other samples than its header says.
    """
    if fault := audio_fault(audio):
        raise DataError(fault)
    entry = ENTRY.fullmatch(audio)
    path = entry[1] if entry else audio
    if missing := no_file(path):
        where = "" if os.path.isabs(path) else f" (looked for from {os.getcwd()})"
        raise DataError(_no_audio(path, missing, where, "correct the path in wav.scp"))
    try:
        with (
            open_audio(path, int(entry[2])) if entry else nullcontext(path) as source,
            open_sound(source) as sound,
        ):
            first = round((start or 0.0) * sound.rate)
            last = sys.maxsize if end is None else max(first, round(end * sound.rate))
            return _join(sound.blocks(first, last, BLOCK)), sound.rate
    except Exception as error:
        raise _unreadable(audio, error) from error


def _no_audio(path: str, missing: str, where: str, cure: str) -> str:
    return f"{brief(path, 300)}: {missing.replace('file', 'audio file', 1)}{where}; cure: {cure}"


def _join(blocks: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.float32), *blocks])


def _unreadable(name: str, error: Exception) -> DataError:
    """What to say of an error: decoders raise nearly anything on a damaged file, and the file is at fault."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{brief(name, 300)}: unreadable audio ({reason}); cure: convert or fetch the file again")


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
    Raises DataError if it is missing, cannot be decoded, has other samples than its header says, or holds values that
    are not finite.
    """
    is_path = isinstance(source, str | Path)
    name = printable(str(source)) if is_path else "standard input"
    if is_path and (missing := no_file(source)):
        raise DataError(_no_audio(name, missing, "", "correct the path"))
    try:
        with open_sound(str(source) if is_path else received(source.read())) as sound:
            samples = _join(_resampled(sound.blocks(0, sys.maxsize, BLOCK), sound.rate, rate))
    except Exception as error:
        raise _unreadable(name, error) from error
    if not np.isfinite(samples).all():
        raise DataError(f"{name}: holds samples that are no finite numbers; cure: convert or fetch the file again")
    return samples


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
