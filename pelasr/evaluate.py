"""A backbone, with or without adapters, run over many utterances of many languages."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pelasr.adapters.routes import Routes
from pelasr.data.batch import Batch, Collate, Example, batches
from pelasr.data.language import split_pair
from pelasr.data.sampling import sorted_batches
from pelasr.data.tokenizer import Tokenizer, is_unspaced
from pelasr.errors import TooShortError
from pelasr.schedule import metric_of
from pelasr.score.bleu import WIDTHS, figure, statistics
from pelasr.score.wer import count_errors

BATCH_SIZE = 64


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


@dataclass(frozen=True)
class Recognised:
    """One utterance's label sequence, its score by the search, whether the length limit ended it, and the loss of its
    reference."""

    example: Example
    tokens: list[int]
    score: float
    limited: bool
    loss: float


def encode(
    backbone: nn.Module,
    bank: Routes | None,
    batch: Batch,
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Encoder output (B, T', D) and its frames (B,) of a batch.

    An utterance with several targets is encoded once, unless the encoder or its adapters look at the language. Raises
    TooShortError naming the shortest utterance if it is too short.
    """
    try:
        return _encode(backbone, bank, batch, augment)
    except TooShortError as error:
        lens = batch.lens if batch.rows is None else batch.lens[batch.rows]
        raise TooShortError(f"utterance {batch.ids[int(lens.argmin())]}: {error}; cure: drop it") from None


def _encode(
    backbone: nn.Module,
    bank: Routes | None,
    batch: Batch,
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None,
) -> tuple[Tensor, Tensor]:
    feats, lens, rows = batch.feats, batch.lens, batch.rows
    if rows is None:
        return backbone.encode(feats, lens, batch.language_ids, augment)
    if backbone.encodes_language or (bank is not None and bank.touches("encoder")):
        return backbone.encode(feats.index_select(0, rows), lens[rows], batch.language_ids, augment)
    enc, lens = backbone.encode(feats, lens, None, augment)
    return enc.index_select(0, rows), lens[rows]


@torch.no_grad()
def recognise(
    backbone: nn.Module,
    bank: Routes | None,
    examples: list[Example],
    collate: Collate,
    beam_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Recognised]:
    """Search batches of like length and mixed languages; a process takes every `world_size`-th batch."""
    order = _batches(examples, bank is None or bank.mixes_languages)[rank::world_size]
    device = next(backbone.parameters()).device
    for indices, batch in zip(order, batches(examples, order, collate), strict=True):
        batch = batch.to(device)
        with bank.route(batch.languages) if bank is not None else nullcontext():
            enc, enc_lens = encode(backbone, bank, batch)
            losses = backbone.loss(enc, enc_lens, batch.targets, batch.target_lens, batch.prefix).total.tolist()
            found = backbone.search(enc, enc_lens, batch.prefix, beam_size)
        for index, hypothesis, loss in zip(indices, found, losses, strict=True):
            yield Recognised(examples[index], hypothesis.tokens, hypothesis.score, hypothesis.limited, loss)


def _batches(examples: list[Example], mixed: bool) -> list[list[int]]:
    """Batches of like length, longest first, of all languages together or of each by itself."""
    if mixed:
        return sorted_batches([example.frames for example in examples], BATCH_SIZE)
    members: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        members[example.language].append(index)
    return [
        [indices[n] for n in batch]
        for indices in members.values()
        for batch in sorted_batches([examples[index].frames for index in indices], BATCH_SIZE)
    ]


def evaluate(
    backbone: nn.Module,
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
    for item in recognise(backbone, bank, examples, collate, rank=fabric.global_rank, world_size=fabric.world_size):
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
