"""The speech of data directories as a backbone hears it: features that stage 3 wrote, or audio that is read when it is
needed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np

from pelasr.data import audio_index, features
from pelasr.data.hears import USUAL, Hears, num_frames
from pelasr.data.kaldi import Utterance, read_data_dir
from pelasr.done import Marker
from pelasr.parallel import parallel_map


class Speech(Protocol):
    """The speech of an utterance: equal and hashable where it is the same audio."""

    @property
    def frames(self) -> int:
        """Of 10 ms, whatever is heard."""
        ...

    def load(self) -> np.ndarray:
        """Float32 (T, C). Raises PelasrError if it is not as stage 3 left it."""
        ...


def is_dumped(dump_dir: Path, hears: Hears | None) -> bool:
    """Whether features are to be read, and not audio. Where there is neither, features are what is missing."""
    if hears is not None and not hears.dumped:
        return False
    if not (dump_dir / audio_index.DONE).exists():
        return True
    found = Marker(dump_dir / "done.json", {}).found
    if found is None:
        return False
    return hears is None or found["inputs"].get("hears", asdict(USUAL)) == asdict(hears)


def read_speech(utterances: Sequence[Utterance], dump_dir: Path, hears: Hears) -> Mapping[str, Speech]:
    """The speech of those of the utterances of a data directory that stage 3 found. Raises PelasrError if it found
    none."""
    if is_dumped(dump_dir, hears):
        return features.read_feats(dump_dir)
    return audio_index.read_audios(utterances, dump_dir, hears)


def speech_sha256(data_dir: Path, dump_dir: Path, hears: Hears | None) -> str:
    """Hash of the speech of a data directory; `hears` None: of features of any kind. Raises PelasrError where stage 3
    has not seen it as it is."""
    if is_dumped(dump_dir, hears):
        return features.features_sha256(data_dir, dump_dir)
    return audio_index.index_sha256(data_dir, dump_dir)


def hear_all(dump_dir: Path, data_dir: Path, hears: Hears, nj: int) -> Iterator[np.ndarray]:
    """What is heard (T, C) of each utterance of a data directory, in order, by `nj` processes at most."""
    if is_dumped(dump_dir, hears):
        yield from features.dumped(dump_dir, hears)
    else:
        audios = audio_index.read_audios(read_data_dir(data_dir, "und"), dump_dir, hears)
        yield from parallel_map(_load, list(audios.values()), nj, "features")


def _load(audios: list[audio_index.Audio]) -> list[np.ndarray]:
    return [audio.load() for audio in audios]


def has_frames(dump_dir: Path) -> bool:
    """Whether stage 3 has counted the frames of a data directory."""
    return (dump_dir / "utt2num_frames").exists() or (dump_dir / audio_index.INDEX).exists()


def read_num_frames(dump_dir: Path) -> dict[str, int]:
    """Utterance to its number of frames of 10 ms. Raises PelasrError where they were not counted."""
    if (dump_dir / audio_index.INDEX).exists() and not (dump_dir / "utt2num_frames").exists():
        return {name: num_frames(known.samples) for name, known in audio_index.read_index(dump_dir).items()}
    return features.read_num_frames(dump_dir)
