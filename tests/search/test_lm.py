"""Beam search with a language model of words, against all label sequences and against a plain search.

The model here is a few lines of Python; KenLM's takes a compiler to install.
"""

import math
import sys
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from ctc_paths import all_sequences

from pelasr.errors import PelasrError
from pelasr.search.ctc import ctc_beam_search
from pelasr.search.lm import Fusion, LanguageModel

WORDS = ["<blank>", "a", "b", "<space>"]
PIECES = ["<blank>", "▁a", "b", "▁"]
CHARACTERS = ["<blank>", "あ", "い", "う"]


class Bigrams:
    """A bigram model with a made-up probability for every pair of words."""

    def start(self):
        return "<s>"

    def score(self, state, word):
        number = sum((position + 3) * ord(letter) for position, letter in enumerate(f"{state} {word}"))
        return math.log(0.02 + 0.9 * (number % 17) / 17), word


def random_logits(seed, *shape, sharpness=1.0):
    return sharpness * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def words_of(tokens, labels):
    """The words of labels, the last one perhaps not at its end; and whether it is at its end."""
    if not any(token == "<space>" or token.startswith("▁") for token in tokens):
        return [tokens[label] for label in labels], False
    text = "".join(tokens[label] for label in labels).replace("<space>", " ").replace("▁", " ")
    return text.split(), text.endswith(" ")


def added(tokens, labels, weight, bonus, whole):
    """What the model adds to labels, to all words and the end or to those alone that are complete."""
    words, ended = words_of(tokens, labels)
    score = 0.0
    for before, word in zip(["<s>", *words], words if whole or ended else words[:-1], strict=False):
        score += weight * Bigrams().score(before, word)[0] + bonus
    return score + (weight * Bigrams().score(words[-1] if words else "<s>", "</s>")[0] if whole else 0.0)


def plain_search(logits, beam_size, extra):
    """Prefix beam search as it is written down, where `extra(prefix)` counts too; log probabilities by prefix."""
    beam = {(): (1.0, 0.0)}
    for frame in logits.double().softmax(-1).tolist():
        after = defaultdict(lambda: [0.0, 0.0])
        for prefix, (blank, label) in beam.items():
            after[prefix][0] += (blank + label) * frame[0]
            for token in range(1, len(frame)):
                again = bool(prefix) and token == prefix[-1]
                after[prefix][1] += label * frame[token] if again else 0.0
                after[*prefix, token][1] += (blank if again else blank + label) * frame[token]
        scores = {prefix: math.log(sum(parts)) + extra(prefix) for prefix, parts in after.items() if sum(parts)}
        beam = {prefix: after[prefix] for prefix in sorted(scores, key=lambda prefix: -scores[prefix])[:beam_size]}
    return {prefix: math.log(sum(parts)) for prefix, parts in beam.items()}


@pytest.mark.parametrize("tokens", [WORDS, PIECES, CHARACTERS])
@pytest.mark.parametrize("weight, bonus", [(0.5, 1.5), (2.0, -1.0), (0.0, 0.0)])
def test_a_wide_beam_finds_the_best_of_all_sequences(tokens, weight, bonus):
    logits, lens = random_logits(5, 3, 5, 4), torch.tensor([5, 3, 4])
    fusion = Fusion(Bigrams(), tokens, weight, bonus)
    for row, found in enumerate(ctc_beam_search(logits, lens, 1000, [fusion] * 3)):
        every = all_sequences(logits[row, : lens[row]])
        every = {labels: score + added(tokens, labels, weight, bonus, True) for labels, score in every.items()}
        assert found.score == pytest.approx(max(every.values()), abs=1e-9)
        assert every[tuple(found.tokens)] == pytest.approx(found.score, abs=1e-9)


@pytest.mark.parametrize("beam_size", [1, 2, 4])
@pytest.mark.parametrize("kind", ["words", "pieces", "characters"])
def test_as_the_plain_algorithm(kind, beam_size):
    letters = [chr(97 + n) for n in range(26)]
    tokens = {
        "words": ["<blank>", *letters, "<space>"],
        "pieces": ["<blank>", *letters[:13], *(f"▁{letter}" for letter in letters[:13]), "▁"],
        "characters": ["<blank>", *letters],
    }[kind]
    logits, lens = random_logits(6, 4, 40, len(tokens), sharpness=2.0), torch.tensor([40, 39, 17, 2])
    fusion = Fusion(Bigrams(), tokens, 0.7, 0.6)

    def extra(labels, whole=False):
        return added(tokens, labels, 0.7, 0.6, whole)

    for row, found in enumerate(ctc_beam_search(logits, lens, beam_size, [fusion] * 4)):
        left = plain_search(logits[row, : lens[row]], beam_size, extra)
        totals = {prefix: score + extra(prefix, True) for prefix, score in left.items()}
        best = max(totals, key=lambda prefix: totals[prefix])
        assert tuple(found.tokens) == best
        assert found.score == pytest.approx(totals[best], abs=1e-9)


def test_each_row_has_its_own():
    """Rows with models, with other tokens and without any find in a batch what they find alone."""
    logits, lens = random_logits(7, 4, 30, 4), torch.tensor([30, 12, 30, 29])
    fusions = [
        Fusion(Bigrams(), WORDS, 0.5, 1.5),
        None,
        Fusion(Bigrams(), CHARACTERS, 0.5, 1.5),
        Fusion(Bigrams(), PIECES, 0.1, 0.0),
    ]
    together = ctc_beam_search(logits, lens, 6, fusions)
    for row, fusion in enumerate(fusions):
        assert [together[row]] == ctc_beam_search(logits[row : row + 1], lens[row : row + 1], 6, [fusion])
    assert together[1].tokens == ctc_beam_search(logits[1:2], lens[1:2], 6)[0].tokens
    assert together[0].tokens != ctc_beam_search(logits[:1], lens[:1], 6)[0].tokens


def test_tokens_that_no_text_shows_are_no_letters():
    """Of a word, or beside one, as a model from elsewhere may have them."""
    tokens = ["<blank>", "<unk>", "<sos/eos>", "<s>", "a", "<U+200B>", "<space>"]
    words = Fusion(Bigrams(), tokens, 0.5, 1.5).start()
    plain, hidden = words, words
    for label in (4, 4, 6, 4):
        plain, hidden = plain.append(label), hidden.append(5).append(label).append(3).append(2)
    assert (plain.last, plain.total) == (hidden.last, hidden.total) == ("a", plain.total)
    words = Fusion(Bigrams(), ["<blank>", "<s>", "あ", "い"], 0.5, 1.5).start()
    assert words.append(2).append(3).total == words.append(1).append(2).append(1).append(1).append(3).total


def test_a_model_decides_between_what_sounds_alike():
    class Likes:
        def start(self):
            return None

        def score(self, state, word):
            return (-0.1 if word in ("ab", "</s>") else -5.0), None

    logits = torch.full((1, 3, 4), -9.0)
    logits[0, 0, 1] = logits[0, 1, 0] = 0.0
    logits[0, 2, 1], logits[0, 2, 2] = 0.2, 0.0
    lens = torch.tensor([3])
    assert ctc_beam_search(logits, lens, 4)[0].tokens == [1, 1]
    assert ctc_beam_search(logits, lens, 4, [Fusion(Likes(), WORDS, 0.5, 1.5)])[0].tokens == [1, 2]


def test_without_kenlm(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(PelasrError, match=r"x.arpa: a language model needs kenlm; cure: tools/install.sh lm"):
        LanguageModel(tmp_path / "x.arpa")


def test_files_that_are_no_models(monkeypatch, tmp_path):
    def refuse(path, config):
        raise OSError(f"Cannot read model '{path}'\n (not a model)")

    config, complain = SimpleNamespace, SimpleNamespace(NONE=0)
    monkeypatch.setitem(
        sys.modules, "kenlm", SimpleNamespace(Config=config, ARPALoadComplain=complain, Model=refuse, State=object)
    )
    with pytest.raises(PelasrError, match=r"x.arpa: no such file; cure: name one of KenLM's with --lm"):
        LanguageModel(tmp_path / "x.arpa")
    (tmp_path / "x.arpa").write_text("hello")
    with pytest.raises(PelasrError, match=r"x.arpa: no language model that KenLM can read: Cannot read.*not a model"):
        LanguageModel(tmp_path / "x.arpa")

    def stumble(path, config):
        b"\xc2!".decode()  # as KenLM's binding does over bytes that it quotes

    monkeypatch.setattr(sys.modules["kenlm"], "Model", stumble)
    with pytest.raises(PelasrError, match=r"x.arpa: no language model that KenLM can read: 'utf-8' codec"):
        LanguageModel(tmp_path / "x.arpa")
