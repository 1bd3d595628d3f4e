"""The file of result lines: appends under a lock, and bad lines."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from pelasr.errors import PelasrError
from pelasr.score.results import KEYS, OLD_KEYS, SETTINGS, append_results, method_of, read_results


def test_parallel_appends_do_not_mix(tmp_path):
    path = tmp_path / "exp" / "results.jsonl"
    line = dict.fromkeys(KEYS, "x" * 1000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append_results(path, [line | {"language": f"l{number}"}] * 3), range(24)))
    assert sorted({result["language"] for result in read_results(path)}) == sorted(f"l{number}" for number in range(24))


def test_bad_result_line_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(PelasrError, match="no results yet"):
        read_results(path)
    good = json.dumps(dict.fromkeys(KEYS, 1))
    path.write_text(f"{good}\n{{}}\n")
    with pytest.raises(PelasrError, match=r"results.jsonl:2: not a result"):
        read_results(path)
    path.write_bytes(good.encode() + b"\n\xff\xfe\n")
    with pytest.raises(PelasrError, match=r"results.jsonl:2: not a result"):
        read_results(path)
    path.write_text(good)  # no newline at the end: the next line must not be glued to it
    append_results(path, [dict.fromkeys(KEYS, 2)])
    assert len(read_results(path)) == 2


@pytest.mark.parametrize(
    ("method", "name", "settings"),
    [
        ("houlsby dict=multi D=256 enc=0 dec=64 beam=5 as=hi", "houlsby", ["multi", 256, 0, 64, 5, "hi", None]),
        ("backbone dict=mono D=96", "backbone", ["mono", 96, None, None, None, None, None]),
        ("backbone beam=2", "backbone", [None, None, None, None, 2, None, None]),
        ("houlsby", "houlsby", [None] * 7),
        ("a method of ours", "a method of ours", [None] * 7),
    ],
)
def test_older_lines_have_settings_in_words(tmp_path, method, name, settings):
    path = tmp_path / "results.jsonl"
    tasks = {"wer": "recognition", "bleu_minus_2": "translation", "changed_by_pa": None}
    old = [dict.fromkeys(OLD_KEYS, 1) | {"method": method, "metric": metric} for metric in tasks]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in old))
    found = read_results(path)
    assert [line["task"] for line in found] == list(tasks.values())
    for line, before in zip(found, old, strict=True):
        assert list(line) == KEYS and line["method"] == name and [line[key] for key in SETTINGS] == settings
        assert method_of(line) == method and before.items() - {("method", method)} <= line.items()
    append_results(path, found)  # they are known
    assert len(read_results(path)) == len(old)


def test_lines_before_language_models(tmp_path):
    path = tmp_path / "results.jsonl"
    old = dict.fromkeys(KEYS, 1)
    del old["lm"]
    path.write_text(json.dumps(old) + "\n")
    (line,) = read_results(path)
    assert list(line) == KEYS and line == old | {"lm": None}
    append_results(path, [line])  # it is known
    assert len(read_results(path)) == 1
