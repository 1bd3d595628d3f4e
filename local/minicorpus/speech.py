"""From sentences to wav files: one request is one utterance, and depends on nothing but itself."""

import hashlib
import multiprocessing
import signal
import wave
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import resample

from minicorpus.augment import augment
from minicorpus.espeak import synthesise
from minicorpus.speakers import Speaker
from pelasr.files import naming
from pelasr.progress import track

RATE = 16000  # Hz
VOICES = {"en": "en-us"}  # espeak's name of a language's voice, where it is not the language's
# A recogniser with an output every 60 ms cannot follow faster speech letter by letter.
SECONDS_PER_CHARACTER = 0.065


@dataclass(frozen=True)
class Request:
    """An utterance to be made: `spoken` in the voice of `speaker`, augmented at `level`, into the file `path`."""

    id: str
    language: str
    spoken: str
    speaker: Speaker
    level: int
    seed: int
    path: Path


def speak(request: Request) -> np.ndarray:
    """Samples of the utterance: int16 `(N,)`, 16 kHz."""
    key = hashlib.sha256(f"{request.seed}\n{request.id}\n{request.spoken}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(key[:16]))
    speaker = request.speaker
    # Resampling by the warp shortens the speech too: the rate makes up for it.
    rate = round(speaker.rate * random.uniform(0.93, 1.07) / speaker.warp)
    pitch = speaker.pitch + int(random.integers(-4, 5))
    voice = f"{VOICES.get(request.language, request.language)}+{speaker.variant}"
    samples, length = _say(request.spoken, voice, rate, pitch, speaker)
    while length < SECONDS_PER_CHARACTER * RATE * len(request.spoken):
        rate = round(rate * 0.9)
        samples, length = _say(request.spoken, voice, rate, pitch, speaker)
    samples = resample(samples.astype(np.float64), length)
    samples = augment(samples, RATE, request.level, random)
    return np.round(samples * 32767).astype(np.int16)


def _say(spoken: str, voice: str, rate: int, pitch: int, speaker: Speaker) -> tuple[np.ndarray, int]:
    """espeak's samples, and how many they are at 16 kHz once the speaker's vocal tract is applied."""
    samples, sampling_rate = synthesise(spoken, voice, rate, pitch, speaker.pitch_range)
    return samples, round(len(samples) * RATE / sampling_rate / speaker.warp)


def write_wav(request: Request) -> None:
    """Speak the utterance into its file, 16-bit mono at 16 kHz."""
    with naming(request.path), wave.open(str(request.path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(RATE)
        stream.writeframes(speak(request).astype("<i2").tobytes())


@contextmanager
def workers(nj: int) -> Iterator[ProcessPoolExecutor]:
    """`nj` processes that speak. Stopped by an error or by the user, they drop what has not begun."""
    context = multiprocessing.get_context("spawn")
    # Ctrl-C is for the parent, which then stops the others.
    pool = ProcessPoolExecutor(nj, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def speak_all(requests: Sequence[Request], pool: ProcessPoolExecutor, what: str) -> None:
    """Write the wav file of every request, with progress; the files do not depend on the number of processes."""
    for folder in {request.path.parent for request in requests}:
        folder.mkdir(parents=True, exist_ok=True)
    for _ in track(pool.map(write_wav, requests, chunksize=8), len(requests), what):
        pass
