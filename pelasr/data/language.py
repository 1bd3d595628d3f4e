"""Language keys: a language (`hi`, `zh.Hant`), or a pair of source and target (`en-de`); taken apart only here.

A pair says where speech and text of an utterance are; what is done with them is the task's, see `pelasr.tasks`.
"""

import re
from collections.abc import Collection
from typing import Any

from pelasr.errors import DataError, PelasrError, brief


def split_pair(key: str) -> tuple[str, str | None]:
    """Source and target of a language key: `en-de` is ("en", "de"), `hi` is ("hi", None). Raises DataError."""
    source, *targets = key.split("-")
    if not source or len(targets) > 1 or "" in targets:
        raise DataError(f"{key!r} is no language; cure: write a language such as hi, or a pair such as en-de")
    return source, (targets[0] if targets else None)


def is_pair(key: str) -> bool:
    """Whether a language key is a pair. Raises DataError for what is none of both."""
    return split_pair(key)[1] is not None


def of_one_kind(keys: Collection[str]) -> bool:
    """Whether language keys are all languages, or all pairs."""
    return len({is_pair(key) for key in keys}) == 1


CODE = r"[A-Za-z][A-Za-z0-9]*(?:[._][A-Za-z0-9]+)*"  # hi, zh.Hant, pa_Guru: nothing that leads out of a folder
LANGUAGE = re.compile(rf"(?=.{{1,40}}$){CODE}(?:-{CODE})?")


def is_language(value: Any) -> bool:
    return isinstance(value, str) and LANGUAGE.fullmatch(value) is not None


REGION = re.compile(r"[A-Za-z]+-(?:[A-Z]{2}|[A-Z][a-z]{3})")  # sv-SE, zh-Hant: how others write a region or script


def check_language(language: str, where: str) -> None:
    """Raise PelasrError for what is no language key, or might be more than a name of a folder; and for a language with
    its region or script after a hyphen, which would be a pair."""
    if not is_language(language):
        raise PelasrError(f"{where}: {brief(language)!r} is no language; write one such as hi, or a pair such as en-de")
    if REGION.fullmatch(language) and (key := _key_of(language)):
        raise PelasrError(f"{where}: {language!r} would be a pair; write {key}, or the pair in small letters")


def _key_of(code: str) -> str | None:
    from pelasr.data.codes import language_key

    try:
        return language_key(code)
    except PelasrError:  # a pair after all
        return None
