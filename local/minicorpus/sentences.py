"""Disjoint sentences for the splits of a corpus."""

from dataclasses import dataclass
from itertools import islice
from random import Random

from minicorpus.cldr import render
from minicorpus.meanings import Draw
from minicorpus.script import clean, is_native, transcript
from pelasr.errors import PelasrError

DRAWN_IN_ORDER = ("test", "dev", "train")  # so that neither test nor dev moves when train grows
LONGEST_SENTENCE = 48  # characters: 5 s at most
DRAWS_PER_SENTENCE = 200


@dataclass(frozen=True)
class Sentence:
    """What is spoken (punctuation makes pauses) and what is written in the transcript."""

    spoken: str
    text: str


def draw_splits(draw: Draw, language: str, counts: dict[str, int], seed: int) -> dict[str, list[Sentence]]:
    """`counts[split]` sentences of `language` for each split, no text and no meaning in two of them.

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
            if meaning in seen or text in seen or len(text) > LONGEST_SENTENCE or not is_native(text, language):
                continue
            seen |= {meaning, text}
            sentences.append(Sentence(spoken, text))
        if len(sentences) < counts[split]:
            raise PelasrError(
                f"{language}: only {len(sentences)} of {counts[split]} distinct {split} sentences; ask for fewer"
            )
        splits[split] = sentences
    return splits
