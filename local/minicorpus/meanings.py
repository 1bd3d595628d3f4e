"""Language-independent meanings, drawn at random: what is said, before any language says it.

A meaning is a nested tuple whose first item is its kind, such as `("date", 3, 14, 7)` or
`("sequence", ("name", "city", "Asia/Tokyo"), ("unit", 4, "energy-joule"))`; cldr.py renders it. Only
`random.Random.random` is used, whose sequence is the same in every Python version.
"""

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, product
from random import Random

NUMBERS = range(1, 21)
MONTHS = range(1, 13)
WEEKDAYS = range(7)  # Monday is 0
UNITS = [
    "mass-kilogram",
    "mass-milligram",
    "mass-tonne",
    "length-decimeter",
    "length-nautical-mile",
    "duration-century",
    "duration-night",
    "electric-ampere",
    "electric-volt",
    "electric-ohm",
    "energy-calorie",
    "energy-joule",
    "force-newton",
    "power-kilowatt",
    "power-horsepower",
    "frequency-hertz",
    "digital-megabyte",
    "digital-gigabyte",
    "graphics-pixel",
    "temperature-celsius",
]
CURRENCIES = [
    "USD",
    "EUR",
    "INR",
    "RUB",
    "BRL",
    "AUD",
    "CAD",
    "CHF",
    "SEK",
    "NOK",
    "PLN",
    "TRY",
    "MXN",
    "THB",
    "NPR",
    "EGP",
]
TIME_UNITS = ["second", "minute", "hour", "day", "week"]
ZIPF_EXPONENT = 0.7  # frequent and rare names, as in real text
# Names that English, and most of its targets, say and write unlike one another.
PHRASE_NAMES = [
    ("name", "territory", "DE"),
    ("name", "territory", "ES"),
    ("name", "territory", "HU"),
    ("name", "territory", "CH"),
    ("name", "territory", "EG"),
    ("name", "territory", "JP"),
    ("name", "city", "Europe/Moscow"),
    ("name", "city", "Europe/Vienna"),
    ("name", "city", "Europe/Rome"),
    ("name", "city", "Europe/Lisbon"),
    ("name", "language", "nl"),
    ("name", "language", "sv"),
]
PHRASE_TIME_UNITS = ["minute", "hour", "day", "week"]
PHRASE_UNITS = [*(f"duration-{unit}" for unit in PHRASE_TIME_UNITS), "length-kilometer", "mass-kilogram"]
PHRASE_AMOUNTS = [*NUMBERS, *[1] * 11]  # more ones than their share, so that no singular is rare
CLOSED_LEXICON = [("number", n) for n in NUMBERS] + [("month", n) for n in MONTHS] + [("weekday", n) for n in WEEKDAYS]

Meaning = tuple
Draw = Callable[[Random], Iterator[Meaning]]  # an endless stream of meanings


def choose(random: Random, items: Sequence):
    """One of `items`, each as likely."""
    return items[int(random.random() * len(items))]


def closed(shortest: int, longest: int) -> Draw:
    """Sequences of `shortest` to `longest` words of a lexicon of 39: numbers 1 to 20, months, weekdays.

    Words are dealt from a shuffled deck, so that a small training set has all of them.
    """

    def draw(random: Random) -> Iterator[Meaning]:
        deck = []
        while True:
            count = choose(random, range(shortest, longest + 1))
            while len(deck) < count:
                deck = sorted(CLOSED_LEXICON, key=lambda _: random.random()) + deck
            yield ("words", *(deck.pop() for _ in range(count)))

    return draw


def phrases(random: Random) -> Iterator[Meaning]:
    """Nine patterns over a lexicon of 66 English words: names, dates, amounts, times; 3 to 5 words a sentence.

    Each part is dealt from a shuffled deck of its own, so that all words are about as frequent as their kind.
    """

    def deck(*columns: Sequence) -> Iterator[tuple]:
        cards = list(product(*columns))
        while True:
            yield from sorted(cards, key=lambda _: random.random())

    names = deck(PHRASE_NAMES)
    weekdays, days, months = deck(WEEKDAYS), deck(NUMBERS), deck(MONTHS)
    amounts, times = deck(PHRASE_AMOUNTS, PHRASE_UNITS), deck((-1, 1), PHRASE_AMOUNTS, PHRASE_TIME_UNITS)

    def name() -> Meaning:
        return next(names)[0]

    def date() -> Meaning:
        return ("date", *next(weekdays), *next(days), *next(months))

    def day() -> Meaning:
        return ("day", *next(days), *next(months))

    def unit() -> Meaning:
        return ("unit", *next(amounts))

    def relative() -> Meaning:
        direction, number, time_unit = next(times)
        return ("relative", direction * number, time_unit)

    kinds = (
        ("and", name, name, name),
        ("and", unit, unit),
        ("and", day, day),
        ("sequence", name, date),
        ("sequence", name, day),
        ("sequence", name, unit),
        ("sequence", name, relative),
        ("sequence", date, unit),
        ("sequence", relative, unit),
    )
    while True:
        kind, *parts = choose(random, kinds)
        said = [part() for part in parts]
        if len(set(said)) == len(said):
            yield (kind, *said)


def open_ended(names: Sequence[Meaning]) -> Draw:
    """Eleven patterns over names (the first are the most frequent), dates, amounts and times."""
    cumulative = list(accumulate((rank + 1) ** -ZIPF_EXPONENT for rank in range(len(names))))

    def name(random: Random) -> Meaning:
        return names[bisect(cumulative, random.random() * cumulative[-1])]

    def date(random: Random) -> Meaning:
        return ("date", choose(random, WEEKDAYS), choose(random, NUMBERS), choose(random, MONTHS))

    def unit(random: Random) -> Meaning:
        return ("unit", choose(random, NUMBERS), choose(random, UNITS))

    def currency(random: Random) -> Meaning:
        return ("currency", choose(random, NUMBERS), choose(random, CURRENCIES))

    def relative(random: Random) -> Meaning:
        return ("relative", choose(random, (-1, 1)) * choose(random, NUMBERS), choose(random, TIME_UNITS))

    kinds = (
        ("and", name, name),
        ("and", name, name, name),
        ("or", name, name),
        ("sequence", date),
        ("sequence", name, unit),
        ("sequence", name, relative),
        ("sequence", date, name),
        ("sequence", relative, currency),
        ("sequence", name, currency),
        ("and", unit, unit),
        ("sequence", relative, unit),
    )

    def draw(random: Random) -> Iterator[Meaning]:
        while True:
            kind, *parts = choose(random, kinds)
            yield (kind, *(part(random) for part in parts))

    return draw
