"""Utterances as tensors: what a step of training or decoding works on."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pelasr.data.hears import USUAL, Hears
from pelasr.data.kaldi import read_data_dir, text_of
from pelasr.data.language import split_pair
from pelasr.data.place import Place
from pelasr.data.speech import Speech, read_speech
from pelasr.data.tokenizer import Tokenizer
from pelasr.errors import PelasrError, counted


@dataclass(frozen=True)
class Example:
    """An utterance and what it is to become in `language`, a language or a pair (`en-de`).

    `source` is the set with the language (`test_en-de`), `feats` gives what is heard, `prefix` are the tokens
    that every hypothesis begins with, `targets` those that follow.
    """

    id: str
    source: str
    feats: Speech
    targets: list[int]
    language: str
    text: str
    prefix: list[int] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """Of 10 ms, whatever is heard."""
        return self.feats.frames


@dataclass
class Batch:
    """What is heard (S, T, C), its rows (S,), labels (B, U), their number (B,), index of the language (B,).

    Where an utterance has several targets its features come once (S < B) and `rows` (B,) says where; otherwise `rows`
    is None. `prefix` (B, P) are the forced first tokens, None for models without.
    """

    ids: list[str]
    languages: list[str]
    texts: list[str]
    feats: Tensor
    lens: Tensor
    targets: Tensor
    target_lens: Tensor
    language_ids: Tensor
    rows: Tensor | None = None
    prefix: Tensor | None = None

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


def load_examples(
    place: Place, name: str, language: str, tokenizer: Tokenizer, like: str | None = None, hears: Hears = USUAL
) -> list[Example]:
    """The utterances of a set, as examples of a language or a pair; `like`: another one, as which they are processed;
    `hears`: what the backbone does. Raises PelasrError where stage 3 has not seen them."""
    prefix, source = tokenizer.prefix(like or language), f"{name}_{language}"
    examples = []
    for folder in place.folders(name, language):
        dump = place.dump / folder.name
        utterances = read_data_dir(folder, language)
        feats = read_speech(utterances, dump, hears)
        missing = [utterance.id for utterance in utterances if utterance.id not in feats]
        if missing:
            what = f"no features of {counted(len(missing), 'utterance')}, as {missing[0]}"
            raise PelasrError(f"{dump}: {what}; cure: run stage 3, for a new language stage 5")
        for u in utterances:
            if u.language != split_pair(language)[0]:
                source = split_pair(language)[0]
                raise PelasrError(f"{folder}/utt2lang: utterance {u.id} is {u.language!r}, not {source!r}; mend it")
            text = text_of(u, language)
            labels = tokenizer.encode(text)
            examples.append(Example(u.id, source, feats[u.id], labels, like or language, text, prefix))
    return examples


class Collate:
    """Examples to a padded batch; `languages` gives the order of the language vector's slots. Languages that are `new`
    to the backbone have none; what they are given is replaced by their own vector (`pelasr.adapters.own`)."""

    def __init__(self, languages: Sequence[str], new: Sequence[str] = ()):
        self.slots = dict.fromkeys(new, 0) | {language: slot for slot, language in enumerate(languages)}

    def __call__(self, examples: Sequence[Example]) -> Batch:
        for example in examples:
            if example.language not in self.slots:
                known = ", ".join(self.slots)
                raise PelasrError(f"utterance {example.id}: the backbone has no language {example.language!r}: {known}")
        # Audio is shared between languages; an utterance that was drawn twice is augmented twice.
        times: Counter[tuple[Speech, str]] = Counter()
        sources = []
        for example in examples:
            sources.append((example.feats, times[example.feats, example.language]))
            times[example.feats, example.language] += 1
        position = {source: row for row, source in enumerate(dict.fromkeys(sources))}
        feats = [torch.tensor(source.load()) for source, _ in position]
        rows = [position[source] for source in sources] if len(feats) < len(examples) else None
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
            rows=torch.tensor(rows) if rows is not None else None,
            prefix=torch.tensor([example.prefix for example in examples]) if examples[0].prefix else None,
        )


def speech_batch(
    feats: Sequence[np.ndarray], languages: Sequence[str], prefixes: Sequence[list[int]], collate: Collate
) -> Batch:
    """What is heard (T, C) of each utterance, without references, as a batch; `prefixes`: their forced first tokens."""
    nothing = torch.zeros(len(feats), dtype=torch.long)
    return Batch(
        ids=[""] * len(feats),
        languages=list(languages),
        texts=[""] * len(feats),
        feats=pad_sequence([torch.tensor(each) for each in feats], batch_first=True),
        lens=torch.tensor([len(each) for each in feats]),
        targets=nothing[:, None],
        target_lens=nothing,
        language_ids=torch.tensor([collate.slots[language] for language in languages]),
        prefix=torch.tensor(list(prefixes)) if prefixes[0] else None,
    )


@dataclass(frozen=True)
class Told:
    """A collate function that returns a PelasrError, since torch makes one text of an error in another process and its
    traceback."""

    collate: Collate

    def __call__(self, examples: Sequence[Example]) -> Batch | PelasrError:
        try:
            return self.collate(examples)
        except PelasrError as error:
            return error


def batches(
    examples: Sequence[Example], index_batches: Sequence[list[int]], collate: Collate, workers: int = 0
) -> Iterator[Batch]:
    """Load batches in the order given; `workers` processes read ahead (for a GPU that would wait). Raises PelasrError
    for speech that is not as stage 3 left it."""
    pin = workers > 0 and torch.cuda.is_available()
    loader = torch.utils.data.DataLoader(
        examples,  # pyright: ignore[reportArgumentType] - any sequence is a data set to torch
        batch_sampler=index_batches,
        collate_fn=Told(collate),
        num_workers=workers,
        pin_memory=pin,
    )
    for batch in loader:
        if isinstance(batch, PelasrError):
            raise batch
        yield batch
