"""Long audio in pieces, cut where it is quietest."""

import numpy as np

HOP, SMOOTHED = 0.01, 0.3  # seconds between the places where it may be cut, and around each that count


def cut(samples: np.ndarray, rate: int, longest: float) -> list[tuple[int, int]]:
    """Pieces (first sample, sample after the last) of audio (N,), of `longest` seconds at most, which together are all
    of it.

    Each is cut off at the quietest place in the second half of what it might be; of equally quiet ones at that in their
    middle. Audio of up to `longest` seconds is one piece; of longer audio none is shorter than a quarter of that.
    """
    hop, most = round(HOP * rate), round(longest * rate)
    if len(samples) <= most:
        return [(0, len(samples))]
    loudness = _loudness(samples, hop)
    pieces, start = [], 0
    while len(samples) - start > most:
        first, last = start + most // 2, min(start + most, len(samples) - most // 4)
        places = np.arange(-(-first // hop), last // hop + 1)
        quietest = places[loudness[places] == loudness[places].min()]
        pieces.append((start, int(quietest[len(quietest) // 2]) * hop))
        start = pieces[-1][1]
    return [*pieces, (start, len(samples))]


def _loudness(samples: np.ndarray, hop: int) -> np.ndarray:
    """Energy around every `hop`-th sample, the first one included: the nearest samples count most."""
    parts = samples[: len(samples) // hop * hop].reshape(-1, hop)
    energy = np.einsum("nh,nh->n", parts, parts, dtype=np.float64)
    half = round(SMOOTHED / HOP / 2)
    # Not a running sum, whose rounding would drown a quiet pause in what came before.
    return np.convolve(energy, np.hanning(2 * half + 2)[1:-1])[half - 1 : half + len(energy)]
