"""Stage 4: training backbones. What is finished is not done again."""

from pathlib import Path
from typing import Any

from pelasr.backbones.format import BACKBONE_FACTS
from pelasr.data.place import Place
from pelasr.done import Marker, required
from pelasr.errors import PelasrError
from pelasr.progress import say
from pelasr.stages.experiment import Experiment
from pelasr.stages.settings import consumed, other_run, split_options, training_settings, weights_sha256
from pelasr.train.options import TrainingOptions


def train_backbone(
    place: Place, experiment: Experiment, config: dict[str, Any], where: str, ngpu: int, init: str | None = None
) -> bool:
    """Stage 4: train the backbone that an experiment uses, in the folder of the experiment that owns it.

    `init` is an experiment whose encoder the training starts from.
    """
    family, options, training = split_options(config, where)
    source = place.exp / init if init else None
    first = f"train it first: pelasr train --exp {init}, without --init"
    started = {"init": weights_sha256(source, "backbone", first)} if source else {}
    missing = {}
    for folder, part in experiment.backbones(place).items():
        inputs = {
            **{"backbone": family, **options},
            **training_settings(training),
            **consumed(part),
            "tokens": required(part.tokens / "tokens.txt", 2),
            "stats": required(place.stats, 3),
            **started,
        }
        marker = Marker(folder / "train.json", inputs, strict=True)
        if marker.changed:
            raise PelasrError(f"{other_run(folder, marker)}: delete it, or use another --exp_dir")
        if marker.found is None and (folder / "backbone.yaml").exists():
            raise PelasrError(f"{folder}: holds a backbone, but no train.json says of what; restore it, or delete all")
        if marker.finished:
            _check_backbone(folder, marker, training)
            say(f"stage 4: the backbone {folder} is trained already")
        else:
            missing[folder] = part, marker
    if not missing:
        return False
    from pelasr.train.fabric import make_fabric
    from pelasr.train.fit import fit_backbone

    fabric = make_fabric(ngpu)
    for folder, (part, marker) in missing.items():
        fit_backbone(fabric, part, folder, marker, family, options, training, source)
    return True


def _check_backbone(folder: Path, marker: Marker, training: TrainingOptions) -> None:
    """Raise PelasrError where a finished backbone is not as it was made. Its facts are made again; a history cannot be,
    but is no reason to lose a good backbone."""
    from pelasr.train.monitor import HISTORY

    faults = marker.faults()
    if fault := faults.pop(HISTORY, None):
        say(f"warning: {fault}; the backbone is not affected")
    if set(faults) == {BACKBONE_FACTS}:
        from pelasr.adapters.bank import count_parameters
        from pelasr.backbones.store import load_backbone
        from pelasr.train.fit import write_facts

        say(f"{faults[BACKBONE_FACTS]}; it is made again")
        write_facts(folder, count_parameters(load_backbone(folder).module), training, marker)
        faults.pop(BACKBONE_FACTS)
    for fault in faults.values():
        raise PelasrError(f"{fault}; restore it, or delete {folder} and train it again")
