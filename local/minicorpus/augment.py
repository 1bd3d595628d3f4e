"""What happens to clean synthetic speech on its way to a microphone."""

import numpy as np
from scipy.signal import fftconvolve, lfilter


def augment(samples: np.ndarray, rate: int, level: int, random: np.random.Generator) -> np.ndarray:
    """Add silence at both ends, then by `level` a room, a spectral tilt and noise; set the gain; dither.

    level: 0 nothing more; 1 tilt and noise; 2 also a room for half of the utterances.
    samples: `(N,)` floats of any scale, at `rate` Hz. Returns float64 `(M,)`, M > N, with peaks between -1 and -10 dB.
    """
    before, after = random.uniform(0.03, 0.15), random.uniform(0.05, 0.2)
    samples = np.pad(samples.astype(np.float64), (round(before * rate), round(after * rate)))
    if level >= 2 and random.random() < 0.5:
        samples = fftconvolve(samples, room(rate, random))[: len(samples)]
    if level >= 1:
        samples = lfilter([1.0, random.uniform(-0.3, 0.3)], [1.0], samples)
        samples = samples + noise(samples, random)
    peak = 10 ** (random.uniform(-10, -1) / 20)
    samples = samples * (peak / np.abs(samples).max())
    # Two steps of a 16-bit sample: no run of exact zeros, whose logarithm would stand out.
    return samples + random.uniform(-2, 2, len(samples)) / 2**15


def room(rate: int, random: np.random.Generator) -> np.ndarray:
    """Impulse response: the direct path, then noise that decays by 60 dB in 0.15 to 0.5 s, 3 to 12 dB weaker."""
    decay = random.uniform(0.15, 0.5)
    time = np.arange(1, round(decay * rate)) / rate
    tail = random.standard_normal(len(time)) * 10 ** (-3 * time / decay)
    weaker = 10 ** (-random.uniform(3, 12) / 20)
    return np.concatenate(([1.0], tail * weaker / np.sqrt(np.sum(tail**2))))


def noise(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Noise between white and deep, 12 to 35 dB below the power of `samples`."""
    coloured = lfilter([1.0], [1.0, -random.uniform(0, 0.95)], random.standard_normal(len(samples)))
    below = 10 ** (-random.uniform(12, 35) / 20)
    return coloured * (below * np.sqrt(np.mean(samples**2) / np.mean(coloured**2)))
