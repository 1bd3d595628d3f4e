"""A backbone, with or without adapters, run over many utterances of many languages."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from pelasr.adapters.routes import Routes
from pelasr.backbones.base import Backbone
from pelasr.data.batch import Collate, Example
from pelasr.data.tokenizer import Tokenizer
from pelasr.decode.recognise import Recognised, recognise
from pelasr.tasks.base import Task
from pelasr.train.schedule import BLEU, HIGHER, is_higher_better, metric_of


@dataclass(frozen=True)
class LanguageScores:
    """Loss in nats per utterance, and the task's dev figure (`metric`: wer, cer, bleu; of several: error)."""

    loss: float
    value: float
    metric: str = "wer"
    higher_is_better: bool = False

    def facts(self) -> dict[str, float]:
        """As the history has it: {"loss": ..., "wer": ...}, see `schedule.rank`."""
        higher = {HIGHER: 1} if self.higher_is_better and self.metric != BLEU else {}
        return {"loss": self.loss, self.metric: self.value, **higher}

    @classmethod
    def of(cls, facts: Mapping[str, float]) -> "LanguageScores":
        """What `facts` gave."""
        metric = metric_of(facts)
        return cls(facts["loss"], facts[metric], metric, is_higher_better(facts))


def evaluate(
    backbone: Backbone,
    bank: Routes | None,
    examples: list[Example],
    collate: Collate,
    tokenizers: Mapping[str, Tokenizer],
    task: Task,
    fabric: Any,
    workers: int = 0,
) -> dict[str, LanguageScores]:
    """Loss, and the task's dev figure, of each language by greedy search, over all processes.

    `tokenizers`: of each language. `workers` processes read ahead.
    """
    found: dict[str, list[Recognised]] = defaultdict(list)
    for item in recognise(backbone, bank, examples, collate, fabric=fabric, workers=workers):
        found[item.example.language].append(item)
    references: dict[str, list[str]] = defaultdict(list)
    for example in examples:
        references[example.language].append(example.text)
    languages = sorted(references)
    metrics = {language: task.dev_metric(references[language]) for language in languages}
    rows = []
    for language in languages:
        items = found[language]
        texts = [item.example.text for item in items], [tokenizers[language].decode(item.tokens) for item in items]
        numbers = task.statistics(metrics[language], *texts).sum(0).tolist()
        rows.append(torch.tensor([sum(item.loss for item in items), len(items), *numbers]).double())
    sums = pad_sequence(rows, batch_first=True)  # one metric may need more numbers than another
    if fabric.world_size > 1:
        sums = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum").cpu()
    return {
        language: _scores(task, metrics[language], len(own) - 2, *row)
        for language, own, row in zip(languages, rows, sums.tolist(), strict=True)
    }


def _scores(task: Task, metric: str, width: int, loss: float, utterances: float, *sums: float) -> LanguageScores:
    """From what is summed over the utterances; `width`: numbers of the metric."""
    value = float(task.figure(metric, np.array(sums[:width])))
    return LanguageScores(loss / utterances, value, metric, task.measure(metric).higher_is_better)


def macro(scores: dict[str, LanguageScores]) -> LanguageScores:
    """Unweighted mean over the languages."""
    parts = list(scores.values())
    loss, value = (sum(getattr(part, name) for part in parts) / len(parts) for name in ("loss", "value"))
    metrics = {part.metric for part in parts}
    return LanguageScores(loss, value, metrics.pop() if len(metrics) == 1 else "error", parts[0].higher_is_better)
