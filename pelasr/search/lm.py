"""Shallow fusion with an n-gram language model of words: what it adds to the score of a prefix of labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pelasr.data.tokenizer import BLANK, HIDDEN, PIECE_SPACE, SOS_EOS, SPACE
from pelasr.errors import PelasrError, brief

TEN = math.log(10.0)
WIDE = 16  # of the beam with a language model, when nothing else is asked
LANG = "{lang}"


@dataclass(frozen=True)
class LMOptions:
    """What is asked for: a file, in whose path `{lang}` is the language, and how it counts, see `Fusion`."""

    path: str
    weight: float = 0.5
    bonus: float = 1.5

    def file(self, language: str) -> Path:
        """The file of a language."""
        return Path(self.path.replace(LANG, language))

    def __str__(self) -> str:
        """As results show it."""
        return f"{Path(self.path).name} {self.weight:g} {self.bonus:g}"


class LanguageModel:
    """A file of KenLM's: ARPA, or its binary form. Words are spelt as in the texts that a model was trained on.

    Raises PelasrError for what cannot be read, and where kenlm is not installed.
    """

    def __init__(self, path: str | Path):
        try:
            import kenlm  # pyright: ignore[reportMissingImports] - an extra
        except ModuleNotFoundError:
            raise PelasrError(f"{path}: a language model needs kenlm; cure: tools/install.sh lm") from None
        if not Path(path).is_file():
            raise PelasrError(f"{path}: no such file; cure: name one of KenLM's with --lm, ARPA or binary")
        config = kenlm.Config()
        config.show_progress, config.arpa_complain = False, kenlm.ARPALoadComplain.NONE
        try:
            self._model = kenlm.Model(str(path), config)
        except (OSError, RuntimeError, ValueError) as error:  # ValueError: the complaint quotes bytes that are no text
            raise PelasrError(f"{path}: no language model that KenLM can read: {brief(error, 200)}") from None
        self._new_state = kenlm.State

    def start(self) -> Any:
        """The state before the first word."""
        state = self._new_state()
        self._model.BeginSentenceWrite(state)
        return state

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """Log probability of a word after a state, in nats, and the state after it."""
        after = self._new_state()
        return TEN * self._model.BaseScore(state, word, after), after


class Fusion:
    """How a language model counts for the labels of one language.

    A word adds `weight` times its log probability, and `bonus`, when the next one begins or the utterance ends, the
    end of the sentence adds `weight` times its own. Where no token has a space every token is a word.
    """

    def __init__(self, model: LanguageModel, tokens: Sequence[str], weight: float, bonus: float):
        self.model, self.weight, self.bonus = model, weight, bonus
        self.texts = [_text(token) for token in tokens]
        if not any(text.startswith(" ") for text in self.texts):
            self.texts = [f" {text}" for text in self.texts]

    @property
    def starts(self) -> np.ndarray:
        """Which tokens (V,) end the word before."""
        return np.array([text.startswith(" ") for text in self.texts])

    def start(self) -> "Words":
        """Of no labels yet."""
        return Words(self, self.model.start(), "", 0.0, 0.0, None)


def _text(token: str) -> str:
    """What a token adds to a text."""
    unseen = token in (BLANK, SOS_EOS) or HIDDEN.fullmatch(token)
    return " " if token == SPACE else "" if unseen else token.replace(PIECE_SPACE, " ")


def fusions_of(lm: LMOptions, tokens: Mapping[str, Sequence[str]]) -> dict[str, Fusion]:
    """How language models count for the tokens of each language, {language: tokens}; a file is loaded once. Raises
    PelasrError for a file that cannot be read."""
    models = {path: LanguageModel(path) for path in {lm.file(language): None for language in tokens}}
    return {language: Fusion(models[lm.file(language)], own, lm.weight, lm.bonus) for language, own in tokens.items()}


class Words(NamedTuple):
    """The words of a prefix: the state after the complete ones and what they add to its score; the last one, what it
    will add when it is complete, and the state then."""

    fusion: Fusion
    state: Any
    last: str
    score: float
    pending: float
    after: Any

    def append(self, label: int) -> "Words":
        """With one label more."""
        text = self.fusion.texts[label]
        if not text.startswith(" "):
            return self._spell(self.state, self.last + text, self.score)
        state = self.after if self.last else self.state
        return self._spell(state, text[1:], self.score + self.pending)

    def _spell(self, state: Any, last: str, score: float) -> "Words":
        if not last:
            return Words(self.fusion, state, "", score, 0.0, None)
        found, after = self.fusion.model.score(state, last)
        return Words(self.fusion, state, last, score, self.fusion.weight * found + self.fusion.bonus, after)

    @property
    def total(self) -> float:
        """What the words add to the score of a whole utterance."""
        end, _ = self.fusion.model.score(self.after if self.last else self.state, "</s>")
        return self.score + self.pending + self.fusion.weight * end
