"""Recognition: what was said, by word and character error rates."""

from collections.abc import Mapping, Sequence

import numpy as np

from pelasr.data.tokenizer import is_unspaced
from pelasr.files import atomic_write
from pelasr.report.grid import Measure
from pelasr.score import wer
from pelasr.score.decoded import Texts, write_details
from pelasr.score.environment import package_version
from pelasr.score.wer import Counts, count_errors, error_rate
from pelasr.tasks.base import Task

FEWER = "negative: fewer errors"
WER = Measure("wer", "WER", "%", 1, False, FEWER, "Edits over reference words, summed")
CER = Measure("cer", "CER", "%", 1, False, FEWER, "Edits over reference characters, spaces included, summed")
UNITS = {"wer": "word", "cer": "char"}


class Recognition(Task):
    """WER and CER in percent; dev is scored by CER where the writing has no spaces."""

    measures = [WER, CER]

    def statistics(self, metric: str, references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Edits and reference units, (N, 2)."""
        return wer.statistics(count_errors(references, hypotheses, UNITS[metric]))

    def scorer(self, metric: str) -> str:
        return f"jiwer {package_version('jiwer')}"

    def dev_metric(self, references: Sequence[str]) -> str:
        return "cer" if is_unspaced(references) else "wer"

    def write(self, texts: Texts, tables: Mapping[str, np.ndarray]) -> None:
        """The word counts of each utterance, and sclite's summary."""
        counts = count_errors(*texts.sides)
        details = [(count.reference, *count[:4]) for count in counts]
        write_details(texts, ["words", "hits", "sub", "del", "ins"], details)
        with atomic_write(texts.folder / "result.txt") as stream:
            stream.write(_sclite_summary(counts))


def _sclite_summary(counts: Sequence[Counts]) -> str:
    """Two lines, in percent."""
    *parts, words = map(sum, zip(*counts, strict=True))
    shares = [100 * part / words for part in parts] + [error_rate(counts)]
    shares.append(100 * sum(count.edits > 0 for count in counts) / len(counts))
    shown = " ".join(f"{share:.1f}" for share in shares)
    return f"Snt Wrd Corr Sub Del Ins Err S.Err\n{len(counts)} {words} {shown}\n"
