"""Utterances as tensors: what a step of training or decoding works on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pelasr.data import read_data_dir
from pelasr.errors import PelasrError
from pelasr.features import load_feats, read_feats, read_num_frames
from pelasr.text import Tokenizer


@dataclass(frozen=True)
class Example:
    """An utterance of the data directory `source`; `feats` says where its features are, `frames` how many."""

    id: str
    source: str
    feats: str
    frames: int
    targets: list[int]
    language: str
    text: str


@dataclass
class Batch:
    """Log-mel (B, T, 80), frames (B,), labels (B, U), their number (B,), index of the language (B,)."""

    ids: list[str]
    languages: list[str]
    texts: list[str]
    feats: Tensor
    lens: Tensor
    targets: Tensor
    target_lens: Tensor
    language_ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Batch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """What a DataLoader calls, so that copies to the GPU do not wait."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: change(value) for name, value in tensors.items()})


def load_examples(data: Path, dump: Path, name: str, tokenizer: Tokenizer) -> list[Example]:
    """The utterances of `<data>/<name>` whose features lie in `<dump>/<name>`."""
    feats, frames = read_feats(dump / name), read_num_frames(dump / name)
    utterances = read_data_dir(data / name)
    missing = [utterance.id for utterance in utterances if utterance.id not in feats]
    if missing:
        raise PelasrError(
            f"{dump / name}: no features of {missing[0]} and {len(missing) - 1} others; run stage 3 again"
        )
    return [
        Example(u.id, name, feats[u.id], frames[u.id], tokenizer.encode(u.text), u.language, u.text) for u in utterances
    ]


class Collate:
    """Examples to a padded batch; `languages` gives the order of the language vector's slots."""

    def __init__(self, languages: Sequence[str]):
        self.slots = {language: slot for slot, language in enumerate(languages)}

    def __call__(self, examples: Sequence[Example]) -> Batch:
        for example in examples:
            if example.language not in self.slots:
                known = ", ".join(self.slots)
                raise PelasrError(f"utterance {example.id}: the backbone has no language {example.language!r}: {known}")
        feats = [torch.tensor(load_feats(example.feats)) for example in examples]
        targets = [torch.tensor(example.targets, dtype=torch.long) for example in examples]
        return Batch(
            ids=[example.id for example in examples],
            languages=[example.language for example in examples],
            texts=[example.text for example in examples],
            feats=pad_sequence(feats, batch_first=True),
            lens=torch.tensor([len(f) for f in feats]),
            targets=pad_sequence(targets, batch_first=True, padding_value=1),
            target_lens=torch.tensor([len(t) for t in targets]),
            language_ids=torch.tensor([self.slots[example.language] for example in examples]),
        )


def batches(
    examples: Sequence[Example], index_batches: Sequence[list[int]], collate: Collate, workers: int = 0
) -> torch.utils.data.DataLoader:
    """Load batches in the order given; `workers` processes read ahead (for a GPU that would wait)."""
    pin = workers > 0 and torch.cuda.is_available()
    return torch.utils.data.DataLoader(
        examples, batch_sampler=index_batches, collate_fn=collate, num_workers=workers, pin_memory=pin
    )
