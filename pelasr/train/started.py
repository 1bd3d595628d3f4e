"""Packs that a fit starts from, imported or made elsewhere. A copy of each is kept: the fit's own takes its place."""

import os
import shutil
from pathlib import Path

from pelasr.backbones.store import LoadedBackbone
from pelasr.data.kaldi import read_data_dir, text_of
from pelasr.data.tokenizer import Tokenizer, unknown_report
from pelasr.errors import PelasrError
from pelasr.files import sha256_file
from pelasr.packs.pack import Pack, check_making, open_pack
from pelasr.progress import say, warn
from pelasr.train.runs import AdapterRun


def keep_started(run: AdapterRun) -> None:
    """Copy the packs that a run starts from, once, to `started/` in its folder."""
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


def _kept(run: AdapterRun, language: str) -> Path:
    return run.folder / "started" / language
