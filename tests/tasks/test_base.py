"""Which task there is: by name, by language keys, by lines of results."""

import pytest
from result_lines import line

from pelasr.errors import PelasrError
from pelasr.stages.table import make_table
from pelasr.tasks.base import find_task, said, task_of, task_of_results


def test_names_and_keys_tell_the_task():
    assert [task_of(keys).name for keys in (["hi", "ur"], ["en-de"])] == ["recognition", "translation"]
    assert task_of(["en-de"], "recognition").name == find_task("recognition").name == "recognition"
    for name in ("base", "words"):
        with pytest.raises(PelasrError, match=f"task: no task '{name}'; known: recognition, translation"):
            find_task(name)


def test_what_the_keys_tell_is_not_written():
    assert said(None, ["hi"]) == said("recognition", ["hi"]) == said("translation", ["en-de"]) == {}
    assert said("recognition", ["en-de"]) == {"task": "recognition"}


def test_a_recogniser_has_no_place_among_translations():
    lines = [line("asr", "en", 9.0), line("asr", "en", 2.0, "wer_minus_old"), line("2", "en-de", 20.0, "bleu")]
    changed = line("2", "en-de", 0.0, "changed_by_en-it")  # of no task's
    assert task_of_results(lines[:2])[0].name == "recognition"
    task, found = task_of_results([*lines, changed])
    assert task.name == "translation" and found == [lines[2], changed]
    text = make_table(lines, "test", {"asr": "recogniser", "2": "multilingual"})
    assert "multilingual" in text and "recogniser" not in text and "WER" not in text


def test_what_sums_to_figures():
    references, hypotheses = ["a b c", "d e"], ["a b", "d e f"]
    for name, metric, figure in (("recognition", "wer", 40.0), ("recognition", "cer", 50.0)):
        task = find_task(name)
        assert task.figure(metric, task.statistics(metric, references, hypotheses).sum(0)) == figure
    for task in map(find_task, ("recognition", "translation")):
        for measure in task.measures:  # a process may have no utterance of a language
            width = task.statistics(measure.metric, references, hypotheses).shape[1]
            assert task.statistics(measure.metric, [], []).shape == (0, width)


def test_dev_of_writing_without_spaces_is_by_characters():
    recognition = find_task("recognition")
    assert recognition.dev_metric(["ab cd", "e f"]) == "wer"
    assert recognition.dev_metric(["中文字中文字中文字中文字", "文文文文文文"]) == "cer"


MINE = """
from pelasr.tasks.base import Task
from pelasr.tasks.recognition import WER


class Mine(Task):
    {body}
"""


@pytest.mark.parametrize("body", ["measures = [WER]", "def count(self, *texts):\n        return 0, 1"])
def test_a_task_must_measure_something(body, tmp_path, monkeypatch):
    (tmp_path / "local/tasks").mkdir(parents=True)
    (tmp_path / "local/tasks/mine.py").write_text(MINE.format(body=body))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PelasrError, match="task mine: Mine needs `measures`, and `count` or `statistics`"):
        find_task("mine")
