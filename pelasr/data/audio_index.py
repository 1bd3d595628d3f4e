"""Audio that is heard when it is needed, and the index by which it is known again: its length and a digest."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pelasr.data.audio import read_audio, resample
from pelasr.data.hears import RATE, Hears, num_frames, one_thread
from pelasr.data.kaldi import AUDIO_FILES, Utterance, audio_sha256, data_sha256, read_data_dir
from pelasr.done import Marker
from pelasr.errors import PelasrError, brief
from pelasr.files import atomic_write, text_bytes
from pelasr.parallel import parallel_map

INDEX = "utt2audio"
DONE = "audio.json"
LOUDEST = 1 << 15  # of the samples in a digest, which are floats: some files hold numbers beyond 1
LINE = re.compile("([0-9]{1,12}) ([0-9a-f]{16})")


class Known(NamedTuple):
    """What is known of an utterance's audio: its samples at 16 kHz, and a digest of what was decoded."""

    samples: int
    digest: str


@dataclass(frozen=True)
class Audio:
    """The audio of an utterance, from `start` to `end` seconds, and what is heard of it. `index`: the file that says
    what is known of it, with which it is compared whenever it is read."""

    utterance: str
    audio: str
    start: float | None
    end: float | None
    known: Known
    index: str
    hears: Hears

    @property
    def frames(self) -> int:
        """Of 10 ms."""
        return num_frames(self.known.samples)

    def load(self) -> np.ndarray:
        """Float32 (T, C): what is heard. Raises PelasrError for audio that is not as it was indexed."""
        samples, found = _decode(self.utterance, self.audio, self.start, self.end)
        if found != self.known:
            what = (
                f"{found.samples} samples at 16 kHz, {self.known.samples} when {self.index} was made"
                if found.samples != self.known.samples
                else f"other audio than when {self.index} was made"
            )
            raise PelasrError(_at_fault(self.utterance, self.audio, f"{what}; cure: restore it, or run stage 3 again"))
        return hear(self.utterance, self.audio, samples, self.hears)


def hear(utterance: str, audio: str, samples: np.ndarray, hears: Hears) -> np.ndarray:
    """What is heard of the samples (N,) of an utterance. Raises PelasrError naming it and its file if they are too
    short or too long, or if what is heard is not finite."""
    try:
        with one_thread():
            found = hears(samples)
    except PelasrError as error:
        raise PelasrError(_at_fault(utterance, audio, str(error))) from error
    if not np.isfinite(found).all():
        cure = "cure: mend the audio, or drop the utterance with --skip_bad true"
        raise PelasrError(_at_fault(utterance, audio, f"features are not finite; {cure}"))
    return found


def _at_fault(utterance: str, audio: str, what: str) -> str:
    return f"utterance {utterance}: {audio}: {what}"


def _decode(utterance: str, audio: str, start: float | None, end: float | None) -> tuple[np.ndarray, Known]:
    """Samples (N,) at 16 kHz, and what is to be known of them. The digest is of 16 bits a sample at the file's own
    rate. Raises PelasrError for what cannot be read, is empty or not finite."""
    try:
        native, rate = read_audio(audio, start, end)
    except PelasrError as error:
        raise PelasrError(f"utterance {utterance}: {error}") from error
    if not len(native):
        raise PelasrError(_at_fault(utterance, audio, "no samples; cure: drop the utterance"))
    if not np.isfinite(native).all():
        cure = "cure: mend the audio, or drop the utterance with --skip_bad true"
        raise PelasrError(_at_fault(utterance, audio, f"samples that are no finite numbers; {cure}"))
    rounded = np.rint(32768 * np.clip(native, -LOUDEST, LOUDEST)).astype("<i4")
    samples = resample(native, rate, RATE)
    return samples, Known(len(samples), hashlib.blake2b(rounded.data, digest_size=8).hexdigest())


def _know(utterances: list[Utterance]) -> list[Known]:
    return [_decode(each.id, each.audio, each.start, each.end)[1] for each in utterances]


def index_marker(data_dir: Path, dump_dir: Path) -> Marker:
    """The done-file of an index, for the data directory as it is now. Audio that is gone cannot be compared: the index
    stays what it is."""
    inputs = {"data": data_sha256([data_dir], files=AUDIO_FILES), "audio": audio_sha256(data_dir)}
    marker = Marker(dump_dir / DONE, inputs)
    if inputs["audio"] is None and marker.found is not None and "audio" in marker.found["inputs"]:
        return Marker(dump_dir / DONE, inputs | {"audio": marker.found["inputs"]["audio"]})
    return marker


def index_sha256(data_dir: Path, dump_dir: Path) -> str:
    """Hash of the audio of a data directory, wherever it lies. Raises PelasrError if it is not known, or is other audio
    than now."""
    marker = index_marker(data_dir, dump_dir)
    if not marker.done or marker.found is None:
        what = "damaged" if marker.finished else "not made" if marker.found is None else f"not of {data_dir} as it is"
        raise PelasrError(f"{dump_dir}/{INDEX}: the index of the audio is {what}; run stage 3")
    return marker.found["outputs"][INDEX]


def index_audio(pairs: Sequence[tuple[Path, Path]], nj: int = 1) -> Iterator[Path]:
    """Write the index of the audio of data directories: pairs (data directory, directory of its index); yields what is
    done. Every file is read. Raises PelasrError naming the utterance if its audio cannot be read."""
    contents = [(data_dir, read_data_dir(data_dir, "und"), dump_dir) for data_dir, dump_dir in pairs]
    utterances = [utterance for _, content, _ in contents for utterance in content]
    found = parallel_map(_know, utterances, nj, "audio read")
    for data_dir, content, dump_dir in contents:
        marker = index_marker(data_dir, dump_dir)
        known = list(islice(found, len(content)))
        with atomic_write(dump_dir / INDEX) as stream:
            stream.writelines(
                f"{utterance.id} {each.samples} {each.digest}\n" for utterance, each in zip(content, known, strict=True)
            )
        marker.write(done=True, outputs=[dump_dir / INDEX])
        yield dump_dir


def read_index(dump_dir: str | Path) -> dict[str, Known]:
    """What is known of each utterance's audio. Raises PelasrError if nothing is."""
    path = Path(dump_dir) / INDEX
    if not path.exists():
        raise PelasrError(f"{path}: no such file; cure: run stage 3, for a new language stage 5")
    cure = "cure: delete it and run stage 3 again"
    found = {}
    try:
        for line in text_bytes(path, cure).decode("utf-8").removesuffix("\n").split("\n"):
            name, _, value = line.partition(" ")
            if not (matched := LINE.fullmatch(value)):
                raise ValueError(brief(line))
            found[name] = Known(int(matched[1]), matched[2])
    except ValueError as error:
        what = f"want lines of `utterance samples digest` ({brief(error, 100)})"
        raise PelasrError(f"{path}: {what}; {cure}") from None
    return found


def read_audios(utterances: Sequence[Utterance], dump_dir: str | Path, hears: Hears) -> dict[str, Audio]:
    """The audio of those utterances that are in the index. Raises PelasrError for one that is too short or too long to
    be heard."""
    index, audios = read_index(dump_dir), {}
    for each in utterances:
        if known := index.get(each.id):
            try:
                hears.check(known.samples)
            except PelasrError as error:
                raise PelasrError(_at_fault(each.id, each.audio, str(error))) from error
            path = f"{dump_dir}/{INDEX}"
            audios[each.id] = Audio(each.id, each.audio, each.start, each.end, known, path, hears)
    return audios
