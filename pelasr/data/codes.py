"""What models and corpora call a language, and the key that it has here: `hin`, `hi_in`, `hi-IN`, `hindi` are all `hi`.

A hyphen in a language key makes a pair (`pelasr.data.language`), so the codes of others are never taken as they are.
"""

import difflib
import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any

from pelasr.errors import PelasrError, brief

if TYPE_CHECKING:
    from langcodes import Language

# Fairseq's way to say what a code alone does not: azj-script_latin, cak-dialect_western.
SUFFIXED = re.compile(r"(?P<code>[^-_]+)-(?:script_(?P<script>.+)|dialect_(?P<dialect>.+))")
LANGUAGE = re.compile("[a-z]{2,3}")
CODE = re.compile(r"[^\W_]+(?:[._-][^\W_]+)*")  # letters of any script: cac-dialect_sansebastiáncoatán
# Names that the registry of subtags does not have.
NAMES = {"greek": "el", "mandarin": "zh", "myanmar": "my", "nynorsk": "nn"}
SCRIPTS = {"syllabics": "Cans", "simplified": "Hans", "traditional": "Hant"}
# Standard forms of languages that have a code of two letters.
STANDARD = {"fil": "tl", "zlm": "ms"}


def is_code(value: Any) -> bool:
    """Whether a value may be what a model calls a language, and part of the name of a file."""
    return isinstance(value, str) and len(value) <= 80 and CODE.fullmatch(value) is not None


def language_key(code: str) -> str:
    """The key of a language: its shortest ISO 639 code, with script or region where they are not the usual ones
    (`az.Cyrl`, `zh.TW`), and with a variant (`rm_vallader`).

    `code`: of ISO 639, a tag of BCP 47 with hyphens or underscores in any case, one of fairseq's (`azj-script_latin`),
    or an English name. Different languages of one model have different keys, and no key is a pair. Raises PelasrError
    naming what is alike for what is none of these.
    """
    found = SUFFIXED.fullmatch(code)
    language = _parse(found["code"] if found else code) or _named(code)
    if language is None:
        raise PelasrError(f"{brief(code)!r} is no code or name of a language; {_alike(code)}")
    variants = list(language.variants or ())
    if found and found["dialect"]:
        variants.append(found["dialect"])
    elif found and (script := _scripts().get(_plain(found["script"]))):
        language = language.update_dict({"script": script})
    elif found:
        variants.append(found["script"])
    return "_".join([_shortest(language), *map(_letters, variants)])


def _parse(code: str) -> "Language | None":
    """A tag of BCP 47, if it is a valid one."""
    from langcodes import Language
    from langcodes.tag_parser import LanguageTagError

    try:
        language = Language.get(code)
    except LanguageTagError:
        return None
    plain = LANGUAGE.fullmatch(language.language or "") and not language.extensions and not language.private
    return language if plain and language.update_dict({"variants": None}).is_valid() else None


def _named(name: str) -> "Language | None":
    code = _languages().get(_plain(name))
    return _parse(code) if code else None


def _shortest(language: "Language") -> str:
    """Language, region and script of a tag, those left out that are likely without them."""
    from langcodes import Language, standardize_tag

    code = language.language or ""
    code = STANDARD.get(code, code)
    macro = standardize_tag(code, macro=True)
    if len(macro) < len(code) and macro != "ak":  # Fante is of the Akan languages, but not the usual one
        code = macro
    script, region = language.script, language.territory
    whole = Language.make(code, script=script, territory=region).maximize()
    for parts in ((None, None), (None, region), (script, None)):
        if Language.make(code, script=parts[0], territory=parts[1]).maximize() == whole:
            script, region = parts
            break
    return ".".join(filter(None, (code, script, region)))


@cache
def _languages() -> dict[str, str]:
    """Codes of languages by their English names; the shorter code where several have the name."""
    return _descriptions("language") | NAMES


@cache
def _scripts() -> dict[str, str]:
    return _descriptions("script") | SCRIPTS


def _descriptions(kind: str) -> dict[str, str]:
    """Subtags of a kind by the names that the registry gives them."""
    from langcodes.registry_parser import parse_registry

    entries = [entry for entry in parse_registry() if entry["Type"] == kind and _is_in_use(entry)]
    names = [(name, entry["Subtag"]) for entry in entries for name in entry["Description"]]
    names.sort(key=lambda item: ("(" not in item[0], -len(item[1])))  # the last one counts
    return {_plain(name): subtag for name, subtag in names}


def _is_in_use(entry: dict[str, Any]) -> bool:
    return "Deprecated" not in entry and entry.get("Scope") in (None, "macrolanguage")


def _plain(name: str) -> str:
    """A name without what is in brackets, in small letters without marks."""
    decomposed = unicodedata.normalize("NFD", name.partition("(")[0].replace("_", " ").lower())
    return " ".join("".join(c for c in decomposed if not unicodedata.combining(c)).split())


def _letters(variant: str) -> str:
    """A variant as a part of a key has it: ASCII letters and digits."""
    return re.sub("[^a-z0-9]", "", _plain(variant))


def _alike(code: str) -> str:
    """What could have been meant."""
    known = dict.fromkeys([*_languages(), *_languages().values()])
    alike = difflib.get_close_matches(_plain(code), known, n=3)
    shown = [f"{name} ({_languages()[name]})" if name in _languages() else name for name in alike]
    return f"did you mean {' or '.join(shown)}?" if shown else "write one of ISO 639, such as hi or hin"
