"""One model used by many threads at a time: every answer is the one that it gives alone, and it stays whole."""

import copy
import pickle
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from importlib import import_module
from pathlib import Path
from threading import Barrier, current_thread

import numpy as np
import pytest
import tiny_exp
import torch
from tiny_data import TRAINING, write_set
from tiny_exp import make_packs
from tiny_models import ENCODERS
from tiny_speech import PAIRS, make_recogniser, make_translator, noise

import pelasr
from pelasr.adapters.bank import Bank
from pelasr.backbones.store import load_backbone
from pelasr.data.hears import one_thread
from pelasr.errors import PelasrError
from pelasr.nn.espnet import ESPnetEncoder

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


AUDIO = [noise(0.04 + 0.02 * n, n) for n in range(4)]
LONGER = [noise(0.1 + 0.05 * n, n) for n in range(4)]


def check(model, fresh, audio: list[np.ndarray], languages: list[str], count: int, beam_size: int) -> None:
    """The answers of `count` calls from all threads, for one utterance or two of one language or of two, are those of
    another model for each utterance alone."""
    alone = {(n, key): fresh.decode([one], key, beam_size)[0] for n, one in enumerate(audio) for key in languages}
    assert len(set(alone.values())) > len(alone) / 3

    def work(seed: int) -> list[str]:
        draws = random.Random(seed)
        wrong = []
        for n in range(count // THREADS):
            size = draws.choice([1, 1, 2])
            chosen = draws.choices(languages, k=size) if n % 2 else [draws.choice(languages)] * size
            picked = draws.choices(range(len(audio)), k=size)
            found = model.decode([audio[n] for n in picked], chosen, beam_size)
            wanted = [alone[pair] for pair in zip(picked, chosen, strict=True)]
            wrong += [f"{chosen}: {found}, not {wanted}"] * (found != wanted)
        return wrong

    wrong = [found for each in in_threads(work) for found in each]
    assert not wrong, f"{len(wrong)} of {count} answers are others, such as {wrong[0]}"
    for (n, language), text in alone.items():
        assert model.decode([audio[n]], language, beam_size) == [text]


def test_recognition(made):
    """Adapters of two methods and fine-tuning, new languages and old ones, packs that are loaded meanwhile."""
    check(recogniser(made), recogniser(made), AUDIO, [*HOUSES, *TUNED, *LORA], 600, beam_size=1)


@pytest.mark.parametrize("encoder", ["conformer", "e_branchformer"])
def test_translation(encoder, made):
    check(translator(made, encoder), translator(made, encoder), LONGER, [*PAIRS, "en-uk"], 200, beam_size=2)


def test_after_errors(made):
    """Audio and languages that are none, in half of the threads."""
    model, fresh = recogniser(made), recogniser(made)
    wanted = {language: fresh.decode(AUDIO, language) for language in [*HOUSES, *TUNED, *LORA]}
    faults = [(["nowhere.wav"], "hi"), (AUDIO[:1], "xx"), ([np.full(5000, np.nan)], "te"), (AUDIO[:2], ["mr", "en-de"])]

    def work(n: int) -> None:
        for language, texts in wanted.items():
            if n % 2:
                with pytest.raises(PelasrError):
                    model.decode(*faults[n // 2])
            else:
                assert model.decode(AUDIO, language) == texts

    in_threads(work)
    for language, texts in wanted.items():
        assert model.decode(AUDIO, language) == texts


@pytest.mark.parametrize("method", ["houlsby", "full"])
def test_an_error_within_a_search(method, made, monkeypatch):
    """Inside the route, in one thread, while others are inside theirs."""
    model = pelasr.load(made / method)
    languages = model.languages[:2]
    wanted = [model.decode(AUDIO, language) for language in languages]
    search = type(model.backbone.module).search

    def fails(self, *args):
        if current_thread().name.endswith("_0"):
            raise ZeroDivisionError
        return search(self, *args)

    def work(n: int) -> None:
        for _ in range(5):
            if current_thread().name.endswith("_0"):
                with pytest.raises(ZeroDivisionError):
                    model.decode(AUDIO, languages[0])
            else:
                assert model.decode(AUDIO, languages[1]) == wanted[1]

    monkeypatch.setattr(type(model.backbone.module), "search", fails)
    in_threads(work)
    assert [model.decode(AUDIO, language) for language in languages] == wanted


def test_a_pack_is_loaded_once(made, monkeypatch):
    """By whichever thread asks first; the others wait for it."""
    model, loaded, load = pelasr.load(made / "houlsby"), [], pelasr.model.load_pack

    def slowly(pack, *args):
        loaded.append(pack.description.language)
        time.sleep(0.05)
        return load(pack, *args)

    monkeypatch.setattr("pelasr.model.load_pack", slowly)
    found = in_threads(lambda n: model.decode(AUDIO, HOUSES[n % 2]))
    assert sorted(loaded) == sorted(HOUSES[:2]) and len(model._banks) == 1
    assert found == [model.decode(AUDIO, HOUSES[n % 2]) for n in range(THREADS)]


def test_a_pack_that_could_not_be_loaded_can_be_loaded_later(made, monkeypatch):
    """As when the memory of the GPU is full, or the user interrupts: the model is as it was."""
    model, to = pelasr.load(made / "houlsby"), Bank.to
    wanted = model.decode(AUDIO, "hi")
    for error in (torch.OutOfMemoryError, KeyboardInterrupt):
        monkeypatch.setattr(Bank, "to", lambda self, device, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(error):
            model.decode(AUDIO, "uk")
        with pytest.raises(error):
            model.load_language(made / "lora/packs/pa")
        assert model.decode(AUDIO, "hi") == wanted and model.languages == sorted(HOUSES)
    monkeypatch.setattr(Bank, "to", to)
    assert model.decode(AUDIO, "uk") == pelasr.load(made / "houlsby").decode(AUDIO, "uk")
    assert model.load_language(made / "lora/packs/pa") == "pa"


def test_loading_saving_and_counting(made, tmp_path):
    """While others decode; of the threads that load the same language one can."""
    model, loads = pelasr.load(made / "houlsby"), [*(("lora", key) for key in LORA), *(("full", key) for key in TUNED)]
    wanted = model.decode(AUDIO, "hi")

    def work(n: int) -> int:
        done = 0
        for method, language in loads if n % 2 else loads[::-1]:
            try:
                done += model.load_language(made / method / "packs" / language) == language
            except PelasrError as error:
                assert "is there already" in str(error)
            model.save(language, tmp_path / str(n) / language)
            assert model.decode(AUDIO, "hi") == wanted
            assert set(model.params()["languages"]) >= {*HOUSES, language} and language in model.languages
        return done

    assert sum(in_threads(work)) == len(loads) and len(model._banks) == 3
    assert model.params() == recogniser(made).params()
    for _, language in loads:
        assert model.decode(AUDIO, language) == recogniser(made).decode(AUDIO, language)


@pytest.mark.parametrize("change", ["add", "load"])
def test_a_call_keeps_what_it_began_with(change, made):
    """Another thread adds its language, or loads a pack of it, in the middle of a call."""
    model, alone = pelasr.load(made / "A1"), pelasr.load(made / "A1").decode(AUDIO, "te")

    def audio():
        yield AUDIO[0]
        if change == "add":
            model.add_language("te")
        else:
            model.load_language(made / "full/packs/te")
        yield from AUDIO[1:]

    found = [piece.text for window in model.recognise(audio(), ["te"] * len(AUDIO)) for piece in window]
    assert found == alone
    if change == "load":
        assert model.decode(AUDIO, "te") != alone


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_pack_loaded_in_any_mode_can_be_trained(mode, made):
    model = pelasr.load(made / "houlsby")
    with mode():
        model.decode(AUDIO, "uk")
    bank, module = model._bank("uk"), model.backbone.module
    feats, lens = torch.randn(1, 20, 80), torch.tensor([20])
    with bank.route(["uk"]):
        module.encode(feats, lens, torch.tensor([0]))[0].sum().backward()
    assert any(parameter.grad is not None for parameter in bank.parameters())


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_is_one_of_its_own(way, made):
    model = recogniser(made)
    languages = [*HOUSES[:2], *TUNED[:1], *LORA[:1]]
    wanted = {language: model.decode(AUDIO, language) for language in languages}
    other = way(model)
    assert {language: other.decode(AUDIO, language) for language in languages} == wanted
    with torch.no_grad():
        for language in languages:
            for parameter in other._bank(language).parameters():
                parameter.zero_()
    assert all(other.decode(AUDIO, language) != wanted[language] for language in languages)
    assert {language: model.decode(AUDIO, language) for language in languages} == wanted
    assert other.decode(AUDIO, TUNED[1]) != model.decode(AUDIO, TUNED[1])  # its bank is of zeros now
    assert other.decode(AUDIO, "uk") == model.decode(AUDIO, "uk")  # loaded into a bank of its own


def test_threads_within_one_route(made):
    """As `asyncio.to_thread` makes them: they share it, and each has rows of its own that its search goes on with."""
    model = recogniser(made)
    languages = [*HOUSES[:3], *HOUSES[1:]]
    bank, module = model._bank("hi"), model.backbone.module
    for language in HOUSES:
        model._bank(language)
    feats, lens = torch.randn(4, 6, 40, 80), torch.tensor([40, 22, 31, 13, 35, 18])
    ids = torch.tensor([0, 1, 0, 1, 0, 0])

    @torch.no_grad()
    def search(n: int):
        found = module.search(*module.encode(feats[n % 4] - 6, lens, ids))
        return [hypothesis.tokens for hypothesis in found]

    with bank.route(languages):
        wanted = [search(n) for n in range(THREADS)]
        contexts = [copy_context() for _ in range(THREADS)]
        found = in_threads(lambda n: [contexts[n].run(search, n) for _ in range(6)])
    assert found == [[tokens] * 6 for tokens in wanted] and len({str(tokens) for tokens in wanted}) == 4


def test_fits(made, tmp_path):
    """Of two languages at a time, while a third is decoded: nothing is drawn for one from the other's numbers."""
    for language, seed in (("gu", 0), ("bn", 30)):
        for name in ("train", "dev"):
            write_set(tmp_path / f"{language}_{name}", language, 3, ["aé", "bc", "éd"], seed + 3 * len(name))
    both = ["gu", "bn"]

    def fit(model, language: str, to: Path) -> bytes:
        model.add_language(language, bottleneck=2, dropout=0.5)
        data = {name: tmp_path / f"{language}_{name}" for name in ("train", "dev")}
        model.fit(language, **data, folder=to / language, **TRAINING)
        return (to / language / "packs" / language / "pack.safetensors").read_bytes()

    model = pelasr.load(made / "houlsby")
    wanted, decoded = fit(model, "bn", tmp_path / "one"), model.decode(AUDIO, "hi")
    model = pelasr.load(made / "houlsby")

    def work(n: int):
        if n < 2:
            return fit(model, both[n], tmp_path / "two")
        return all(model.decode(AUDIO, "hi") == decoded for _ in range(40))

    assert in_threads(work, 3)[1:] == [wanted, True]
    assert set(both) < set(model.languages)


def test_loading_leaves_standard_output(monkeypatch):
    """ESPnet's prints are hidden while it is imported, by one thread after the other."""
    before, waits = sys.stdout, iter([0.1, 0.2])

    def slowly(name):
        time.sleep(next(waits))
        return import_module(name)

    monkeypatch.setattr("pelasr.nn.espnet.import_module", slowly)

    def work(n: int) -> None:
        time.sleep(0.05 * n)
        ESPnetEncoder("transformer", 6, {**ENCODERS["transformer"], "input_layer": None})

    in_threads(work, 2)
    assert sys.stdout is before


def test_the_number_of_threads_is_set_back():
    before, waits = torch.get_num_threads(), [0.1, 0.2]
    torch.set_num_threads(2)

    def work(n: int) -> None:
        time.sleep(0.05 * n)
        with one_thread():
            time.sleep(waits[n])

    try:
        in_threads(work, 2)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
