"""Scoring of decoded test sets: the lines of `results.jsonl`, and files beside the hypotheses.

Language keys that are languages are scored by WER and CER (wer.py), pairs by BLEU and chrF2 (bleu.py). All figures are
percent or points of a hundred, with their 95 % bootstrap intervals over utterances; for a mean over several keys each
is resampled by itself, but pairs that translate the same utterances together. A difference between two experiments on
the same utterances is a line of its own, under the first experiment, with the metric `wer_minus_<the other experiment>`
or `bleu_minus_...`.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pelasr import files
from pelasr.data.language import split_pair
from pelasr.data.tokenizer import normalise
from pelasr.errors import PelasrError
from pelasr.files import atomic_write, no_file
from pelasr.score import bleu
from pelasr.score.bootstrap import Estimate
from pelasr.score.environment import commit, package_version
from pelasr.score.results import KEYS, append_results
from pelasr.score.wer import Counts, count_errors, error_rate, mean_interval, paired_mean_test
from pelasr.version import __version__

# What scoring is told; it finds the other keys of a result line itself.
FACTS = {"recipe", "experiment", "method", "trainable_parameters", "total_parameters"}
FACTS |= {"seed", "config_sha256", "data_sha256"}

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
    facts: Mapping[str, Any],
    test_set: str,
    folders: Mapping[str, str | Path],
    exp: str | Path = "exp",
    hours: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Score `exp/<experiment>/decode/<set>_<key>/text` against the references of each language key.

    `facts`: the keys of FACTS, what scoring cannot know. `folders`: {language key: its data directory}; the reference
    of a language is `text`, that of a pair `text.<target>`. `hours`: {pair: hours of its training data}.

    Appends to `exp/results.jsonl`, and returns, WER and CER of every language; of every pair BLEU and chrF2, `limited`
    (how many hypotheses hit the length limit) and `train_hours`; and of all but the hours `mean` when there are several
    keys. Writes beside each hypothesis text `score.tsv` (a line for each utterance) and `result.txt` (the summary, as
    sclite or sacrebleu print it). Raises PelasrError for hypotheses that do not fit the references.
    """
    _check_facts(facts)
    pairs = _are_pairs(folders)
    texts = _read_all(folders, test_set, Path(exp) / facts["experiment"])
    figures = _translation(texts, hours or {}) if pairs else _recognition(texts)
    return _record(facts, test_set, texts, figures, exp)


def compare(
    facts: Mapping[str, Any],
    other: str,
    test_set: str,
    folders: Mapping[str, str | Path],
    exp: str | Path = "exp",
) -> list[dict[str, Any]]:
    """Paired comparison, the experiment of `facts` minus the experiment `other`, on the same utterances.

    Appends lines with the metric `wer_minus_<other>` (percentage points, negative: fewer errors than `other`), or for
    pairs `bleu_minus_<other>` and `chrf_minus_<other>` (points, positive: better than `other`), for every language key
    and for `mean` when there are several, to `exp/results.jsonl`, and returns them. `folders`: as for `score`.
    """
    _check_facts(facts)
    pairs = _are_pairs(folders)
    sides = [_read_all(folders, test_set, Path(exp) / name) for name in (facts["experiment"], other)]
    tests: dict[str, tuple[Callable, Callable]] = {"wer": (count_errors, paired_mean_test)}
    if pairs:
        test = partial(bleu.paired_mean_test, together=_same_utterances(sides[0]))
        tests = {name: (partial(bleu.statistics, name), partial(test, name)) for name in bleu.NAMES}
    figures: Figures = {}
    for metric, (count, test) in tests.items():
        counts = [{key: count(*texts.sides) for key, texts in side.items()} for side in sides]
        for group, members in _groups(folders).items():
            difference = test(*({key: side[key] for key in members} for side in counts))
            figures[group, f"{metric}_minus_{other}"] = Estimate(difference.value, difference.lo, difference.hi)
    return _record(facts, test_set, sides[0], figures, exp)


def _check_facts(facts: Mapping[str, Any]) -> None:
    if set(facts) != FACTS:
        raise PelasrError(f"the facts have the keys {' '.join(sorted(facts))}; wanted are {' '.join(sorted(FACTS))}")


def _are_pairs(keys: Collection[str]) -> bool:
    kinds = {split_pair(key)[1] is not None for key in keys}
    if len(kinds) > 1:
        raise PelasrError(f"{' '.join(keys)}: languages and pairs have no figure in common; score them by themselves")
    return kinds == {True}


def _groups(keys: Collection[str]) -> dict[str, list[str]]:
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
        (references.keys() - hypotheses.keys(), "without a hypothesis", _again(folder)),
        (hypotheses.keys() - references.keys(), f"unknown to {source}", _again(folder)),
    ):
        if wrong:
            names = " ".join(sorted(wrong)[:5]) + (" ..." if len(wrong) > 5 else "")
            raise PelasrError(f"{decoded}: {len(wrong)} utterances {what}: {names}; {cure}")
    return Texts(folder, dict(sorted(references.items())), dict(sorted(hypotheses.items())))


def _recognition(texts: Mapping[str, Texts]) -> Figures:
    """WER and CER; writes the word counts of each utterance and sclite's summary."""
    words = {language: count_errors(*found.sides) for language, found in texts.items()}
    characters = {language: count_errors(*found.sides, "char") for language, found in texts.items()}
    for language, found in texts.items():
        counts = words[language]
        details = [(count.reference, *count[:4]) for count in counts]
        _write_details(found, ["words", "hits", "sub", "del", "ins"], details)
        with atomic_write(found.folder / "result.txt") as stream:
            stream.write(_sclite_summary(counts))
    return {
        (group, metric): mean_interval({language: counts[language] for language in members})
        for metric, counts in (("wer", words), ("cer", characters))
        for group, members in _groups(texts).items()
    }


def _sclite_summary(counts: Sequence[Counts]) -> str:
    """Two lines, in percent."""
    *parts, words = map(sum, zip(*counts, strict=True))
    shares = [100 * part / words for part in parts] + [error_rate(counts)]
    shares.append(100 * sum(count.edits > 0 for count in counts) / len(counts))
    shown = " ".join(f"{share:.1f}" for share in shares)
    return f"Snt Wrd Corr Sub Del Ins Err S.Err\n{len(counts)} {words} {shown}\n"


def _translation(texts: Mapping[str, Texts], hours: Mapping[str, float]) -> Figures:
    """BLEU, chrF2, hypotheses at the length limit and hours; writes BLEU of each sentence and sacrebleu's summary."""
    tables = {}
    for metric in bleu.NAMES:
        tables[metric] = {pair: bleu.statistics(metric, *found.sides) for pair, found in texts.items()}
    limited = {pair: _limited(found) for pair, found in texts.items()}
    for pair, found in texts.items():
        sentences = [(f"{value:.2f}",) for value in bleu.sentence_bleu(tables["bleu"][pair])]
        _write_details(found, ["bleu"], sentences)
        with atomic_write(found.folder / "result.txt") as stream:
            stream.writelines(bleu.summary(metric, table[pair]) + "\n" for metric, table in tables.items())
    figures: Figures = {}
    for metric, table in tables.items():
        for group, members in _groups(texts).items():
            chosen = {pair: table[pair] for pair in members}
            figures[group, metric] = bleu.mean_interval(metric, chosen, together=_same_utterances(texts))
    for group, members in _groups(texts).items():
        figures[group, "limited"] = _exact(math.fsum(limited[pair] for pair in members) / len(members))
    return figures | {(pair, "train_hours"): _exact(hours[pair]) for pair in texts if pair in hours}


def _same_utterances(texts: Mapping[str, Texts]) -> bool:
    return len({tuple(found.references) for found in texts.values()}) == 1


def _exact(value: float) -> Estimate:
    """A figure that is counted, not estimated from a sample."""
    return Estimate(value, value, value)


def _again(folder: Path) -> str:
    """The cure for hypotheses that stage 6 would not make again by itself."""
    return f"decode again: rm -r {folder}, then stage 6"


def _limited(texts: Texts) -> int:
    """How many hypotheses the search stopped at its length limit."""
    path = texts.folder / "limited"
    if not path.is_file():
        what = "no such file, so nobody knows which hypotheses hit the length limit"
        raise PelasrError(f"{path}: {what}; {_again(texts.folder)}")
    names = set(path.read_text(encoding="utf-8").split())
    unknown = sorted(names - texts.hypotheses.keys())
    if unknown:
        raise PelasrError(f"{path}: {unknown[0]} is not among the hypotheses; {_again(texts.folder)}")
    return len(names)


def _write_details(texts: Texts, columns: Sequence[str], details: Iterable[Sequence[Any]]) -> None:
    """`score.tsv`: the columns of each utterance, its reference and its hypothesis."""
    with atomic_write(texts.folder / "score.tsv") as stream:
        stream.write("\t".join(["utt", *columns, "ref", "hyp"]) + "\n")
        for (utterance, reference), cells in zip(texts.references.items(), details, strict=True):
            fields = (utterance, *cells, reference, texts.hypotheses[utterance])
            stream.write("\t".join(map(str, fields)) + "\n")


def _scorer(metric: str) -> str:
    """Name and version of what computed a metric."""
    base = metric.partition("_minus_")[0]
    if base in bleu.NAMES:
        return bleu.signature(base)
    return f"jiwer {package_version('jiwer')}" if base in ("wer", "cer") else f"pelasr {__version__}"


def _record(
    facts: Mapping[str, Any], test_set: str, texts: Mapping[str, Texts], figures: Figures, exp: str | Path
) -> list[dict[str, Any]]:
    """Make the result lines of the figures and append them."""
    shared = {**facts, "set": test_set, "commit": commit()}
    groups = _groups(texts)
    lines = []
    for (group, metric), estimate in figures.items():
        references = [reference for key in groups[group] for reference in texts[key].references.values()]
        sizes = {"utterances": len(references), "reference_words": sum(len(text.split()) for text in references)}
        figure = {key: round(number, 4) for key, number in estimate._asdict().items()}
        line = {**shared, "language": group, "metric": metric, "scorer": _scorer(metric), **figure, **sizes}
        lines.append({key: line[key] for key in KEYS})
    append_results(Path(exp) / "results.jsonl", lines)
    return lines
