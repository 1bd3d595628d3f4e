"""Hand-made lines of results, and tables read back."""

import re

from pelasr.score.results import KEYS, OLD_TASKS, SETTINGS


def line(experiment, language, value, metric="wer", **changed):
    result = {
        "recipe": "tiny",
        "experiment": experiment,
        "set": "test",
        "language": language,
        "task": OLD_TASKS.get(metric.partition("_minus_")[0]),
        "method": "houlsby" if experiment == "A5" else "none",
        **dict.fromkeys(SETTINGS),
        "metric": metric,
        "value": value,
        "lo": value - 1.5,
        "hi": value + 2,
        "utterances": 50,
        "reference_words": 200,
        "trainable_parameters": 1234,
        "total_parameters": 2500000,
        "seed": 1,
        "config_sha256": "c",
        "data_sha256": "d",
        "scorer": "jiwer 4.0.0",
        "commit": "abc",
    }
    assert list(result) == KEYS
    return result | changed


def rows(text, heading):
    """{first cell: other cells} of the first table after a heading."""
    table = re.search(r"((?:^\|.*\n)+)", text[text.index(heading) :], re.MULTILINE).group(1)
    cells = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines() if not row.startswith("|-")
    ]
    return {row[0]: row[1:] for row in cells}
