"""RESULTS.md and its chart from hand-made result lines of recognition."""

import json
from pathlib import Path

import pytest
import yaml
from result_lines import line, rows

from pelasr.errors import PelasrError
from pelasr.report.grid import select
from pelasr.score.results import append_results, read_results
from pelasr.stages.table import Around, make_chart, make_table, print_table, read_times
from pelasr.tasks.base import find_task

PAPER = Path(__file__).parents[2] / "egs/mini_indic/asr1/conf/results.yaml"
EXPERIMENTS = {"A0": "no vector", "A1": "language vector", "A5": "A1 + adapters"}
WER = {"A0": {"hi": 20.0, "ur": 90.0}, "A1": {"hi": 12.04, "ur": 40.0}, "A5": {"hi": 12.0, "ur": 38.0}}


@pytest.fixture
def results():
    lines = []
    for metric, factor in (("wer", 1), ("cer", 0.5)):
        for experiment, cells in reversed(WER.items()):
            lines += [line(experiment, language, factor * value, metric) for language, value in cells.items()]
            lines.append(line(experiment, "mean", factor * sum(cells.values()) / 2, metric))
    lines.append(line("A5", "hi", -0.04, "wer_minus_A1"))
    lines.append(line("A5", "ur", -2.0, "wer_minus_A1", lo=-3.0, hi=-1.0))
    return [*lines, line("A5", "mean", -1.02, "wer_minus_A1", lo=-1.5, hi=-0.5)]


def test_rates_rows_columns_and_best(results):
    table = rows(make_table(results, "test", EXPERIMENTS, ["ur", "hi"]), "## WER (%)")
    assert table == {
        "": ["experiment", "ur", "hi", "mean", "trainable parameters", "total parameters"],
        "A0": ["no vector", "90.0", "20.0", "55.0", "1,234", "2,500,000"],
        # 12.04 and 12.0 are the same as shown, so both are best
        "A1": ["language vector", "40.0", "**12.0**", "26.0", "1,234", "2,500,000"],
        "A5": ["A1 + adapters", "**38.0**", "**12.0**", "**25.0**", "1,234", "2,500,000"],
    }


def test_cer_and_intervals(results):
    text = make_table(results, "test", EXPERIMENTS)
    assert rows(text, "## CER (%)")["A5"][:4] == ["A1 + adapters", "**6.0**", "**19.0**", "**12.5**"]
    assert rows(text, "95 % intervals")["A0"] == ["18.5 to 22.0", "88.5 to 92.0", "53.5 to 57.0"]


def test_latest_line_wins_and_method_describes(results):
    text = make_table([*results, line("A0", "hi", 5.0), line("A0", "mean", 47.5)])
    assert rows(text, "## WER (%)")["A0"][:4] == ["none", "**5.0**", "90.0", "47.5"]


def test_mean_over_other_languages_is_not_shown(results):
    # a language scored again by itself leaves the mean behind
    text = make_table([*results, line("A0", "hi", 5.0)])
    assert rows(text, "## WER (%)")["A0"][1:4] == ["**5.0**", "90.0", "-"]
    assert "No mean for A0" in text and "No mean for A0," not in text


def test_added_language_stands_outside_the_mean(results):
    text = make_table([*results, line("A5", "pa", 47.7)], "test", EXPERIMENTS, ["hi", "ur"])
    table = rows(text, "## WER (%)")
    assert table[""][1:5] == ["hi", "ur", "mean", "pa"]
    assert table["A5"][3:5] == ["**25.0**", "47.7"] and table["A0"][4] == "-"
    assert "over hi ur." in text


def test_paired_comparison(results):
    table = rows(make_table(results, "test", EXPERIMENTS), "### A5 against A1")
    assert table["hi"] == ["12.0", "12.0", "+0.0", "-1.5 to +2.0", "not clear"]
    assert table["ur"] == ["40.0", "38.0", "-2.0", "-3.0 to -1.0", "better"]
    assert table["mean"] == ["26.0", "25.0", "-1.0", "-1.5 to -0.5", "better"]


def test_page_is_made_from_results_alone(results, tmp_path):
    path = tmp_path / "results.jsonl"
    append_results(path, results)
    options = {
        "title": "RESULTS of tiny",
        "note": "The speech is synthetic.",
        "environment": {"date": "2026-01-02T03:04:05+00:00", "python": "3.11.7", "cpu": "a CPU"},
        "times": [
            {
                "stage": "6 decode",
                "command": "pelasr decode --exps 'A0 | A1'",
                "seconds": 3725.4,
                "max_rss_mb": 812.6,
                "started": "2026-01-02T01:00:00",
                "host": "box",
            },
            {"stage": "adapt", "command": "pelasr adapt", "started": "2026-01-02T02:00:00", "host": "box"},
        ],
        "corpus": {
            "made_with": "--size tiny",
            "languages": [
                {
                    "name": "hi",
                    "sets": {
                        "train": {"utterances": 1200, "hours": 1.234, "speakers": 3},
                        "test": {"utterances": 9, "hours": None, "speakers": None},
                    },
                },
                {"name": "ur", "sets": {"train": None, "test": {"utterances": 9, "hours": 0.0123, "speakers": 1}}},
            ],
        },
        "chart": "RESULTS.png",
        "paper": {"title": "Published", "source": "x", "columns": ["a"], "rows": [[1]]},
    }
    pages = [make_table(read_results(path), "test", EXPERIMENTS, around=Around(**options)) for _ in range(2)]
    assert pages[0] == pages[1]
    assert pages[0].startswith("# RESULTS of tiny\n\nThe speech is synthetic.\n\n## WER (%)")
    sections = [row[3:] for row in pages[0].splitlines() if row.startswith("## ")]
    last = ["Published", "The corpus", "How these numbers were made"]
    assert sections == ["WER (%)", "CER (%)", "Paired comparisons", *last]
    assert rows(pages[0], "## The corpus") == {
        "": ["train", "test"],
        "hi": ["1,200, 1.23 h, 3 speakers", "9, ? h, ? speakers"],
        "ur": ["-", "9, 0.0123 h, 1 speaker"],
    }
    assert "`--size tiny`" in pages[0] and "\n- date: `2026" in pages[0]
    assert rows(pages[0], "Each run of a stage")["adapt"] == ["2026-01-02T02:00:00", "box", "did not end", "-"]
    assert rows(pages[0], "Each run of a stage")["6 decode"] == ["2026-01-02T01:00:00", "box", "1:02:05", "813"]
    assert "```sh\npelasr decode --exps 'A0 | A1'\npelasr adapt\n```" in pages[0]
    for fact in (
        "scorer: `jiwer 4.0.0`",
        "scored at commit: `abc`",
        "seed: `1`",
        "![WER by language and experiment](RESULTS.png)",
    ):
        assert fact in pages[0]
    charts = []
    for number in range(2):
        make_chart(read_results(path), tmp_path / f"{number}.png", "test", EXPERIMENTS)
        charts.append((tmp_path / f"{number}.png").read_bytes())
    assert charts[0] == charts[1] and charts[0].startswith(b"\x89PNG") and len(charts[0]) < 100_000


def test_sections_without_facts_are_left_out(results, tmp_path):
    text = make_table(results)
    for absent in ("Each run of a stage", "```", "![", "paper"):
        assert absent not in text
    assert read_times(tmp_path / "times.jsonl") == []


RUN = {"stage": "data", "command": "pelasr data", "started": "2026-11-21T05:00:00+00:00", "host": "h"}
ENDED = {**RUN, "outcome": "done", "seconds": 1.5, "max_rss_mb": 30}


def test_runs_are_read(tmp_path):
    path = tmp_path / "times.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in (RUN, {**RUN, "stage": "train"}, ENDED)))
    assert read_times(path) == [ENDED]  # they began at the same time
    for bad in ({**RUN, "seconds": 1}, {**ENDED, "seconds": -1}, {**ENDED, "max_rss_mb": "x"}, {**RUN, "host": 1}):
        path.write_text(f"{json.dumps(RUN)}\n{json.dumps(bad)}\n")
        with pytest.raises(PelasrError, match="times.jsonl:2: not a run of a stage; remove the line"):
            read_times(path)


def test_one_experiment_and_one_language(tmp_path, capsys):
    results = [line("B0", "en", 3.0), line("B0", "en", 1.0, "cer")]
    text = make_table(results)
    assert rows(text, "## WER (%)")[""] == ["experiment", "en", "trainable parameters", "total parameters"]
    assert rows(text, "## WER (%)")["B0"] == ["none", "3.0", "1,234", "2,500,000"]
    assert "Paired" not in text and "`mean`" not in text
    make_chart(results, tmp_path / "chart.png")
    print_table(results)
    printed = [row.split() for row in capsys.readouterr().out.splitlines() if row and not row.startswith("-")]
    assert printed == [["WER", "%", "test", "en"], ["B0", "3.0"], ["CER", "%", "test", "en"], ["B0", "1.0"]]


def test_a_chart_of_one_system_is_readable():
    """Its one bar does not fill the picture, has its number beside it, and begins at zero."""
    axes = find_task("recognition").chart(select([line("rnnt", "en", 1.7, lo=0.3, hi=3.3)])).axes[0]
    bar = axes.patches[0]
    assert bar.get_width() / (axes.get_xlim()[1] - axes.get_xlim()[0]) < 0.25 and axes.get_ylim()[0] == 0
    assert [text.get_text() for text in axes.texts] == ["1.7"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["en"]


def test_large_chart_is_small(tmp_path):
    languages = ["hi", "mr", "bn", "te", "gu", "ta", "ml", "kn", "ur"]
    results = [line(f"A{number}", name, 20.0 + number) for number in range(6) for name in [*languages, "mean"]]
    make_chart(
        results, tmp_path / "chart.png", "test", {f"A{n}": "A1 + sampling, converged" for n in range(6)}, languages
    )
    assert (tmp_path / "chart.png").stat().st_size < 100_000


def test_paper_figures():
    paper = yaml.safe_load(PAPER.read_text(encoding="utf-8"))["paper"]
    assert all(len(row) == len(paper["columns"]) == 13 for row in paper["rows"])
    means = {row[0]: round(sum(row[2:11]) / 9, 1) for row in paper["rows"]}
    assert means == {row[0]: row[12] for row in paper["rows"]}
    assert [row[0] for row in paper["rows"] if row[11] != row[12]] == ["A1"]
    table = rows(make_table([line("A0", "hi", 1.0)], around=Around(paper=paper)), f"## {paper['title']}")
    assert table["A1"] == [str(cell) for cell in paper["rows"][1][1:]]
