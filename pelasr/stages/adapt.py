"""Stage 5: fitting adapters. What is finished is not done again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pelasr.backbones.source import Source, write_model
from pelasr.data.language import check_language
from pelasr.data.place import Place, label
from pelasr.errors import PelasrError
from pelasr.progress import say
from pelasr.stages.experiment import Experiment
from pelasr.stages.settings import split_adapter_options
from pelasr.train.options import FRESH
from pelasr.train.origins import Start
from pelasr.train.runs import plan_adapters


def fit_adapters(
    place: Place,
    experiment: Experiment,
    config: dict[str, Any],
    where: str,
    only: list[str],
    ngpu: int,
    tokens: str = "auto",
    go_on: bool = False,
    start: str = FRESH,
) -> bool:
    """Stage 5: fit adapters of some languages on an experiment's frozen backbone, if the experiment has adapters.

    Languages beyond those of the backbone are fitted each by itself; `tokens`: see `new_language.make_own`.
    `go_on`: what is fitted already is trained further. `start`: what adapters begin as, see `origins.Start`.
    """
    if not experiment.adapted:
        say(f"stage 5: {experiment.name} has no adapters")
        return False
    from pelasr.adapters.base import find_method

    settings = split_adapter_options(config, where)
    fuse = _fused(place, experiment, settings.method, where)
    if fuse is not None and start != FRESH:
        raise PelasrError(f"--start {start}: {experiment.name} is made of the packs in {fuse}: leave it out")
    source, folder = Source(place.exp / experiment.backbone, experiment.weights), place.exp / experiment.name
    for language in only:
        check_language(language, "--fit_langs")
    write_model(folder, source)
    if experiment.serve and experiment.serve not in only:
        say(f"stage 5: {experiment.name} is fitted on {experiment.serve} alone: add it to --fit_langs")
    only = [language for language in only if experiment.serve in (None, language)]
    known, new = [x for x in only if x in place.languages], [x for x in only if x not in place.languages]
    # Fine-tuning gives each language a run of its own; adapters of several languages are fitted in mixed batches.
    groups = [[language] for language in known] if find_method(settings.method).copies else [known] if known else []
    begin = Start(start, folder, place, source, settings)
    runs = []
    for languages in [*groups, *([language] for language in new)]:
        # A folder for each choice of languages: fitting one again later leaves the run that fitted all as it is.
        run_folder = folder / f"fit_{label(languages)}"
        if languages[0] in new:
            part = replace(place, languages=languages)
            run = plan_adapters(run_folder, part, source, languages, settings, tokens, go_on, begin, fuse)
        else:
            run = plan_adapters(run_folder, place, source, languages, settings, go_on=go_on, start=begin, fuse=fuse)
        if run.done:
            say(f"stage 5: the adapters of {' '.join(languages)} in {run_folder} are fitted already")
        else:
            runs.append(run)
    if not runs:
        return False
    from pelasr.train.fit import fit

    fit(runs, ngpu)
    return True


def _fused(place: Place, experiment: Experiment, method: str, where: str) -> Path | None:
    """The packs that the method fuses. Raises PelasrError if it fuses none and the experiment names them, or the other
    way round."""
    from pelasr.adapters.base import find_method

    if find_method(method).fuses and not experiment.fuse:
        raise PelasrError(f"{experiment.name}: {method} is made of another experiment's packs: add `fuse: EXPERIMENT`")
    if experiment.fuse and not find_method(method).fuses:
        raise PelasrError(f"{where}: adapter {method} is not made of packs: leave out `fuse: {experiment.fuse}`")
    return place.exp / experiment.fuse / "packs" if experiment.fuse else None
