"""Searches by CTC alone: the best path, and a beam of prefixes.

The prefix beam search (Graves 2012; Hannun et al. 2014) sums over the paths of a label sequence, which the best path
does not. Every frame either leaves a prefix as it is or appends a label; that two ways lead to the same prefix is seen
by its node in a tree of all prefixes that there were.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pelasr.nn.layers import within
from pelasr.search.hypothesis import Hypothesis
from pelasr.search.lm import Fusion, Words

BLANK = 0
NOBODY = -1  # of a place in the beam without a prefix
NEVER = -np.inf


def ctc_best_path(logits: Tensor, lens: Tensor) -> list[Hypothesis]:
    """The most probable label of every frame of (B, T, V), repeats merged and blanks left out; its log probability."""
    scores, path = logits.float().log_softmax(-1).max(-1)
    new = path.ne(F.pad(path, (1, 0), value=BLANK)[:, :-1])
    mask = within(lens, path.shape[1])
    kept = new & path.ne(BLANK) & mask
    totals = (scores * mask).sum(1).tolist()
    return [Hypothesis(row[keep].tolist(), total) for row, keep, total in zip(path, kept, totals, strict=True)]


def ctc_beam_search(
    logits: Tensor, lens: Tensor, beam_size: int, fusions: Sequence[Fusion | None] | None = None
) -> list[Hypothesis]:
    """The label sequence of the largest probability among those that a beam of prefixes leaves, and its logarithm.

    Args:
        logits: (B, T, V), blank = 0; minus infinity for tokens that are not the row's.
        lens: valid frames (B,).
        beam_size: prefixes that are kept at each frame; 1 without a language model is the best path.
        fusions: what a language model adds to the log probability in each row, if anything.

    An utterance's result does not depend on what it is batched with.
    """
    fusions = fusions or [None] * len(logits)
    if beam_size == 1 and not any(fusions):
        return ctc_best_path(logits, lens)
    frames, tree = Frames.of(logits, lens, beam_size, fusions), Tree.of(fusions)
    beam = Beam.start(len(logits), beam_size)
    for t in range(int(lens.max())):
        beam = beam.step(frames, t, tree)
    total = np.logaddexp(beam.blank, beam.label)
    for row in [row for row, fusion in enumerate(fusions) if fusion]:
        found = [words.total if (words := tree.words(node)) else NEVER for node in beam.node[row].tolist()]
        total[row] += found
    best = total.argmax(1)
    each = np.arange(len(best))
    scores, nodes = total[each, best].tolist(), beam.node[each, best].tolist()
    return [Hypothesis(tree.labels(node), score) for node, score in zip(nodes, scores, strict=True)]


@dataclass
class Frames:
    """What each frame says, in float64: log probabilities (B, T, V), and of the M likeliest labels of each frame,
    (B, T, M), numbers and log probabilities. Beyond an utterance's end there are blanks, which change nothing.

    M is twice the beam's size: of what a prefix may become only so many can stay in the beam, and the others of these
    labels are, at worst, the prefix's last one and those that lead to prefixes that are there. With language models
    there are as many of the labels that end a word, to which these add something, and `ends` (B, T, M) says which.
    """

    log_probs: np.ndarray
    labels: np.ndarray
    likeliest: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, logits: Tensor, lens: Tensor, beam_size: int, fusions: Sequence[Fusion | None]) -> "Frames":
        """Of logits (B, T, V) and frames (B,)."""
        log_probs = logits.double().log_softmax(-1)
        beyond = ~within(lens, logits.shape[1])
        log_probs = log_probs.masked_fill(beyond[..., None], NEVER)
        log_probs[..., BLANK] = log_probs[..., BLANK].masked_fill(beyond, 0.0)
        starts = torch.zeros(len(logits), 1, logits.shape[-1], dtype=torch.bool)
        for row, fusion in enumerate(fusions):
            if fusion:
                starts[row, 0, : len(fusion.starts)] = torch.from_numpy(fusion.starts)
        starts = starts.to(logits.device)
        kinds = [log_probs.masked_fill(starts, NEVER), log_probs.masked_fill(~starts, NEVER)]
        size = min(2 * beam_size, logits.shape[-1] - 1)
        found = [kind[..., 1:].topk(size, dim=-1) for kind in (kinds if any(fusions) else [log_probs])]
        labels = torch.cat([labels for _, labels in found], dim=-1) + 1
        ends = starts.expand_as(log_probs).gather(-1, labels)
        parts = log_probs, labels, torch.cat([likeliest for likeliest, _ in found], dim=-1), ends
        return cls(*(part.cpu().numpy() for part in parts))


@dataclass
class Tree:
    """All prefixes of all utterances: a node for each, the first of them empty, and their words where a language model
    counts them."""

    roots: list[Words | None]
    nodes: dict[tuple[int, int], int] = field(default_factory=dict)  # by parent and label
    origins: list[tuple[int, int, Words | None]] = field(default_factory=list)  # parent, label, words: no roots'

    @classmethod
    def of(cls, fusions: Sequence[Fusion | None]) -> "Tree":
        """The empty prefixes."""
        return cls([fusion.start() if fusion else None for fusion in fusions])

    def child(self, parent: int, label: int) -> int:
        """The node of a prefix with one label more."""
        node = self.nodes.setdefault((parent, label), len(self.roots) + len(self.origins))
        if node == len(self.roots) + len(self.origins):
            words = self.words(parent)
            self.origins.append((parent, label, words.append(label) if words else None))
        return node

    def words(self, node: int) -> Words | None:
        """The words of a prefix."""
        if node == NOBODY:
            return None
        return self.roots[node] if node < len(self.roots) else self.origins[node - len(self.roots)][2]

    def labels(self, node: int) -> list[int]:
        """The prefix of a node."""
        found: list[int] = []
        while node >= len(self.roots):
            node, label, _ = self.origins[node - len(self.roots)]
            found.append(label)
        return found[::-1]


@dataclass
class Beam:
    """The prefixes that are kept, (B, K) each: node, the node of all but the last label, the last label, the log
    probability of the paths to here that end in blank, and in the label; what complete words add to it, and what the
    last word will add."""

    node: np.ndarray
    parent: np.ndarray
    last: np.ndarray
    blank: np.ndarray
    label: np.ndarray
    words: np.ndarray
    pending: np.ndarray

    @classmethod
    def start(cls, utterances: int, beam_size: int) -> "Beam":
        """The empty prefix of each utterance."""
        beam = cls.empty(utterances, beam_size)
        beam.node[:, 0], beam.blank[:, 0] = np.arange(utterances), 0.0
        return beam

    @classmethod
    def empty(cls, utterances: int, beam_size: int) -> "Beam":
        """Room for prefixes."""
        shape = utterances, beam_size
        node, parent, last = np.full(shape, NOBODY), np.full(shape, NOBODY), np.full(shape, BLANK)
        return cls(node, parent, last, np.full(shape, NEVER), np.full(shape, NEVER), np.zeros(shape), np.zeros(shape))

    def step(self, frames: Frames, t: int, tree: Tree) -> "Beam":
        """The best prefixes after frame t."""
        utterances, size = self.node.shape
        blank, label, longer = self._continue(frames, t)
        added = self.words[..., None] + self.pending[..., None] * frames.ends[:, t, None]
        candidates = [np.logaddexp(blank, label) + self.words, (longer + added).reshape(utterances, -1)]
        scores = np.concatenate(candidates, axis=1)
        chosen = np.argpartition(-scores, size - 1, axis=1)[:, :size]
        exists = np.take_along_axis(scores, chosen, axis=1) > NEVER
        after = Beam.empty(utterances, size)

        row, place = np.nonzero((chosen < size) & exists)
        same = row, chosen[row, place]
        kept = self.node, self.parent, self.last, blank, label, self.words, self.pending
        for part, old in zip(after, kept, strict=True):
            part[row, place] = old[same]

        row, place = np.nonzero((chosen >= size) & exists)
        origin, position = np.divmod(chosen[row, place] - size, longer.shape[-1])
        parents, labels = self.node[row, origin], frames.labels[row, t, position]
        nodes = [tree.child(*key) for key in zip(parents.tolist(), labels.tolist(), strict=True)]
        after.node[row, place], after.parent[row, place], after.last[row, place] = nodes, parents, labels
        after.label[row, place] = longer[row, origin, position]
        if any(tree.roots):
            words = [(words.score, words.pending) if (words := tree.words(node)) else (0.0, 0.0) for node in nodes]
            after.words[row, place], after.pending[row, place] = np.array(words).reshape(-1, 2).T
        return after

    def _continue(self, frames: Frames, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log probabilities of the prefixes after frame t, of their paths that end in blank and in the label (B, K),
        and of the prefixes that are longer by one of the frame's likeliest labels (B, K, M)."""
        log_probs, labels = frames.log_probs[:, t], frames.labels[:, t]
        total = np.logaddexp(self.blank, self.label)
        blank = total + log_probs[:, BLANK, None]
        label = self.label + np.take_along_axis(log_probs, self.last, axis=1)
        # The last label once more is a new one after a blank only.
        before = np.where(labels[:, None] == self.last[..., None], self.blank[..., None], total[..., None])
        longer = before + frames.likeliest[:, t, None]

        # What is in the beam already gets what its parent gives, which is then no prefix of its own.
        is_parent = (self.parent[:, :, None] == self.node[:, None]) & (self.node != NOBODY)[:, None]
        row, child, parent = np.nonzero(is_parent)
        new = self.last[row, child]
        before = np.where(new == self.last[row, parent], self.blank[row, parent], total[row, parent])
        label[row, child] = np.logaddexp(label[row, child], before + log_probs[row, new])
        pair, position = np.nonzero(labels[row] == new[:, None])
        longer[row[pair], parent[pair], position] = NEVER
        return blank, label, longer

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.node, self.parent, self.last, self.blank, self.label, self.words, self.pending))
