"""What pretraining predicts: the cluster that each frame's MFCCs are in (Hsu et al. 2021, HuBERT, section II)."""

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pelasr.data.batch import Example
from pelasr.data.hears import LogMel
from pelasr.errors import PelasrError, brief
from pelasr.files import atomic_write
from pelasr.progress import track

MELS, CEPSTRA = LogMel(40), 13
SAMPLE = 60_000  # frames that the clusters are found in
ROUNDS = 20  # of k-means


def mfcc(samples: np.ndarray, frames: int) -> np.ndarray:
    """13 cepstra with their first and second differences, of mean 0 and variance 1 over the utterance, float32
    (`frames`, 39) of samples (N,) at 16 kHz: of each encoder frame of 20 ms the feature frame in its middle."""
    from scipy.fft import dct

    cepstra = np.asarray(dct(MELS(samples), type=2, norm="ortho", axis=1))[:, :CEPSTRA]
    slopes = np.gradient(cepstra, axis=0)
    middles = np.minimum(1 + 2 * np.arange(frames), len(cepstra) - 1)
    found = np.concatenate([cepstra, slopes, np.gradient(slopes, axis=0)], axis=1)[middles]
    return ((found - found.mean(0)) / np.maximum(found.std(0), 1e-3)).astype(np.float32)


def make_units(
    path: Path,
    train: Sequence[Example],
    dev: Sequence[Example],
    frames_of: Callable[[int], int],
    clusters: int,
    seed: int,
    sha256: str,
) -> list[list[int]]:
    """Clusters of the encoder's frames of utterances, those of the training first, in which the clusters are found.

    `frames_of`: how many frames the encoder has of so many samples. The clusters are kept in a file, for a run that
    goes on, which `sha256` tells from another run's. Raises PelasrError for a damaged file, and for an utterance that
    is too short for the encoder.
    """
    if (kept := _kept(path, sha256)) is not None:
        return kept
    found = []
    for example in track([*train, *dev], len(train) + len(dev), "MFCCs"):
        samples = example.feats.load()[:, 0]
        if (count := frames_of(len(samples))) < 1:
            what = f"{len(samples)} samples are too short for the encoder"
            raise PelasrError(f"utterance {example.id}: {what}; cure: drop it")
        found.append(mfcc(samples, count))
    centres = _clusters(found[: len(train)], clusters, seed)
    units = [_nearest(each, centres) for each in found]
    frames = [len(each) for each in units]
    with atomic_write(path, "wb") as stream:
        np.savez(stream, sha256=sha256, units=np.concatenate(units), frames=frames)
    return [each.tolist() for each in units]


def _kept(path: Path, sha256: str) -> list[list[int]] | None:
    """What is in the file, if it is there and this run's. Raises PelasrError for a damaged one."""
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            if str(stored["sha256"]) != sha256:
                return None
            return [each.tolist() for each in np.split(stored["units"], np.cumsum(stored["frames"])[:-1])]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise PelasrError(f"{path}: damaged ({brief(error, 100)}); delete it, and it is made again") from None


def _clusters(found: Sequence[np.ndarray], clusters: int, seed: int) -> np.ndarray:
    """The centres (K, 39), by k-means over some of the frames. Raises PelasrError where there are too few."""
    from scipy.cluster.vq import kmeans2

    everything, rng = np.concatenate(found), np.random.default_rng(seed)
    if len(everything) < clusters:
        raise PelasrError(f"num_clusters: {clusters} are more than the {len(everything)} frames of the training data")
    chosen = rng.permutation(len(everything))[:SAMPLE]
    return kmeans2(everything[np.sort(chosen)], clusters, iter=ROUNDS, minit="++", rng=rng)[0]


def _nearest(frames: np.ndarray, centres: np.ndarray) -> np.ndarray:
    from scipy.cluster.vq import vq

    return vq(frames, centres)[0].astype(np.int32)
