"""What a backbone hears of audio at 16 kHz: log-mel features, the waveform, or what transformers' extractors make."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from threading import Lock
from typing import Any, ClassVar

import numpy as np

from pelasr.errors import PelasrError, nearest

RATE = 16000
HOP = 160  # 10 ms
FRAMES_PER_HOUR = 100 * 3600
FFT = 512


def num_frames(samples: int) -> int:
    """Feature frames of 10 ms of an audio of so many samples at 16 kHz: the measure of audio, whatever is heard of
    it."""
    return 1 + samples // HOP


_counted = Lock()  # torch has one number of threads for all: who sets it must be the one that sets it back


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block torch uses one thread: the bytes of what is heard must not depend on how many there are."""
    import torch

    with _counted:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class Hears(ABC):
    """What a backbone hears, of so many channels.

    `dumped`: stage 3 writes it, unless it is told not to; other kinds are made of the audio whenever they are needed.
    `has_stats`: the backbone is given mean and deviation of each channel over the training data. `shortest`, `longest`:
    samples of an audio that it can be made of.
    """

    name: ClassVar[str]
    dumped: ClassVar[bool] = False
    has_stats: ClassVar[bool] = False
    channels: int

    @property
    def shortest(self) -> int:
        return 1

    @property
    def longest(self) -> float:
        return float("inf")

    @abstractmethod
    def rows(self, samples: int) -> int:
        """How many rows T there are of an audio of so many samples."""

    @abstractmethod
    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Float32 (T, C) of an audio (N,). Raises PelasrError as `check` does."""

    def check(self, samples: int) -> None:
        """Raise PelasrError for audio of so many samples, if it is too short or too long."""
        if samples < self.shortest:
            least = max(25, -(-1000 * self.shortest // RATE))
            raise PelasrError(f"{samples} samples are too short for features; cure: drop what is under {least} ms")
        if samples > self.longest:
            what = f"{samples / RATE:.1f} s, more than the {self.longest / RATE:.0f} s that the backbone can hear"
            raise PelasrError(f"{what}; cure: cut it, by `segments`")

    def facts(self) -> dict[str, Any]:
        """What `hearing` makes it from again."""
        return {"name": self.name, **{each.name: getattr(self, each.name) for each in fields(self) if each.init}}


@dataclass(frozen=True)
class LogMel(Hears):
    """Natural log of the mel power spectrum, T = 1 + N // 160: windows of 25 ms every 10 ms, with ESPnet's layers and
    values."""

    name = "log_mel"
    dumped = True
    has_stats = True
    channels: int = 80

    def __post_init__(self):
        """Raises PelasrError for a number of channels that cannot be."""
        if self.channels < 1:
            raise PelasrError(f"{self.name}: {self.channels} channels; want 1 or more")

    @property
    def shortest(self) -> int:
        return FFT // 2 + 1  # the first window is centred on the first sample and mirrors what lies before it

    def rows(self, samples: int) -> int:
        return num_frames(samples)

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        import torch

        self.check(len(audio))
        stft, mel = _layers(self.channels)
        with torch.inference_mode():
            spectrum, _ = stft(torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32)).unsqueeze(0))
            return mel(spectrum.square().sum(-1))[0].squeeze(0).numpy()


USUAL = LogMel()


@cache
def _layers(channels: int):
    from espnet2.layers.log_mel import LogMel as MelFilters
    from espnet2.layers.stft import Stft

    stft = Stft(n_fft=FFT, win_length=RATE * 25 // 1000, hop_length=HOP, window="hann", center=True)
    return stft, MelFilters(fs=RATE, n_fft=FFT, n_mels=channels)


@dataclass(frozen=True)
class Waveform(Hears):
    """The samples, (N, 1); where `normalise` with mean zero and variance one, as transformers' Wav2Vec2FeatureExtractor
    does it."""

    name = "waveform"
    channels: int = field(default=1, init=False)
    normalise: bool = True

    def rows(self, samples: int) -> int:
        return samples

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        self.check(len(audio))
        audio = np.ascontiguousarray(audio, dtype=np.float32)
        if self.normalise:
            audio = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
        return audio[:, None]


WINDOW = 30 * RATE  # samples that Whisper hears: silence is added to what is shorter
EXTRACTORS = {"whisper": (80, 128), "seamless": (160,)}  # and the channels that they can have


@dataclass(frozen=True, kw_only=True)
class Extracted(Hears):
    """What transformers' extractors make of one utterance: `whisper`, (3000, 80 or 128), 30 s of log-mel; `seamless`,
    of Wav2Vec2-BERT, (T, 160), two frames of log-mel a row, each channel with mean zero and variance one.

    Of an odd number of frames Seamless' last one has no partner; transformers' mask leaves that row out, so it is not
    there.
    """

    name = "extracted"
    kind: str = "whisper"
    channels: int = 80

    def __post_init__(self):
        """Raises PelasrError for an extractor that there is not, or not of so many channels."""
        if self.kind not in EXTRACTORS:
            raise PelasrError(f"no extractor {self.kind!r}; {nearest(self.kind, EXTRACTORS)}")
        if self.channels not in EXTRACTORS[self.kind]:
            known = " or ".join(map(str, EXTRACTORS[self.kind]))
            raise PelasrError(f"extractor {self.kind}: {self.channels} channels; want {known}")

    @property
    def shortest(self) -> int:
        return 1 if self.kind == "whisper" else 400 + HOP  # two windows

    @property
    def longest(self) -> float:
        return WINDOW if self.kind == "whisper" else float("inf")

    def rows(self, samples: int) -> int:
        return WINDOW // HOP if self.kind == "whisper" else (1 + (samples - 400) // HOP) // 2

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        self.check(len(audio))
        audio, extractor = np.asarray(audio, dtype=np.float32), _extractor(self.kind, self.channels)
        if self.kind == "whisper":
            # Not by torch, as the extractor itself does it: that takes twice as long, and depends on torch's threads.
            padded = np.pad(audio, (0, WINDOW - len(audio)))[None]
            return np.ascontiguousarray(extractor._np_extract_fbank_features(padded, "cpu")[0].T, dtype=np.float32)
        found = extractor(audio, sampling_rate=RATE, return_tensors="np")["input_features"][0]
        return found[: self.rows(len(audio))].astype(np.float32, copy=False)


@cache
def _extractor(kind: str, channels: int) -> Any:
    try:
        from transformers import SeamlessM4TFeatureExtractor, WhisperFeatureExtractor
    except ImportError:
        raise PelasrError("transformers is not installed; cure: tools/install.sh hf") from None
    if kind == "whisper":
        return WhisperFeatureExtractor(feature_size=channels)
    return SeamlessM4TFeatureExtractor()


KINDS: dict[str, type[Hears]] = {each.name: each for each in (LogMel, Waveform, Extracted)}


def hearing(facts: dict[str, Any]) -> Hears:
    """What has these facts. Raises PelasrError if there is no such thing."""
    options = dict(facts)
    name = str(options.pop("name", None))
    if name not in KINDS:
        raise PelasrError(f"nothing that a backbone hears is called {name!r}; {nearest(name, KINDS)}")
    kinds = {each.name: type(each.default) for each in fields(KINDS[name]) if each.init}
    if {key: type(value) for key, value in options.items()} != kinds:
        raise PelasrError(f"{name}: want the keys {', '.join(kinds)} with values of their kinds")
    return KINDS[name](**options)
