"""The index of audio that is heard when it is needed, and features or audio, whichever there is."""

import numpy as np
import pytest
import soundfile
from tiny_speech import noise

from pelasr.data.audio_index import index_audio, index_marker, index_sha256, read_audios, read_index
from pelasr.data.features import delete_features, extract, read_feats
from pelasr.data.hears import USUAL, Extracted, LogMel, Waveform, num_frames
from pelasr.data.kaldi import Utterance, read_data_dir, write_data_dir
from pelasr.data.speech import has_frames, hear_all, is_dumped, read_num_frames, read_speech, speech_sha256
from pelasr.errors import PelasrError

SECONDS = {"a": 0.5, "b": 0.8, "c": 1.3}


def write_audio(folder, name, samples, rate=16000):
    soundfile.write(folder / f"{name}.wav", samples, rate, subtype="FLOAT")


@pytest.fixture
def made(tmp_path):
    """A data directory and its index: `a` and `b` are segments of a recording at 22.05 kHz, `c` is a file."""
    data, dump = tmp_path / "data", tmp_path / "dump"
    data.mkdir()
    write_audio(data, "long", noise(2.0, 1)[: 2 * 16000], 22050)
    write_audio(data, "c", noise(SECONDS["c"], 2))
    cuts = {"a": ("long", 0.1, 0.1 + SECONDS["a"]), "b": ("long", 0.6, 0.6 + SECONDS["b"]), "c": ("c", None, None)}
    write_data_dir(
        data,
        [Utterance(u, r, str(data / f"{r}.wav"), start, end, "x", "s", "hi") for u, (r, start, end) in cuts.items()],
    )
    list(index_audio([(data, dump)]))
    return data, dump


def audios(made, hears=USUAL):
    return read_audios(read_data_dir(made[0]), made[1], hears)


def test_an_index_of_lengths_and_digests(made):
    _, dump = made
    assert {path.name for path in dump.iterdir()} == {"utt2audio", "audio.json"}
    assert {name: known.samples for name, known in read_index(dump).items()} == {
        name: round(16000 * seconds) for name, seconds in SECONDS.items()
    }
    assert read_num_frames(dump) == {name: num_frames(round(16000 * s)) for name, s in SECONDS.items()}
    assert has_frames(dump)


def test_heard_as_dumped(made, tmp_path):
    """Log-mel bit for bit, with the same frames, in one process or two."""
    data, _ = made
    list(extract([(data, tmp_path / "features")]))
    stored, found = read_feats(tmp_path / "features"), audios(made)
    assert stored.keys() == found.keys()
    for name, audio in found.items():
        np.testing.assert_array_equal(audio.load(), stored[name].load())
        assert audio.frames == stored[name].frames == len(audio.load())
    for one, other in zip(hear_all(made[1], data, USUAL, 2), stored.values(), strict=True):
        np.testing.assert_array_equal(one, other.load())


def test_the_same_audio_is_equal(made):
    one, other = audios(made), audios(made)
    assert one == other and hash(one["a"]) == hash(other["a"]) and len({*one.values(), *other.values()}) == 3
    assert audios(made, Waveform())["a"] != one["a"]
    assert audios(made, Waveform())["c"].load().shape == (20800, 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("gone", "no such audio file"),
        ("cut", r"damaged or cut off|unreadable audio|cut off"),
        ("shorter", "16000 samples at 16 kHz, 20800 when .*utt2audio was made; cure: restore it, or run stage 3"),
        ("other", "other audio than when .*dump/utt2audio was made; cure: restore it, or run stage 3 again"),
        ("not finite", "no finite numbers; cure: mend the audio"),
    ],
)
def test_damage_after_stage_3_is_one_line(made, damage, message):
    found, path = audios(made)["c"], made[0] / "c.wav"
    content = path.read_bytes()
    new = {"shorter": noise(1.0, 2), "other": noise(1.3, 3), "not finite": np.full(20800, np.nan, np.float32)}
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        write_audio(made[0], "c", new[damage])
    with pytest.raises(PelasrError, match=rf"^utterance c: .*data/c.wav: .*({message})"):
        found.load()
    assert not index_marker(*made).done or damage == "gone"
    if damage in ("shorter", "other"):
        with pytest.raises(
            PelasrError, match="utt2audio: the index of the audio is not of .*data as it is; run stage 3"
        ):
            index_sha256(*made)
    path.write_bytes(content)
    assert found.load().shape == (131, 80)


def test_one_sample_is_another_data_set_and_a_touched_or_moved_file_is_not(made, tmp_path):
    data, dump = made
    before = index_sha256(data, dump)
    content = (data / "c.wav").read_bytes()
    (data / "c.wav").write_bytes(content)
    assert not index_marker(data, dump).done  # of another time
    list(index_audio([(data, dump)]))
    assert index_sha256(data, dump) == before
    (data / "c.wav").rename(tmp_path / "moved.wav")
    (data / "wav.scp").write_text((data / "wav.scp").read_text().replace(f"{data}/c.wav", f"{tmp_path}/moved.wav"))
    with pytest.raises(PelasrError, match="not of .*data as it is; run stage 3"):
        index_sha256(data, dump)
    list(index_audio([(data, dump)]))
    assert index_sha256(data, dump) == before
    samples = noise(SECONDS["c"], 2)
    samples[7] += 2 / 32768
    write_audio(tmp_path, "moved", samples)
    list(index_audio([(data, dump)]))
    assert index_sha256(data, dump) != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 8000\n", "want lines of `utterance samples digest` .a 8000.; cure: delete it and run stage 3 again"),
        (b"a -1 0123456789abcdef\n", "want lines"),
        (b"\xff\xfe\n", "want lines"),
        (b"", "want lines"),
    ],
)
def test_a_damaged_index(made, content, message):
    (made[1] / "utt2audio").write_bytes(content)
    with pytest.raises(PelasrError, match=message):
        read_index(made[1])
    assert not index_marker(*made).done
    with pytest.raises(PelasrError, match="utt2audio: the index of the audio is damaged; run stage 3"):
        index_sha256(*made)


def test_a_killed_stage_leaves_nothing_half(made, monkeypatch):
    """Neither before the index is written, nor between that and its done-file."""
    data, dump = made
    write_audio(data, "c", noise(1.0, 5))
    before = (dump / "utt2audio").read_bytes()

    def killed(*args, **options):
        raise KeyboardInterrupt

    for target in ("pelasr.data.audio_index.atomic_write", "pelasr.done.Marker.write"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(target, killed)
            list(index_audio([(data, dump)]))
        assert not index_marker(data, dump).done
    assert (dump / "utt2audio").read_bytes() != before
    list(index_audio([(data, dump)]))
    assert index_marker(data, dump).done and {path.name for path in dump.iterdir()} == {"utt2audio", "audio.json"}


def test_what_cannot_be_indexed_is_named(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name, samples in (("a", noise(0.5)), ("b", np.array([0.0, np.inf], np.float32))):
        write_audio(data, name, samples)
    write_data_dir(data, [Utterance(u, u, str(data / f"{u}.wav"), None, None, "x", "s", "hi") for u in "ab"])
    with pytest.raises(PelasrError, match="utterance b: .*b.wav: samples that are no finite numbers; cure: mend"):
        list(index_audio([(data, tmp_path / "dump")]))
    assert not (tmp_path / "dump").exists()
    with pytest.raises(PelasrError, match="utt2audio: no such file; cure: run stage 3, for a new language stage 5"):
        read_index(tmp_path / "dump")
    with pytest.raises(PelasrError, match="index of the audio is not made; run stage 3"):
        speech_sha256(data, tmp_path / "dump", Waveform())


def test_what_is_too_long_is_said_before_training(made, monkeypatch):
    monkeypatch.setattr("pelasr.data.hears.WINDOW", 16000)
    with pytest.raises(PelasrError, match="utterance c: .*c.wav: 1.3 s, more than the 1 s that the backbone can hear"):
        audios(made, Extracted())


def test_dumped_features_are_preferred_by_who_hears_them(made):
    """Those of another number of channels are not."""
    data, dump = made
    utterances = read_data_dir(data)
    assert not is_dumped(dump, USUAL) and not is_dumped(dump, None)
    index = speech_sha256(data, dump, USUAL)
    list(extract([(data, dump)]))
    assert is_dumped(dump, USUAL) and is_dumped(dump, None)
    assert not is_dumped(dump, LogMel(40)) and not is_dumped(dump, Waveform())
    assert speech_sha256(data, dump, USUAL) == speech_sha256(data, dump, None) != index
    assert speech_sha256(data, dump, Waveform()) == speech_sha256(data, dump, LogMel(40)) == index
    assert read_speech(utterances, dump, USUAL) == read_feats(dump)
    assert read_speech(utterances, dump, Waveform()) == audios(made, Waveform())
    frames = read_num_frames(dump)
    delete_features(dump)
    assert not is_dumped(dump, USUAL) and read_num_frames(dump) == frames
