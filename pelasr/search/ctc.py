"""Searches by CTC alone: the best path, and a beam of prefixes.

The prefix beam search (Graves 2012; Hannun et al. 2014) sums over the paths of a label sequence, which the best path
does not. Every frame either leaves a prefix as it is or appends a label; that two ways lead to the same prefix is seen
by its node in a tree of all prefixes that there were.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from pelasr.nn.layers import within
from pelasr.search.hypothesis import Hypothesis

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


def ctc_beam_search(logits: Tensor, lens: Tensor, beam_size: int) -> list[Hypothesis]:
    """The label sequence of the largest probability among those that a beam of prefixes leaves, and its logarithm.

    Args:
        logits: (B, T, V), blank = 0; minus infinity for tokens that are not the row's.
        lens: valid frames (B,).
        beam_size: prefixes that are kept at each frame; 1 is the best path.

    An utterance's result does not depend on what it is batched with.
    """
    if beam_size == 1:
        return ctc_best_path(logits, lens)
    frames = Frames.of(logits, lens, beam_size)
    beam, tree = Beam.start(len(logits), beam_size), Tree(len(logits))
    for t in range(int(lens.max())):
        beam = beam.step(frames, t, tree)
    total = np.logaddexp(beam.blank, beam.label)
    best = total.argmax(1)
    each = np.arange(len(best))
    scores, nodes = total[each, best].tolist(), beam.node[each, best].tolist()
    return [Hypothesis(tree.labels(node), score) for node, score in zip(nodes, scores, strict=True)]


@dataclass
class Frames:
    """What each frame says, in float64: log probabilities (B, T, V), and of the M likeliest labels of each frame,
    (B, T, M), numbers and log probabilities. Beyond an utterance's end there are blanks, which change nothing.

    M is twice the beam's size: of what a prefix may become only so many can stay in the beam, and the others of these
    labels are, at worst, the prefix's last one and those that lead to prefixes that are there.
    """

    log_probs: np.ndarray
    labels: np.ndarray
    likeliest: np.ndarray

    @classmethod
    def of(cls, logits: Tensor, lens: Tensor, beam_size: int) -> "Frames":
        """Of logits (B, T, V) and frames (B,)."""
        log_probs = logits.double().log_softmax(-1)
        beyond = ~within(lens, logits.shape[1])
        log_probs = log_probs.masked_fill(beyond[..., None], NEVER)
        log_probs[..., BLANK] = log_probs[..., BLANK].masked_fill(beyond, 0.0)
        likeliest, labels = log_probs[..., 1:].topk(min(2 * beam_size, logits.shape[-1] - 1), dim=-1)
        return cls(*(part.cpu().numpy() for part in (log_probs, labels + 1, likeliest)))


@dataclass
class Tree:
    """All prefixes of all utterances: a node for each, the first `roots` of them empty."""

    roots: int
    nodes: dict[tuple[int, int], int] = field(default_factory=dict)  # by parent and label
    origins: list[tuple[int, int]] = field(default_factory=list)  # parent and label of each node that is no root

    def child(self, parent: int, label: int) -> int:
        """The node of a prefix with one label more."""
        key = (parent, label)
        found = self.nodes.setdefault(key, self.roots + len(self.origins))
        if found == self.roots + len(self.origins):
            self.origins.append(key)
        return found

    def labels(self, node: int) -> list[int]:
        """The prefix of a node."""
        found: list[int] = []
        while node >= self.roots:
            node, label = self.origins[node - self.roots]
            found.append(label)
        return found[::-1]


@dataclass
class Beam:
    """The prefixes that are kept, (B, K) each: node, the node of all but the last label, the last label, and the log
    probability of the paths to here that end in blank, and in the label."""

    node: np.ndarray
    parent: np.ndarray
    last: np.ndarray
    blank: np.ndarray
    label: np.ndarray

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
        nobody, never = np.full(shape, NOBODY), np.full(shape, NEVER)
        return cls(nobody, nobody.copy(), np.full(shape, BLANK), never, never.copy())

    def step(self, frames: Frames, t: int, tree: Tree) -> "Beam":
        """The best prefixes after frame t."""
        utterances, size = self.node.shape
        blank, label, longer = self._continue(frames, t)
        candidates = np.concatenate([np.logaddexp(blank, label), longer.reshape(utterances, -1)], axis=1)
        chosen = np.argpartition(-candidates, size - 1, axis=1)[:, :size]
        scores = np.take_along_axis(candidates, chosen, axis=1)
        after = Beam.empty(utterances, size)

        row, place = np.nonzero((chosen < size) & (scores > NEVER))
        same = row, chosen[row, place]
        for part, old in zip(after, (self.node, self.parent, self.last, blank, label), strict=True):
            part[row, place] = old[same]

        row, place = np.nonzero((chosen >= size) & (scores > NEVER))
        origin, position = np.divmod(chosen[row, place] - size, longer.shape[-1])
        parents, labels = self.node[row, origin], frames.labels[row, t, position]
        after.node[row, place] = [tree.child(*key) for key in zip(parents.tolist(), labels.tolist(), strict=True)]
        after.parent[row, place], after.last[row, place] = parents, labels
        after.label[row, place] = scores[row, place]
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
        return iter((self.node, self.parent, self.last, self.blank, self.label))
