"""Render a meaning in a language with the names and patterns of CLDR: to be spoken, or as it is written."""

import datetime
import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from babel import Locale
from babel.core import get_global
from babel.dates import format_date, format_timedelta
from babel.lists import format_list
from babel.numbers import format_currency
from babel.units import format_unit

from minicorpus.meanings import Meaning
from minicorpus.script import clean, is_native

NUMBER_WORDS = json.loads(Path(__file__).with_name("number_words.json").read_text(encoding="utf-8"))
SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
NAMES_OF_A_KIND = {"territory": 90, "language": 50, "city": 40}
LONGEST_NAME = 2  # words, in every language


@lru_cache
def locale_of(language: str) -> Locale:
    return Locale.parse(language)


def name_of(kind: str, code: str, language: str) -> str:
    """Name of a territory, language or city (by its time zone) in `language`; empty where CLDR has none."""
    locale = locale_of(language)
    if kind == "city":
        # CLDR leaves out a city whose name is the last part of the zone's, as English does Paris.
        return locale.time_zones.get(code, {}).get("city") or code.rpartition("/")[2].replace("_", " ")
    return (locale.territories if kind == "territory" else locale.languages).get(code, "")


def shared_names(languages: list[str]) -> list[Meaning]:
    """180 names that every one of `languages` writes in its own script, in a fixed shuffled order."""
    codes = {
        "territory": [code for code in locale_of("en").territories if re.fullmatch("[A-Y][A-Z]", code)],
        "language": [code for code in locale_of("en").languages if re.fullmatch("[a-z]{2}", code)],
        "city": [zone for zone in get_global("zone_territories") if not zone.startswith(("Etc/", "Antarctica/"))],
    }

    def order(name: Meaning) -> bytes:
        return hashlib.sha256(repr(name).encode()).digest()

    def everywhere(name: Meaning) -> bool:
        written = [(clean(name_of(name[1], name[2], language)), language) for language in languages]
        return all(is_native(text, language) and len(text.split()) <= LONGEST_NAME for text, language in written)

    chosen = []
    for kind, count in NAMES_OF_A_KIND.items():
        names = sorted((("name", kind, code) for code in codes[kind]), key=order)
        chosen += [name for name in names if everywhere(name)][:count]
    return sorted(chosen, key=order)


def render(meaning: Meaning, language: str) -> str:
    """The sentence that says `meaning` in `language`, as it is spoken: with words for numbers (1 to 20), and with
    punctuation where a speaker would pause."""
    return re.sub(r"\d+", lambda digits: NUMBER_WORDS[language][int(digits.group()) - 1], written(meaning, language))


def written(meaning: Meaning, language: str) -> str:
    """The same sentence as it is written: numbers in digits, everything else as CLDR's patterns have it. Names stand in
    the nominative, and a sentence begins in lower case where its first word does."""
    locale = locale_of(language)
    match meaning:
        case "words", *parts:
            return " ".join(written(part, language) for part in parts)
        case "sequence", *parts:
            return ", ".join(written(part, language) for part in parts)
        case "and", *parts:
            return _listed(parts, "standard", locale)
        case "or", *parts:
            return _listed(parts, "or", locale)
        case "number", number:
            return str(number)
        case "month", number:
            return locale.months["format"]["wide"][number]
        case "weekday", number:
            # Not "stand-alone": babel gives Punjabi's in the Arabic script.
            return locale.days["format"]["wide"][number]
        case "name", kind, code:
            return name_of(kind, code, language)
        case "date", weekday, day, month:
            return format_date(_day_on(weekday, day, month), _without_year("full", locale), locale)
        case "day", day, month:
            return format_date(datetime.date(2000, month, day), _without_year("long", locale), locale)
        case "unit", number, unit:
            text = format_unit(number, unit, "long", locale=locale)
            # CLDR leaves out a long pattern that is the short one, as Dutch "uur": babel then gives the unit's id. And
            # Romanian has "1/noapte" for 1 night in the long pattern alone.
            return format_unit(number, unit, "short", locale=locale) if unit in text or "/" in text else text
        case "currency", number, currency:
            return format_currency(number, currency, "#", locale=locale, format_type="name", currency_digits=False)
        case "relative", number, unit:
            # An endless threshold keeps the unit: else 14 days would become 2 weeks.
            delta = datetime.timedelta(seconds=number * SECONDS[unit])
            return format_timedelta(delta, granularity=unit, threshold=float("inf"), add_direction=True, locale=locale)
    raise ValueError(f"no such meaning: {meaning!r}")


def _listed(parts: Sequence[Meaning], style: str, locale: Locale) -> str:
    text = format_list([written(part, locale.language) for part in parts], style, locale)
    if locale.language == "es":  # the vowels that CLDR leaves to the program: "Francia e Italia", "7 u 8"
        text = re.sub(r" y (?=[ií]|hi(?![ae]))", " e ", text, flags=re.IGNORECASE)
        text = re.sub(r" o (?=h?[oó]|8|11\b)", " u ", text, flags=re.IGNORECASE)
    return text


def _without_year(length: str, locale: Locale) -> str:
    """The locale's pattern of a date without its year, and without the words that belong to it: es "de", ru "г."."""
    pattern = locale.date_formats[length].pattern
    return re.sub(r"[,،]?\s*('[^']*'\s*)?\by+\b(\s*'[^']*'\.?)?", "", pattern).strip(" ,،")


def _day_on(weekday: int, day: int, month: int) -> datetime.date:
    """A date of this day and month that falls on this weekday; its year is not said."""
    candidates = (datetime.date(year, month, day) for year in range(2001, 2030))
    return next(date for date in candidates if date.weekday() == weekday)
