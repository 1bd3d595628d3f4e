"""Word and character error rates, their 95 % intervals, paired comparisons and the lines of `results.jsonl`.

All rates are percent: edits (substitutions + deletions + insertions) summed over a set, over its reference units.
Intervals are percentile bootstrap over utterances; for a mean over languages each language is resampled by itself.
A difference between two experiments on the same utterances is a line of its own, under the first experiment, with
the metric `wer_minus_<the other experiment>`: value, lo and hi are then percentage points, negative is better.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pelasr.environment import commit, package_version
from pelasr.errors import PelasrError
from pelasr.files import atomic_write
from pelasr.results import KEYS, append_results
from pelasr.text import normalise

# What scoring is told; it finds the other keys of a result line itself.
FACTS = {"recipe", "experiment", "method", "trainable_parameters", "total_parameters"}
FACTS |= {"seed", "config_sha256", "data_sha256"}
RESAMPLES = 2000


class Counts(NamedTuple):
    """One utterance, in words or characters; `reference` = hits + substitutions + deletions."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int
    reference: int

    @property
    def edits(self) -> int:
        return self.substitutions + self.deletions + self.insertions


class Estimate(NamedTuple):
    """A figure and its 95 % interval, in percent."""

    value: float
    lo: float
    hi: float


class Difference(NamedTuple):
    """A difference, its 95 % interval (percentage points) and the two-sided p of "no difference"."""

    value: float
    lo: float
    hi: float
    p: float


def read_text(path: str | Path) -> dict[str, str]:
    """Kaldi text file `utterance words...` as {utterance: normalised text}; the text may be empty.

    Raises PelasrError for a missing file, an empty line or an utterance that comes twice.
    """
    path = Path(path)
    if not path.is_file():
        raise PelasrError(f"{path}: no such file; references come from stage 1, hypotheses from decoding")
    texts: dict[str, str] = {}
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            utterance, *text = line.split(maxsplit=1) or [""]
            if not utterance:
                raise PelasrError(f"{path}:{number}: empty line; remove it")
            if utterance in texts:
                raise PelasrError(f"{path}:{number}: utterance {utterance} comes a second time; keep one")
            texts[utterance] = normalise("".join(text))
    return texts


def count_errors(references: Sequence[str], hypotheses: Sequence[str], unit: str = "word") -> list[Counts]:
    """Counts of the least-edit alignment (jiwer) for each utterance, `unit` "word" or "char".

    Both sides are normalised first (NFC, single spaces). Characters are Unicode code points and include the spaces
    between words, as in `jiwer.cer`.
    """
    import jiwer

    if len(references) != len(hypotheses):
        raise PelasrError(f"{len(references)} references but {len(hypotheses)} hypotheses; give one for each")
    if not references:  # jiwer would make one empty utterance of it
        return []
    process = {"word": jiwer.process_words, "char": jiwer.process_characters}[unit]
    output = process([normalise(text) for text in references], [normalise(text) for text in hypotheses])
    counts = []
    for reference, alignment in zip(output.references, output.alignments, strict=True):
        sums = dict.fromkeys(("equal", "substitute", "delete", "insert"), 0)
        for chunk in alignment:
            inserted = chunk.hyp_end_idx - chunk.hyp_start_idx
            sums[chunk.type] += inserted if chunk.type == "insert" else chunk.ref_end_idx - chunk.ref_start_idx
        counts.append(Counts(*sums.values(), len(reference)))
    return counts


def error_rate(counts: Sequence[Counts]) -> float:
    """Edits over reference units, percent. Raises PelasrError when the references are empty."""
    return _rate([(count.edits, count.reference) for count in counts])


def interval(counts: Sequence[Counts], seed: int = 0) -> Estimate:
    """Error rate and its 95 % bootstrap interval over utterances."""
    return mean_interval({"": counts}, seed)


def mean_interval(counts: Mapping[str, Sequence[Counts]], seed: int = 0) -> Estimate:
    """Unweighted mean of the languages' error rates and its 95 % interval, each language resampled by itself."""
    rows = [[(count.edits, count.reference) for count in language] for language in counts.values()]
    return _bootstrap(rows, seed)[0]


def paired_test(a: Sequence[Counts], b: Sequence[Counts], seed: int = 0) -> Difference:
    """Error rate of `a` minus that of `b`, counted on the same utterances in the same order, by paired bootstrap."""
    return paired_mean_test({"": a}, {"": b}, seed)


def paired_mean_test(a: Mapping[str, Sequence[Counts]], b: Mapping[str, Sequence[Counts]], seed: int = 0) -> Difference:
    """The same for the unweighted mean over languages, each language resampled by itself.

    Raises PelasrError when languages or reference lengths differ, so that the two cannot be paired.
    """
    if set(a) != set(b):
        raise PelasrError(f"cannot pair languages {sorted(a)} with {sorted(b)}; score the same ones for both")
    rows = []
    for language in a:
        if [count.reference for count in a[language]] != [count.reference for count in b[language]]:
            raise PelasrError(f"{language}: the two sides have other references, nothing to pair; score both again")
        pairs = zip(a[language], b[language], strict=True)
        rows.append([(left.edits - right.edits, left.reference) for left, right in pairs])
    estimate, resampled = _bootstrap(rows, seed)
    # One added to both counts: a bootstrap of finite size cannot show p = 0.
    tails = [sum(value <= 0 for value in resampled), sum(value >= 0 for value in resampled)]
    p = min(1.0, 2 * (min(tails) + 1) / (len(resampled) + 1))
    return Difference(*estimate, p)


def _rate(rows: Sequence[tuple[int, int]]) -> float:
    """Percent of (numerator, reference units) rows, each summed."""
    reference = sum(row[1] for row in rows)
    if not reference:
        raise PelasrError("the references are empty: an error rate is undefined; check the reference text")
    return 100 * sum(row[0] for row in rows) / reference


def _bootstrap(languages: Sequence[Sequence[tuple[int, int]]], seed: int) -> tuple[Estimate, list[float]]:
    """Mean over languages of the rates of their rows (numerator, reference units), and its resampled values.

    scipy resamples each of the samples given to it by itself; the samples here are row numbers.
    """
    import numpy as np
    from scipy.stats import bootstrap

    value = math.fsum(_rate(rows) for rows in languages) / len(languages)
    tables = [np.array(rows, dtype=float) for rows in languages]
    # scipy wants two observations: the only row twice is the same rate, and never varies.
    numbers = [np.arange(len(rows)) if len(rows) > 1 else np.zeros(2, int) for rows in languages]

    def mean_rate(*drawn: Any, axis: int) -> Any:
        rates = []
        for table, rows in zip(tables, drawn, strict=True):
            numerator, reference = table[rows, 0].sum(axis), table[rows, 1].sum(axis)
            # A draw of empty references alone: jiwer's convention, insertions over one.
            rates.append(100 * numerator / np.maximum(reference, 1))
        return sum(rates) / len(rates)

    batch = max(1, 2_000_000 // sum(len(rows) for rows in numbers))  # bounds memory, the result is the same
    result = bootstrap(
        numbers,
        mean_rate,
        n_resamples=RESAMPLES,
        batch=batch,
        vectorized=True,
        axis=-1,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    # Rounded, so that draws which differ in the order of the sums alone are equal to each other and to the value.
    resampled = result.bootstrap_distribution.round(9).tolist()
    lo, hi = np.percentile(resampled, [2.5, 97.5]).tolist()
    return Estimate(round(value, 9), lo, hi), resampled


def score(
    facts: Mapping[str, Any],
    test_set: str,
    languages: Sequence[str],
    data: str | Path = "data",
    exp: str | Path = "exp",
) -> list[dict[str, Any]]:
    """Score `exp/<experiment>/decode/<set>_<language>/text` against `data/<set>_<language>/text`.

    `facts`: the keys of FACTS, what scoring cannot know. Appends WER and CER of every language, and of `mean` when
    there are several, to `exp/results.jsonl` and returns these lines. Writes beside each hypothesis text `score.tsv`
    (word counts, reference and hypothesis of each utterance) and `result.txt` (the summary in percent that sclite
    prints). Raises PelasrError for hypotheses that do not fit the references.
    """
    _check_facts(facts)
    counts: dict[str, dict[str, list[Counts]]] = {"word": {}, "char": {}}
    for language in languages:
        folder = _decoded(exp, facts["experiment"], test_set, language)
        references, hypotheses = _texts(data, folder)
        for unit, counted in counts.items():
            counted[language] = count_errors(list(references.values()), list(hypotheses.values()), unit)
        _write_counts(folder, references, hypotheses, counts["word"][language])
    estimates = {
        (group, metric): mean_interval({language: counts[unit][language] for language in members})
        for metric, unit in (("wer", "word"), ("cer", "char"))
        for group, members in _groups(languages).items()
    }
    return _record(facts, test_set, languages, estimates, counts["word"], exp)


def compare(
    facts: Mapping[str, Any],
    other: str,
    test_set: str,
    languages: Sequence[str],
    data: str | Path = "data",
    exp: str | Path = "exp",
) -> list[dict[str, Any]]:
    """Paired comparison of WER, the experiment of `facts` minus the experiment `other`, on the same utterances.

    Appends lines with the metric `wer_minus_<other>` (percentage points, negative: fewer errors than `other`) for
    every language, and for `mean` when there are several, to `exp/results.jsonl`, and returns them.
    """
    _check_facts(facts)
    sides: list[dict[str, list[Counts]]] = []
    for experiment in (facts["experiment"], other):
        texts = {language: _texts(data, _decoded(exp, experiment, test_set, language)) for language in languages}
        sides.append({key: count_errors(*(list(side.values()) for side in pair)) for key, pair in texts.items()})
    estimates = {}
    for group, members in _groups(languages).items():
        a, b = ({language: side[language] for language in members} for side in sides)
        difference = paired_mean_test(a, b)
        estimates[group, f"wer_minus_{other}"] = Estimate(difference.value, difference.lo, difference.hi)
    return _record(facts, test_set, languages, estimates, sides[0], exp)


def _check_facts(facts: Mapping[str, Any]) -> None:
    if set(facts) != FACTS:
        raise PelasrError(f"the facts have the keys {' '.join(sorted(facts))}; wanted are {' '.join(sorted(FACTS))}")


def _groups(languages: Sequence[str]) -> dict[str, Sequence[str]]:
    """Each language by itself, and `mean` of all when there are several."""
    return {name: [name] for name in languages} | ({"mean": languages} if len(languages) > 1 else {})


def _decoded(exp: str | Path, experiment: str, test_set: str, language: str) -> Path:
    return Path(exp) / experiment / "decode" / f"{test_set}_{language}"


def _texts(data: str | Path, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """References and hypotheses of a decoded folder, both sorted by utterance."""
    source, target = Path(data) / folder.name / "text", folder / "text"
    references, hypotheses = read_text(source), read_text(target)
    if not any(references.values()):
        raise PelasrError(f"{source}: no reference has a word, so there is no error rate; prepare the data again")
    for wrong, what, cure in (
        (references.keys() - hypotheses.keys(), "without a hypothesis", "decode again"),
        (hypotheses.keys() - references.keys(), f"unknown to {source}", "decode the same data"),
    ):
        if wrong:
            names = " ".join(sorted(wrong)[:5]) + (" ..." if len(wrong) > 5 else "")
            raise PelasrError(f"{target}: {len(wrong)} utterances {what}: {names}; {cure}")
    return dict(sorted(references.items())), dict(sorted(hypotheses.items()))


def _write_counts(
    folder: Path, references: Mapping[str, str], hypotheses: Mapping[str, str], counts: Sequence[Counts]
) -> None:
    """`score.tsv`, a line for each utterance, and `result.txt`, one line in percent."""
    with atomic_write(folder / "score.tsv") as stream:
        stream.write("utt\twords\thits\tsub\tdel\tins\tref\thyp\n")
        for (utterance, reference), count in zip(references.items(), counts, strict=True):
            fields = (utterance, count.reference, *count[:4], reference, hypotheses[utterance])
            stream.write("\t".join(map(str, fields)) + "\n")
    *parts, words = map(sum, zip(*counts, strict=True))
    shares = [100 * part / words for part in parts] + [error_rate(counts)]
    shares.append(100 * sum(count.edits > 0 for count in counts) / len(counts))
    with atomic_write(folder / "result.txt") as stream:
        stream.write("Snt Wrd Corr Sub Del Ins Err S.Err\n")
        stream.write(f"{len(counts)} {words} {' '.join(f'{share:.1f}' for share in shares)}\n")


def _record(
    facts: Mapping[str, Any],
    test_set: str,
    languages: Sequence[str],
    estimates: Mapping[tuple[str, str], Estimate],
    words: Mapping[str, Sequence[Counts]],
    exp: str | Path,
) -> list[dict[str, Any]]:
    """Make the result lines of {(language or mean, metric): estimate} and append them."""
    shared = {**facts, "set": test_set, "scorer": f"jiwer {package_version('jiwer')}", "commit": commit()}
    lines = []
    for (group, metric), estimate in estimates.items():
        counts = [count for language in _groups(languages)[group] for count in words[language]]
        figure = {key: round(number, 4) for key, number in estimate._asdict().items()}
        sizes = {"utterances": len(counts), "reference_words": sum(count.reference for count in counts)}
        line = {**shared, "language": group, "metric": metric, **figure, **sizes}
        lines.append({key: line[key] for key in KEYS})
    append_results(Path(exp) / "results.jsonl", lines)
    return lines
