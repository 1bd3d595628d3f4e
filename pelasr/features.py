"""Log-mel features: computed once, kept as kaldi archives, and their global mean and deviation."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pelasr.audio import load_audio
from pelasr.data import Utterance, read_data_dir
from pelasr.errors import PelasrError
from pelasr.files import atomic_write
from pelasr.parallel import parallel_map

RATE = 16000
MELS = 80
HOP = 160  # 10 ms
FRAMES_PER_HOUR = 100 * 3600
FFT = 512
MIN_SAMPLES = FFT // 2 + 1  # the first window is centred on the first sample and mirrors what lies before it


def num_frames(samples: int) -> int:
    """Feature frames of 10 ms of an audio of so many samples at 16 kHz."""
    return 1 + samples // HOP


@cache
def _layers(rate: int):
    from espnet2.layers.log_mel import LogMel
    from espnet2.layers.stft import Stft

    stft = Stft(n_fft=FFT, win_length=rate * 25 // 1000, hop_length=rate // 100, window="hann", center=True)
    return stft, LogMel(fs=rate, n_fft=FFT, n_mels=MELS)


def log_mel(audio: np.ndarray, rate: int = RATE) -> np.ndarray:
    """Natural log of the mel power spectrum, float32 (T, 80) with T = 1 + N // 160, of an audio (N,) at 16 kHz.

    Windows of 25 ms every 10 ms, with ESPnet's layers and values. Raises PelasrError on audio of 16 ms or less.
    """
    import torch

    if len(audio) < MIN_SAMPLES:
        raise PelasrError(f"{len(audio)} samples are too short for features; cure: drop what is under 25 ms")
    stft, mel = _layers(rate)
    with torch.inference_mode():
        spectrum, _ = stft(torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32)).unsqueeze(0))
        return mel(spectrum.square().sum(-1))[0].squeeze(0).numpy()


def _extract_batch(utterances: list[Utterance]) -> list[np.ndarray]:
    """Features of some utterances, in one thread: the bytes must not depend on how many there are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_extract_one(utterance) for utterance in utterances]
    finally:
        torch.set_num_threads(threads)


def _extract_one(utterance: Utterance) -> np.ndarray:
    audio = load_audio(utterance, RATE)
    try:
        feats = log_mel(audio)
    except PelasrError as error:
        raise PelasrError(f"utterance {utterance.id}: {utterance.audio}: {error}") from error
    if not np.isfinite(feats).all():
        cure = "cure: mend the audio, or drop the utterance with --skip_bad true"
        raise PelasrError(f"utterance {utterance.id}: {utterance.audio}: features are not finite; {cure}")
    return feats


def extract(pairs: Sequence[tuple[str | Path, str | Path]], nj: int = 1) -> Iterator[Path]:
    """Write the features of data directories: pairs (data directory, directory of its features); yields what is done.

    A directory of features holds `feats.ark`, `feats.scp` and, last, `utt2num_frames`. The bytes do not depend on `nj`.
    Raises PelasrError naming the utterance if its audio cannot be read, is too short or gives features that are not
    finite; the directory then holds no features.
    """
    contents = [(read_data_dir(data_dir), Path(dump_dir)) for data_dir, dump_dir in pairs]
    utterances = [utterance for content, _ in contents for utterance in content]
    feats = parallel_map(_extract_batch, utterances, nj, "features")
    for content, dump_dir in contents:
        _write_archive(dump_dir, content, islice(feats, len(content)))
        yield dump_dir


def _write_archive(dump_dir: Path, utterances: list[Utterance], feats: Iterable[np.ndarray]) -> None:
    import kaldiio

    # An index must never point into another archive than its own, whenever the run is killed.
    for file in ("utt2num_frames", "feats.scp"):
        (dump_dir / file).unlink(missing_ok=True)
    index, frames = [], []
    with atomic_write(dump_dir / "feats.ark", "wb") as stream:
        for utterance, array in zip(utterances, feats, strict=True):
            # kaldiio points past the id and the space behind it.
            offset = stream.tell() + len(utterance.id.encode()) + 1
            kaldiio.save_ark(stream, {utterance.id: array})
            index.append(f"{utterance.id} {dump_dir}/feats.ark:{offset}\n")
            frames.append(f"{utterance.id} {len(array)}\n")
    for file, lines in (("feats.scp", index), ("utt2num_frames", frames)):
        with atomic_write(dump_dir / file) as stream:
            stream.writelines(lines)


def read_feats(dump_dir: str | Path) -> dict[str, str]:
    """Utterance to `file.ark:offset`. The archive is the one in `dump_dir`, also after the directory was moved."""
    pairs = _read_pairs(Path(dump_dir) / "feats.scp")
    return {name: f"{dump_dir}/{spec.rpartition('/')[2]}" for name, spec in pairs.items()}


def read_num_frames(dump_dir: str | Path) -> dict[str, int]:
    """Utterance to its number of feature frames."""
    return {name: int(value) for name, value in _read_pairs(Path(dump_dir) / "utt2num_frames").items()}


def _read_pairs(path: Path) -> dict[str, str]:
    if not path.exists():
        raise PelasrError(f"{path}: no features; cure: run the feature stage first")
    try:
        with open(path, encoding="utf-8", newline="\n") as lines:
            return dict(line.rstrip("\n").split(" ", 1) for line in lines)
    except ValueError:  # not UTF-8 is one too
        raise PelasrError(f"{path}: altered or cut off; cure: delete {path.parent}, and run stage 3 again") from None


def load_feats(spec: str) -> np.ndarray:
    """The features (T, 80) float32 at a `file.ark:offset`."""
    import kaldiio

    try:
        return kaldiio.load_mat(spec)
    except OSError:
        raise
    except Exception as error:  # kaldiio raises nearly anything on a damaged file
        folder = Path(spec.rpartition(":")[0]).parent
        raise PelasrError(f"{spec}: altered or cut off; cure: delete {folder}, and run stage 3 again") from error


def feature_stats(dump_dirs: Iterable[str | Path]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (80,) float64 over all frames of the features in some directories."""
    count, total, squares = 0, np.zeros(MELS), np.zeros(MELS)
    for dump_dir in dump_dirs:
        for spec in read_feats(dump_dir).values():
            feats = load_feats(spec).astype(np.float64)
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
    """Write mean and deviation (80,) as an npz file, atomically."""
    with atomic_write(path, "wb") as stream:
        np.savez(stream, mean=mean, std=std)


def load_stats(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (80,) of an npz file."""
    if not Path(path).exists():
        raise PelasrError(f"{path}: no statistics; cure: run the statistics stage first")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["mean"], stored["std"]
    except (BadZipFile, EOFError, KeyError, ValueError, TypeError):  # a file of another kind may be no mapping
        raise PelasrError(f"{path}: altered or cut off; cure: delete it, and run stage 3 again") from None
