"""Encoding and searching batches of utterances."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pelasr.adapters.routes import Routes
from pelasr.backbones.base import Backbone
from pelasr.data.batch import Batch, Collate, Example, batches
from pelasr.data.sampling import sorted_batches
from pelasr.errors import PelasrError, TooShortError
from pelasr.search.hypothesis import Hypothesis
from pelasr.search.lm import Fusion

BATCH_SIZE = 64


@dataclass(frozen=True)
class Recognised:
    """One utterance's label sequence, its score by the search, whether the length limit ended it, the loss of its
    reference (NaN if nobody asked), and its share of the seconds, of the processor on a CPU, in which its batch was
    encoded and searched."""

    example: Example
    tokens: list[int]
    score: float
    limited: bool
    loss: float
    seconds: float = 0.0


def encode(
    backbone: Backbone,
    bank: Routes | None,
    batch: Batch,
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Encoder output (B, T', D) and its frames (B,) of a batch.

    An utterance with several targets is encoded once, unless the encoder or its adapters look at the language. Raises
    TooShortError naming the shortest utterance if it is too short.
    """
    try:
        _check_channels(backbone, batch)
        return _encode(backbone, bank, batch, augment)
    except TooShortError as error:
        lens = batch.lens if batch.rows is None else batch.lens[batch.rows]
        raise TooShortError(f"utterance {batch.ids[int(lens.argmin())]}: {error}; cure: drop it") from None


def _check_channels(backbone: Backbone, batch: Batch) -> None:
    """Raise PelasrError for features that the backbone does not hear."""
    found, wanted = batch.feats.shape[-1], backbone.hears.channels
    if found != wanted:
        what = f"features of {found} channels, the backbone hears {wanted}"
        raise PelasrError(f"utterance {batch.ids[0]}: {what}; cure: run stage 3 with its --config")


def _encode(
    backbone: Backbone,
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
def search(
    backbone: Backbone,
    bank: Routes | None,
    batch: Batch,
    beam_size: int = 1,
    losses: bool = False,
    fusions: Sequence[Fusion | None] | None = None,
) -> tuple[list[Hypothesis], list[float]]:
    """The best label sequence of each utterance of a batch, on the backbone's device, with language models if there are
    `fusions` of the rows; and with `losses` those of the references, in nats. Raises TooShortError naming the shortest
    utterance if it is too short.

    All recognition comes here: validation, stage 6, transcription.
    """
    batch = batch.to(next(backbone.parameters()).device)
    with bank.route(batch.languages) if bank is not None else nullcontext():
        enc, lens = encode(backbone, bank, batch)
        found = []
        if losses:
            found = backbone.loss(enc, lens, batch.targets, batch.target_lens, batch.prefix).total.tolist()
        if fusions is not None:
            return backbone.fused_search(enc, lens, fusions, beam_size), found
        return backbone.search(enc, lens, batch.prefix, beam_size), found


def recognise(
    backbone: Backbone,
    bank: Routes | None,
    examples: list[Example],
    collate: Collate,
    beam_size: int = 1,
    fabric: Any = None,
    workers: int = 0,
    fusions: Mapping[str, Fusion] | None = None,
    losses: bool = True,
) -> Iterator[Recognised]:
    """Search batches of like length and mixed languages; of the processes of a `fabric` each takes its share. `workers`
    processes read ahead. `fusions`: language models, by the source of the examples. `losses`: those of the references
    are wanted too."""
    order = search_batches(examples, bank is None or bank.mixes_languages, backbone.batch_frames)
    # What other processes do at the same time hardly changes processor time; a GPU's can only be waited for.
    clock = time.process_time if next(backbone.parameters()).device.type == "cpu" else time.perf_counter
    if fabric is not None:
        order = order[fabric.global_rank :: fabric.world_size]
    for indices, batch in zip(order, batches(examples, order, collate, workers), strict=True):
        models = [fusions[examples[index].source] for index in indices] if fusions is not None else None
        begun = clock()
        found, of_references = search(backbone, bank, batch, beam_size, losses=losses, fusions=models)
        share = (clock() - begun) / len(indices)
        of_references = of_references if losses else [math.nan] * len(indices)
        for index, hypothesis, loss in zip(indices, found, of_references, strict=True):
            yield Recognised(examples[index], hypothesis.tokens, hypothesis.score, hypothesis.limited, loss, share)


def search_batches(examples: list[Example], mixed: bool, batch_frames: int | None) -> list[list[int]]:
    """Batches of like length, longest first, of all languages together or of each by itself."""
    if mixed:
        return sorted_batches([example.frames for example in examples], BATCH_SIZE, batch_frames)
    members: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        members[example.language].append(index)
    return [
        [indices[n] for n in batch]
        for indices in members.values()
        for batch in sorted_batches([examples[index].frames for index in indices], BATCH_SIZE, batch_frames)
    ]
