"""Lines of progress; `tests/test_transcribe.py` has the bar on a terminal."""

import pelasr.progress
from pelasr.progress import track


def test_lines_say_how_much_is_done(monkeypatch, capsys):
    monkeypatch.setattr(pelasr.progress, "SECONDS_BETWEEN_LINES", -1.0)
    assert list(track("abc", 3, "counting")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["counting: 1/3", "counting: 2/3", "counting: 3/3"]
    assert list(track([0.25, 0.5, 1.25], 2, "weighing", lambda item: item)) == [0.25, 0.5, 1.25]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["weighing: 0.25/2", "weighing: 0.75/2", "weighing: 2.0/2"]
    assert lines[-1].endswith(", 0 s left")
