"""Text and tokens: normalisation, graphemes or sentencepiece pieces, and what the token list cannot write."""

import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pelasr.data.language import split_pair
from pelasr.errors import PelasrError, brief, nearest
from pelasr.files import atomic_write, read_bytes, sha256_json

BLANK, UNKNOWN, SPACE, SOS_EOS = "<blank>", "<unk>", "<space>", "<sos/eos>"
SPECIAL = (BLANK, UNKNOWN, SOS_EOS)  # which every token list has
UNKNOWN_ID = 1
UNKNOWN_SHOWN = "⁇"
TAG = re.compile(r"<lang:(\S+)>")  # what a translation into a language begins with
HIDDEN = re.compile(r"<s>|<U\+[0-9A-F]{4,6}>")  # own tokens of models from elsewhere that no text shows
LONGEST = 16  # code points of an own token at most
# Scripts without spaces between words, as the names of their letters begin.
UNSPACED = ("CJK ", "HIRAGANA", "KATAKANA", "BOPOMOFO", "YI SYLLABLE", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
UNSPACED += ("JAVANESE", "BALINESE", "TAI ", "NEW TAI ")
JOINERS = "\u200c\u200d"  # zero-width, which the spelling of many languages needs
PIECE_SPACE = "▁"  # how sentencepiece writes a space
AGAIN = "cure: delete the folder and run the token stage, 2, again; in a backbone's folder, restore it"


def normalise(text: str) -> str:
    """NFC, any run of white space to one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def is_unspaced(texts: Iterable[str]) -> bool:
    """Whether most letters of some texts are of scripts that write no space between words."""
    letters = Counter(character for text in texts for character in text if character.isalpha())
    unspaced = sum(count for letter, count in letters.items() if unicodedata.name(letter, "").startswith(UNSPACED))
    return 2 * unspaced > letters.total()


def is_nfc(text: str) -> bool:
    """Whether the text is in Unicode's composed form."""
    return unicodedata.is_normalized("NFC", text)


class Tokenizer:
    """Text to token ids and back: one token a code point, or sentencepiece's if a model is given.

    `tokens` starts with `<blank>`, `<unk>` and ends with the tags `<lang:de>` of target languages, if there are any,
    and `<sos/eos>`; `model` is the serialised sentencepiece model whose pieces are the other tokens. `own` are further
    tokens, of one language alone, numbered after the others: code points, some of which may be one token together, its
    tag, or what `HIDDEN` says.
    """

    def __init__(self, tokens: Sequence[str], model: bytes | None = None, own: Sequence[str] = ()):
        self.tokens, self.own = list(tokens), list(own)
        self.model = model
        everything = self.everything
        self._ids = {(" " if token == SPACE else token): index for index, token in enumerate(everything)}
        shown = {BLANK: "", SOS_EOS: "", UNKNOWN: UNKNOWN_SHOWN, SPACE: " "}
        self._shown = ["" if TAG.fullmatch(token) else shown.get(token, token) for token in self.tokens]
        for token in self.own:
            unseen = TAG.fullmatch(token) or HIDDEN.fullmatch(token)
            self._shown.append("" if unseen else shown.get(token, token))
        self._pieces = None
        if model is not None:
            from sentencepiece import SentencePieceProcessor

            self._pieces = SentencePieceProcessor(model_proto=model)
            self._shown = [text.replace(PIECE_SPACE, " ") for text in self._shown]
        long = [token for token in self.own if len(token) > 1 and token[0] != "<"]
        self._long = re.compile("|".join(map(re.escape, sorted(long, key=len, reverse=True)))) if long else None
        self._characters = {token for token in everything if len(token) == 1} | set(long)
        if model is not None or SPACE in everything:
            self._characters.add(" ")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def everything(self) -> list[str]:
        """All tokens by their numbers, a language's own ones last."""
        return self.tokens + self.own

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, normalised first; what the list lacks becomes `<unk>` (1)."""
        text = normalise(text)
        if self._pieces is not None:
            return self._encode_pieces(self._pieces, text)
        return [self._ids.get(unit, UNKNOWN_ID) for unit in self._units(text)]

    def _units(self, text: str) -> Iterator[str]:
        """Code points, those together that are one own token: the longest that begins first."""
        start = 0
        for found in self._long.finditer(text) if self._long is not None else ():
            yield from text[start : found.start()]
            yield found[0]
            start = found.end()
        yield from text[start:]

    def _encode_pieces(self, pieces: Any, text: str) -> list[int]:
        if not self.own:
            return [piece + 1 for piece in pieces.encode(text)]  # `<blank>` stands before sentencepiece's `<unk>`
        found: list[int] = []
        for index, piece in zip(pieces.encode(text), pieces.encode(text, out_type=str), strict=True):
            if index + 1 != UNKNOWN_ID:
                found.append(index + 1)
            else:  # a run of characters that no piece has
                found += [self._ids.get(unit, UNKNOWN_ID) for unit in self._units(piece)]
        return found

    def with_own(self, own: Sequence[str]) -> "Tokenizer":
        """The same with tokens of one language's own."""
        return Tokenizer(self.tokens, self.model, own) if own else self

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids: `<unk>` is shown as ⁇, `<blank>` and `<sos/eos>` are left out."""
        text = "".join(self._shown[index] for index in ids)
        return text.removeprefix(" ") if self._pieces is not None else text

    def prefix(self, language: str) -> list[int]:
        """The forced first tokens of a text in a language: the tag of a pair's (`en-de`) target, or nothing.

        Raises PelasrError for a target without a tag.
        """
        _, target = split_pair(language)
        if not target:
            return []
        tag = f"<lang:{target}>"
        if tag not in self._ids:
            known = [found[1] for token in self._ids if (found := TAG.fullmatch(token))]
            raise PelasrError(f"{language}: the token list has no {tag}; {nearest(target, known)}")
        return [self._ids[tag]]

    def unknown(self, text: str) -> list[str]:
        """The code points of a text that the token list cannot write, in order, with repeats."""
        return [unit for unit in self._units(normalise(text)) if unit not in self._characters]

    @property
    def sha256(self) -> str:
        """Hash of the shared token list and of the sentencepiece model."""
        return sha256_json([self.tokens, self.model.hex() if self.model else None])

    def save(self, directory: str | Path) -> None:
        """Write `tokens.txt`, one token a line, and `spm.model` if there is a model."""
        directory = Path(directory)
        if self.model is None:
            (directory / "spm.model").unlink(missing_ok=True)
        else:
            with atomic_write(directory / "spm.model", "wb") as stream:
                stream.write(self.model)
        with atomic_write(directory / "tokens.txt") as stream:
            stream.writelines(f"{token}\n" for token in self.tokens)

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Read `tokens.txt`, and `spm.model` if present. Raises PelasrError if they are missing or do not fit."""
        path, model_path = Path(directory) / "tokens.txt", Path(directory) / "spm.model"
        if not path.exists():
            raise PelasrError(f"{path}: no token list; cure: run the token stage, 2, first")
        try:
            tokens = read_bytes(path, cure=AGAIN).decode("utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise PelasrError(f"{path}: not UTF-8: {error}; {AGAIN}") from None
        for line, token in ((1, BLANK), (2, UNKNOWN), (len(tokens), SOS_EOS)):
            if len(tokens) < line or tokens[line - 1] != token:
                raise PelasrError(f"{path}:{line}: want {token}; {AGAIN}")
        if len(set(tokens)) != len(tokens):
            token = next(token for token, count in Counter(tokens).items() if count > 1)
            raise PelasrError(f"{path}: token {token!r} is listed twice; {AGAIN}")
        if not model_path.exists():
            return cls(tokens)
        try:
            tokenizer = cls(tokens, read_bytes(model_path, cure=AGAIN))
            pieces = _token_list(tokenizer._pieces, tags=[token for token in tokens if TAG.fullmatch(token)])
        except (RuntimeError, UnicodeDecodeError) as error:  # sentencepiece's
            raise PelasrError(f"{model_path}: no model: {brief(error, 200)}; {AGAIN}") from None
        if pieces != tokens:
            raise PelasrError(f"{path}: not the pieces of {model_path}; {AGAIN}")
        return tokenizer


def train_graphemes(texts: Iterable[str], tags: Sequence[str] = ()) -> list[str]:
    """The token list of all code points of the texts (of all languages together), sorted, then the tags."""
    characters = sorted(set().union(*(normalise(text) for text in texts)))
    if not characters:
        raise PelasrError("no text to make tokens from; cure: check the text files of the data directories")
    return [BLANK, UNKNOWN, *(SPACE if character == " " else character for character in characters), *tags, SOS_EOS]


def train_unigram(texts: Iterable[str], size: int, directory: str | Path, tags: Sequence[str] = ()) -> Tokenizer:
    """Train sentencepiece's unigram pieces, `size` tokens with the three special ones and the tags, and save them in
    `directory`.

    The same texts give the same bytes. Raises PelasrError, with the bound, if `size` does not fit the text.
    """
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    texts = [text for text in map(normalise, texts) if text]
    if not texts:
        raise PelasrError("no text to make tokens from; cure: check the text files of the data directories")
    specials_outside = 2 + len(tags)  # `<blank>` and `<sos/eos>`; `<unk>` is a piece of sentencepiece's own
    stream = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=stream,
            model_type="unigram",
            vocab_size=size - specials_outside,
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=max(len(text.encode()) for text in texts) + 1,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _size_error(str(error), size, specials_outside) from error
    model = stream.getvalue()
    tokenizer = Tokenizer(_token_list(SentencePieceProcessor(model_proto=model), tags), model)
    tokenizer.save(directory)
    return tokenizer


def _token_list(pieces, tags: Sequence[str]) -> list[str]:
    return [BLANK, *(pieces.id_to_piece(index) for index in range(len(pieces))), *tags, SOS_EOS]


def _size_error(message: str, size: int, specials_outside: int) -> PelasrError:
    """What sentencepiece's complaint means for the user."""
    if largest := re.search(r"too high.*<= (\d+)", message):
        bound = int(largest[1]) + specials_outside
        return PelasrError(f"{size} tokens are more than the text can give; cure: at most {bound}")
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        bound = int(smallest[1]) + specials_outside
        return PelasrError(f"{size} tokens are fewer than the characters of the text; cure: at least {bound}")
    return PelasrError(f"sentencepiece cannot make {size} tokens: {message}; cure: try another size")


def can_be_token(character: str) -> bool:
    """Whether a code point may be a language's own token: one that is seen, or joins letters; no control, mark of
    direction, byte-order mark, separator of lines, and none that Unicode gives no meaning."""
    return character in JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")


def can_be_own(token: str) -> bool:
    """Whether a string may be a language's own token, its tag aside: code points as `can_be_token` says, a space, or
    what is hidden."""
    if token == SPACE or HIDDEN.fullmatch(token):
        return True
    plain = len(token) == 1 or (token[:1] != "<" and 0 < len(token) <= LONGEST)
    return plain and not any(character.isspace() or not can_be_token(character) for character in token)


def unknown_report(
    tokenizer: Tokenizer, texts: Mapping[str, Iterable[str]]
) -> dict[str, tuple[int, int, Counter[str]]]:
    """For each language: unknown code points, all code points, and how often each unknown one occurs."""
    report = {}
    for language, lines in texts.items():
        counts, total = Counter(), 0
        for line in lines:
            counts.update(tokenizer.unknown(line))
            total += len(normalise(line))
        report[language] = (counts.total(), total, counts)
    return report
