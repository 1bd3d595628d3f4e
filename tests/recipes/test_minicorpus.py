"""The generator of the synthetic corpora, and the recipes' data scripts that use it or a real corpus."""

import hashlib
import importlib.metadata
import importlib.util
import itertools
import platform
import sys
import unicodedata
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("babel")
pytest.importorskip("espeakng_loader")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "local"))

import minicorpus  # noqa: E402
from minicorpus.cldr import NUMBER_WORDS, render, shared_names  # noqa: E402
from minicorpus.espeak import synthesise  # noqa: E402
from minicorpus.meanings import CLOSED_LEXICON, closed, open_ended  # noqa: E402
from minicorpus.script import clean, is_native, transcript  # noqa: E402
from minicorpus.sentences import draw_splits  # noqa: E402
from minicorpus.speakers import SPEAKERS  # noqa: E402
from minicorpus.speech import Request, speak, speak_all, workers  # noqa: E402

from pelasr.data.audio import load_audio  # noqa: E402
from pelasr.data.kaldi import read_data_dir  # noqa: E402
from pelasr.errors import PelasrError  # noqa: E402

LANGUAGES = ["hi", "mr", "bn", "te", "gu", "ta", "ml", "kn", "ur", "pa"]
COUNTS = {"train": 60, "dev": 20, "test": 30}


def script_of(recipe):
    """The module `egs/<recipe>/local/data.py`."""
    path = ROOT / "egs" / recipe / "local" / "data.py"
    spec = importlib.util.spec_from_file_location(f"data_of_{recipe.replace('/', '_')}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def names():
    return shared_names(LANGUAGES)


def requests_below(folder, level=2):
    languages = itertools.cycle(LANGUAGES)
    return [
        Request(f"u{i}", language, render(("number", i), language), speaker, level, 0, folder / f"{i}.wav")
        for i, (speaker, language) in enumerate(zip(SPEAKERS["test"], languages, strict=False), 1)
    ]


# Text


@pytest.mark.parametrize("language", LANGUAGES)
def test_number_words_are_twenty_and_native(language):
    words = NUMBER_WORDS[language]
    assert len(words) == len(set(words)) == 20
    assert all(is_native(word, language) and transcript(word) == word and " " not in word for word in words)


@pytest.mark.parametrize("language", LANGUAGES)
def test_closed_lexicon_is_native_and_distinct(language):
    words = [transcript(render(meaning, language)) for meaning in CLOSED_LEXICON]
    assert len(set(words)) == 39
    assert [word for word in words if not is_native(word, language)] == []


def test_every_word_is_dealt_before_any_comes_again():
    sentences = itertools.islice(closed(3, 3)(Random(1)), 13)
    assert sorted(word for _, *words in sentences for word in words) == sorted(CLOSED_LEXICON)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ["closed", "open"])
def test_sentences_are_disjoint_and_clean(language, kind, names):
    draw = closed(2, 3) if kind == "closed" else open_ended(names)
    splits = draw_splits(draw, language, COUNTS, seed=0)
    texts = [sentence.text for split in splits.values() for sentence in split]
    assert {split: len(sentences) for split, sentences in splits.items()} == COUNTS
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert unicodedata.is_normalized("NFC", text) and is_native(text, language) and text == transcript(text)


def test_growing_train_does_not_move_test_or_dev(names):
    few = draw_splits(open_ended(names), "hi", COUNTS, seed=0)
    more = draw_splits(open_ended(names), "hi", {**COUNTS, "train": 100}, seed=0)
    assert (few["test"], few["dev"]) == (more["test"], more["dev"])
    assert few["train"] == more["train"][:60]
    assert few["test"] != draw_splits(open_ended(names), "hi", COUNTS, seed=1)["test"]


def test_no_translation_is_in_two_sentences():
    fiji, fijian, chad = ("name", "territory", "FJ"), ("name", "language", "fj"), ("name", "territory", "TD")

    def draw(random):
        yield from (fiji, fijian, fiji, chad)

    def drawn(targets, count):
        sentences = draw_splits(draw, "en", {"train": 0, "dev": 0, "test": count}, 0, targets)["test"]
        return [(sentence.text, sentence.translations) for sentence in sentences]

    assert drawn(["de"], 2) == [("fiji", {"de": "Fidschi"}), ("chad", {"de": "Tschad"})]  # a Fijian is Fidschi too
    assert drawn(["ru"], 2) == [("fiji", {"ru": "Фиджи"}), ("fijian", {"ru": "фиджи"})]
    assert drawn([], 3) == [("fiji", {}), ("fijian", {}), ("chad", {})]


def test_too_few_sentences_is_an_error():
    with pytest.raises(PelasrError, match=r"hi: only \d+ of 20 distinct dev sentences"):
        draw_splits(closed(1, 1), "hi", COUNTS, seed=0)


def test_rendering(names):
    assert len(set(names)) == 180
    assert render(("date", 0, 15, 8), "hi") == "सोमवार, पंद्रह अगस्त"
    assert render(("relative", -2, "week"), "ur") == "دو ہفتے پہلے"
    assert render(("relative", 14, "day"), "hi") == "चौदह दिन में"
    assert render(("or", ("number", 1), ("number", 2)), "bn") == "এক বা দুই"


def test_clean():
    assert clean("ന\u0d4d\u200d ക\u0d4d\u200cക") == "ൻ ക\u0d4dക"  # chillu made atomic, other joiners dropped
    assert clean("e\u0301 \n x") == "é x"
    assert transcript("श्री, (एक)-दो।") == "श्री एक दो"
    assert transcript("US dollars, Monday") == "us dollars monday"
    assert not is_native("एक 2", "hi") and not is_native("one", "hi") and not is_native("", "hi")


# Speakers and speech


def test_speakers_are_disjoint():
    assert {split: len(pool) for split, pool in SPEAKERS.items()} == {"train": 72, "dev": 6, "test": 10}
    speakers = [speaker for pool in SPEAKERS.values() for speaker in pool]
    assert len({speaker.id for speaker in speakers}) == 88
    variants = [{speaker.variant for speaker in pool} for pool in SPEAKERS.values()]
    assert len(set().union(*variants)) == sum(map(len, variants)) == 40
    for speaker in speakers:
        assert 26 <= speaker.pitch <= 74 and 130 <= speaker.rate <= 210 and 0.869 <= speaker.warp <= 1.141
    for speaker in SPEAKERS["dev"] + SPEAKERS["test"]:
        assert 35 <= speaker.pitch <= 65 and 145 <= speaker.rate <= 195 and 0.92 <= speaker.warp <= 1.09


PINNED_WHEEL = ("0.2.4", "Linux", "x86_64")
PINNED = {
    ("एक दो", "hi+f2"): "5ff98648aebbd44e72c3bd2bba27a779",
    ("ஒன்று ஜனவரி", "ta+m3"): "9f9564b9cb8f3b7e7c14ab748efb466b",
    ("ایک جنوری", "ur+Alicia"): "4ba81430428df186395dc494205de84e",
}


def test_espeak_gives_the_pinned_samples():
    found = {key: hashlib.md5(synthesise(*key, 165, 50, 50)[0].tobytes()).hexdigest() for key in PINNED}
    here = (importlib.metadata.version("espeakng-loader"), platform.system(), platform.machine())
    assert found == PINNED, (
        f"the samples pinned belong to espeakng-loader {PINNED_WHEEL}, these are of {here}: if you changed the wheel, "
        "pin these and raise minicorpus.GENERATOR_VERSION; if not, the synthesis is no longer deterministic"
    )


def test_bytes_do_not_depend_on_processes_or_history(tmp_path):
    contents = []
    for nj in (1, 2):
        requests = requests_below(tmp_path / str(nj))
        with workers(nj) as pool:
            speak_all(requests, pool, "speech")
        contents.append([request.path.read_bytes() for request in requests])
    assert contents[0] == contents[1]
    last = requests[-1]
    assert speak(last).tobytes() == speak(last).tobytes() == contents[0][-1][44:]  # 44 bytes of wav header


@pytest.mark.parametrize("level", [0, 1, 2])
def test_speech_is_neither_silent_nor_clipped(tmp_path, level):
    for request in requests_below(tmp_path, level)[:5]:
        samples = speak(request) / 32768
        assert 0.3 < len(samples) / 16000 < 2.0
        assert 0.3 < abs(samples).max() < 0.9
        assert samples.std() > 0.02
        assert max(len(list(run)) for zero, run in itertools.groupby(samples == 0) if zero) < 20


def test_english_is_spoken_by_the_american_voice(tmp_path, monkeypatch):
    voices = []

    def synthesise_and_note(text, voice, *parameters):
        voices.append(voice)
        return synthesise(text, voice, *parameters)

    monkeypatch.setattr("minicorpus.speech.synthesise", synthesise_and_note)
    for language in ("en", "hi"):
        speak(Request("u", language, "a", SPEAKERS["test"][0], 0, 0, tmp_path / "u.wav"))
    assert set(voices) == {"en-us+f3", "hi+f3"}


@pytest.mark.parametrize("variant", sorted({speaker.variant for pool in SPEAKERS.values() for speaker in pool}))
def test_every_variant_speaks_english_the_same_twice(variant):
    first, again = (synthesise("one", f"en-us+{variant}", 165, 50, 50)[0] for _ in range(2))
    assert len(first) > 2000 and first.std() > 100 and (first == again).all()


def test_unknown_voice_is_an_error():
    with pytest.raises(PelasrError, match="no voice 'xx'"):
        synthesise("x", "xx", 165, 50, 50)


# Recipes


def test_mini_indic(tmp_path, monkeypatch, capsys):
    script = script_of("mini_indic/asr1")
    monkeypatch.chdir(tmp_path)
    data = Path("data")
    script.make_corpus(data, ["hi"], "test", seed=0, nj=1)
    speech = {path: path.read_bytes() for path in data.glob("wav/hi/*/*.wav")}
    assert len(speech) == 12 + 4 + 6
    script.make_corpus(data, ["hi", "pa"], "test", seed=0, nj=2)
    script.make_corpus(data, ["hi", "pa"], "test", seed=0, nj=2)
    assert "already there" in capsys.readouterr().err
    (data / "mini_indic.json").unlink()  # as if the first run had been interrupted
    script.make_corpus(data, ["hi"], "test", seed=0, nj=2)
    assert speech == {path: path.read_bytes() for path in data.glob("wav/hi/*/*.wav")}

    train, test = read_data_dir(data / "train_pa"), read_data_dir(data / "test_pa")
    assert len(train) == 12 and len(test) == 6
    assert not {u.text for u in train} & {u.text for u in test}
    assert not {u.speaker for u in train} & {u.speaker for u in test}
    for utterance in test:
        assert utterance.language == "pa" and utterance.id.startswith(f"{utterance.speaker}-pa-test-")
        assert 0.5 < len(load_audio(utterance)) / 16000 < 2.5


def test_mini_indic_sizes():
    script = script_of("mini_indic/asr1")
    assert sum(script.SIZES["tiny"].train.values()) == 1770
    assert script.SIZES["tiny"].train["hi"] == 600 and script.SIZES["tiny"].train["pa"] == 100
    with pytest.raises(PelasrError, match="no such language: xx"):
        script.make_corpus(Path("nowhere"), ["hi", "xx"], "tiny", seed=0, nj=1)


def test_missing_wheel_names_the_cure(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(PelasrError, match=r"need babel, .*: pip install 'pelasr\[corpora\]'"):
        minicorpus.versions()


def test_fsdd(tmp_path):
    script = script_of("fsdd/asr1")
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for digit, speaker, take in itertools.product((0, 7), ("theo", "jackson"), range(12)):
        (recordings / f"{digit}_{speaker}_{take}.wav").touch()
    script.make_data_dirs(recordings, tmp_path / "data")
    takes = {}
    for split in ("train", "dev", "test"):
        utterances = read_data_dir(tmp_path / "data" / f"{split}_en")
        takes[split] = {int(u.id.split("-")[-1]) for u in utterances}
        assert len(utterances) == 4 * len(takes[split])
        assert {u.text for u in utterances} == {"zero", "seven"} and {u.language for u in utterances} == {"en"}
    assert takes == {"test": {0, 1, 2, 3, 4}, "dev": {5, 6, 7, 8, 9}, "train": {10, 11}}


@pytest.mark.parametrize("folder", [None, Path("no/such/folder")])
def test_fsdd_absent_says_how_to_get_it(folder, tmp_path):
    with pytest.raises(PelasrError, match="git clone https://github.com/Jakobovski/free-spoken-digit-dataset"):
        script_of("fsdd/asr1").make_data_dirs(folder, tmp_path)
    assert list(tmp_path.iterdir()) == []
