"""One model used by many threads at a time: every answer is the one that it gives alone, and it stays whole."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import tiny_exp
from tiny_exp import make_packs
from tiny_speech import PAIRS, make_recogniser, make_translator, noise

import pelasr
from pelasr.backbones import load_backbone

THREADS = 8
HOUSES = ["hi", "ur", "uk", "mr"]  # languages with houlsby adapters; those that the backbone knows are hi, ur and pa
TUNED = ["te", "ne"]  # fine-tuned
LORA = ["pa", "be"]
OWN = {"mr": ["अ"], "be": ["ў", "ё", "э"], "ne": ["क"], "en-uk": ["<lang:uk>", "ж"]}


@pytest.fixture(autouse=True)
def _many_switches():
    """Threads take turns two hundred times as often as by default."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2.5e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Packs of three methods on a recogniser, and of two on each of two translators; nothing writes there."""
    folder = tmp_path_factory.mktemp("threads")
    with pytest.MonkeyPatch.context() as patch:
        for language, tokens in OWN.items():
            patch.setitem(tiny_exp.OWN, language, tokens)
        make_recogniser(folder)
        backbone = load_backbone(folder / "A1")
        make_packs(folder / "houlsby", backbone, HOUSES)
        make_packs(folder / "lora", backbone, LORA, method="lora", seed=2, sites="joint", rank=2)
        make_packs(folder / "full", backbone, TUNED, method="full", seed=3)
        for encoder in ("conformer", "e_branchformer"):
            make_translator(folder / encoder, encoder).rename(folder / encoder / "A1")
            backbone = load_backbone(folder / encoder / "A1")
            make_packs(folder / encoder / "houlsby", backbone, [PAIRS[0], "en-uk"], sites="ffn")
            make_packs(folder / encoder / "full", backbone, PAIRS[1:], method="full", seed=3)
    return folder


def recogniser(made: Path):
    model = pelasr.load(made / "houlsby")
    for folder in [*(made / "lora/packs" / key for key in LORA), *(made / "full/packs" / key for key in TUNED)]:
        model.load_language(folder)
    return model


def translator(made: Path, encoder: str):
    model = pelasr.load(made / encoder / "houlsby")
    model.load_language(made / encoder / "full/packs" / PAIRS[1])
    return model


def in_threads(work, count: int = THREADS) -> list:
    """What `work(n)` returns in each of some threads, which begin together."""
    barrier = Barrier(count)

    def begin(n: int):
        barrier.wait()
        return work(n)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def check(model, fresh, languages: list[str], count: int, beam_size: int = 1) -> None:
    """The answers of `count` calls from all threads, each for one utterance, some of one language or some of several,
    are those of another model for each utterance alone."""
    alone = {(n, key): fresh.decode([audio], key, beam_size)[0] for n, audio in enumerate(AUDIO) for key in languages}
    assert len(set(alone.values())) > len(alone) / 4

    def work(seed: int) -> list[str]:
        draws = random.Random(seed)
        wrong = []
        for n in range(count // THREADS):
            size = draws.choice([1, 1, 2])
            chosen = draws.choices(languages, k=size) if n % 2 else [draws.choice(languages)] * size
            audio = draws.choices(range(len(AUDIO)), k=size)
            found = model.decode([AUDIO[n] for n in audio], chosen, beam_size)
            wanted = [alone[pair] for pair in zip(audio, chosen, strict=True)]
            wrong += [f"{chosen}: {found}, not {wanted}"] * (found != wanted)
        return wrong

    wrong = [found for each in in_threads(work) for found in each]
    assert not wrong, f"{len(wrong)} of {count} answers are others, such as {wrong[0]}"
    for (n, language), text in alone.items():
        assert model.decode([AUDIO[n]], language, beam_size) == [text]


AUDIO = [noise(0.04 + 0.02 * n, n) for n in range(4)]


def test_recognition(made):
    """Adapters of two methods and fine-tuning, new languages and old ones, packs that are loaded meanwhile."""
    check(recogniser(made), recogniser(made), [*HOUSES, *TUNED, *LORA], 600)


@pytest.mark.parametrize("encoder", ["conformer", "e_branchformer"])
def test_translation(encoder, made):
    check(translator(made, encoder), translator(made, encoder), [*PAIRS, "en-uk"], 200)
