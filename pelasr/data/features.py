"""Log-mel features: computed once, kept as kaldi archives, and their global mean and deviation."""

import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from pelasr.data.archive import read_matrix
from pelasr.data.audio import load_audio
from pelasr.data.audio_index import hear
from pelasr.data.hears import RATE, USUAL, Hears
from pelasr.data.kaldi import AUDIO_FILES, Utterance, audio_sha256, data_sha256, read_data_dir
from pelasr.done import Marker
from pelasr.errors import PelasrError, brief
from pelasr.files import atomic_write, read_bytes, text_bytes
from pelasr.parallel import parallel_map

CHECKSUMS = "utt2checksum"
INDEX = ("feats.scp", "utt2num_frames", CHECKSUMS)  # of an archive
CURE = "cure: delete this folder and run stage 3 again"


def _extract_batch(hears: Hears, utterances: list[Utterance]) -> list[np.ndarray]:
    return [_extract_one(utterance, hears) for utterance in utterances]


def _extract_one(utterance: Utterance, hears: Hears) -> np.ndarray:
    return hear(utterance.id, utterance.audio, load_audio(utterance, RATE), hears)


@dataclass(frozen=True)
class Feats:
    """Where the features of an utterance are: at a byte of an archive, so many frames, with a checksum of their bytes
    that is compared whenever they are read."""

    utterance: str
    archive: str
    offset: int
    frames: int
    checksum: str

    def load(self) -> np.ndarray:
        """Float32 (T, C). Raises PelasrError if they are not as they were written."""
        cure = f"cure: delete {Path(self.archive).parent} and run stage 3 again"
        try:
            feats = read_matrix(f"{self.archive}:{self.offset}").astype(np.float32, copy=False)
        except PelasrError as error:
            fault = str(error).partition("; cure: ")[0]
            raise PelasrError(f"features of utterance {self.utterance} cannot be read: {fault}; {cure}") from None
        if checksum(feats) != self.checksum:
            raise PelasrError(f"{self.archive}: the features of utterance {self.utterance} are damaged; {cure}")
        return feats


def checksum(feats: np.ndarray) -> str:
    """Of the bytes of features (T, C): 16 hexadecimal digits."""
    return hashlib.blake2b(np.ascontiguousarray(feats, dtype="<f4").data, digest_size=8).hexdigest()


def marker_of(data_dir: Path, dump_dir: Path, hears: Hears | None = USUAL) -> Marker:
    """The done-file of a directory of features, for the data directory as it is now; `hears` None: of any kind.

    Audio that is gone cannot be compared: features that were made of it stay what they are.
    """
    inputs = {"data": data_sha256([data_dir], files=AUDIO_FILES), "audio": audio_sha256(data_dir)}
    if hears is not None and hears != USUAL:
        inputs["hears"] = asdict(hears)
    marker = Marker(dump_dir / "done.json", inputs)
    before = marker.found["inputs"] if marker.found is not None else {}
    taken = {"audio": inputs["audio"] is None, "hears": hears is None}
    as_found = {key: before[key] for key, is_taken in taken.items() if is_taken and key in before}
    return Marker(dump_dir / "done.json", inputs | as_found) if as_found else marker


def features_sha256(data_dir: Path, dump_dir: Path) -> str:
    """Hash of the features of a data directory. Raises PelasrError if there are none, or of other audio than now."""
    marker = marker_of(data_dir, dump_dir, hears=None)
    if not marker.done or marker.found is None:
        what = (
            "incomplete" if marker.finished else "not made" if marker.found is None else f"not of {data_dir} as it is"
        )
        raise PelasrError(f"{dump_dir}: features are {what}; run stage 3")
    return marker.found["outputs"][CHECKSUMS]


def extract(pairs: Sequence[tuple[str | Path, str | Path]], nj: int = 1, hears: Hears = USUAL) -> Iterator[Path]:
    """Write the features of data directories: pairs (data directory, directory of its features); yields what is done.

    A directory of features holds `feats.ark`, `feats.scp`, `utt2num_frames` and `utt2checksum`, and last `done.json`.
    The bytes do not depend on `nj`. Raises PelasrError naming the utterance if its audio cannot be read, is too short
    or gives features that are not finite; the directory then holds no features.
    """
    # Features are the same in any language, `und` is none in particular.
    contents = [(Path(data_dir), read_data_dir(data_dir, "und"), Path(dump_dir)) for data_dir, dump_dir in pairs]
    utterances = [utterance for _, content, _ in contents for utterance in content]
    feats = parallel_map(partial(_extract_batch, hears), utterances, nj, "features")
    for data_dir, content, dump_dir in contents:
        # An index must never point into another archive than its own, whenever the run is killed.
        _delete(dump_dir, "done.json", *INDEX)
        marker = marker_of(data_dir, dump_dir, hears)
        write_archive(dump_dir, zip([u.id for u in content], islice(feats, len(content)), strict=True))
        marker.write(done=True, outputs=[dump_dir / file for file in ("feats.ark", *INDEX)])
        yield dump_dir


def delete_features(dump_dir: Path) -> None:
    """Delete what `extract` wrote."""
    _delete(dump_dir, "done.json", *INDEX, "feats.ark")


def _delete(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).unlink(missing_ok=True)


def write_archive(dump_dir: Path, feats: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write utterances and their features, float32 (T, C) each, and the index of them."""
    import kaldiio

    lines: dict[str, list[str]] = {file: [] for file in INDEX}
    with atomic_write(dump_dir / "feats.ark", "wb") as stream:
        for name, array in feats:
            # kaldiio points past the id and the space behind it.
            offset = stream.tell() + len(name.encode()) + 1
            kaldiio.save_ark(stream, {name: array})
            values = f"{dump_dir}/feats.ark:{offset}", len(array), checksum(array)
            for file, value in zip(INDEX, values, strict=True):
                lines[file].append(f"{name} {value}\n")
    for file in INDEX:
        with atomic_write(dump_dir / file) as stream:
            stream.writelines(lines[file])


def read_feats(dump_dir: str | Path) -> dict[str, Feats]:
    """Where the features of each utterance are. The archive is the one in `dump_dir`, also after that was moved."""
    scp, frames, checksums = (_read_pairs(Path(dump_dir) / file) for file in INDEX)
    if not scp.keys() == frames.keys() == checksums.keys():
        raise PelasrError(f"{dump_dir}: {' and '.join(INDEX)} name different utterances; {CURE}")
    found = {}
    for name, spec in scp.items():
        path, _, offset = spec.rpartition(":")
        if not re.fullmatch("[0-9]{1,15}", offset) or not re.fullmatch("[0-9]{1,9}", frames[name]):
            raise PelasrError(f"{dump_dir}: utterance {brief(name)} has no offset or no number of frames; {CURE}")
        archive = f"{dump_dir}/{path.rpartition('/')[2]}"
        found[name] = Feats(name, archive, int(offset), int(frames[name]), checksums[name])
    return found


def read_num_frames(dump_dir: str | Path) -> dict[str, int]:
    """Utterance to its number of feature frames."""
    return {name: feats.frames for name, feats in read_feats(dump_dir).items()}


def _read_pairs(path: Path) -> dict[str, str]:
    if not path.exists():
        raise PelasrError(f"{path}: no features; cure: run stage 3, for a new language stage 5")
    try:
        lines = text_bytes(path, CURE).decode("utf-8").removesuffix("\n").split("\n")
        return dict(line.split(" ", 1) for line in lines if line)
    except ValueError as error:
        raise PelasrError(f"{path}: want lines of `utterance value` ({brief(error, 100)}); {CURE}") from None


def dumped(dump_dir: str | Path, hears: Hears = USUAL) -> Iterator[np.ndarray]:
    """The features (T, C) in a directory. Raises PelasrError if they have other channels than what a backbone hears."""
    for found in read_feats(dump_dir).values():
        feats = found.load()
        if feats.shape[1] != hears.channels:
            what = f"features of {feats.shape[1]} channels, want {hears.channels}"
            raise PelasrError(f"{found.archive}: {what}; {CURE}")
        yield feats


def feature_stats(features: Iterable[np.ndarray], hears: Hears = USUAL) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (C,) float64 over all frames of features (T, C)."""
    count, total, squares = 0, np.zeros(hears.channels), np.zeros(hears.channels)
    for each in features:
        feats = each.astype(np.float64)
        count += len(feats)
        total += feats.sum(0)
        squares += np.square(feats).sum(0)
    if not count:
        raise PelasrError("no features to take statistics of; cure: check that the data directories have utterances")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))
    # A constant band (8 kHz audio has nothing above 4 kHz) must not be blown up when features are divided by this.
    return mean, np.where(std < 1e-3, 1.0, std)


def save_stats(path: str | Path, mean: np.ndarray, std: np.ndarray) -> None:
    """Write mean and deviation (C,) as an npz file, atomically."""
    with atomic_write(path, "wb") as stream:
        np.savez(stream, mean=mean, std=std)


def load_stats(path: str | Path, hears: Hears = USUAL) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (C,) of an npz file. Raises PelasrError if they are of another number of channels."""
    if not Path(path).exists():
        raise PelasrError(f"{path}: no statistics; cure: run the statistics stage, 3, first")
    again = "cure: delete it, and run stage 3 again"
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as stored:
            mean, std = stored["mean"], stored["std"]
    except (ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise PelasrError(f"{path}: no statistics ({brief(error, 100)}); {again}") from None
    if mean.shape != (hears.channels,) or std.shape != (hears.channels,):
        found = f"statistics of {mean.shape} and {std.shape}, the backbone hears {hears.channels} channels"
        raise PelasrError(f"{path}: {found}; cure: run stage 3 with --config, the backbone's")
    return mean, std
