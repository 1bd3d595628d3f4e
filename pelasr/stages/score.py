"""Stage 7: what the results say of an experiment."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from pelasr.backbones.format import BACKBONE_FACTS, read_backbone
from pelasr.data.kaldi import data_sha256, read_data_dir
from pelasr.data.language import split_pair
from pelasr.data.place import Place
from pelasr.done import required
from pelasr.errors import PelasrError
from pelasr.files import read_json, sha256_json
from pelasr.packs.format import PackDescription, read_checked
from pelasr.progress import say
from pelasr.score.results import SETTINGS
from pelasr.score.seeds import ALL, seeded
from pelasr.stages.decode import decoded, served_by
from pelasr.stages.experiment import AS_USUAL, Decoding, Experiment, find_experiment
from pelasr.tasks.base import Task, task_of
from pelasr.train.inputs import features_of


def score(
    place: Place,
    experiments: dict[str, Experiment],
    chosen: list[Experiment],
    sets: list[str],
    recipe: str,
    how: Decoding = AS_USUAL,
) -> bool:
    """Stage 7: the task's figures, and paired comparisons where an experiment names another, into
    `<exp>/results.jsonl`.

    Raises PelasrError if hypotheses are missing, or are of another model or other data than those there now.
    """
    from pelasr.report.corpus import write_corpus
    from pelasr.score.decoded import compare
    from pelasr.score.decoded import score as score_set
    from pelasr.score.environment import write_environment

    write_environment(place.exp / "environment.json")
    added = {new for experiment, name in product(chosen, sets) for new in new_languages(place, experiment, name)}
    write_corpus(place, ["train", "dev", *sets], sorted(added))
    for experiment in chosen:
        if experiment.languages and experiment.languages != place.languages:
            raise PelasrError(
                f"{experiment.name}: is about {' '.join(experiment.languages)}: it has no row in the table"
            )
        task = find_task_of(place, experiment)
        other = find_experiment(experiments, experiment.compare) if experiment.compare else None
        for name in sets:
            for languages in _rows(place, experiment, name, how):
                if stale := _not_decoded(place, experiment, name, languages, how):
                    if languages == place.languages:
                        raise PelasrError(f"{experiment.name}: {stale}")
                    say(f"{experiment.name}: {languages[0]} is left out: {stale} with --fit_langs {languages[0]}")
                    continue
                facts = {"recipe": recipe, "experiment": experiment.name}
                facts["data_sha256"] = data_of(replace(place, languages=languages), experiment, name)
                facts |= facts_of(place, experiment, languages, how)
                folders = {language: place.folder(name, language) for language in languages}
                hours = {language: _training_hours(place, language) for language in languages if task.detailed}
                score_set(task, facts, name, folders, place.exp, hours)
                if other and (stale := _not_decoded(place, other, name, languages, how)):
                    say(f"{experiment.name} is not compared with {other.name}: {stale}")
                elif other:
                    compare(task, facts, other.name, name, folders, place.exp)
    for experiment in chosen:
        runs = [run for run in chosen if run.base == experiment.name]
        if len(runs) > 1:
            _score_over_seeds(place, experiments, runs, sets, recipe, how)
    return True


def _score_over_seeds(
    place: Place,
    experiments: dict[str, Experiment],
    runs: list[Experiment],
    sets: list[str],
    recipe: str,
    how: Decoding,
) -> None:
    """Means over the runs of an experiment, the first seed's first, as lines of `<experiment>.seeds`."""
    from pelasr.score.decoded import compare_over_seeds, score_over_seeds

    first = runs[0]
    task, others = find_task_of(place, first), []
    if first.compare:
        others = [find_experiment(experiments, run.compare) for run in runs if run.compare]
    for name in sets:
        for languages in _rows(place, first, name, how):
            if any(_not_decoded(place, run, name, languages, how) for run in runs):
                say(f"{first.name}: no mean over seeds of {' '.join(languages)}: not all seeds have decoded them")
                continue
            part, found = replace(place, languages=languages), [facts_of(place, run, languages, how) for run in runs]
            facts = {"recipe": recipe, "experiment": seeded(first.name, ALL), **found[0]}
            facts |= {"data_sha256": data_of(part, first, name), "seed": [each["seed"] for each in found]}
            facts["config_sha256"] = sha256_json([each["config_sha256"] for each in found])
            folders = {language: place.folder(name, language) for language in languages}
            names = [run.name for run in runs]
            score_over_seeds(task, facts, names, name, folders, place.exp)
            if others and not any(_not_decoded(place, other, name, languages, how) for other in others):
                sides = names, [other.name for other in others]
                compare_over_seeds(task, facts, *sides, seeded(others[0].name, ALL), name, folders, place.exp)


def _rows(place: Place, experiment: Experiment, name: str, how: Decoding) -> list[list[str]]:
    """Which languages of an experiment are scored together: the recipe's, over which the mean is. One that came later
    is scored by itself; so are the recipe's where only some of them are fitted, and no mean is taken."""
    new = [[language] for language in new_languages(place, experiment, name)]
    packs = place.exp / experiment.name / "packs"
    fitted = [language for language in place.languages if (packs / language / "pack.yaml").exists()]
    if experiment.serve or not fitted or fitted == place.languages:
        return [place.languages, *new]
    missing = [language for language in place.languages if language not in fitted]
    say(f"{experiment.name}: {' '.join(missing)} have no packs, so there are gaps in its row, and no mean")
    return [*([language] for language in fitted), *new]


def new_languages(place: Place, experiment: Experiment, name: str) -> list[str]:
    """Languages beyond the recipe's that an experiment has decoded a set of, sorted."""
    folder = place.exp / experiment.name
    found = (path.parent.name.removeprefix(f"{name}_") for path in folder.glob(f"decode/{name}_*/text"))
    return sorted(key for key in found if key not in place.languages and _is_in(place, folder, name, key))


def _is_in(place: Place, experiment: Path, name: str, language: str) -> bool:
    """Whether a set is in a language: `test_clean_hi` is not the set `test` in a language `clean_hi`. Where no
    `utt2lang` tells, it is if there are training data or a pack of the language."""
    folder = place.folder(name, language)
    if not folder.is_dir():
        return False
    if not (folder / "utt2lang").exists():
        return any(path.is_dir() for path in (*place.folders("train", language), experiment / "packs" / language))
    return {u.language for u in read_data_dir(folder)} == {split_pair(language)[0]}


def _not_decoded(place: Place, experiment: Experiment, name: str, languages: list[str], how: Decoding) -> str | None:
    """What is missing or stale of a decoded set, if anything."""
    try:
        markers = decoded(place, experiment, [name], languages, how)
    except PelasrError as error:
        return str(error)
    done = {language for (_, language), marker in markers.items() if marker.done}
    wrong = next((language for language in languages if language not in done), None)
    cure = f"run stage 6 for {' '.join(languages)}"  # --fit_langs may have left some of them out
    return wrong and f"{name}_{wrong} was not decoded with this model, data and beam; {cure}"


def find_task_of(place: Place, experiment: Experiment) -> Task:
    """The task of an experiment, which its backbones say."""
    folder, part = next(iter(experiment.backbones(place).items()))
    return task_of(part.languages, read_backbone(folder).task)


def _training_hours(place: Place, language: str) -> float:
    from pelasr.data.hears import FRAMES_PER_HOUR
    from pelasr.data.speech import read_num_frames

    dumps = [place.dump / path.name for path in place.folders("train", language)]
    return sum(sum(read_num_frames(dump).values()) for dump in dumps) / FRAMES_PER_HOUR


def facts_of(place: Place, experiment: Experiment, languages: list[str], how: Decoding) -> dict[str, Any]:
    """What the results say of an experiment's training: of its backbones, or of the packs that were decoded."""
    found = [_read_facts(folder / BACKBONE_FACTS) for folder in experiment.backbones(place)]
    packs = []
    if experiment.adapted:
        served = [served_by(place, experiment, language, how) for language in languages]
        served = [experiment.serve] if experiment.serve else list(dict.fromkeys(served))
        folders = [place.exp / experiment.name / "packs" / language for language in served]
        packs = [read_checked(folder / "pack.yaml") for folder in folders]
    trained = [pack.training for pack in packs] or found
    added = sum(pack.parameters for pack in packs)
    total = sum(facts["total_parameters"] for facts in found)
    if packs and has_copies(packs[0]):
        total *= len(packs)  # every language is served by a model of its own
    else:
        total += added
    # Packs may come from several fits: one hash of them all.
    hashes = sorted({training.get("config_sha256", "imported") for training in trained})
    return {
        **_method(place, experiment, languages, packs, how),
        "trainable_parameters": added if packs else total,
        "total_parameters": total,
        "seed": trained[0].get("seed"),
        "config_sha256": one_hash(hashes),
    }


def one_hash(hashes: list[str]) -> str:
    """What results call the settings of several trainings by: a hash of theirs, or the one there is."""
    return hashes[0] if len(hashes) == 1 else sha256_json(hashes)


def data_of(place: Place, experiment: Experiment, name: str) -> str:
    """Hash of the texts and features of train, dev and a test set."""
    dirs, backbone = place.dirs("train", "dev", name), next(iter(experiment.backbones(place)))
    return sha256_json([data_sha256(dirs), features_of(place, dirs, read_backbone(backbone).heard)])


def _read_facts(path: Path) -> dict[str, Any]:
    required(path, 4)
    keys = ("total_parameters", "seed", "config_sha256")
    return read_json(path, "restore it, or delete the folder and train again", keys)


def has_copies(pack: PackDescription) -> bool:
    """Whether every language has a model of its own."""
    from pelasr.adapters.base import find_method

    return find_method(pack.adapter).copies


def _method(
    place: Place, experiment: Experiment, languages: list[str], packs: list[PackDescription], how: Decoding
) -> dict[str, Any]:
    """The method's name and its settings, None where they are as usual or the task does not show them."""
    found: dict[str, Any] = dict.fromkeys(SETTINGS)
    found |= {"method": packs[0].adapter if packs else "backbone", "beam": how.beam_size}
    if how.lm:
        found["lm"] = str(how.lm)
    if any(served_by(place, experiment, language, how) != language for language in languages):
        found["decode_as"] = how.decode_as
    if find_task_of(place, experiment).detailed:
        backbone = read_backbone(next(iter(experiment.backbones(place))))
        conf = backbone.options.get("encoder_conf")
        width = conf.get("output_size", 256) if isinstance(conf, dict) else None  # ESPnet's
        found |= {"dict": "mono" if experiment.each else "multi", "width": width}
        found |= _sizes(packs[0], backbone.backbone) if packs else {}
    return found


def _sizes(pack: PackDescription, family: str) -> dict[str, int]:
    """Of a method that has a size: its size on each side of the backbone, `enc` and `dec`, 0 where it has no site."""
    from pelasr.adapters.base import SIDES, find_method
    from pelasr.backbones.base import find_backbone, side_of
    from pelasr.config import arguments_of

    cls = find_method(pack.adapter)
    if not cls.size:
        return {}
    size = pack.adapter_conf.get(cls.size, arguments_of(cls)[cls.size].default)
    there = {side_of(path, find_backbone(family).encoder_side) for path in pack.sites}
    return {side[:3]: (size[side] if isinstance(size, dict) else size) if side in there else 0 for side in SIDES}
