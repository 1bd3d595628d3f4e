"""What a fit starts from: its languages' packs, imported or made elsewhere, or the adapters of others."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pelasr.adapters.bank import Bank
from pelasr.backbones.store import LoadedBackbone
from pelasr.data.kaldi import read_data_dir, text_of
from pelasr.data.tokenizer import Tokenizer, unknown_report
from pelasr.done import Marker
from pelasr.errors import PelasrError
from pelasr.files import sha256_file
from pelasr.packs.pack import Pack, check_making, open_pack
from pelasr.progress import say, warn
from pelasr.storage import load_weights
from pelasr.train.new_language import take_adapters
from pelasr.train.runs import AdapterRun


def keep_started(run: AdapterRun) -> None:
    """Copy the packs that a run starts from, once, to `started/` in its folder: the run's own take their places."""
    for language, pack in zip(run.languages, run.packs, strict=True):
        if language not in run.started or (kept := _kept(run, language)).exists():
            continue
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside = kept.with_name(f".{language}.{os.getpid()}.tmp")
        try:
            shutil.copytree(pack, aside)
            aside.rename(kept)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def open_started(run: AdapterRun, backbone: LoadedBackbone) -> dict[str, Pack]:
    """The packs that a run starts from, by language. Raises PelasrError for one of another method, options or backbone
    than the run's, and for what is not the pack that the run began with."""
    packs = {}
    for language, made in zip(run.languages, run.packs, strict=True):
        if language in run.started:
            kept = _kept(run, language)
            folder = kept if kept.exists() else made
            packs[language] = open_pack(folder, backbone, language)
            check_making(packs[language], run.config.method, run.config.options)
            if sha256_file(folder / "pack.yaml") != run.started[language]:
                raise PelasrError(
                    f"{folder}: not the pack that {run.folder} started from; restore it, or delete {run.folder}"
                )
    return packs


def report_started(run: AdapterRun, language: str, tokenizer: Tokenizer) -> None:
    """Say where a language starts, and which characters of its training text the pack has no tokens of."""
    say(f"{language}: starts from the pack that was there, of which {_kept(run, language)} is a copy")
    place = run.place
    texts = [text_of(u, language) for path in place.folders("train", language) for u in read_data_dir(path, language)]
    unknown, total, which = unknown_report(tokenizer, {language: texts})[language]
    if unknown:
        shown = " ".join(character for character, _ in which.most_common(10))
        warn(f"{language}: {unknown} of {total} characters of its training text are unknown to the pack: {shown}")


def open_origins(run: AdapterRun, backbone: LoadedBackbone) -> dict[str, dict[str, Tensor]]:
    """The tensors that the adapters of a run's languages begin as, by language. Raises PelasrError for a pack of
    another backbone than the run's, and for files that are not as they were written."""
    if (meta := run.meta) is not None and run.origins:
        name = meta.path.name
        made = Marker(meta.marker.path, {}, strict=True).made(name)  # anew: the first process alone has written it
        return dict.fromkeys(run.origins, load_weights(meta.path, made[name]))
    packs = run.folder.parent / "packs"
    return {language: open_pack(packs / origin["pack"], backbone).tensors for language, origin in run.origins.items()}


def begin_as(run: AdapterRun, bank: Bank, language: str, tensors: Mapping[str, Tensor], report: bool) -> None:
    """Let a language's adapters begin as those of its origin, and say so if it is to be reported."""
    origin = run.origins[language]
    name = f"those of the pack {origin['pack']}" if "pack" in origin else "the meta-trained ones"
    take_adapters(bank, language, tensors, f"{language}: {name}")
    if "loss" in origin:
        name += f", the nearest: its loss on some training utterances is {origin['loss']:.2f}"
    if report:
        say(f"{language}: its adapters begin as {name}")


def _kept(run: AdapterRun, language: str) -> Path:
    return run.folder / "started" / language
