"""Headers of audio files: what they say is believed as far as the bytes bear it out, and nobody honest is refused."""

import io
import os
import socket
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from pelasr.data.audio import read_audio, read_file
from pelasr.data.features import extract
from pelasr.data.kaldi import Utterance, write_data_dir
from pelasr.data.validate import validate
from pelasr.errors import DataError, PelasrError

STREAMED = (0xFFFFFFFF, 0xFFFFFFDB, 0x7FFFF000, 0x80000000, 0x7FFFFFFF, 0)  # what programs write into a pipe


def noise(count, channels=1, seed=0):
    draws = np.random.default_rng(seed)
    loud = np.repeat(draws.uniform(0, 0.3, count // 4000 + 1), 4000)[:count, None]
    return (loud * draws.standard_normal((count, channels))).astype(np.float32)


def encoded(samples, rate=16000, **options):
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", rate, samples.shape[1], **options) as sound:
        sound.write(samples)
    return stream.getvalue()


def wav(count=16000, subtype="PCM_16", channels=1):
    return encoded(noise(count, channels), format="WAV", subtype=subtype)


def patched(content, where, value):
    """A WAV file with another number in its header: of bytes of samples, or at a place of `fmt `."""
    start = content.index(b"data") + 4 if where == "data" else content.index(b"fmt ") + where
    return content[:start] + struct.pack("<I", value) + content[start + 4 :]


def flac(count=16000, said=None):
    """A FLAC file, whose header says that it has `said` samples (36 bits; 0: unknown)."""
    content = encoded(noise(count), format="FLAC", subtype="PCM_16")
    if said is None:
        return content
    sizes = int.from_bytes(content[18:26], "big") >> 36 << 36 | said
    return content[:18] + sizes.to_bytes(8, "big") + content[26:]


def refused(tmp_path, content, message):
    """By both readers, in one printable line, before much is allocated."""
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    tracemalloc.start()
    for read in (lambda: read_audio(str(path)), lambda: read_file(path), lambda: read_file(io.BytesIO(content))):
        with pytest.raises(DataError, match=message) as caught:
            read()
        text = str(caught.value)
        assert text.isprintable() and text.startswith((str(path), "standard input")) and "cure: " in text
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def formats():
    for name in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(name):
            if name not in ("RAW", "SD2") and not subtype.startswith("DWVW"):
                yield name, subtype


@pytest.mark.parametrize(("name", "subtype"), list(formats()))
def test_whatever_soundfile_writes_is_read(tmp_path, name, subtype):
    """In whole, of any length; compressed formats pad, and some have rates or channels of their own."""
    written = 0
    for rate, channels, count in [(16000, 1, 1), (16000, 1, 16000), (8000, 1, 30011), (44100, 2, 30011)]:
        try:
            content = encoded(noise(count, channels), rate, format=name, subtype=subtype)
        except soundfile.LibsndfileError:
            continue
        written += 1
        (tmp_path / "a").write_bytes(content)
        samples, found = read_audio(str(tmp_path / "a"))
        expected, rate = soundfile.read(tmp_path / "a", dtype="float32", always_2d=True)
        assert found == rate and len(samples) <= count + 1100
        np.testing.assert_allclose(samples, expected.mean(1), atol=1e-6)
        assert np.isfinite(read_file(io.BytesIO(content))).all()
    assert written or subtype.startswith("MPEG")


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 1), (22050, 2), (44100, 1), (48000, 2)])
def test_mp3_of_unknown_length_is_read(tmp_path, mode, rate, channels):
    """Without the frame that counts the others, the number of samples is an estimate that may be far off."""
    samples = noise(100_000, channels)
    samples[:50_000] *= 0.0  # so that the first frames are small and the estimate is too long
    for level in (0.0, 0.6):
        content = encoded(
            samples, rate, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode=mode, compression_level=level
        )
        assert len(read_file(io.BytesIO(content))) == -(-100_000 * 16000 // rate)
        bare = content[content.index(content[:2], 4) :]
        assert b"Xing" not in bare and b"Info" not in bare
        flags = content.index(b"Xing" if b"Xing" in content else b"Info") + 7
        uncounted = content[:flags] + bytes([content[flags] & ~1]) + content[flags + 1 :]
        assert len(read_file(io.BytesIO(uncounted))) > 0
        for each in (bare, bare + b"TAG" + bytes(125), b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + bare):
            assert len(read_file(io.BytesIO(each))) > 0
        assert len(read_file(io.BytesIO(b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + content))) > 0


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM"])
@pytest.mark.parametrize("said", STREAMED)
def test_a_wav_from_a_pipe_is_read(subtype, said):
    content = wav(subtype=subtype)
    for riff in (None, 0, 0xFFFFFFFF, 0x80000024):
        sent = patched(content, "data", said)
        sent = sent if riff is None else sent[:4] + struct.pack("<I", riff) + sent[8:]
        np.testing.assert_array_equal(read_file(io.BytesIO(sent)), read_file(io.BytesIO(content)))


def test_other_streams_of_unknown_length_are_read():
    np.testing.assert_array_equal(read_file(io.BytesIO(flac(said=0))), read_file(io.BytesIO(flac())))
    chained = encoded(noise(20000), format="OGG", subtype="VORBIS") + encoded(
        noise(9000), format="OGG", subtype="VORBIS"
    )
    assert len(read_file(io.BytesIO(chained))) > 0


CUT = {
    "wav": (wav()[: 44 + 8000], "4,000 samples, 16,000 by its header"),
    "wav without samples": (wav()[:44], "0 samples, 16,000 by its header"),
    "wav of two channels": (wav(channels=2)[: 44 + 8001], "2,000 samples, 16,000 by its header"),
    "wav of 24 bits": (wav(subtype="PCM_24")[:-3], "15,999 samples, 16,000 by its header"),
    "wav of floats": (wav(subtype="FLOAT")[:-32000], "8,000 samples, 16,000 by its header"),
    "wav of 4 bits": (wav(subtype="IMA_ADPCM")[:-4096], "8,136 samples, 16,272 by its header"),
    "rf64": (encoded(noise(16000), format="RF64", subtype="PCM_16")[:-100], "15,950 samples, 16,000 by its header"),
    "flac": (flac()[:9000], r"4,096 samples, 16,000 by its header \(.*sync"),
    "flac without samples": (flac()[:4000], "0 samples, 16,000 by its header"),
    "flac that says more": (flac(said=17000), "16,000 samples, 17,000 by its header"),
    "flac of unknown length": (flac(said=0)[:20000], "damaged after .* samples"),
    "mp3": (encoded(noise(16000), format="MP3", subtype="MPEG_LAYER_III")[:3000], r"\d samples, 16,000 by its header"),
}


@pytest.mark.parametrize(("content", "message"), CUT.values(), ids=CUT)
def test_what_is_cut_off_is_refused_with_both_counts(tmp_path, content, message):
    refused(tmp_path, content, message)


def test_what_is_cut_off_is_found_by_all_stages(tmp_path):
    for name in ("wav", "flac", "mp3"):
        path = tmp_path / f"a.{name}"
        path.write_bytes(CUT[name][0])
        utterance = Utterance("u1", "u1", str(path), None, None, "a", "s", "hi")
        write_data_dir(tmp_path / name, [utterance])
        (problem,) = validate([tmp_path / name]).problems
        assert problem.kind == "unreadable" and "16,000 by its header" in str(problem)
        with pytest.raises(PelasrError, match=r"utterance u1: .*16,000 by its header"):
            list(extract([(tmp_path / name, tmp_path / "dump")]))


HEADERS = {
    "rate": (patched(wav(), 12, 10_000_019), "a rate of 10,000,019 Hz; want 1,000 to 384,000"),
    "low rate": (patched(wav(), 12, 999), "a rate of 999 Hz"),
    "channels": (encoded(noise(10, 65), format="WAV", subtype="PCM_16"), "65 channels; want 64 at most"),
    "flac of 50 days": (flac(said=(1 << 36) - 1), "68,719,476,735 samples by its header, more than .* bytes can be"),
    "flac of 12 hours": (flac(said=700_000_000), "700,000,000 samples by its header, more than"),
}


@pytest.mark.parametrize(("content", "message"), HEADERS.values(), ids=HEADERS)
def test_headers_that_cannot_be_are_refused(tmp_path, content, message):
    refused(tmp_path, content, message)


def test_silence_that_is_compressed_to_nothing_is_bounded(monkeypatch):
    """Hours of it in a few kilobytes, with a header that does not say how long it is, or says it."""
    monkeypatch.setattr("pelasr.data.sound.GRANTED", 1 << 20)
    content = encoded(np.zeros((10_000, 1)), format="FLAC", subtype="PCM_16")
    start = content.index(b"\xff\xf8")
    frame = content[start : content.index(b"\xff\xf8", start + 2)]
    assert len(frame) < 20
    for said in (0, 4096 * 2000):
        sizes = int.from_bytes(content[18:26], "big") >> 36 << 36 | said
        silence = content[:18] + sizes.to_bytes(8, "big") + content[26:start] + frame * 2000
        with pytest.raises(DataError, match="more than .* samples in so small a file|more than .* bytes can be"):
            read_file(io.BytesIO(silence))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "link.wav").symlink_to("fifo.wav")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # names of sockets are short
        server.bind("socket.wav")
        os.chdir(here)
        cases = {"fifo.wav": "but a named pipe", "folder.wav": "but a folder", "socket.wav": "but a socket"}
        cases |= {"link.wav": "but a named pipe", "loop.wav": "symbolic links", "/dev/zero": "but a device"}
        for name, words in cases.items():
            for read in (read_audio, read_file):
                for spec in (str(tmp_path / name), f"{tmp_path / name}:0"):
                    if read is read_audio or not spec.endswith(":0"):
                        with pytest.raises(DataError, match=rf"no such audio file.*{words}.*cure: correct the path"):
                            read(spec)


def test_a_dash_is_no_standard_input(tmp_path, monkeypatch):
    (tmp_path / "-").write_bytes(wav())
    monkeypatch.chdir(tmp_path)
    assert len(read_audio("-")[0]) == 16000
