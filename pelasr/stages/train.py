"""Stage 4: training backbones. What is finished is not done again."""

from typing import Any

from pelasr.backbones.format import BACKBONE_FACTS
from pelasr.backbones.source import Source
from pelasr.data.place import Place
from pelasr.errors import PelasrError
from pelasr.progress import say
from pelasr.stages.experiment import Experiment
from pelasr.stages.settings import split_options
from pelasr.train.runs import BackboneRun, plan_backbone


def train_backbone(
    place: Place, experiment: Experiment, config: dict[str, Any], where: str, ngpu: int, init: str | None = None
) -> bool:
    """Stage 4: train the backbone that an experiment uses, in the folder of the experiment that owns it.

    `init` is an experiment whose encoder the training starts from.
    """
    settings = split_options(config, where)
    source = Source(place.exp / init) if init else None
    runs = []
    for folder, part in experiment.backbones(place).items():
        run = plan_backbone(folder, part, settings, source, config.get("task"))
        if run.marker.finished:
            _check_backbone(run)
            say(f"stage 4: the backbone {folder} is trained already")
        else:
            runs.append(run)
    if not runs:
        return False
    from pelasr.train.fit import train

    train(runs, ngpu)
    return True


def check_imported(place: Place, experiment: Experiment) -> bool:
    """Stage 4 of an experiment whose backbone was imported: nothing to do. Raises PelasrError if there is none."""
    folder = place.exp / experiment.name
    if not (folder / "backbone.yaml").exists():
        raise PelasrError(
            f"{folder}: no backbone.yaml, and {experiment.name} adapts itself: import a backbone to this folder, as by"
            f" pelasr import mms DIR --langs all {folder}"
        )
    say(f"stage 4: the backbone {folder} was imported")
    return False


def _check_backbone(run: BackboneRun) -> None:
    """Raise PelasrError where a finished backbone is not as it was made. Its facts are made again; a history cannot be,
    but is no reason to lose a good backbone."""
    from pelasr.train.monitor import HISTORY

    folder, faults = run.folder, run.marker.faults()
    if fault := faults.pop(HISTORY, None):
        say(f"warning: {fault}; the backbone is not affected")
    if set(faults) == {BACKBONE_FACTS}:
        from pelasr.adapters.bank import count_parameters
        from pelasr.backbones.store import load_backbone
        from pelasr.train.fit import write_facts

        say(f"{faults[BACKBONE_FACTS]}; it is made again")
        write_facts(run, count_parameters(load_backbone(folder).module))
        faults.pop(BACKBONE_FACTS)
    for fault in faults.values():
        raise PelasrError(f"{fault}; restore it, or delete {folder} and train it again")
