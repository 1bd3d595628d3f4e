"""Word and character error rates.

All rates are percent: edits (substitutions + deletions + insertions) summed over a set, over its reference units.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pelasr.data.tokenizer import normalise
from pelasr.errors import PelasrError


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
        sums = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
        for chunk in alignment:
            inserted = chunk.hyp_end_idx - chunk.hyp_start_idx
            sums[chunk.type] += inserted if chunk.type == "insert" else chunk.ref_end_idx - chunk.ref_start_idx
        counts.append(Counts(sums["equal"], sums["substitute"], sums["delete"], sums["insert"], len(reference)))
    return counts


def statistics(counts: Sequence[Counts]) -> np.ndarray:
    """Edits and reference units of each utterance, (N, 2)."""
    return np.array([(count.edits, count.reference) for count in counts], int).reshape(-1, 2)


def rate(sums: np.ndarray) -> np.ndarray:
    """Percent (...) of summed statistics (..., 2); of references that are empty: jiwer's convention, insertions over
    one."""
    return 100 * sums[..., 0] / np.maximum(sums[..., 1], 1)


def error_rate(counts: Sequence[Counts]) -> float:
    """Edits over reference units, percent. Raises PelasrError when the references are empty."""
    sums = statistics(counts).sum(0)
    if not sums[1]:
        raise PelasrError("the references are empty: an error rate is undefined; check the reference text")
    return float(rate(sums))
