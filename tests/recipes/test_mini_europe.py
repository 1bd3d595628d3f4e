"""The corpus mini_europe: what is right in each language, and its data script."""

import importlib.util
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("babel")
pytest.importorskip("espeakng_loader")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "local"))

from minicorpus.cldr import render, shared_names, written  # noqa: E402
from minicorpus.meanings import CURRENCIES, PHRASE_UNITS, UNITS, open_ended, phrases  # noqa: E402
from minicorpus.script import SCRIPTS, clean, is_native, transcript  # noqa: E402
from minicorpus.sentences import draw_splits  # noqa: E402

from pelasr.data.audio import load_audio  # noqa: E402
from pelasr.data.kaldi import read_data_dir  # noqa: E402
from pelasr.errors import PelasrError  # noqa: E402

TARGETS = ["de", "es", "fr", "it", "nl", "pt", "ro", "ru"]


@pytest.fixture(scope="module")
def script():
    """The module `egs/mini_europe/st1/local/data.py`."""
    path = ROOT / "egs/mini_europe/st1/local/data.py"
    spec = importlib.util.spec_from_file_location("data_of_mini_europe", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def name(kind, code):
    return ("name", kind, code)


# Languages: every meaning as English says it, and as the others write it, in the order of TARGETS

FACTS = {
    ("date", 2, 5, 3): (
        "wednesday march five | Mittwoch, 5. März | miércoles, 5 de marzo | mercredi 5 mars | mercoledì 5 marzo | "
        "woensdag 5 maart | quarta-feira, 5 de março | miercuri, 5 martie | среда, 5 марта"
    ),
    ("day", 20, 8): (
        "august twenty | 20. August | 20 de agosto | 20 août | 20 agosto | 20 augustus | 20 de agosto | 20 august | "
        "20 августа"
    ),
    ("relative", 4, "day"): (
        "in four days | in 4 Tagen | dentro de 4 días | dans 4 jours | tra 4 giorni | over 4 dagen | em 4 dias | "
        "peste 4 zile | через 4 дня"
    ),
    ("relative", -20, "hour"): (
        "twenty hours ago | vor 20 Stunden | hace 20 horas | il y a 20 heures | 20 ore fa | 20 uur geleden | "
        "há 20 horas | acum 20 de ore | 20 часов назад"
    ),
    ("relative", 1, "week"): (
        "in one week | in 1 Woche | dentro de 1 semana | dans 1 semaine | tra 1 settimana | over 1 week | "
        "em 1 semana | peste 1 săptămână | через 1 неделю"
    ),
    ("relative", -14, "day"): (
        "fourteen days ago | vor 14 Tagen | hace 14 días | il y a 14 jours | 14 giorni fa | 14 dagen geleden | "
        "há 14 dias | acum 14 zile | 14 дней назад"
    ),
    ("unit", 1, "length-kilometer"): (
        "one kilometer | 1 Kilometer | 1 kilómetro | 1 kilomètre | 1 chilometro | 1 kilometer | 1 quilômetro | "
        "1 kilometru | 1 километр"
    ),
    ("unit", 4, "length-kilometer"): (
        "four kilometers | 4 Kilometer | 4 kilómetros | 4 kilomètres | 4 chilometri | 4 kilometer | 4 quilômetros | "
        "4 kilometri | 4 километра"
    ),
    ("unit", 20, "length-kilometer"): (
        "twenty kilometers | 20 Kilometer | 20 kilómetros | 20 kilomètres | 20 chilometri | 20 kilometer | "
        "20 quilômetros | 20 de kilometri | 20 километров"
    ),
    ("unit", 5, "duration-hour"): (
        "five hours | 5 Stunden | 5 horas | 5 heures | 5 ore | 5 uur | 5 horas | 5 ore | 5 часов"
    ),
    ("unit", 2, "duration-day"): (
        "two days | 2 Tage | 2 días | 2 jours | 2 giorni | 2 dagen | 2 dias | 2 zile | 2 дня"
    ),
    ("unit", 1, "duration-night"): (
        "one night | 1 Übernachtung | 1 noche | 1 nuit | 1 notte | 1 nacht | 1 noite | 1 noapte | 1 ночь"
    ),
    ("currency", 20, "CHF"): (
        "twenty swiss francs | 20 Schweizer Franken | 20 francos suizos | 20 francs suisses | 20 franchi svizzeri | "
        "20 Zwitserse frank | 20 Francos suíços | 20 de franci elvețieni | 20 швейцарских франков"
    ),
    ("and", name("territory", "DE"), name("territory", "FR"), name("city", "Europe/Vienna")): (
        "germany france and vienna | Deutschland, Frankreich und Wien | Alemania, Francia y Viena | "
        "Allemagne, France et Vienne | Germania, Francia e Vienna | Duitsland, Frankrijk en Wenen | "
        "Alemanha, França e Viena | Germania, Franța și Viena | Германия, Франция и Вена"
    ),
    ("or", name("territory", "ES"), name("language", "sv")): (
        "spain or swedish | Spanien oder Schwedisch | España o sueco | Espagne ou suédois | Spagna o svedese | "
        "Spanje of Zweeds | Espanha ou sueco | Spania sau suedeză | Испания или шведский"
    ),
    ("sequence", ("date", 4, 11, 10), ("relative", -2, "minute"), name("city", "Europe/Paris")): (
        "friday october eleven two minutes ago paris | Freitag, 11. Oktober, vor 2 Minuten, Paris | "
        "viernes, 11 de octubre, hace 2 minutos, París | vendredi 11 octobre, il y a 2 minutes, Paris | "
        "venerdì 11 ottobre, 2 minuti fa, Parigi | vrijdag 11 oktober, 2 minuten geleden, Parijs | "
        "sexta-feira, 11 de outubro, há 2 minutos, Paris | vineri, 11 octombrie, acum 2 minute, Paris | "
        "пятница, 11 октября, 2 минуты назад, Париж"
    ),
}


@pytest.mark.parametrize("meaning", FACTS, ids=lambda meaning: FACTS[meaning].partition(" |")[0])
def test_one_meaning_in_nine_languages(meaning):
    english, *expected = FACTS[meaning].split(" | ")
    assert transcript(render(meaning, "en")) == english
    assert [clean(written(meaning, target)) for target in TARGETS] == expected


def test_numbers_are_words_when_spoken_and_digits_when_written():
    meaning = ("sequence", ("date", 6, 5, 3), ("unit", 12, "duration-week"))
    assert render(meaning, "en") == "Sunday, March five, twelve weeks"
    assert written(meaning, "en") == "Sunday, March 5, 12 weeks"


@pytest.mark.parametrize(
    ("kind", "parts", "expected"),
    [
        ("and", [name("territory", "ES"), name("territory", "IT")], "España e Italia"),
        ("and", [name("territory", "IT"), name("territory", "ES")], "Italia y España"),
        ("and", [name("territory", "ES"), name("language", "hi")], "España e hindi"),
        ("and", [name("territory", "ES"), name("territory", "YE")], "España y Yemen"),
        ("or", [name("territory", "ES"), name("territory", "OM")], "España u Omán"),
        ("or", [name("territory", "ES"), name("territory", "HN")], "España u Honduras"),
        ("or", [("unit", 7, "duration-hour"), ("unit", 8, "duration-hour")], "7 horas u 8 horas"),
        ("or", [("unit", 7, "duration-hour"), ("unit", 11, "duration-hour")], "7 horas u 11 horas"),
        ("or", [("unit", 7, "duration-hour"), ("unit", 1, "duration-hour")], "7 horas o 1 hora"),
    ],
)
def test_spanish_conjunctions_before_a_like_vowel(kind, parts, expected):
    assert written((kind, *parts), "es") == expected


@pytest.mark.parametrize("language", ["en", *TARGETS])
def test_every_unit_and_currency_is_in_words(language):
    amounts = [("unit", number, unit) for unit in {*UNITS, *PHRASE_UNITS} for number in (1, 2, 5, 20)]
    amounts += [("currency", number, currency) for currency in CURRENCIES for number in (1, 2, 5, 20)]
    for amount in amounts:
        digits, *words = written(amount, language).split()
        assert digits == str(amount[1]) and words, amount
        letters = "".join(words).replace("-", "")
        assert is_native(letters, language), (amount, letters)  # neither an abbreviation's sign nor an id
        assert len(letters) > 1 and amount[2] not in " ".join(words), (amount, letters)


def test_names_are_in_the_script_of_every_language():
    names = shared_names(["en", *TARGETS])
    assert len(set(names)) == 180
    assert Counter(kind for _, kind, _ in names) == {"territory": 90, "language": 50, "city": 40}
    for meaning in names:
        for language in ("en", *TARGETS):
            text = written(meaning, language)
            assert is_native(clean(text), language) and len(text.split()) <= 2
    assert SCRIPTS["ru"] == "CYRILLIC" and not is_native("Roma", "ru") and not is_native("Рим", "ro")


# Sizes: their texts alone


@pytest.fixture(scope="module")
def tiny(script):
    size = script.SIZES["tiny"]
    counts = {"train": size.train, "dev": size.dev, "test": size.test}
    return draw_splits(phrases, "en", counts, 0, TARGETS)


def texts(sentences, language):
    return [sentence.text if language == "en" else sentence.translations[language] for sentence in sentences]


def test_tiny_has_a_closed_lexicon_that_train_knows(tiny):
    heard = Counter(word for sentence in tiny["train"] for word in sentence.text.split())
    assert len(heard) == 66
    assert min(heard.values()) >= 20
    for sentence in sum(tiny.values(), []):
        assert is_native(sentence.text, "en") and sentence.text.islower() and 3 <= len(sentence.text.split()) <= 6
        assert set(sentence.text.split()) <= set(heard)


@pytest.mark.parametrize("language", ["en", *TARGETS])
def test_tiny_tests_no_sentence_of_train(tiny, language):
    assert {split: len(sentences) for split, sentences in tiny.items()} == {"train": 800, "dev": 80, "test": 200}
    everything = sum((texts(sentences, language) for sentences in tiny.values()), [])
    assert len(set(everything)) == 1080


@pytest.mark.parametrize("language", TARGETS)
def test_tiny_translations_are_long_enough_for_four_grams_and_known(tiny, language):
    def tokens(text):
        return re.findall(r"[\w-]+|[.,]", text)

    known = {token for text in texts(tiny["train"], language) for token in tokens(text)}
    for text in texts(tiny["test"] + tiny["dev"], language):
        assert text == clean(text) and unicodedata.is_normalized("NFC", text)
        assert len(tokens(text)) >= 4 and set(tokens(text)) <= known, text


def test_growing_train_does_not_move_test(script):
    few, more = (draw_splits(phrases, "en", {"train": train, "dev": 6, "test": 8}, 0, TARGETS) for train in (24, 100))
    assert (few["test"], few["dev"]) == (more["test"], more["dev"]) and few["train"] == more["train"][:24]


def test_full_has_open_sentences(script):
    draw = open_ended(shared_names(["en", *TARGETS]))
    splits = draw_splits(draw, "en", {"train": 400, "dev": 20, "test": 40}, 0, TARGETS)
    sentences = sum(splits.values(), [])
    assert len({word for sentence in sentences for word in sentence.text.split()}) > 200
    for language in ("en", *TARGETS):
        assert len(set(texts(sentences, language))) == 460
    assert script.SIZES["full"].open_ended and script.SIZES["full"].train == 3000


# The data script


def speech_below(data):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in data.glob("wav/en/*/*.wav")}


def bytes_of(speech):
    return {path: content for path, (content, _) in speech.items()}


def test_data_directories(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = Path("data")
    script.make_corpus(data, TARGETS, "test", seed=0, nj=1)
    splits = {split: read_data_dir(data / f"{split}_en") for split in ("train", "dev", "test")}
    assert {split: len(utterances) for split, utterances in splits.items()} == {"train": 24, "dev": 6, "test": 8}
    counts = {split: len(utterances) for split, utterances in splits.items()}
    expected = draw_splits(phrases, "en", counts, 0, TARGETS)
    for split, utterances in splits.items():
        in_order = sorted(utterances, key=lambda utterance: utterance.id.rpartition("-")[2])
        pairs = [(utterance.text, utterance.translations) for utterance in in_order]
        assert pairs == [(sentence.text, sentence.translations) for sentence in expected[split]]
        for utterance in utterances:
            assert utterance.language == "en" and utterance.id.startswith(f"{utterance.speaker}-en-{split}-")
    assert 0.8 < len(load_audio(splits["test"][0])) / 16000 < 4

    speech = speech_below(data)
    script.make_corpus(data, TARGETS, "test", seed=0, nj=2)
    assert "already there" in capsys.readouterr().err and speech_below(data) == speech
    (data / "mini_europe.json").unlink()  # as if the first run had been interrupted
    script.make_corpus(data, TARGETS, "test", seed=0, nj=2)
    assert bytes_of(speech_below(data)) == bytes_of(speech)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Files that hold what would be spoken instead of speech; below `data` in a working directory of its own."""

    def write(requests, pool, what):
        for request in requests:
            request.path.parent.mkdir(parents=True, exist_ok=True)
            request.path.write_text(f"{request.seed} {request.spoken}")

    monkeypatch.setattr("minicorpus.speech.speak_all", write)
    monkeypatch.chdir(tmp_path)
    return write


def test_more_targets_leave_the_speech_and_the_other_targets(script, quick, capsys):
    data = Path("data")
    script.make_corpus(data, ["ru", "de"], "test", seed=0, nj=1)
    speech = speech_below(data)
    english, german = ((data / "test_en" / file).read_bytes() for file in ("text", "text.de"))
    assert sorted(path.name for path in data.glob("train_en/text*")) == ["text", "text.de", "text.ru"]
    script.make_corpus(data, ["fr"], "test", seed=0, nj=1)
    assert sorted(path.name for path in data.glob("train_en/text*")) == ["text", "text.de", "text.fr", "text.ru"]
    assert [(data / "test_en" / file).read_bytes() for file in ("text", "text.de")] == [english, german]
    assert len(speech) == 38 and speech_below(data) == speech
    capsys.readouterr()
    script.make_corpus(data, ["de"], "test", seed=0, nj=1)
    assert "already there" in capsys.readouterr().err


def test_another_seed_interrupted_is_not_taken_for_the_first(script, quick, monkeypatch):
    def interrupted(requests, pool, what):
        quick(requests[:5], pool, what)
        raise KeyboardInterrupt

    data = Path("data")
    script.make_corpus(data, ["de"], "test", seed=0, nj=1)
    speech = speech_below(data)
    with monkeypatch.context() as patch:
        patch.setattr("minicorpus.speech.speak_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            script.make_corpus(data, ["de"], "test", seed=1, nj=1)
    script.make_corpus(data, ["de"], "test", seed=0, nj=1)
    assert bytes_of(speech_below(data)) == bytes_of(speech)


def test_unknown_target_is_an_error(script, tmp_path):
    with pytest.raises(PelasrError, match="no such language: xx; mini_europe has de es"):
        script.make_corpus(tmp_path / "data", ["de", "xx"], "test", seed=0, nj=1)
    assert list(tmp_path.iterdir()) == []
