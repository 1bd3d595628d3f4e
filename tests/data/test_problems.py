"""Many problems, few lines."""

from pelasr.data.problems import Problem, condense
from pelasr.errors import counted, printable


def problems(count, what="text is bad", kind="bad", file="text", directory="d", line=1):
    return [Problem(directory, file, line * (n + 1), f"u{n}", what.format(n=n), kind) for n in range(count)]


def test_up_to_three_are_said_one_by_one(tmp_path):
    assert condense(problems(3), tmp_path) == [f"d/text:{n + 1}: utterance u{n}: text is bad [bad]" for n in range(3)]


def test_more_are_one_line_with_a_count_examples_and_the_file():
    (line,) = condense(problems(100), "exp/problems.txt")
    shown = "u0 (line 1), u1 (line 2), u2 (line 3)"
    assert line == f"d/text: 100 utterances, such as {shown}: text is bad; all of them: exp/problems.txt [bad]"
    (line,) = condense(problems(4, "no audio x/u{n}.wav, cure"))
    assert line == f"d/text: 4 utterances, such as {shown}: the first: no audio x/u0.wav, cure [bad]"


def test_different_faults_are_different_lines():
    mixed = problems(4, "a/{n}.wav is silent") + problems(4, "a/{n}.wav is junk") + problems(4, file="utt2spk")
    assert [line.split(":")[0] for line in condense(mixed)] == ["d/text", "d/text", "d/utt2spk"]
    words = ["one", "two", "three", "four", "five"]  # nothing in common but the kind
    mixed = [problem for word in words for problem in problems(1, f"in {word}")]
    (line,) = condense(mixed)
    assert line.startswith("d/text: 5 utterances") and "the first: in one" in line


def test_what_is_missing_everywhere_is_one_line():
    missing = [Problem(f"data/{n}", "", 0, "", "no such data directory", "missing-file") for n in range(27)]
    assert condense(missing) == ["data/0, data/1, data/2 and 24 more: no such data directory [missing-file]"]


def test_twenty_thousand_take_no_time():
    from time import monotonic

    start = monotonic()
    assert len(condense(problems(20_000, "segment ends at {n}.5 s, but it has 3 s"))) == 1
    assert monotonic() - start < 20


def test_counts_and_names():
    assert [counted(1, "problem"), counted(0, "problem"), counted(2, "data directory")] == [
        "1 problem",
        "0 problems",
        "2 data directories",
    ]
    assert printable("é\udce9\n\u200b\xa0\u200c") == "é\\xe9\\n\\u200b\\xa0\u200c"
