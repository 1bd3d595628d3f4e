"""Scoring of decoded test sets: the lines of `results.jsonl`, and files beside the hypotheses.

A task says how, see `pelasr.tasks.base`. A difference between two experiments on the same utterances is a line of its
own, under the first experiment, with the metric `wer_minus_<the other experiment>` or `bleu_minus_...`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pelasr import files
from pelasr.data.language import of_one_kind, split_pair
from pelasr.data.tokenizer import normalise
from pelasr.errors import PelasrError
from pelasr.files import atomic_write, no_file
from pelasr.score.bootstrap import Estimate
from pelasr.score.environment import commit
from pelasr.score.results import KEYS, SETTINGS, append_results

# What scoring is told; it finds the other keys of a result line itself.
FACTS = {"recipe", "experiment", "method", "trainable_parameters", "total_parameters"}
FACTS |= {"seed", "config_sha256", "data_sha256", *SETTINGS}

# {(language key or mean, metric): figure}
Figures = dict[tuple[str, str], Estimate]


class Texts(NamedTuple):
    """A decoded test set of one language key: its folder, and both texts of each utterance in the same order."""

    folder: Path
    references: dict[str, str]
    hypotheses: dict[str, str]

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        return list(self.references.values()), list(self.hypotheses.values())


class Scoring(Protocol):
    """What a task does for scoring; `pelasr.tasks.base.Task` has it."""

    @property
    def name(self) -> str: ...

    def score(self, texts: Mapping[str, Texts], hours: Mapping[str, float]) -> Figures: ...

    def compare(self, one: Mapping[str, Texts], other: Mapping[str, Texts]) -> Figures: ...

    def score_over_seeds(self, runs: Sequence[Mapping[str, Texts]]) -> Figures: ...

    def compare_over_seeds(
        self, one: Sequence[Mapping[str, Texts]], other: Sequence[Mapping[str, Texts]]
    ) -> Figures: ...

    def scorer(self, metric: str) -> str: ...


def read_text(path: str | Path) -> dict[str, str]:
    """Kaldi text file `utterance words...` as {utterance: normalised text}; the text may be empty.

    Raises PelasrError for a missing file, one that is not UTF-8, an empty line or an utterance that comes twice.
    """
    path = Path(path)
    if missing := no_file(path):
        raise PelasrError(f"{path}: {missing}; references come with the data (stage 1), hypotheses from stage 6")
    texts: dict[str, str] = {}
    content = files.read_text(path, "references come from stage 1, hypotheses from decoding").removesuffix("\n")
    for number, line in enumerate(content.split("\n") if content else [], 1):
        utterance, *text = line.split(maxsplit=1) or [""]
        if not utterance:
            raise PelasrError(f"{path}:{number}: empty line; remove it")
        if utterance in texts:
            raise PelasrError(f"{path}:{number}: utterance {utterance} comes a second time; keep one")
        texts[utterance] = normalise("".join(text))
    return texts


def score(
    task: Scoring,
    facts: Mapping[str, Any],
    test_set: str,
    folders: Mapping[str, str | Path],
    exp: str | Path = "exp",
    hours: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Score `exp/<experiment>/decode/<set>_<key>/text` against the references of each language key.

    `facts`: the keys of FACTS, what scoring cannot know. `folders`: {language key: its data directory}; the reference
    of a language is `text`, that of a pair `text.<target>`. `hours`: {key: hours of its training data}, where the task
    shows them.

    Appends the task's figures to `exp/results.jsonl`, and returns them: of every key, and `mean` where there are
    several. The task writes beside each hypothesis text `score.tsv` (a line for each utterance) and `result.txt` (the
    summary). Raises PelasrError for hypotheses that do not fit the references.
    """
    _check(facts, folders)
    texts = _read_all(folders, test_set, Path(exp) / facts["experiment"])
    return _record(task, facts, test_set, texts, task.score(texts, hours or {}), exp)


def compare(
    task: Scoring,
    facts: Mapping[str, Any],
    other: str,
    test_set: str,
    folders: Mapping[str, str | Path],
    exp: str | Path = "exp",
) -> list[dict[str, Any]]:
    """Paired comparison, the experiment of `facts` minus the experiment `other`, on the same utterances.

    Appends lines with the metrics `<metric>_minus_<other>` (in points) to `exp/results.jsonl`, for every language key
    and for `mean` when there are several, and returns them. `folders`: as for `score`.
    """
    _check(facts, folders)
    sides = [_read_all(folders, test_set, Path(exp) / name) for name in (facts["experiment"], other)]
    found = task.compare(*sides)
    figures = {(group, f"{metric}_minus_{other}"): estimate for (group, metric), estimate in found.items()}
    return _record(task, facts, test_set, sides[0], figures, exp)


def score_over_seeds(
    task: Scoring,
    facts: Mapping[str, Any],
    names: Sequence[str],
    test_set: str,
    folders: Mapping[str, str | Path],
    exp: str | Path = "exp",
) -> list[dict[str, Any]]:
    """The task's figures as means over the runs `names` of one experiment, which differ in the seed alone.

    Appends them to `exp/results.jsonl` under the experiment of `facts`, and returns them.
    """
    _check(facts, folders)
    runs = [_read_all(folders, test_set, Path(exp) / name) for name in names]
    return _record(task, facts, test_set, runs[0], task.score_over_seeds(runs), exp)


def compare_over_seeds(
    task: Scoring,
    facts: Mapping[str, Any],
    names: Sequence[str],
    others: Sequence[str],
    other: str,
    test_set: str,
    folders: Mapping[str, str | Path],
    exp: str | Path = "exp",
) -> list[dict[str, Any]]:
    """Paired comparison of the runs `names` with the runs `others`, seed by seed; see `compare`."""
    _check(facts, folders)
    sides = [[_read_all(folders, test_set, Path(exp) / name) for name in side] for side in (names, others)]
    found = task.compare_over_seeds(*sides)
    figures = {(group, f"{metric}_minus_{other}"): estimate for (group, metric), estimate in found.items()}
    return _record(task, facts, test_set, sides[0][0], figures, exp)


def _check(facts: Mapping[str, Any], keys: Collection[str]) -> None:
    if set(facts) != FACTS:
        raise PelasrError(f"the facts have the keys {' '.join(sorted(facts))}; wanted are {' '.join(sorted(FACTS))}")
    if not of_one_kind(keys):
        raise PelasrError(f"{' '.join(keys)}: languages and pairs have no figure in common; score them by themselves")


def groups(keys: Collection[str]) -> dict[str, list[str]]:
    """Each language key by itself, and `mean` of all when there are several."""
    return {key: [key] for key in keys} | ({"mean": list(keys)} if len(keys) > 1 else {})


def _read_all(folders: Mapping[str, str | Path], test_set: str, experiment: Path) -> dict[str, Texts]:
    return {key: _read(key, folders[key], experiment / "decode" / f"{test_set}_{key}") for key in folders}


def _read(key: str, data: str | Path, folder: Path) -> Texts:
    """References and hypotheses of a decoded folder, both sorted by utterance."""
    target = split_pair(key)[1]
    source, decoded = Path(data) / (f"text.{target}" if target else "text"), folder / "text"
    references, hypotheses = read_text(source), read_text(decoded)
    if not any(references.values()):
        raise PelasrError(f"{source}: no reference has a word, so nothing can be scored; prepare the data again")
    for wrong, what, cure in (
        (references.keys() - hypotheses.keys(), "without a hypothesis", again(folder)),
        (hypotheses.keys() - references.keys(), f"unknown to {source}", again(folder)),
    ):
        if wrong:
            names = " ".join(sorted(wrong)[:5]) + (" ..." if len(wrong) > 5 else "")
            raise PelasrError(f"{decoded}: {len(wrong)} utterances {what}: {names}; {cure}")
    return Texts(folder, dict(sorted(references.items())), dict(sorted(hypotheses.items())))


def again(folder: Path) -> str:
    """The cure for hypotheses that stage 6 would not make again by itself."""
    return f"decode again: rm -r {folder}, then stage 6"


def write_details(texts: Texts, columns: Sequence[str], details: Iterable[Sequence[Any]]) -> None:
    """`score.tsv`: the columns of each utterance, its reference and its hypothesis."""
    with atomic_write(texts.folder / "score.tsv") as stream:
        stream.write("\t".join(["utt", *columns, "ref", "hyp"]) + "\n")
        for (utterance, reference), cells in zip(texts.references.items(), details, strict=True):
            fields = (utterance, *cells, reference, texts.hypotheses[utterance])
            stream.write("\t".join(map(str, fields)) + "\n")


def _record(
    task: Scoring,
    facts: Mapping[str, Any],
    test_set: str,
    texts: Mapping[str, Texts],
    figures: Figures,
    exp: str | Path,
) -> list[dict[str, Any]]:
    """Make the result lines of the figures and append them."""
    shared = {**facts, "task": task.name, "set": test_set, "commit": commit()}
    members = groups(texts)
    lines = []
    for (group, metric), estimate in figures.items():
        references = [reference for key in members[group] for reference in texts[key].references.values()]
        sizes = {"utterances": len(references), "reference_words": sum(len(text.split()) for text in references)}
        figure = {key: round(number, 4) for key, number in estimate._asdict().items()}
        line = {**shared, "language": group, "metric": metric, **figure, **sizes}
        line["scorer"] = task.scorer(metric.partition("_minus_")[0])
        lines.append({key: line[key] for key in KEYS})
    append_results(Path(exp) / "results.jsonl", lines)
    return lines
