"""Characters that a text should not hold: they are not seen, or mean nothing."""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

# Characters without a form of their own that belong to the spelling of some scripts, and the letters beside which they
# do: joiners (Arabic to Sinhala, Tibetan, Myanmar, Khmer, Mongolian and others), spaces between words without a gap
# (Thai, Lao, Khmer and others), the vowel separator of Mongolian, and variants of letters (Myanmar, Phags-pa, Han).
USED = {
    "\u200c\u200d": "\u0600-\u0dff\u0f00-\u109f\u1700-\u18af\u1900-\u1cff\ua800-\uabff\ufb50-\ufdff\ufe70-\ufefc"
    "\U00010800-\U00011fff\U0001e900-\U0001e95f",
    "\u200b": "\u0e00-\u109f\u1780-\u17ff\u1900-\u1bff\ua980-\uaadf",
    "\u180e": "\u1800-\u18af",
    "\ufe00-\ufe0f\U000e0100-\U000e01ef": "\u1000-\u109f\uaa60-\uaa7f\ua840-\ua87f\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff",
}
IN_USE = re.compile("|".join(f"(?<=[{near}])[{marks}]|[{marks}](?=[{near}])" for marks, near in USED.items()))
# Format characters that are seen: signs of numbers, years and verses in Arabic, Syriac and Kaithi.
SEEN = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
# Letters and marks that are not: fillers of Hangul, vowels of Khmer that are never written, joiners of graphemes and,
# outside the scripts that use them, variants.
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]")
MARKS = {"Cc": "CONTROL", "Co": "PRIVATE USE", "Cn": f"unassigned in Unicode {unicodedata.unidata_version}"}


def strange(text: str) -> list[str]:
    """The characters of a text that it should not hold, each once: control and format characters, what has no width, no
    meaning or no form, and line and paragraph separators. Tabs, spaces of all kinds, and what the spelling of the
    neighbouring letters' script uses, are not among them."""
    if text.isprintable() and (text.isascii() or not UNSEEN.search(text)):
        return []
    return [character for character in dict.fromkeys(IN_USE.sub("", text)) if _is_strange(character)]


@cache
def _is_strange(character: str) -> bool:
    if character.isprintable() or character in SEEN:
        return UNSEEN.match(character) is not None
    # A surrogate is a byte that is not UTF-8, a fault of its own.
    return character != "\t" and unicodedata.category(character) not in ("Zs", "Cs")


def named(character: str) -> str:
    """`U+200B ZERO WIDTH SPACE`; what has no name in Unicode by what it is."""
    code = ord(character)
    name = unicodedata.name(character, "") or MARKS.get(unicodedata.category(character), "")
    if code < 0x20 or code == 0x7F:
        picture = chr(0x2421 if code == 0x7F else 0x2400 + code)
        name = unicodedata.name(picture).removeprefix("SYMBOL FOR ")
    return f"U+{code:04X} {name}"


def remover(characters: Iterable[str], text: str, path: str) -> str:
    """A command that takes strange characters out of the file that holds `text` and whose name is quoted for the shell:
    separators become spaces, and what scripts use is left where it is used."""
    found = sorted(set(characters))
    gaps = [character for character in found if character.isspace()]
    steps = [f"s/[{_in_perl(gaps)}]/ /g"] if gaps else []
    for marks, near in USED.items():
        kept = [character for character in found if re.match(f"[{marks}]", character)]
        if kept and re.search(f"(?<=[{near}])[{marks}]|[{marks}](?=[{near}])", text):
            letters = _in_perl(near)
            steps.append(f"s/(?<![{letters}])[{_in_perl(kept)}](?![{letters}])//g")
            found = [character for character in found if character not in kept]
    if rest := [character for character in found if character not in gaps]:
        steps.append(f"s/[{_in_perl(rest)}]//g")
    return f"perl -CSD -i -pe '{'; '.join(steps)}' {path}"


def _in_perl(characters: Iterable[str]) -> str:
    """Characters and ranges of them in one of perl's brackets."""
    return "".join("-" if character == "-" else f"\\x{{{ord(character):X}}}" for character in characters)
