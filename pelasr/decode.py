"""Decoding test sets: Kaldi text of the hypotheses, and their scores."""

from pathlib import Path

import torch

from pelasr.backbones import load_backbone
from pelasr.batch import Collate, load_examples
from pelasr.errors import PelasrError
from pelasr.evaluate import Recognised, recognise
from pelasr.experiment import Place
from pelasr.files import atomic_write
from pelasr.pack import load_bank
from pelasr.progress import track


def decode_dirs(
    place: Place,
    source: Path,
    weights: str,
    packs: Path | None,
    output: Path,
    names: list[tuple[str, str]],
    ngpu: int,
) -> None:
    """Write `<output>/<name>/{text,scores}` for data directories (name, language), in batches that mix languages."""
    if ngpu and not torch.cuda.is_available():
        raise PelasrError(f"--ngpu {ngpu}: torch {torch.__version__} sees no GPU; use --ngpu 0")
    backbone = load_backbone(source, weights)
    languages = list(dict.fromkeys(language for _, language in names))
    bank = load_bank(packs, languages, backbone) if packs is not None else None
    device = torch.device("cuda" if ngpu else "cpu")
    backbone.module.to(device)
    if bank is not None:
        bank.to(device)
    examples = [
        example for name, _ in names for example in load_examples(place.data, place.dump, name, backbone.tokenizer)
    ]
    found = recognise(backbone.module, bank, examples, Collate(backbone.languages))
    written: dict[str, list[Recognised]] = {name: [] for name, _ in names}
    for item in track(found, len(examples), f"decoding {output.parent.name}"):
        written[item.example.source].append(item)
    for name, items in written.items():
        _write(output / name, sorted(items, key=_name), backbone.tokenizer.decode)


def _name(item: Recognised) -> str:
    return item.example.id


def _write(folder: Path, items: list[Recognised], decode) -> None:
    with atomic_write(folder / "text") as stream:
        stream.writelines(
            f"{item.example.id} {' '.join(decode(item.tokens).split())}".rstrip() + "\n" for item in items
        )
    with atomic_write(folder / "scores") as stream:
        stream.writelines(f"{item.example.id} {item.score:.4f}\n" for item in items)
