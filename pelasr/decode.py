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


def decode_sets(
    place: Place,
    source: Path,
    weights: str,
    packs: Path | None,
    output: Path,
    wanted: list[tuple[str, str]],
    ngpu: int,
    beam_size: int | None = None,
) -> None:
    """Write `<output>/<set>_<language>/{text,scores,limited}` for (set, language), in batches that mix languages.

    `limited` names the utterances whose hypothesis was ended by the length limit.
    """
    if ngpu and not torch.cuda.is_available():
        raise PelasrError(f"--ngpu {ngpu}: torch {torch.__version__} sees no GPU; use --ngpu 0")
    backbone = load_backbone(source, weights)
    languages = list(dict.fromkeys(language for _, language in wanted))
    bank = load_bank(packs, languages, backbone) if packs is not None else None
    device = torch.device("cuda" if ngpu else "cpu")
    backbone.module.to(device)
    if bank is not None:
        bank.to(device)
    examples = [example for key in wanted for example in load_examples(place, *key, backbone.tokenizer)]
    beam_size = beam_size or backbone.module.beam_size
    found = recognise(backbone.module, bank, examples, Collate(backbone.languages), beam_size)
    written: dict[str, list[Recognised]] = {f"{name}_{language}": [] for name, language in wanted}
    for item in track(found, len(examples), f"decoding {output.parent.name}"):
        written[item.example.source].append(item)
    for name, items in written.items():
        _write(output / name, sorted(items, key=_name), backbone.tokenizer.decode)
        if limited := sum(item.limited for item in items):
            print(f"{name}: {limited} of {len(items)} hypotheses hit the length limit, see {output / name}/limited")


def _name(item: Recognised) -> str:
    return item.example.id


def _write(folder: Path, items: list[Recognised], decode) -> None:
    with atomic_write(folder / "text") as stream:
        stream.writelines(
            f"{item.example.id} {' '.join(decode(item.tokens).split())}".rstrip() + "\n" for item in items
        )
    with atomic_write(folder / "scores") as stream:
        stream.writelines(f"{item.example.id} {item.score:.4f}\n" for item in items)
    with atomic_write(folder / "limited") as stream:
        stream.writelines(f"{item.example.id}\n" for item in items if item.limited)
