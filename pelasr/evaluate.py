"""A backbone, with or without adapters, run over many utterances of many languages."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pelasr.adapter import Bank
from pelasr.batch import Collate, Example, batches
from pelasr.sampling import sorted_batches
from pelasr.score import count_errors

BATCH_SIZE = 64


@dataclass(frozen=True)
class LanguageScores:
    """Loss in nats per utterance, and WER in percent."""

    loss: float
    wer: float


@dataclass(frozen=True)
class Recognised:
    """One utterance's label sequence, the log probability of its path, and the loss of its reference."""

    example: Example
    tokens: list[int]
    score: float
    loss: float


@torch.no_grad()
def recognise(
    backbone: nn.Module,
    bank: Bank | None,
    examples: list[Example],
    collate: Collate,
    batch_size: int = BATCH_SIZE,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Recognised]:
    """Search batches of like length and mixed languages; a process takes every `world_size`-th batch."""
    order = sorted_batches([example.frames for example in examples], batch_size)[rank::world_size]
    device = next(backbone.parameters()).device
    for indices, batch in zip(order, batches(examples, order, collate), strict=True):
        batch = batch.to(device)
        with bank.route(batch.languages) if bank is not None else nullcontext():
            enc, enc_lens = backbone.encode(batch.feats, batch.lens, batch.language_ids)
            losses = backbone.loss(enc, enc_lens, batch.targets, batch.target_lens).total.tolist()
            found = backbone.search(enc, enc_lens)
        for index, hypothesis, loss in zip(indices, found, losses, strict=True):
            yield Recognised(examples[index], hypothesis.tokens, hypothesis.score, loss)


def evaluate(
    backbone: nn.Module,
    bank: Bank | None,
    examples: list[Example],
    collate: Collate,
    decode: Callable[[list[int]], str],
    fabric: Any,
) -> dict[str, LanguageScores]:
    """Loss and WER of each language, over all processes."""
    found: dict[str, list[Recognised]] = defaultdict(list)
    for item in recognise(backbone, bank, examples, collate, rank=fabric.global_rank, world_size=fabric.world_size):
        found[item.example.language].append(item)
    languages = sorted({example.language for example in examples})
    sums = torch.zeros(len(languages), 4, dtype=torch.float64)
    for row, language in zip(sums, languages, strict=True):
        items = found[language]
        counts = count_errors([item.example.text for item in items], [decode(item.tokens) for item in items])
        row[:] = torch.tensor(
            [
                sum(item.loss for item in items),
                len(items),
                sum(c.edits for c in counts),
                sum(c.reference for c in counts),
            ]
        )
    if fabric.world_size > 1:
        sums = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum").cpu()
    return {
        language: LanguageScores(loss / utterances, 100 * errors / max(words, 1))
        for language, (loss, utterances, errors, words) in zip(languages, sums.tolist(), strict=True)
    }


def macro(scores: dict[str, LanguageScores]) -> LanguageScores:
    """Unweighted mean over the languages."""
    return LanguageScores(
        sum(s.loss for s in scores.values()) / len(scores), sum(s.wer for s in scores.values()) / len(scores)
    )
