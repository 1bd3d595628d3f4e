"""Word and character error rates, their 95 % intervals and paired comparisons.

All rates are percent: edits (substitutions + deletions + insertions) summed over a set, over its reference units.
Differences are percentage points, negative is better.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pelasr.data.tokenizer import normalise
from pelasr.errors import PelasrError
from pelasr.score.bootstrap import Difference, Estimate, difference, estimate


class Counts(NamedTuple):
    """One utterance, in words or characters; `reference` = hits + substitutions + deletions."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int
    reference: int

    @property
    def edits(self) -> int:
        return self.substitutions + self.deletions + self.insertions


def count_errors(references: Sequence[str], hypotheses: Sequence[str], unit: str = "word") -> list[Counts]:
    """Counts of the least-edit alignment (jiwer) for each utterance, `unit` "word" or "char".

    Both sides are normalised first (NFC, single spaces). Characters are Unicode code points and include the spaces
    between words, as in `jiwer.cer`.
    """
    import jiwer

    if len(references) != len(hypotheses):
        raise PelasrError(f"{len(references)} references but {len(hypotheses)} hypotheses; give one for each")
    if not references:  # jiwer would make one empty utterance of it
        return []
    process = {"word": jiwer.process_words, "char": jiwer.process_characters}[unit]
    output = process([normalise(text) for text in references], [normalise(text) for text in hypotheses])
    counts = []
    for reference, alignment in zip(output.references, output.alignments, strict=True):
        sums = dict.fromkeys(("equal", "substitute", "delete", "insert"), 0)
        for chunk in alignment:
            inserted = chunk.hyp_end_idx - chunk.hyp_start_idx
            sums[chunk.type] += inserted if chunk.type == "insert" else chunk.ref_end_idx - chunk.ref_start_idx
        counts.append(Counts(*sums.values(), len(reference)))
    return counts


def error_rate(counts: Sequence[Counts]) -> float:
    """Edits over reference units, percent. Raises PelasrError when the references are empty."""
    return float(_rate(_table((count.edits, count.reference) for count in counts).sum(0)))


def interval(counts: Sequence[Counts], seed: int = 0) -> Estimate:
    """Error rate and its 95 % bootstrap interval over utterances."""
    return mean_interval({"": counts}, seed)


def mean_interval(counts: Mapping[str, Sequence[Counts]], seed: int = 0) -> Estimate:
    """Unweighted mean of the languages' error rates and its 95 % interval, each language resampled by itself."""
    samples = [_table((count.edits, count.reference) for count in language) for language in counts.values()]
    return estimate(samples, _rate, seed)


def paired_test(a: Sequence[Counts], b: Sequence[Counts], seed: int = 0) -> Difference:
    """Error rate of `a` minus that of `b`, counted on the same utterances in the same order, by paired bootstrap."""
    return paired_mean_test({"": a}, {"": b}, seed)


def paired_mean_test(a: Mapping[str, Sequence[Counts]], b: Mapping[str, Sequence[Counts]], seed: int = 0) -> Difference:
    """The same for the unweighted mean over languages, each language resampled by itself.

    Raises PelasrError when languages or reference lengths differ, so that the two cannot be paired.
    """
    if set(a) != set(b):
        raise PelasrError(f"cannot pair languages {sorted(a)} with {sorted(b)}; score the same ones for both")
    samples = []
    for language in a:
        if [count.reference for count in a[language]] != [count.reference for count in b[language]]:
            raise PelasrError(f"{language}: the two sides have other references, nothing to pair; score both again")
        pairs = zip(a[language], b[language], strict=True)
        samples.append(_table((left.edits - right.edits, left.reference) for left, right in pairs))
    return difference(samples, _rate, seed)


def _table(rows: Iterable[tuple[int, int]]) -> np.ndarray:
    """Rows of numerator and reference units, (N, 2)."""
    table = np.array(list(rows)).reshape(-1, 2)
    if not table[:, 1].any():
        raise PelasrError("the references are empty: an error rate is undefined; check the reference text")
    return table


def _rate(sums: np.ndarray) -> np.ndarray:
    """Percent of summed rows (..., 2); a draw of empty references alone: jiwer's convention, insertions over one."""
    return 100 * sums[..., 0] / np.maximum(sums[..., 1], 1)
