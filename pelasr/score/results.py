"""`results.jsonl`: the append-only file of all figures, one line each. Tables are made from it alone."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pelasr.errors import PelasrError
from pelasr.files import ABSENT, naming, no_file, read_json_lines

# What a line says of a method beside its name, None where that has no such thing, and the word for it in older lines.
SETTINGS = {"dict": "dict", "width": "D", "enc": "enc", "dec": "dec", "beam": "beam", "decode_as": "as", "lm": "lm"}
KEYS = [
    "recipe",
    "experiment",
    "set",
    "language",
    "task",
    "method",
    *SETTINGS,
    "metric",
    "value",
    "lo",
    "hi",
    "utterances",
    "reference_words",
    "trainable_parameters",
    "total_parameters",
    "seed",
    "config_sha256",
    "data_sha256",
    "scorer",
    "commit",
]
TOTAL = "total"  # as the language of a line that is about none, such as what a fit took
OLD_KEYS = set(KEYS) - {"task", *SETTINGS}
OLD_TASKS: dict[str, str] = {"wer": "recognition", "cer": "recognition"}
OLD_TASKS |= {metric: "translation" for metric in ("bleu", "chrf", "limited", "train_hours")}


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """All lines of a results file, older ones with the keys of today. Raises PelasrError when there is none, and with
    file:line for a bad line."""
    path = Path(path)
    if no_file(path) == ABSENT:
        raise PelasrError(f"{path}: no results yet; `pelasr score` writes them")
    results = []
    for number, result in read_json_lines(path):
        if isinstance(result, dict) and set(result) == OLD_KEYS:
            result = renewed(result)
        if isinstance(result, dict) and set(result) == set(KEYS) - {"lm"}:  # of a time before language models
            result = {key: result.get(key) for key in KEYS}
        if not isinstance(result, dict) or set(result) != set(KEYS):
            raise PelasrError(f"{path}:{number}: not a result with the keys {' '.join(KEYS)}; remove the line")
        results.append(result)
    return results


def renewed(line: dict[str, Any]) -> dict[str, Any]:
    """A line of a time when settings were words of the method, `houlsby dict=multi D=256 enc=0 dec=64`, and the metric
    told the task, with the keys of today."""
    name, *words = str(line["method"]).split() or [""]
    keys = {word: key for key, word in SETTINGS.items()}
    found: dict[str, Any] = dict.fromkeys(SETTINGS)
    for word in words:
        which, _, value = word.partition("=")
        if which not in keys:  # no settings of ours
            name, found = line["method"], dict.fromkeys(SETTINGS)
            break
        found[keys[which]] = int(value) if value.isdecimal() else value
    task = OLD_TASKS.get(str(line["metric"]).partition("_minus_")[0])
    known = {**line, **found, "method": name, "task": task}
    return {key: known[key] for key in KEYS}


def method_of(line: Mapping[str, Any]) -> str:
    """The method of a line with its settings, `houlsby dict=multi D=256 enc=0 dec=64`."""
    settings = {word: line.get(key) for key, word in SETTINGS.items()}
    return " ".join([line["method"], *(f"{word}={value}" for word, value in settings.items() if value is not None)])


def latest(results: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str, str], Mapping[str, Any]]:
    """The last line of each (experiment, set, language, metric)."""
    return {(line["experiment"], line["set"], line["language"], line["metric"]): line for line in results}


def append_results(path: str | Path, lines: Sequence[dict[str, Any]]) -> None:
    """Append result lines in one write under a lock, so that parallel jobs do not mix theirs.

    A line equal in all but the commit to the latest of its key is left out: scoring again adds nothing to the file,
    and the figure keeps the commit that first gave it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666), "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        known = {_without_commit(line) for line in latest(read_results(path)).values()}
        new = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines if _without_commit(line) not in known]
        text = path.read_bytes()
        stream.write((b"\n" if text and not text.endswith(b"\n") else b"") + "".join(new).encode())


def _without_commit(line: Mapping[str, Any]) -> str:
    return json.dumps({key: line[key] for key in KEYS if key != "commit"})
