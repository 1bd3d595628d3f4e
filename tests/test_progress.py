"""Lines of progress; `tests/test_transcribe.py` has the bar on a terminal."""

import pelasr.progress
from pelasr.progress import Meter, log, say, track, warn


def test_lines_say_how_much_is_done(monkeypatch, capsys):
    monkeypatch.setattr(pelasr.progress, "SECONDS_BETWEEN_LINES", -1.0)
    assert list(track("abc", 3, "counting")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["counting: 1/3", "counting: 2/3", "counting: 3/3"]
    assert list(track([0.25, 0.5, 1.25], 2, "weighing", lambda item: item)) == [0.25, 0.5, 1.25]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["weighing: 0.25/2", "weighing: 0.75/2", "weighing: 2.0/2"]
    assert lines[-1].endswith(", 0 s left")


def test_what_goes_where(capsys):
    say("made"), log("meanwhile"), warn("look")
    assert capsys.readouterr() == ("made\n", "meanwhile\nwarning: look\n")


def test_the_time_left_is_that_of_this_run(monkeypatch, capsys):
    """What was done before it took no time; a line comes every so many seconds."""
    seconds = iter([0.0, 100.0, 110.0, 120.0])
    monkeypatch.setattr(pelasr.progress.time, "monotonic", lambda: next(seconds))
    with Meter("exp/A1: training", 1000) as meter:
        meter.begin(900)
        meter.update(901, "loss 2.50")
        meter.update(902, "loss 2.40")
    assert capsys.readouterr().err == "exp/A1: training: 902/1000, loss 2.40, 16 min left\n"
