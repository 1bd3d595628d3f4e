"""Batches that mix languages in chosen shares, hold utterances of like length, and follow from the seed alone."""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np

from pelasr.errors import PelasrError


def language_shares(counts: dict[str, int], alpha: float = 0.0) -> dict[str, float]:
    """Share of each language in a batch, from its number of utterances n_i.

    Kannan et al. 2019, section 3.2: r_i = s_i / sum s, s_i = n_i + alpha (max n - n_i); alpha 0 is the natural
    distribution, 1 the uniform one.
    """
    if not 0 <= alpha <= 1:
        raise PelasrError(f"alpha: {alpha} is not between 0 (natural shares) and 1 (equal shares)")
    largest = max(counts.values())
    weights = {language: n + alpha * (largest - n) for language, n in counts.items()}
    total = sum(weights.values())
    return {language: weight / total for language, weight in weights.items()}


class BatchSampler:
    """Batches of indices for one epoch after another.

    An epoch has as many draws as there are utterances, divided among the languages by their shares; with natural shares
    every utterance comes once. A language whose share is below its part of the corpus goes on in the next epoch where
    it stopped, one above it starts its next pass.

    Args:
        lengths: frames of each utterance.
        languages: language of each utterance.
        batch_size: utterances per step, over all processes; None: by `batch_frames`.
        alpha: see `language_shares`.
        seed: with the epoch it determines the batches.
        rank, world_size: this process takes every `world_size`-th utterance of each batch.
        batch_frames: frames per step, about, over all processes (an utterance with several targets counts each time).
        sources: what each utterance's audio is; those of the same audio come in the same batch, as far as they fit.
    """

    # Lengths are stretched by up to this much before sorting, so that batches differ between epochs.
    JITTER = 0.15
    # Sorted together; long enough that padding is small, short enough that an epoch is not one ramp of lengths.
    BATCHES_PER_BUCKET = 64

    def __init__(
        self,
        lengths: list[int],
        languages: list[str],
        batch_size: int | None,
        alpha: float = 0.0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batch_frames: int | None = None,
        sources: list[str] | None = None,
    ):
        if batch_size is not None and batch_size < world_size:
            raise PelasrError(f"batch_size: {batch_size} is less than the {world_size} processes that share a batch")
        if len(lengths) < world_size:
            raise PelasrError(f"{len(lengths)} utterances are too few for {world_size} processes")
        self.lengths = np.asarray(lengths, dtype=np.float64)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.by_frames = batch_size is None
        per_batch = (batch_frames or 0) / self.lengths.mean() if batch_size is None else batch_size
        # No batch is larger than `batch_size`, unless a process would get nothing of it.
        self.steps = min(math.ceil(len(lengths) / per_batch), len(lengths) // world_size)
        self.sources = np.arange(len(lengths)) if sources is None else np.unique(sources, return_inverse=True)[1]
        labels = np.asarray(languages)
        self.members = {language: np.flatnonzero(labels == language) for language in sorted(set(languages))}
        shares = language_shares(dict(Counter(languages)), alpha)
        edges = np.cumsum([0.0, *(shares[language] for language in self.members)]).tolist()
        # The languages lie side by side on [0, 1], so that rounding each edge gives every epoch the same size.
        self.spans = dict(zip(self.members, zip(edges, edges[1:], strict=False), strict=True))

    def __len__(self) -> int:
        """Steps per epoch."""
        return self.steps

    def epoch(self, epoch: int) -> Iterator[list[int]]:
        """This process's part of every batch of an epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        drawn = rng.permutation(np.concatenate([self._draw(language, epoch) for language in self.members]))
        stretch = rng.uniform(1 - self.JITTER, 1 + self.JITTER, len(drawn))
        # Utterances of the same audio take the place, and the stretch, of the first of them.
        first, same = np.unique(self._groups(drawn), return_index=True, return_inverse=True)[1:]
        order = np.argsort(first[same], kind="stable")
        drawn, stretch = drawn[order], stretch[first[same]][order]
        keys = self.lengths[drawn] * stretch
        batches = self._batches_by_frames(drawn, keys) if self.by_frames else self._batches_by_number(drawn, keys)
        for number in rng.permutation(len(batches)):
            yield batches[number][self.rank :: self.world_size].tolist()

    def _groups(self, drawn: np.ndarray) -> np.ndarray:
        """The audio of each draw; an utterance that is drawn again in an epoch is in another group."""
        order = np.argsort(drawn, kind="stable")
        same = np.r_[False, drawn[order][1:] == drawn[order][:-1]]
        begins = np.maximum.accumulate(np.where(same, 0, np.arange(len(drawn))))
        again = np.empty(len(drawn), dtype=np.int64)
        again[order] = np.arange(len(drawn)) - begins
        return self.sources[drawn] + again * len(self.lengths)

    def _batches_by_number(self, drawn: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
        """As many batches as there are steps, of equal numbers of utterances."""
        buckets = np.array_split(np.arange(len(drawn)), max(1, len(self) // self.BATCHES_PER_BUCKET))
        return np.array_split(drawn[np.concatenate([bucket[_sorted(keys[bucket])] for bucket in buckets])], len(self))

    def _batches_by_frames(self, drawn: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
        """As many batches as there are steps, of nearly equal numbers of frames. None reaches into two buckets, where
        the longest utterances of one would meet the shortest of the next."""
        steps = np.array_split(np.arange(len(self)), max(1, len(self) // self.BATCHES_PER_BUCKET))
        batches = []
        for bucket in steps:
            members = np.arange(*(len(drawn) * edge // len(self) for edge in (bucket[0], bucket[-1] + 1)))
            order = drawn[members[_sorted(keys[members])]]
            ends = np.cumsum(self.lengths[order])
            inner = np.arange(1, len(bucket))
            cuts = np.searchsorted(ends, ends[-1] * inner / len(bucket))
            # Every process must get something of every batch.
            room = self.world_size * inner
            cuts = np.maximum.accumulate(np.maximum(cuts, room) - room) + room
            batches += np.split(order, np.minimum(cuts, len(order) - room[::-1]))
        return batches

    def _draw(self, language: str, epoch: int) -> np.ndarray:
        """The language's utterances of this epoch: a window, moved on by its width every epoch, of endless passes."""
        members = self.members[language]
        low, high = self.spans[language]
        draws = len(self.lengths)
        start, stop = (round(high * draws * e) - round(low * draws * e) for e in (epoch, epoch + 1))
        index = np.arange(start, stop)
        passes = {
            number: np.random.default_rng([self.seed, 1 + number, *language.encode()]).permutation(members)
            for number in range(start // len(members), stop // len(members) + 1)
        }
        return np.array([passes[i // len(members)][i % len(members)] for i in index], dtype=np.int64)


def _sorted(keys: np.ndarray) -> np.ndarray:
    return np.argsort(keys, kind="stable")


def sorted_batches(lengths: list[int], batch_size: int, batch_frames: int | None = None) -> list[list[int]]:
    """Every utterance once, in batches of like length, longest first (so that lack of memory shows at once). With
    `batch_frames` none has more, padding included, where one utterance alone has not."""
    order, batches, first = sorted(range(len(lengths)), key=lambda n: -lengths[n]), [], 0
    while first < len(order):
        most = batch_size if batch_frames is None else batch_frames // max(lengths[order[first]], 1)
        batches.append(order[first : first + max(1, min(batch_size, most))])
        first += len(batches[-1])
    return batches
