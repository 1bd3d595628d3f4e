"""Where a model lies: a backbone, or an experiment's packs with the backbone that they belong to."""

from pathlib import Path

from pelasr.config import check_keys, load_yaml, require_keys
from pelasr.errors import PelasrError, brief

KEYS = ("backbone", "weights")  # of model.yaml
WEIGHTS = ("backbone", "early")


def find_backbone_of(folder: Path) -> tuple[Path, str]:
    """The folder of the backbone that an experiment's packs belong to, and which of its weights.

    The experiment's `model.yaml` says it (`backbone: ../A1`, `weights: backbone`); a folder with `backbone.yaml` is a
    backbone itself. Raises PelasrError where there is neither.
    """
    path = folder / "model.yaml"
    if not path.is_file():
        if (folder / "backbone.yaml").is_file():
            return folder, "backbone"
        raise PelasrError(
            f"{folder}: no model: neither model.yaml (stage 5 writes it) nor backbone.yaml (stage 4 writes it)"
        )
    found = load_yaml(path)
    require_keys(found, KEYS, str(path))
    check_keys(found, KEYS, str(path))
    if found["weights"] not in WEIGHTS:
        raise PelasrError(f"{path}: weights: expected {' or '.join(WEIGHTS)}, found {brief(found['weights'])}")
    backbone = folder / str(found["backbone"])
    if not (backbone / "backbone.yaml").is_file():
        raise PelasrError(f"{path}: backbone: {backbone} has no backbone.yaml; train it with stage 4, or mend the path")
    return backbone, found["weights"]
