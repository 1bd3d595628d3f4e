"""Decoding test sets: Kaldi text of the hypotheses, and their scores."""

from pathlib import Path

import torch

from pelasr.backbones import load_backbone
from pelasr.batch import Collate, load_examples
from pelasr.errors import PelasrError
from pelasr.evaluate import BATCH_SIZE, Recognised, recognise
from pelasr.experiment import Place
from pelasr.files import atomic_write
from pelasr.pack import load_bank
from pelasr.progress import track


def decode_sets(
    place: Place, source: Path, weights: str, packs: Path | None, output: Path, sets: list[str], ngpu: int
) -> None:
    """Write `<output>/<set>_<language>/{text,scores}` for every set and language, in batches that mix the languages."""
    if ngpu and not torch.cuda.is_available():
        raise PelasrError(f"--ngpu {ngpu}: torch {torch.__version__} sees no GPU; use --ngpu 0")
    backbone = load_backbone(source, weights)
    bank = load_bank(packs, place.languages, backbone) if packs is not None else None
    device = torch.device("cuda" if ngpu else "cpu")
    backbone.module.to(device)
    if bank is not None:
        bank.to(device)
    for name in sets:
        examples = [
            example
            for folder in place.names(name)
            for example in load_examples(place.data, place.dump, folder, backbone.tokenizer)
        ]
        found = recognise(backbone.module, bank, examples, Collate(backbone.languages), BATCH_SIZE)
        recognised = list(track(found, len(examples), f"decoding {output.parent.name} {name}"))
        for language in place.languages:
            items = sorted((item for item in recognised if item.example.language == language), key=_name)
            _write(output / f"{name}_{language}", items, backbone.tokenizer.decode)


def _name(item: Recognised) -> str:
    return item.example.id


def _write(folder: Path, items: list[Recognised], decode) -> None:
    with atomic_write(folder / "text") as stream:
        stream.writelines(
            f"{item.example.id} {' '.join(decode(item.tokens).split())}".rstrip() + "\n" for item in items
        )
    with atomic_write(folder / "scores") as stream:
        stream.writelines(f"{item.example.id} {item.score:.4f}\n" for item in items)
