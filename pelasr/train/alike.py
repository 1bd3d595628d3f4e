"""Which of the backbone's tokens a new language's own tokens start from: the same letters of other scripts.

Unicode names tell some (GURMUKHI LETTER KA, DEVANAGARI LETTER KA), transliteration others (SINHALA LETTER ALPAPRAANA
KAYANNA and GEORGIAN LETTER KAN are both written ka or k): by uroman (Hermjakob et al. 2018), where it is installed.
"""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from pelasr.data.tokenizer import BLANK, SOS_EOS, SPACE, TAG, UNKNOWN

Romanise = Callable[[str], str]


def romaniser() -> Romanise | None:
    """What writes a character in Latin letters; None without uroman (`tools/install.sh translit`)."""
    try:
        from uroman import Uroman
    except ImportError:
        return None
    romanise: Any = Uroman().romanize_string
    return romanise


def ordinary(shared: Sequence[str]) -> list[int]:
    """The ids of the tokens that are neither special nor a language's tag."""
    special = (BLANK, UNKNOWN, SPACE, SOS_EOS)
    return [n for n, token in enumerate(shared) if token not in special and not TAG.fullmatch(token)]


def alike(own: Sequence[str], shared: Sequence[str], romanise: Romanise | None) -> dict[str, list[list[int]]]:
    """For each own token the shared tokens that it may start from: {script: [ids of each own token]}.

    Of a script are those of the same letter, by its name, or else by its sound; under the key "" are those of all
    scripts. Without any a token is like all, a tag (`<lang:uk>`) like the other tags. Scripts that have less than half
    of the letters are left out.
    """
    tags, rest = [n for n, token in enumerate(shared) if TAG.fullmatch(token)], ordinary(shared)
    letters: dict[str, dict[tuple[str, str], list[int]]] = {"": {}}
    for index in rest:
        script, keys = _keys(shared[index], romanise)
        for key in keys:
            for where in ("", script):
                letters.setdefault(where, {}).setdefault(key, []).append(index)
    wanted = [_keys(token, romanise)[1] for token in own]
    found = {
        where: [next((there[key] for key in keys if key in there), []) for keys in wanted]
        for where, there in letters.items()
    }
    default = [tags if TAG.fullmatch(token) and tags else rest for token in own]
    return {
        where: [ids or others for ids, others in zip(each, default, strict=True)]
        for where, each in sorted(found.items())
        if not where or 2 * sum(map(bool, each)) >= len(own)
    }


def _keys(token: str, romanise: Romanise | None) -> tuple[str, list[tuple[str, str]]]:
    """A character's script, and by what it is known: its Unicode name without the script (LETTER KA), then its sound;
    nothing for what is no single character."""
    if len(token) != 1:
        return "", []
    script, _, name = unicodedata.name(token, "").partition(" ")
    keys = [("name", name)] if name else []
    if sound := _sound(romanise(token)) if romanise else "":
        keys.append(("sound", sound))
    return script, keys


def _sound(latin: str) -> str:
    """Latin letters without the vowel that consonants of Indic scripts have in them: of ka as of k it is k."""
    latin = latin.strip().lower()
    return latin[:-1] if len(latin) > 1 and latin.endswith("a") and latin[-2] not in "aeiou" else latin
