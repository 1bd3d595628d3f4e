import io
import os
import wave

import kaldiio
import numpy as np
import pytest
import soundfile

import pelasr.data.audio
from pelasr.data.audio import load_audio, read_audio, read_file, resample
from pelasr.data.kaldi import Utterance
from pelasr.errors import DataError


def utterance(name="u1", audio="u1.wav", start=None, end=None):
    return Utterance(name, name, str(audio), start, end, "text", "s1", "hi")


def tone(frequency=440.0, seconds=0.5, rate=16000):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def test_resampling_keeps_the_frequency_and_the_level(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1000, 1.0, 8000), 8000)
    audio = load_audio(utterance(audio=tmp_path / "a.wav"))
    assert audio.dtype == np.float32 and audio.shape == (16000,)
    spectrum = np.abs(np.fft.rfft(audio)) / 8000
    assert spectrum.argmax() == 1000
    assert spectrum[1000] == pytest.approx(0.5, abs=0.005)


def level(samples, frequency):
    """Amplitude in dB, re 1, of a frequency in 16 kHz samples, beginning and end left out."""
    middle = samples[2000:-2000].astype(np.float64)
    window = np.blackman(len(middle))
    turning = np.exp(-2j * np.pi * frequency * np.arange(len(middle)) / 16000)
    return 20 * np.log10(2 * abs((middle * window * turning).sum()) / window.sum() + 1e-12)


def from_tone(frequency, rate):
    return resample(2 * tone(frequency, 2.0, rate).astype(np.float32), rate, 16000)


@pytest.mark.parametrize("rate", [22050, 32000, 44100, 48000])
def test_resampling_keeps_what_16_khz_can_hold_and_nothing_else(rate):
    for frequency in (50, 1000, 4000, 7000, 7600, 7800):
        assert abs(level(from_tone(frequency, rate), frequency)) < 0.02
    for frequency in (8050, 8200, 9000, 10500):
        assert level(from_tone(frequency, rate), 16000 - frequency) < -100  # where it would be folded to
        assert np.abs(from_tone(frequency, rate)[2000:-2000]).max() < 1e-4


@pytest.mark.parametrize("rate", [8000, 11025])
def test_resampling_upwards_adds_no_images(rate):
    for frequency in (1000, 0.48 * rate):
        samples = from_tone(frequency, rate)
        assert abs(level(samples, frequency)) < 0.02 and level(samples, rate - frequency) < -100


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_neither_delays_nor_scales(rate):
    at = rate // 2
    impulse = np.zeros(rate, np.float32)
    impulse[at] = 1.0
    found = resample(impulse, rate, 16000)
    peak = int(found.argmax())
    assert abs(peak - at * 16000 / rate) <= 0.5
    around = np.arange(1, 500)
    if at * 16000 % rate == 0:
        np.testing.assert_allclose(found[peak + around], found[peak - around], atol=1e-6)
    constant = resample(np.full(rate, 0.25, np.float32), rate, 16000)
    np.testing.assert_allclose(constant[1000:-1000], 0.25, atol=1e-5)


@pytest.mark.parametrize("rate", [6000, 8000, 11025, 15999, 16001, 22050, 44100, 48000, 192000])
def test_length_after_resampling(rate):
    for count in (0, 1, 2, 3, 99, 100, 441, 1601, rate, rate + 1):
        found = resample(np.ones(count, np.float32), rate, 16000)
        assert found.shape == (-(-count * 16000 // rate),) and found.dtype == np.float32


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_any_soundfile_format_is_read_and_made_mono(tmp_path, suffix):
    left = tone(300)
    soundfile.write(tmp_path / f"a.{suffix}", np.stack([left, left / 2], axis=1), 16000)
    audio = load_audio(utterance(audio=tmp_path / f"a.{suffix}"))
    assert audio.ndim == 1
    if suffix in ("wav", "flac"):
        np.testing.assert_allclose(audio, 0.75 * left, atol=1e-4)


def test_int16_full_scale(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as stream:
        stream.setparams((1, 2, 16000, 0, "NONE", ""))
        stream.writeframes(np.array([-32768, 16384, 0], dtype="<i2").tobytes())
    np.testing.assert_array_equal(load_audio(utterance(audio=tmp_path / "a.wav")), [-1.0, 0.5, 0.0])


def test_kaldi_archive_equals_the_wav(tmp_path):
    samples = (tone() * 32767).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    kaldiio.save_ark(
        str(tmp_path / "a.ark"), {"x": (16000, samples[:100]), "y": (16000, samples)}, scp=str(tmp_path / "s")
    )
    spec = (tmp_path / "s").read_text().splitlines()[1].split(" ", 1)[1]
    for start, end in ((None, None), (0.1, 0.25), (0.1, None)):
        left, right = read_audio(spec, start, end), read_audio(str(tmp_path / "a.wav"), start, end)
        assert left[1] == right[1] == 16000
        np.testing.assert_array_equal(left[0], right[0])


def test_segment_is_cut(tmp_path):
    samples = np.arange(16000) / 32768
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    cut = load_audio(utterance(audio=tmp_path / "a.wav", start=0.25, end=0.5))
    np.testing.assert_array_equal(cut, samples[4000:8000].astype(np.float32))
    assert len(load_audio(utterance(audio=tmp_path / "a.wav", start=0.75, end=9.0))) == 4000


def test_audio_errors_name_utterance_and_file(tmp_path):
    (tmp_path / "junk.wav").write_bytes(b"RIFF junk")
    (tmp_path / "junk.ark").write_bytes(b"junk")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    kaldiio.save_ark(str(tmp_path / "m.ark"), {"x": np.zeros((2, 2), np.float32)})
    cases = {
        "none.wav": "no such audio file",
        "junk.wav": "unreadable audio",
        "empty.wav": "no samples",
        "junk.ark:0": "unreadable audio",
        "junk.ark:99": "unreadable audio",
        "m.ark:2": "holds no audio",
    }
    for name, words in cases.items():
        with pytest.raises(DataError) as caught:
            load_audio(utterance("u7", tmp_path / name))
        message = str(caught.value)
        assert message.startswith("utterance u7: ") and name.split(":")[0] in message
        assert words in message and "cure: " in message and "\n" not in message


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("block", [1 << 20, 5000, 77])
def test_a_file_read_in_blocks_is_what_it_is_at_once(tmp_path, monkeypatch, rate, block):
    stereo = np.random.default_rng(0).uniform(-0.5, 0.5, (rate + 17, 2))
    soundfile.write(tmp_path / "a.wav", stereo, rate)
    monkeypatch.setattr(pelasr.data.audio, "BLOCK", block)
    samples = read_file(tmp_path / "a.wav")
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, load_audio(utterance(audio=tmp_path / "a.wav")))


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_files_of_nearly_nothing(tmp_path, rate, count):
    soundfile.write(tmp_path / "a.wav", np.zeros(count), rate)
    assert read_file(tmp_path / "a.wav").shape == (-(-count * 16000 // rate),)


def test_a_stream_is_read_as_its_file_is(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(), 16000)
    content = (tmp_path / "a.flac").read_bytes()
    np.testing.assert_array_equal(read_file(io.BytesIO(content)), read_file(tmp_path / "a.flac"))
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4  # what a program writes that does not know the length yet
    np.testing.assert_array_equal(read_file(io.BytesIO(content)), read_file(tmp_path / "a.wav"))


def test_errors_of_files_name_them_and_no_wav_scp(tmp_path):
    (tmp_path / "junk.wav").write_bytes(b"RIFF junk")
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan] * 500), 16000, subtype="FLOAT")
    for name, words in {"none.wav": "no such audio file", "junk.wav": "unreadable", "nan.wav": "no finite"}.items():
        with pytest.raises(DataError, match=f"{name}: .*{words}.*cure: ") as caught:
            read_file(tmp_path / name)
        assert "wav.scp" not in str(caught.value)
    with pytest.raises(DataError, match="standard input: unreadable audio") as caught:
        read_file(io.BytesIO(b"RIFF junk"))
    assert "BytesIO" not in str(caught.value)


def test_names_of_files_may_be_any_bytes(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    soundfile.write(os.fsencode(path), tone(), 16000)
    np.testing.assert_array_equal(read_file(path), load_audio(utterance(audio=path)))
    os.unlink(path)
    with pytest.raises(DataError, match=r"caf\\xe9.wav: no such audio file"):
        read_file(path)
