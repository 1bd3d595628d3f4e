"""Disjoint sentences for the splits of a corpus."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random

from minicorpus.cldr import render, written
from minicorpus.meanings import Draw
from minicorpus.script import clean, is_native, transcript
from pelasr.errors import PelasrError

DRAWN_IN_ORDER = ("test", "dev", "train")  # so that neither test nor dev moves when train grows
LONGEST_SENTENCE = 48  # characters: 5 s at most
DRAWS_PER_SENTENCE = 200


@dataclass(frozen=True)
class Sentence:
    """What is spoken (punctuation makes pauses), what is written in the transcript, and the translations, by target:
    cased, punctuated, numbers in digits."""

    spoken: str
    text: str
    translations: dict[str, str] = field(default_factory=dict)


def draw_splits(
    draw: Draw, language: str, counts: dict[str, int], seed: int, targets: Sequence[str] = ()
) -> dict[str, list[Sentence]]:
    """`counts[split]` sentences of `language` for each split, translated into `targets`; no meaning, no text and no
    translation is in two of them.

    Test and dev draw the same meanings for every language, so that languages can be compared; train draws its own.
    Raises PelasrError when the kinds of meaning do not yield that many sentences.
    """
    seen = set()
    splits = {}
    for split in DRAWN_IN_ORDER:
        random = Random(f"sentences {seed} {split} {language if split == 'train' else ''}")
        sentences = []
        for meaning in islice(draw(random), counts[split] * DRAWS_PER_SENTENCE):
            if len(sentences) == counts[split]:
                break
            spoken = clean(render(meaning, language))
            text = transcript(spoken)
            translations = {target: clean(written(meaning, target)) for target in targets}
            here = {meaning, text, *translations.items()}
            if here & seen or len(text) > LONGEST_SENTENCE or not is_native(text, language):
                continue
            seen |= here
            sentences.append(Sentence(spoken, text, translations))
        if len(sentences) < counts[split]:
            raise PelasrError(
                f"{language}: only {len(sentences)} of {counts[split]} distinct {split} sentences; ask for fewer"
            )
        splits[split] = sentences
    return splits
