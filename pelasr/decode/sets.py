"""Decoding test sets: Kaldi text of the hypotheses, and their scores."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pelasr.adapters.own import HEAD
from pelasr.adapters.routes import Served, Unadapted
from pelasr.backbones.source import Source
from pelasr.backbones.store import LoadedBackbone, load_backbone
from pelasr.cost import write_cost
from pelasr.data.batch import Collate, load_examples
from pelasr.data.place import Place
from pelasr.data.tokenizer import Tokenizer
from pelasr.decode.recognise import Recognised, recognise
from pelasr.errors import PelasrError
from pelasr.files import atomic_write
from pelasr.packs.pack import load_bank
from pelasr.progress import say, track
from pelasr.search.lm import WIDE, Fusion, LMOptions, fusions_of


@dataclass(frozen=True)
class Service:
    """What decodes: a backbone, alone or with the packs `<packs>/<language>`; `serve`: the language whose pack serves
    all languages."""

    source: Source
    packs: Path | None = None
    serve: str | None = None


@dataclass(frozen=True)
class Wanted:
    """A set in a language to be decoded; `like`: as which language, if not as itself."""

    set: str
    language: str
    like: str | None = None

    @property
    def served(self) -> str:
        return self.like or self.language


def decode_sets(
    place: Place,
    service: Service,
    wanted: list[Wanted],
    output: Path,
    ngpu: int,
    beam_size: int | None = None,
    lm: LMOptions | None = None,
) -> None:
    """Write `<output>/<set>_<language>/{text,scores,limited,cost.json}` of what is wanted, in batches that mix them.

    `beam_size`: of the search; default: the backbone's, or that for a language model, `lm`. `limited` names the
    utterances whose hypothesis was ended by the length limit.
    """
    if ngpu and not torch.cuda.is_available():
        raise PelasrError(f"--ngpu {ngpu}: torch {torch.__version__} sees no GPU; use --ngpu 0")
    backbone = load_backbone(*service.source)
    languages = list(dict.fromkeys(each.served for each in wanted))
    device = torch.device("cuda" if ngpu else "cpu")
    backbone.module.to(device)
    bank, tokenizers = _routes(backbone, service, languages)
    bank.to(device)
    examples = [
        example
        for each in wanted
        for example in load_examples(
            place, each.set, each.language, tokenizers[each.served], each.served, backbone.module.hears
        )
    ]
    beam_size = beam_size or (WIDE if lm else backbone.module.beam_size)
    collate = Collate(backbone.languages, new=languages)
    fusions = _fusions(lm, wanted, tokenizers) if lm else None
    found = recognise(backbone.module, bank, examples, collate, beam_size, fusions=fusions, losses=False)
    written: dict[str, list[Recognised]] = {f"{each.set}_{each.language}": [] for each in wanted}
    for item in track(found, len(examples), f"decoding {output.parent.name}"):
        written[item.example.source].append(item)
    for name, items in written.items():
        _write(output / name, sorted(items, key=_name), tokenizers)
        write_cost(output / name, math.fsum(item.seconds for item in items), device)
        if limited := sum(item.limited for item in items):
            say(f"{name}: {limited} of {len(items)} hypotheses hit the length limit, see {output / name}/limited")


def _name(item: Recognised) -> str:
    return item.example.id


def _routes(backbone: LoadedBackbone, service: Service, languages: list[str]) -> tuple[Any, dict[str, Tokenizer]]:
    """What routes the languages, and the tokenizer of each."""
    packs, serve = service.packs, service.serve
    if serve and HEAD in backbone.module.own_sites().values():
        raise PelasrError(f"serve: {serve}: other languages have no output layer but their own; leave it out")
    if packs is None:
        bank = Unadapted(backbone.module, backbone.languages)
        return bank, dict.fromkeys(languages, backbone.tokenizer)
    bank = load_bank(packs, [serve] if serve else languages, backbone)
    own = {language: bank.own_tokens(language) for language in bank.languages}
    tokenizers = {language: backbone.tokenizer.with_own(own.get(language, [])) for language in languages}
    return Served(bank, serve) if serve else bank, tokenizers


def _fusions(lm: LMOptions, wanted: list[Wanted], tokenizers: dict[str, Tokenizer]) -> dict[str, Fusion]:
    """The language models of what is wanted, by the source of its examples."""
    found = fusions_of(lm, {each.language: tokenizers[each.served].everything for each in wanted})
    return {f"{each.set}_{each.language}": found[each.language] for each in wanted}


def _write(folder: Path, items: list[Recognised], tokenizers: dict[str, Tokenizer]) -> None:
    texts = [" ".join(tokenizers[item.example.language].decode(item.tokens).split()) for item in items]
    with atomic_write(folder / "text") as stream:
        stream.writelines(f"{item.example.id} {text}".rstrip() + "\n" for item, text in zip(items, texts, strict=True))
    with atomic_write(folder / "scores") as stream:
        stream.writelines(f"{item.example.id} {item.score:.4f}\n" for item in items)
    with atomic_write(folder / "limited") as stream:
        stream.writelines(f"{item.example.id}\n" for item in items if item.limited)
