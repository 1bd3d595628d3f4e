"""pelasr: multilingual speech recognition and translation with adapters."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pelasr.version import __version__

if TYPE_CHECKING:
    from pelasr.model import Model

__all__ = ["__version__", "load"]

# A thread of OpenMP that has nothing to do gives its core away instead of spinning: with another busy process beside a
# training on all cores, spinning costs up to ten times the speed, and on an idle machine it gains next to nothing.
# Read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def load(folder: str | Path, packs: str | Path | None = None, adapters: bool = True, device: str = "cpu") -> "Model":
    """The model in an experiment's folder, such as `exp/A5` with its packs, or `exp/A1`, a backbone.

    Args:
        folder: of the experiment.
        packs: folder of the packs, `<packs>/<language>`; default: those of the experiment.
        adapters: False: the backbone alone, for comparison.
        device: `cpu` or `cuda`.

    Raises PelasrError where there is no model, or its files are not as they were saved. A pack is read when its
    language is first asked for.
    """
    from pelasr.model import Model

    return Model(Path(folder), None if packs is None else Path(packs), adapters, device)
