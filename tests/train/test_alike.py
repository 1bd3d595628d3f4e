"""The same letters of other scripts, by their names and by their sound."""

import sys

import pytest

from pelasr.train.alike import alike, ordinary, romaniser

TOKENS = ["<blank>", "<unk>", "<space>", "क", "ख", "ક", "a", "<lang:de>", "<sos/eos>"]
EVERYTHING = [3, 4, 5, 6]
LATIN = {"क": "ka", "ख": "kha", "ક": "ka", "a": "a", "ක": "ka", "კ": "k", "ა": "a", "ё": "yo"}


def romanise(character):
    return LATIN.get(character, "")


def test_by_name():
    found = alike(["ਕ", "ਖ", "<lang:uk>"], TOKENS, None)
    assert ordinary(TOKENS) == EVERYTHING
    assert found[""] == [[3, 5], [4], [7]]
    assert found["DEVANAGARI"] == [[3], [4], [7]]
    assert set(found) == {"", "DEVANAGARI"}  # Gujarati has one of three alone
    assert alike(["ж"], TOKENS, None) == {"": [EVERYTHING]}


def test_by_sound_where_names_tell_nothing():
    assert alike(["ක"], TOKENS, None) == {"": [EVERYTHING]}
    found = alike(["ක"], TOKENS, romanise)
    assert found[""] == [[3, 5]] and found["DEVANAGARI"] == [[3]] and found["GUJARATI"] == [[5]]
    found = alike(["კ", "ა", "ё"], TOKENS, romanise)  # a letter without a vowel is like one with the inherent one
    assert found == {"": [[3, 5], [6], EVERYTHING]}


def test_a_name_counts_before_a_sound():
    sounds = {**LATIN, "ਕ": "a"}
    assert alike(["ਕ"], TOKENS, sounds.get)[""] == [[3, 5]]


def test_uroman():
    """On letters of Sinhala and Georgian, which it writes as those of Devanagari."""
    found = romaniser()
    assert [found(character) for character in "කගქა"] == [found(character) for character in "कग"] + ["kh", "a"]
    tokens = ["<blank>", "<unk>", *"कगतनमरस", "<sos/eos>"]
    assert alike(list("කගතනමරස"), tokens, found)["DEVANAGARI"] == [[n] for n in range(2, 9)]
    assert alike(list("კგტნმრს"), tokens, found)["DEVANAGARI"][:4] == [[2], [3], [4], [5]]


def test_without_uroman(monkeypatch):
    monkeypatch.setitem(sys.modules, "uroman", None)
    assert romaniser() is None


@pytest.mark.parametrize("romanised", [romanise, None])
def test_no_own_tokens(romanised):
    assert alike([], TOKENS, romanised)[""] == []
