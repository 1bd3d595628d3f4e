"""What train and other sets share."""

from pelasr.data.kaldi import Utterance
from pelasr.data.overlap import Heard, shared


def heard(name, audio="a.wav", start=None, end=None, text=None, language="hi", digest=None):
    utterance = Utterance(name, name, audio, start, end, text or f"text of {name}", "s", language)
    return Heard(f"data/{name[0]}", utterance, digest or f"hash of {name}")


def names(lines):
    return [line.split(" of ")[0] for line in lines]


def test_nothing_shared():
    train = [heard("t1"), heard("t2", "b.wav")]
    assert shared(train, {"dev": [heard("d1", "c.wav")], "test": []}) == []


def test_segments_of_a_recording_overlap_or_not():
    train = [heard("t1", start=0.0, end=9.0), heard("t2", start=1.0, end=2.0), heard("t3", start=20.0, end=21.0)]
    for start, end, other in ((8.0, 10.0, "t1"), (8.95, 12.0, None), (9.0, 20.05, None), (9.0, None, "t3")):
        lines = shared(train, {"dev": [heard("d1", start=start, end=end)]})
        assert names(lines) == (["1"] if other else []), (start, end)
        assert not other or f"d1 of data/d is that of {other} of data/t" in lines[0]
    assert len(shared(train, {"dev": [heard("d1", "./x/../a.wav")]})) == 1
    assert len(shared([heard("t1")], {"dev": [heard("d1", start=3.0, end=4.0)]})) == 1


def test_the_same_samples_under_another_name():
    (line,) = shared([heard("t1", digest="x")], {"test": [heard("d1", "b.wav", digest="x"), heard("d2", "c.wav")]})
    assert line.startswith(
        "1 of 2 utterances of test have audio that train has too, which flatters figures: d1 of data/d"
    )


def test_the_same_sentence_in_the_same_language():
    train = [heard("t1", text="a  b"), heard("t2", "b.wav", text="c")]
    others = [heard(f"d{n}", f"d{n}.wav", text="a b") for n in range(5)] + [
        heard("e1", "e.wav", text="c", language="mr")
    ]
    (line,) = shared(train, {"dev": others})
    assert line.startswith("5 of 6 utterances of dev have a transcript that train has too") and line.endswith(
        " and 2 more"
    )


def test_ten_thousand_of_one_recording_take_no_time():
    from time import monotonic

    train = [heard(f"t{n}", start=n + 0.0, end=n + 1.0) for n in range(10_000)]
    others = [heard(f"d{n}", start=n + 0.5, end=n + 0.9) for n in range(10_000)]
    start = monotonic()
    assert names(shared(train, {"test": others})) == ["10000"]
    assert monotonic() - start < 20
