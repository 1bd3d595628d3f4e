"""BLEU and chrF2 by sacrebleu.

sacrebleu's defaults: BLEU on 13a tokens with exponential smoothing, chrF2 on up to six characters; both cased, on
detokenised text, 0 to 100. A sentence has a row of integer statistics (lengths, n-grams in all and matched), and the
score of a set is sacrebleu's function of their sums.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from pelasr.errors import PelasrError

NAMES = {"bleu": "BLEU", "chrf": "chrF2"}  # metrics of result lines, and sacrebleu's names for them
WIDTHS = {"bleu": 10, "chrf": 18}  # numbers that sacrebleu keeps of a sentence


@cache
def _sacrebleu(metric: str, **options: bool) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    # One reference for each sentence, which the signature tells.
    return {"bleu": BLEU, "chrf": CHRF}[metric](references=[[""]], **options)


def signature(metric: str) -> str:
    """What sacrebleu calls a metric, its settings and its version, `BLEU|nrefs:1|case:mixed|...|version:2.6.0`."""
    return f"{NAMES[metric]}|{_sacrebleu(metric).get_signature()}"


def statistics(metric: str, references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """sacrebleu's statistics of each sentence, integers (N, 10) for `bleu` and (N, 18) for `chrf`."""
    if len(references) != len(hypotheses):
        raise PelasrError(f"{len(references)} references but {len(hypotheses)} hypotheses; give one for each")
    if not references:  # sacrebleu takes them for references of unknown number
        return np.zeros((0, WIDTHS[metric]), int)
    return np.array(_sacrebleu(metric)._extract_corpus_statistics(hypotheses, [references]))


def figure(metric: str, sums: np.ndarray) -> np.ndarray:
    """Scores (...) of summed statistics (..., K)."""
    compute = _sacrebleu(metric)._compute_score_from_stats
    scores = [compute(row).score for row in sums.reshape(-1, sums.shape[-1]).tolist()]
    return np.reshape(scores, sums.shape[:-1])


def summary(metric: str, table: np.ndarray) -> str:
    """The line that sacrebleu prints for a set, with its signature."""
    own = _sacrebleu(metric)
    return own._compute_score_from_stats(table.sum(0).tolist()).format(signature=str(own.get_signature()))


def sentence_bleu(table: np.ndarray) -> list[float]:
    """BLEU of each sentence by itself, of the n-grams that it is long enough for, from a table of `bleu`."""
    compute = _sacrebleu("bleu", effective_order=True)._compute_score_from_stats
    return [compute(row).score for row in table.tolist()]
