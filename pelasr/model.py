"""A model: a backbone, alone or with the packs of an experiment; where it lies, and what is done with it in Python."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from threading import Lock, RLock
from typing import Any

import numpy as np
import torch

from pelasr.adapters.bank import Bank, count_parameters
from pelasr.adapters.finetune import make_bank
from pelasr.adapters.routes import Routes, Unadapted
from pelasr.backbones.source import Source, find_backbone_of, write_model
from pelasr.backbones.store import load_backbone
from pelasr.config import check_keys
from pelasr.data.audio import read_file
from pelasr.data.batch import Collate, speech_batch
from pelasr.data.language import check_language, is_pair
from pelasr.data.place import Place
from pelasr.data.tokenizer import Tokenizer
from pelasr.decode.long_audio import Piece, batches, join, windows
from pelasr.decode.recognise import search
from pelasr.errors import PelasrError, TooShortError, nearest
from pelasr.packs.format import PackDescription
from pelasr.packs.pack import bank_for, load_pack, open_pack, read_pack, save_pack
from pelasr.progress import say
from pelasr.search.lm import WIDE, Fusion, LMOptions, fusions_of
from pelasr.stages.add import add_language
from pelasr.tasks.base import Task, task_of
from pelasr.train.options import TOKENS, AdapterConfig, TrainingOptions
from pelasr.train.runs import plan_adapters

LOADING = RLock()  # held while what a model has is changed; one of all models, which can be copied then
FITTING = Lock()  # one fit at a time: torch's random numbers are drawn from one source
Routed = tuple[Routes, Tokenizer]  # what routes a language, and its tokenizer
SHORTEST_PIECE, LONGEST_PIECE = 1.0, 20.0  # seconds, of audio that is cut


class Model:
    """A backbone and what packs add to it; `pelasr.load` makes one and has the arguments.

    Languages of several methods are in several banks on the one backbone, and a batch is divided among these. Where
    there are no packs to look for, a language is served by the backbone alone. Threads may share a model.
    """

    def __init__(self, folder: Path, packs: Path | None, adapters: bool, device: str):
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise PelasrError(f"device {device}: torch {torch.__version__} sees no GPU; use cpu (--ngpu 0)")
        self.folder, self.device = folder, torch.device(device)
        self.source = find_backbone_of(folder)
        self.alone = not adapters or (packs is None and not (folder / "model.yaml").is_file())
        self.backbone = load_backbone(*self.source)
        self.backbone.module.to(self.device)
        self._packs = _find_packs(folder, packs) if adapters else {}
        self._added: dict[str, tuple[str, dict[str, Any], str]] = {}
        self._banks: list[Bank] = []
        self._routes: dict[str, Routed] = {}  # of the languages that were asked for
        self._described: dict[str, PackDescription] = {}  # the descriptions of those that have packs
        self._unadapted = Unadapted(self.backbone.module, self.backbone.languages).to(self.device)

    @property
    def task(self) -> Task:
        """What its backbone was trained for. Raises PelasrError where that is a recipe's own task, and this is not run
        in the recipe's folder."""
        return task_of(self.backbone.languages, self.backbone.description.task)

    @property
    def translates(self) -> bool:
        """Whether its languages are pairs, such as en-de."""
        return is_pair(self.backbone.languages[0])

    @property
    def languages(self) -> list[str]:
        """What there is to be decoded; without adapters, any other language too."""
        return list(dict.fromkeys([*(self.backbone.languages if self.alone else ()), *self._packs]))

    def params(self) -> dict[str, Any]:
        """Numbers of parameters: {"backbone": ..., "languages": {language: ...}, "total": ...}. Loads all packs."""
        size = count_parameters(self.backbone.module)["total"]
        languages = {language: self._bank(language).size(language) for language in list(self._packs)}
        return {"backbone": size, "languages": languages, "total": size + sum(languages.values())}

    def decode(
        self,
        audio: Sequence[str | Path | np.ndarray],
        language: str | Sequence[str],
        beam_size: int | None = None,
        lm: LMOptions | None = None,
    ) -> list[str]:
        """The text of each audio: a file, or 16 kHz samples, float (N,) in [-1, 1]; of any length.

        `language`: one for all, or one for each. `beam_size`: of the search; default: the backbone's. `lm`: language
        models that count in it. Audio shorter than 25 ms has no text. Raises PelasrError for what cannot be read, and
        for languages that there are not.
        """
        if isinstance(audio, str | Path | np.ndarray):
            raise PelasrError("decode: audio: want a list of files or arrays; put this one in brackets")
        languages = [language] * len(audio) if isinstance(language, str) else list(language)
        if len(languages) != len(audio):
            raise PelasrError(f"decode: {len(audio)} audios, but {len(languages)} languages; want one for all or each")
        return [found.text for found in join(self.recognise(map(_samples, audio), languages, beam_size, lm))]

    def recognise(
        self,
        audio: Iterable[np.ndarray],
        languages: Sequence[str],
        beam_size: int | None = None,
        lm: LMOptions | None = None,
    ) -> Iterator[list[Piece]]:
        """The pieces of audios, 16 kHz samples (N,) each, in order, with text, score and times, as many at once as are
        searched together; for `long_audio.join`.

        Audios are asked for one by one, after all languages are loaded. Raises PelasrError as `decode` does.
        """
        routes = {language: self._route(language) for language in dict.fromkeys(languages)}
        longest = {language: self._longest(language) for language in languages}
        tokens = {language: tokenizer.everything for language, (_, tokenizer) in routes.items()}
        fusions = fusions_of(lm, tokens) if lm else None
        beam_size = beam_size or (WIDE if lm else self.backbone.module.beam_size)
        for window in windows(audio, languages, longest, self.backbone.module.hears):
            for batch in _batches(window, routes, self.backbone.module.batch_frames):
                start = time.monotonic()
                frames = sum(piece.frames for piece in batch)
                self._search(batch, routes, beam_size, fusions)
                for piece in batch:
                    piece.seconds += (time.monotonic() - start) * piece.frames / frames
                    piece.feats = None
            yield window

    def _longest(self, language: str) -> float:
        """Seconds of a piece at most: what is much longer than the utterances of the training is recognised worse."""
        for described in (self._described.get(language), self.backbone.description):
            training = described.training if described is not None else {}
            if training.get("utterances") and "hours" in training:
                mean = 3600 * training["hours"] / training["utterances"]
                return min(max(2 * mean, SHORTEST_PIECE), LONGEST_PIECE)
        return LONGEST_PIECE

    def _search(
        self, pieces: list[Piece], routes: dict[str, Routed], beam_size: int, fusions: dict[str, Fusion] | None
    ) -> None:
        """Give the pieces their texts and scores."""
        languages = [piece.language for piece in pieces]
        bank, tokenizers = routes[languages[0]][0], [routes[language][1] for language in languages]
        prefixes = [tokenizer.prefix(language) for tokenizer, language in zip(tokenizers, languages, strict=True)]
        collate = Collate(self.backbone.languages, new=languages)
        batch = speech_batch([piece.feats for piece in pieces if piece.feats is not None], languages, prefixes, collate)
        try:
            models = [fusions[language] for language in languages] if fusions is not None else None
            found, _ = search(self.backbone.module, bank, batch, beam_size, fusions=models)
        except TooShortError:  # one of them, which has no text; the others are searched by themselves
            for piece in pieces if len(pieces) > 1 else ():
                self._search([piece], routes, beam_size, fusions)
            return
        for piece, tokenizer, hypothesis in zip(pieces, tokenizers, found, strict=True):
            piece.text, piece.score = " ".join(tokenizer.decode(hypothesis.tokens).split()), hypothesis.score

    def add_language(self, language: str, adapter: str = "houlsby", tokens: str = "auto", **options: Any) -> None:
        """Say by which method, with which options (`adapter_conf`), a language is to be fitted; then `fit` it.

        `tokens`: of a language that is new to the backbone, `own`, `keep` or `auto`, see `new_language.make_own`.
        """
        with LOADING:
            self._check_new(language)
            if tokens not in TOKENS:
                raise PelasrError(f"tokens: {tokens!r}; {nearest(tokens, TOKENS)}")
            with torch.device("meta"):  # a trial, for the sake of the errors
                make_bank(adapter, options, self.backbone.module).add(language)
            self._added[language] = adapter, options, tokens
            self._routes.pop(language, None)  # the backbone alone may have served it

    def fit(
        self,
        language: str,
        train: str | Path,
        dev: str | Path,
        folder: str | Path | None = None,
        go_on: bool = False,
        **training: Any,
    ) -> dict[str, float]:
        """Fit a language that was added, as stage 5 does, and load its pack; returns its best dev figures.

        Args:
            train, dev: Kaldi data directories.
            folder: where data, features, the run and the pack go, an experiment of its own; default:
                `<model>/fit_<language>_api`. Called again after an interruption, the fit goes on there.
            go_on: train further what an earlier fit, finished in the same folder, has left.
            training: keys of `TrainingOptions`.
        """
        with FITTING:
            return self._fit(language, {"train": Path(train), "dev": Path(dev)}, folder, go_on, training)

    def _fit(
        self, language: str, data: dict[str, Path], folder: str | Path | None, go_on: bool, training: dict[str, Any]
    ) -> dict[str, float]:
        """See `fit`."""
        from pelasr.train.fit import fit  # Lightning takes seconds, which transcribing need not wait for

        if language not in self._added:
            raise PelasrError(f"fit: {language!r} was not added; m.add_language({language!r}, ...) comes first")
        check_keys(training, [field.name for field in fields(TrainingOptions)], f"fit of {language}")
        method, conf, tokens = self._added[language]
        config = AdapterConfig(method, conf, TrainingOptions(**training))  # whose errors come before the work
        folder = Path(folder or self.folder / f"fit_{language}_api").resolve()
        place = Place(folder / "data", folder / "dump", folder, languages=[])
        backbone = self.backbone.description
        settings = {"backbone": backbone.backbone, **backbone.options}
        add_language(place, language, data, list(data), settings, skip_bad=False, nj=1)
        source = Source(self.source.folder.resolve(), self.source.weights)
        write_model(folder, source)
        place, run_folder = replace(place, languages=[language]), folder / f"fit_{language}"
        run = plan_adapters(run_folder, place, source, [language], config, tokens, go_on)
        if run.done:
            say(f"the adapters of {language} in {run_folder} are fitted already")
        else:
            fit([run], ngpu=1 if self.device.type == "cuda" else 0)
        with LOADING:
            self._load(folder / "packs" / language, language)
            del self._added[language]
        return self._described[language].training["dev"]

    def load_language(self, folder: str | Path) -> str:
        """Load a pack from anywhere; returns its language. Raises PelasrError if there is one of the language already,
        or the pack does not belong to this model."""
        language = read_pack(Path(folder)).language
        with LOADING:
            self._check_new(language)
            self._load(Path(folder), language)
        return language

    def save(self, language: str, folder: str | Path) -> None:
        """Write a language's pack. Raises PelasrError if anything but this pack is in the folder."""
        bank, folder = self._bank(language), Path(folder)
        described = self._described[language]
        if folder.exists() and not ((folder / "pack.yaml").is_file() and read_pack(folder) == described):
            raise PelasrError(f"{folder}: exists already; delete it, or name another folder")
        save_pack(folder, bank, language, bank.tensors(language), self.backbone, described.training)

    def _check_new(self, language: str) -> None:
        """Raise PelasrError for a language that has a pack or is added, or is none of this model's kind."""
        check_language(language, "language")
        self._check_kind(language)
        if language in {*self._packs, *self._added}:
            where = self._packs.get(language, "added, to be fitted")
            raise PelasrError(f"{language!r} is there already: {where}")

    def _check_kind(self, language: str) -> None:
        if is_pair(language) != self.translates:
            does = "translates pairs" if self.translates else "transcribes languages"
            raise PelasrError(f"{self.folder} {does}, not {language!r}; known: {', '.join(self.languages)}")

    def _bank(self, language: str) -> Bank:
        """The bank of a language that has a pack."""
        routes, _ = self._route(language)
        if not isinstance(routes, Bank):
            raise PelasrError(f"{language!r} has no pack: the backbone alone serves it")
        return routes

    def _route(self, language: str) -> Routed:
        """A language's; its pack is loaded if it was not asked for before."""
        found = self._routes.get(language)
        if found is None:
            with LOADING:
                self._find_route(language)
                found = self._routes[language]
        return found

    def _find_route(self, language: str) -> None:
        if language in self._routes:  # another thread was first
            return
        self._check_kind(language)
        if language in self._packs:
            self._load(self._packs[language], language)
        elif language in self._added:
            raise PelasrError(f"{language!r} is not fitted yet: m.fit({language!r}, train=..., dev=...)")
        elif self.alone:
            self.backbone.tokenizer.prefix(language)  # raises PelasrError for a target that it has no tag of
            self._routes[language] = self._unadapted, self.backbone.tokenizer
        else:
            there = nearest(language, self.languages) if self._packs else "there are none yet: stage 5 fits them"
            raise PelasrError(f"{self.folder}: no pack of {language!r}; {there}")

    def _load(self, folder: Path, language: str) -> None:
        """Load a pack into the bank of its method, or a bank of its own. What can go wrong comes first: a model whose
        pack could not be loaded is as it was."""
        with torch.inference_mode(False):  # whatever the thread is in that asks first
            pack = open_pack(folder, self.backbone, language)
            made = bank_for(pack, self.backbone)
            load_pack(pack, made, self.backbone)
            made.to(self.device)
        tokenizer = self.backbone.tokenizer.with_own(made.own_tokens(language))
        bank = next((bank for bank in self._banks if (bank.method, bank.options) == (made.method, made.options)), None)
        if bank is None:
            self._banks.append(bank := made)
        else:
            bank.take(made)
        self._packs[language], self._described[language] = folder, pack.description
        self._routes[language] = bank, tokenizer


def _batches(window: list[Piece], routes: dict[str, Routed], most: int | None) -> Iterator[list[Piece]]:
    """A batch has one bank, and one language where that takes no more."""
    groups: dict[Any, list[Piece]] = defaultdict(list)
    for piece in window:
        if piece.feats is not None:
            bank, _ = routes[piece.language]
            groups[id(bank) if bank.mixes_languages else piece.language].append(piece)
    for group in groups.values():
        yield from batches(group, most)


def _find_packs(folder: Path, packs: Path | None) -> dict[str, Path]:
    """Packs by language. Raises PelasrError if the folder that was asked for has none."""
    found = {path.parent.name: path.parent for path in sorted((packs or folder / "packs").glob("*/pack.yaml"))}
    if packs is not None and not found:
        raise PelasrError(f"{packs}: no packs here; want {packs}/<language>/pack.yaml")
    return found


def _samples(audio: str | Path | np.ndarray) -> np.ndarray:
    """Float32 (N,) at 16 kHz."""
    if isinstance(audio, str | Path):
        return read_file(audio)
    samples = np.asarray(audio)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating) or not np.isfinite(samples).all():
        raise PelasrError(
            f"decode: audio of {samples.dtype} {samples.shape}: want 16 kHz mono samples, finite floats (N,) in [-1, 1]"
        )
    return samples.astype(np.float32, copy=False)
