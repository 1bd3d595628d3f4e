import pickle
import re
import time
from collections import Counter

import pytest

from pelasr.data.tokenizer import (
    Tokenizer,
    is_nfc,
    is_unspaced,
    normalise,
    train_graphemes,
    train_unigram,
    unknown_report,
)
from pelasr.errors import PelasrError
from pelasr.train.new_language import own_tokens

ENGLISH = ["the cat sat on the mat", "a dog ran to the cat", "the bird sang a song of cats", "dogs and birds sing"] * 5
HINDI = ["नमस्ते दुनिया", "सोमवार पाँच मार्च"]


def test_normalise():
    assert normalise("  a\t\u00a0b \n c\u2028") == "a b c"
    assert normalise("e\u0301") == "é"
    assert is_nfc("é") and not is_nfc("e\u0301")


def test_grapheme_list_is_sorted_between_the_specials():
    assert train_graphemes(["ba c", "é", "e\u0301"]) == ["<blank>", "<unk>", "<space>", "a", "b", "c", "é", "<sos/eos>"]
    with pytest.raises(PelasrError, match="no text"):
        train_graphemes([" ", ""])


def test_grapheme_round_trip():
    tokenizer = Tokenizer(train_graphemes(ENGLISH + HINDI))
    for text in ENGLISH + HINDI:
        ids = tokenizer.encode(text)
        assert len(ids) == len(text) and 1 not in ids
        assert tokenizer.decode(ids) == text


def test_unknown_characters():
    tokenizer = Tokenizer(train_graphemes(["ab c"]))
    assert tokenizer.encode("aXb") == [3, 1, 4]
    assert tokenizer.decode([0, 3, 1, 4, 0, len(tokenizer) - 1]) == "a⁇b"
    assert tokenizer.unknown("aXb Xé") == ["X", "X", "é"]
    assert Tokenizer(train_graphemes(["ab"])).unknown("a b") == [" "]
    # The names of special tokens in a text are plain characters, never the special tokens.
    assert 0 not in tokenizer.encode("<blank>") and tokenizer.unknown("<a>") == ["<", ">"]


def test_grapheme_encoding_is_fast():
    tokenizer = Tokenizer(train_graphemes(ENGLISH))
    start = time.perf_counter()
    tokenizer.encode(" ".join(ENGLISH * 500))
    assert time.perf_counter() - start < 0.5  # 240,000 characters


def test_save_and_load(tmp_path):
    tokenizer = Tokenizer(train_graphemes(HINDI))
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.tokens == tokenizer.tokens and loaded.sha256 == tokenizer.sha256
    assert Tokenizer(train_graphemes(ENGLISH)).sha256 != tokenizer.sha256
    assert (tmp_path / "tokens.txt").read_text().splitlines()[:3] == ["<blank>", "<unk>", "<space>"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<unk>\n<blank>\na\n<sos/eos>\n", "tokens.txt:1: want <blank>"),
        ("<blank>\na\n<sos/eos>\n", "tokens.txt:2: want <unk>"),
        ("<blank>\n<unk>\na\n", "tokens.txt:3: want <sos/eos>"),
        ("<blank>\n<unk>\na\na\n<sos/eos>\n", "'a' is listed twice"),
    ],
)
def test_load_refuses_a_damaged_list(tmp_path, content, words):
    (tmp_path / "tokens.txt").write_text(content)
    with pytest.raises(PelasrError, match=words):
        Tokenizer.load(tmp_path)


def test_load_without_a_list(tmp_path):
    with pytest.raises(PelasrError, match=r"tokens.txt: no token list; cure: run the token stage"):
        Tokenizer.load(tmp_path)


def test_unigram(tmp_path):
    tokenizer = train_unigram(ENGLISH, 28, tmp_path)
    assert len(tokenizer) == 28
    assert tokenizer.tokens[:2] == ["<blank>", "<unk>"] and tokenizer.tokens[-1] == "<sos/eos>"
    for text in ENGLISH:
        ids = tokenizer.encode(text)
        assert len(ids) < len(text) + 1 and not {0, 1, 27} & set(ids)
        assert "".join(tokenizer.tokens[i] for i in ids).replace("▁", " ") == " " + text
        assert tokenizer.decode(ids) == text
    assert tokenizer.unknown("the cät") == ["ä"] and 1 in tokenizer.encode("the cät")
    assert tokenizer.decode(tokenizer.encode("the cät")) == "the c⁇t"


def test_unigram_is_deterministic_and_loads(tmp_path):
    first, second = train_unigram(ENGLISH, 28, tmp_path / "a"), train_unigram(ENGLISH, 28, tmp_path / "b")
    assert (tmp_path / "a/spm.model").read_bytes() == (tmp_path / "b/spm.model").read_bytes()
    assert first.sha256 == second.sha256 == Tokenizer.load(tmp_path / "a").sha256
    copy = pickle.loads(pickle.dumps(first))
    assert copy.encode(ENGLISH[0]) == first.encode(ENGLISH[0])
    (tmp_path / "a/tokens.txt").write_text("<blank>\n<unk>\na\n<sos/eos>\n")
    with pytest.raises(PelasrError, match="not the pieces of"):
        Tokenizer.load(tmp_path / "a")
    Tokenizer(train_graphemes(ENGLISH)).save(tmp_path / "a")
    assert Tokenizer.load(tmp_path / "a").encode("cat") == Tokenizer(train_graphemes(ENGLISH)).encode("cat")


@pytest.mark.parametrize(("size", "bound"), [(1000, "at most"), (8, "at least")])
def test_unigram_size_error_names_a_bound_that_works(tmp_path, size, bound):
    with pytest.raises(PelasrError, match=f"{bound} \\d+") as caught:
        train_unigram(ENGLISH, size, tmp_path)
    best = int(re.search(f"{bound} (\\d+)", str(caught.value))[1])
    assert len(train_unigram(ENGLISH, best, tmp_path)) == best
    with pytest.raises(PelasrError):
        train_unigram(ENGLISH, best + (1 if size > best else -1), tmp_path)


def test_unigram_keeps_long_lines_and_every_character(tmp_path):
    text = " ".join(ENGLISH * 20) + " 𐍈"
    assert train_unigram([text], 28, tmp_path).unknown(text) == []


def test_unknown_report():
    tokenizer = Tokenizer(train_graphemes(["ab c"]))
    report = unknown_report(tokenizer, {"en": ["ab", "c a"], "fr": ["éa é", "e\u0301z"]})
    assert report == {"en": (0, 5, Counter()), "fr": (4, 6, Counter({"é": 3, "z": 1}))}


TAGS = ["<lang:de>", "<lang:fr>"]


@pytest.mark.parametrize("kind", ["char", "unigram"])
def test_tags_of_target_languages(tmp_path, kind):
    texts = ["Am 3. Mai", "le 3 mai", "vor 4 Tagen", "il y a 4 jours"]
    if kind == "char":
        Tokenizer(train_graphemes(texts, TAGS)).save(tmp_path)
    else:
        train_unigram(texts, 26, tmp_path, TAGS)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.tokens[-3:] == [*TAGS, "<sos/eos>"]
    if kind == "unigram":
        assert len(tokenizer) == 26
    (german,), (french,) = tokenizer.prefix("en-de"), tokenizer.prefix("en-fr")
    assert [tokenizer.tokens[german], tokenizer.tokens[french]] == TAGS
    assert tokenizer.prefix("en") == []
    for text in texts:
        ids = tokenizer.encode(text)
        assert not {german, french} & set(ids)
        assert tokenizer.decode([german, *ids]) == tokenizer.decode(ids) == text
    with pytest.raises(PelasrError, match="en-es: the token list has no <lang:es>; .*known: de, fr"):
        tokenizer.prefix("en-es")


def test_a_tag_is_no_text():
    """What looks like a tag in a transcript is written letter by letter."""
    tokenizer = Tokenizer(train_graphemes(["<lang:de> a"], TAGS))
    assert len(tokenizer.encode("<lang:de>")) == 9


def test_own_tokens_come_after_the_shared_ones(tmp_path):
    shared = Tokenizer(train_graphemes(["abc"], ["<lang:de>"]))
    own = own_tokens(shared, ["жaщ", "ж b"], "en-uk")
    assert own == ["<lang:uk>", "<space>", "ж", "щ"]
    tokenizer = shared.with_own(own)
    first = len(shared)
    assert tokenizer.encode("aж щ") == [shared.encode("a")[0], first + 2, first + 1, first + 3]
    assert tokenizer.decode(tokenizer.encode("aж щ")) == "aж щ" and tokenizer.unknown("aж я") == ["я"]
    assert tokenizer.prefix("en-uk") == [first] and tokenizer.prefix("en-de") == shared.prefix("en-de")
    assert tokenizer.sha256 == shared.sha256 and shared.with_own([]) is shared
    assert own_tokens(shared, ["abc"], "fr-de") == []  # the target has its tag


# Controls, a soft hyphen, marks of direction, a byte-order mark, separators, private, unassigned.
NO_TOKENS = "\x01\x1b\x7f\x9b\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202e\u2060\u2066\ue000\ufeff\uffff\U000e0041"


def test_own_tokens_are_seen_or_join_letters():
    shared = Tokenizer(train_graphemes(["a b"]))
    assert own_tokens(shared, [f"a{NO_TOKENS}b", "क\u200dष\u094d\u200c", "é\U0001f600"], "hi") == sorted(
        "कष\u094d\u200c\u200dé\U0001f600"
    )


def test_own_tokens_beside_pieces(tmp_path):
    """What no piece has is written by code points, in the midst of pieces."""
    shared = train_unigram(["hello world, the cat sat", "on the mat again"] * 5, 23, tmp_path)
    texts = ["hello жук world", "жук", "a ж к"]
    tokenizer = shared.with_own(own_tokens(shared, texts, "uk"))
    assert tokenizer.own == ["ж", "к", "у"]
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and 1 not in ids
        assert [i for i in ids if i < len(shared)] == [i for i in shared.encode(text) if i != 1]


@pytest.mark.parametrize(
    ("texts", "unspaced"),
    [
        (["今天天气 很好", "abc"], True),
        (["วันนี้อากาศดี"], True),
        (["ひらがな カタカナ"], True),
        (["မြန်မာ"], True),
        (["오늘 날씨"], False),
        (["सोमवार पाँच"], False),
        (["seven"], False),
        (["..."], False),
    ],
)
def test_scripts_without_spaces(texts, unspaced):
    assert is_unspaced(texts) == unspaced
