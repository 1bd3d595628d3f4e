"""Which backbone an experiment's packs belong to: `model.yaml` beside them says it."""

import os
from pathlib import Path
from typing import NamedTuple

from pelasr.config import check_keys, load_yaml, require_keys
from pelasr.errors import PelasrError, brief
from pelasr.files import atomic_write, no_file

KEYS = ("backbone", "weights")
WEIGHTS = ("backbone", "early")


class Source(NamedTuple):
    """A trained backbone: its folder, and which of its weights (`backbone` or `early`)."""

    folder: Path
    weights: str = "backbone"


def find_backbone_of(folder: Path) -> Source:
    """The backbone that an experiment's packs belong to.

    The experiment's `model.yaml` says it (`backbone: ../A1`, `weights: backbone`); a folder with `backbone.yaml` is a
    backbone itself. Raises PelasrError where there is neither.
    """
    path = folder / "model.yaml"
    if not path.is_file():
        if (folder / "backbone.yaml").is_file():
            return Source(folder)
        raise PelasrError(
            f"{folder}: no model: neither model.yaml (stage 5 writes it) nor backbone.yaml (stage 4 writes it)"
        )
    found = load_yaml(path)
    require_keys(found, KEYS, str(path))
    check_keys(found, KEYS, str(path))
    if found["weights"] not in WEIGHTS:
        raise PelasrError(f"{path}: weights: expected {' or '.join(WEIGHTS)}, found {brief(found['weights'])}")
    backbone = folder / str(found["backbone"])
    if no_file(backbone / "backbone.yaml"):
        raise PelasrError(f"{path}: backbone: {backbone} has no backbone.yaml; train it with stage 4, or mend the path")
    return Source(backbone, found["weights"])


def write_model(folder: Path, source: Source) -> None:
    """Say in an experiment's folder which backbone its packs belong to."""
    content = f"backbone: {os.path.relpath(source.folder, folder)}\nweights: {source.weights}\n"
    path = folder / "model.yaml"
    if no_file(path) or path.read_bytes() != content.encode():
        with atomic_write(path) as stream:
            stream.write(content)
