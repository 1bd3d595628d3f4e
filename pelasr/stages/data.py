"""Stage 1: data directories, checked."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelasr.data.kaldi import audio_sha256, data_sha256
from pelasr.data.language import split_pair
from pelasr.data.place import Place
from pelasr.data.problems import DROP, condense
from pelasr.done import Marker
from pelasr.errors import DataError, counted, printable
from pelasr.files import atomic_write
from pelasr.progress import say, warn
from pelasr.stages.settings import configured_backbone

if TYPE_CHECKING:
    from pelasr.data.overlap import Heard
    from pelasr.data.validate import Report


def validate_data(
    place: Place, sets: list[str], config: dict[str, Any], skip_bad: bool, nj: int, name: str = "data"
) -> bool:
    """Stage 1: open every file of the data directories; all problems at once, or dropped utterances.

    Where the configured backbone trains with CTC, training utterances must be long enough for their labels. The tokens
    are not made yet: characters count.
    """
    from pelasr.data.overlap import shared
    from pelasr.data.validate import drop, validate

    train = place.dirs("train") if "train" in sets else []
    others = [path for path in place.dirs(*sets) if path not in train]
    dirs = [*train, *others]
    wanted = {"targets": place.targets(*sets), "sets": place.sets(*sets)}
    sources = sorted({split_pair(language)[0] for language in place.languages})
    subsampling = _subsampling(config)
    path, listing = place.exp / ".done" / f"{name}.json", place.exp / "problems.txt"
    listing.unlink(missing_ok=True)
    targets = {"targets": {str(path): names for path, names in wanted["targets"].items()}}
    inputs = {**_data_inputs(dirs, subsampling), **targets}
    if Marker(path, inputs).done:
        say(f"stage 1: {counted(len(dirs), 'data directory')} valid already")
        return False
    reports = [validate(train, subsampling, sources, nj, **wanted), validate(others, None, sources, nj, **wanted)]
    by_set: dict[str, list[Heard]] = {}
    for item in reports[1].heard:
        by_set.setdefault(wanted["sets"][Path(item.directory)][0], []).append(item)
    for warning in reports[0].warnings + reports[1].warnings + shared(reports[0].heard, by_set):
        warn(warning)
    _refuse(reports, skip_bad, listing)
    for folder in dirs:
        dropped = {name: reason for report in reports for name, reason in report.bad_in(folder).items()}
        if dropped:
            drop(folder, dropped, wanted["sets"][folder][1])
            say(f"{folder}: {counted(len(dropped), 'utterance')} dropped, listed in {folder}/skipped.txt")
    for name, report in zip(("train", "other sets"), reports, strict=True):
        for language, found in report.languages.items():
            say(f"{language}, {name}: {counted(found.utterances, 'utterance')}, {found.hours:.2f} h")
    # Dropping has changed the directories.
    Marker(path, inputs | _data_inputs(dirs, subsampling)).write(done=True)
    return True


def _subsampling(config: dict[str, Any]) -> int | None:
    """Of a backbone that trains with CTC, otherwise None."""
    from pelasr.backbones.base import find_backbone

    with_ctc = config.get("ctc_weight") or ("backbone" in config and find_backbone(config["backbone"]).trains_with_ctc)
    return configured_backbone(config).subsampling if with_ctc else None


def _refuse(reports: "Sequence[Report]", skip_bad: bool, listing: Path) -> None:
    """Raise DataError for problems that must be mended, which a file lists one by one: those of whole files, unless
    `skip_bad` those of utterances, and those of directories in which no utterance is good."""
    counts = [(folder, count, report) for report in reports for folder, count in report.ids.items()]
    spoilt = {folder for folder, count, report in counts if count and len(report.bad_in(folder)) == count}
    found = [problem for report in reports for problem in report.problems]
    problems = [replace(p, what=p.what.removesuffix(f", {DROP}")) if p.directory in spoilt else p for p in found]
    droppable = [problem for problem in problems if problem.droppable and problem.directory not in spoilt]
    rest = [problem for problem in problems if not problem.droppable or problem.directory in spoilt]
    bad = rest if skip_bad else problems
    if not bad:
        return
    with atomic_write(listing) as stream:
        stream.writelines(f"{problem}\n" for problem in bad)
    folders = len({problem.directory for problem in bad})
    lines = [*condense(bad, listing), f"{counted(len(bad), 'problem')} in {counted(folders, 'data directory')}"]
    lines += [f"{printable(folder)}: no utterance is good, so none can be dropped" for folder in sorted(spoilt)]
    if droppable and not skip_bad:
        count = len({(problem.directory, problem.utterance) for problem in droppable})
        first = "; what else is wrong must be mended first" if rest else ""
        lines.append(f"mend them, or drop {counted(count, 'utterance')} with --skip_bad true{first}")
    raise DataError(lines)


def _data_inputs(dirs: list[Path], subsampling: int | None) -> dict[str, Any]:
    return {str(path): [data_sha256([path]), audio_sha256(path)] for path in dirs} | {"subsampling": subsampling}
