"""The file of result lines: appends under a lock, and bad lines."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from pelasr.errors import PelasrError
from pelasr.score.results import KEYS, append_results, read_results


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
