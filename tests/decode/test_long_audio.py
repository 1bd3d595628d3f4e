"""Long recordings: where they are cut, and how the pieces are grouped and joined."""

import numpy as np
import pytest
from tiny_speech import noise

from pelasr.data.hears import LogMel
from pelasr.decode.long_audio import Piece, batches, cut, join, windows

RATE = 16000


def piece(start=0.0, end=1.0, duration=1.0, frames=100, text="a", score=-1.0):
    return Piece("hi", start, end, duration, end == duration, np.zeros((frames, 80)), text, score, seconds=0.5)


def test_batches_hold_no_more_than_their_frames_with_padding(monkeypatch):
    monkeypatch.setattr("pelasr.decode.long_audio.BATCH", 300)
    pieces = [piece(end=(frames - 1) / 100, frames=frames) for frames in (50, 100, 70, 400, 100, 60, 110)]
    found = [[len(one.feats) for one in batch] for batch in batches(pieces)]
    assert found == [[400], [110, 100], [100, 70, 60], [50]]
    assert [len(batch) for batch in batches(pieces, most=150)] == [1, 1, 1, 1, 2, 1]
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


def loudness_at(samples, place, hop):
    """By the definition: the energy of the 10 ms on either side, weighed by a Hann window of 0.3 s."""
    half = 15
    weights = np.sin(np.pi * np.arange(1, 2 * half + 1) / (2 * half + 1)) ** 2
    total = 0.0
    for weight, first in zip(weights, range(place - half * hop, place + half * hop, hop), strict=True):
        if first >= 0 and first + hop <= len(samples):
            total += weight * float(np.square(samples[first : first + hop].astype(np.float64)).sum())
    return total


@pytest.mark.parametrize(("seconds", "rate"), [(0, RATE), (0.001, RATE), (2.0, RATE), (4.0, RATE), (4.0, 8000)])
def test_what_is_short_is_left_whole(seconds, rate):
    samples = noise(seconds)[: round(seconds * rate)]
    assert cut(samples, rate, 4.0) == [(0, len(samples))]


@pytest.mark.parametrize("count", [64001, 64160, 70000, 79999, 80001, 128000, 128001, 555555])
def test_every_sample_is_in_one_piece_and_no_piece_is_too_long_or_tiny(count):
    pieces = cut(noise(count / RATE, count)[:count], RATE, 4.0)
    assert pieces[0][0] == 0 and pieces[-1][1] == count
    assert all(before[1] == after[0] for before, after in zip(pieces, pieces[1:], strict=False))
    assert all(16000 <= end - start <= 64000 for start, end in pieces)
    assert all(end - start >= 32000 for start, end in pieces[:-1])


def test_cuts_are_where_it_is_quietest():
    samples = noise(15, 3)
    pieces = cut(samples, RATE, 4.0)
    assert len(pieces) > 3
    for start, end in pieces[:-1]:
        last = min(start + 64000, len(samples) - 16000)
        places = range(-(-(start + 32000) // 160) * 160, last + 1, 160)
        assert end == min(places, key=lambda place: loudness_at(samples, place, 160))


@pytest.mark.parametrize("floor", [0.0, 1e-5])
def test_pauses_are_found(floor):
    parts, pauses, length = [], [], 0
    for number in range(12):
        speech = noise(1.5, number) + 0.01
        pause = np.random.default_rng(number).normal(0, 1, 6400).astype(np.float32) * floor
        pauses.append((length + len(speech), length + len(speech) + len(pause)))
        parts += [speech, pause]
        length += len(speech) + len(pause)
    samples = np.concatenate(parts)
    cuts = [end for _, end in cut(samples, RATE, 5.0)[:-1]]
    assert len(cuts) >= 4
    for end in cuts:  # 50 ms away from the speech at least
        assert any(first + 800 <= end <= last - 800 for first, last in pauses)


def test_a_pause_is_cut_in_its_middle():
    samples = noise(6.0) + np.float32(0.01)
    samples[45000:55000] = 0
    assert cut(samples, RATE, 4.0) == [(0, 50080), (50080, 96000)]


def test_a_quiet_pause_is_found_behind_loud_speech():
    samples = np.concatenate([1e4 * noise(100), noise(6.0) * 1e-4]).astype(np.float32)
    samples[-48000:-40000] *= 1e-3
    end = [end for _, end in cut(samples, RATE, 4.0)][-2]
    assert len(samples) - 48000 < end < len(samples) - 40000
