import numpy as np
import pytest

from pelasr.data.features import LogMel
from pelasr.decode.long_audio import Piece, batches, join, windows


def piece(start=0.0, end=1.0, duration=1.0, frames=100, text="a", score=-1.0):
    return Piece("hi", start, end, duration, end == duration, np.zeros((frames, 80)), text, score, seconds=0.5)


def test_batches_hold_no_more_than_their_frames_with_padding(monkeypatch):
    monkeypatch.setattr("pelasr.decode.long_audio.BATCH", 300)
    pieces = [piece(frames=frames) for frames in (50, 100, 70, 400, 100, 60, 110)]
    found = [[len(one.feats) for one in batch] for batch in batches(pieces)]
    assert found == [[400], [110, 100], [100, 70, 60], [50]]
    assert list(batches([])) == []


def test_windows_ask_for_one_audio_at_a_time(monkeypatch):
    monkeypatch.setattr("pelasr.decode.long_audio.WINDOW", 250)
    asked = []

    def audio():
        for seconds in (1.0, 2.0, 0.01, 3.0):
            asked.append(seconds)
            yield np.full(round(16000 * seconds), 0.1, np.float32)

    found = windows(audio(), ["hi", "ur", "hi", "hi"], {"hi": 20.0, "ur": 20.0}, LogMel())
    first = next(found)
    assert asked == [1.0, 2.0]
    assert [(one.language, one.start, one.end, one.last, len(one.feats)) for one in first] == [
        ("hi", 0.0, 1.0, True, 101),
        ("ur", 0.0, 2.0, True, 201),
    ]
    (rest,) = found
    assert [(one.duration, one.feats is None) for one in rest] == [(0.01, True), (3.0, False)]
    with pytest.raises(ValueError, match="zip"):
        list(windows(audio(), ["hi"], {"hi": 20.0}, LogMel()))


def test_pieces_are_joined_over_windows():
    parts = [piece(0, 4, 10, text="a b"), piece(4, 7, 10, text=""), piece(7, 10, 10, text="c", score=-2.5), piece()]
    nothing = piece(0, 0.01, 0.01, text="", score=None)
    found = list(join([parts[:2], [*parts[2:], nothing]]))
    assert [(one.text, one.score, one.duration, one.seconds) for one in found] == [
        ("a b c", -4.5, 10, 1.5),
        ("a", -1.0, 1.0, 0.5),
        ("", 0, 0.01, 0.5),
    ]
    assert found[0].segments == parts[:3] and found[2].segments == []
    assert sum(part.share for part in parts[:3]) == pytest.approx(1) and piece(0, 0, 0).share == 1
