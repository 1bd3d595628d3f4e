"""A backbone, with or without adapters, run over many utterances of many languages."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pelasr.adapters.routes import Routes
from pelasr.backbones.base import Backbone
from pelasr.data.batch import Collate, Example
from pelasr.data.language import split_pair
from pelasr.data.tokenizer import Tokenizer, is_unspaced
from pelasr.decode.recognise import Recognised, recognise
from pelasr.score.bleu import WIDTHS, figure, statistics
from pelasr.score.wer import count_errors
from pelasr.train.schedule import metric_of


@dataclass(frozen=True)
class LanguageScores:
    """Loss in nats per utterance, and WER, CER or BLEU in percent (`metric`: wer, cer, bleu; of several: error)."""

    loss: float
    value: float
    metric: str = "wer"

    def facts(self) -> dict[str, float]:
        """As the history has it: {"loss": ..., "wer": ...}."""
        return {"loss": self.loss, self.metric: self.value}

    @classmethod
    def of(cls, facts: Mapping[str, float]) -> "LanguageScores":
        """What `facts` gave."""
        metric = metric_of(facts)
        return cls(facts["loss"], facts[metric], metric)


def evaluate(
    backbone: Backbone,
    bank: Routes | None,
    examples: list[Example],
    collate: Collate,
    tokenizers: Mapping[str, Tokenizer],
    fabric: Any,
) -> dict[str, LanguageScores]:
    """Loss, and WER, CER (of writing without spaces) or for a pair BLEU, of each language by greedy search, over all
    processes.

    `tokenizers`: of each language.
    """
    found: dict[str, list[Recognised]] = defaultdict(list)
    for item in recognise(backbone, bank, examples, collate, fabric=fabric):
        found[item.example.language].append(item)
    references: dict[str, list[str]] = defaultdict(list)
    for example in examples:
        references[example.language].append(example.text)
    languages = sorted(references)
    metrics = {language: _metric(language, references[language]) for language in languages}
    sums = torch.zeros(len(languages), 2 + WIDTHS["bleu"], dtype=torch.float64)  # WER needs fewer
    for row, language in zip(sums, languages, strict=True):
        items = found[language]
        texts = [item.example.text for item in items], [tokenizers[language].decode(item.tokens) for item in items]
        numbers = [sum(item.loss for item in items), len(items), *_statistics(metrics[language], *texts)]
        row[: len(numbers)] = torch.tensor(numbers)
    if fabric.world_size > 1:
        sums = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum").cpu()
    return {
        language: _scores(metrics[language], loss / utterances, rest)
        for language, (loss, utterances, *rest) in zip(languages, sums.tolist(), strict=True)
    }


def _metric(language: str, references: Sequence[str]) -> str:
    if split_pair(language)[1]:
        return "bleu"
    return "cer" if is_unspaced(references) else "wer"


def _statistics(metric: str, references: list[str], hypotheses: list[str]) -> list[float]:
    if metric == "bleu":
        return statistics("bleu", references, hypotheses).sum(0).tolist()
    counts = count_errors(references, hypotheses, "char" if metric == "cer" else "word")
    return [sum(c.edits for c in counts), sum(c.reference for c in counts)]


def _scores(metric: str, loss: float, sums: list[float]) -> LanguageScores:
    if metric == "bleu":
        return LanguageScores(loss, float(figure("bleu", np.array(sums).round().astype(int))), metric)
    edits, reference = sums[:2]
    return LanguageScores(loss, 100 * edits / max(reference, 1), metric)


def macro(scores: dict[str, LanguageScores]) -> LanguageScores:
    """Unweighted mean over the languages."""
    parts = list(scores.values())
    loss, value = (sum(getattr(part, name) for part in parts) / len(parts) for name in ("loss", "value"))
    metrics = {part.metric for part in parts}
    return LanguageScores(loss, value, metrics.pop() if len(metrics) == 1 else "error")
