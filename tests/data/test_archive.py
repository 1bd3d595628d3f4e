"""Kaldi archives: what kaldiio writes is read as kaldiio reads it, and nothing else is."""

import pickle
import struct
import tracemalloc
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile

from pelasr.data.archive import read_matrix
from pelasr.data.audio import read_audio
from pelasr.data.features import INDEX, dumped, extract, feature_stats, read_feats, write_archive
from pelasr.data.kaldi import Utterance, parse, write_data_dir
from pelasr.errors import DataError, PelasrError

DRAWS = np.random.default_rng(0)
INT16 = DRAWS.integers(-3000, 3000, 5000).astype(np.int16)


def saved(path, entries, **options):
    """Where kaldiio put each entry."""
    kaldiio.save_ark(str(path), entries, scp=f"{path}.scp", **options)
    return [line.split(" ", 1)[1] for line in Path(f"{path}.scp").read_text().splitlines()]


def refused(read, spec, message):
    tracemalloc.start()
    with pytest.raises(PelasrError, match=message) as caught:
        read(spec)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert str(caught.value).isprintable() and "cure: " in str(caught.value)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "content",
    [INT16, INT16.reshape(-1, 2), (INT16 // 128 + 128).astype(np.uint8), INT16[:1], INT16[:0]],
    ids=["mono", "stereo", "8 bits", "one", "none"],
)
def test_audio_of_save_ark(tmp_path, content):
    specs = saved(tmp_path / "a.ark", {"x": (8000, INT16), "y": (16000, content), "z": (8000, INT16)})
    samples, rate = read_audio(specs[1])
    full, zero = (128, 128) if content.dtype == np.uint8 else (32768, 0)
    expected = (kaldiio.load_mat(specs[1])[1].astype(np.float32) - zero) / full
    np.testing.assert_array_equal(samples, expected.reshape(len(content), content.ndim).mean(1))
    assert rate == 16000 and samples.dtype == np.float32
    assert read_audio(specs[2])[1] == 8000


@pytest.mark.parametrize("options", [{"format": "wav"}, {"format": "flac"}, {"format": "ogg"}])
def test_audio_of_save_ark_by_soundfile(tmp_path, options):
    entries = {"x": (16000, INT16), "y": (16000, INT16[:999]), "z": (16000, INT16)}
    specs = saved(tmp_path / "a.ark", entries, write_function="soundfile", write_kwargs=options)
    for spec in specs:
        expected = kaldiio.load_mat(spec)[1]
        np.testing.assert_allclose(read_audio(spec)[0], expected, atol=1e-6)


def test_a_flac_file_in_an_archive(tmp_path):
    soundfile.write(tmp_path / "a.flac", INT16, 16000)
    entry = b"x " + (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.ark").write_bytes(2 * entry)
    for offset in (2, 2 + len(entry)):
        np.testing.assert_array_equal(read_audio(f"{tmp_path}/a.ark:{offset}")[0], INT16 / np.float32(32768))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_matrices(tmp_path, kind):
    matrices = {"x": DRAWS.normal(size=(7, 80)), "empty": np.zeros((0, 80)), "z": DRAWS.normal(size=(1, 3))}
    matrices = {name: matrix.astype(kind) for name, matrix in matrices.items()}
    for spec, matrix in zip(saved(tmp_path / "a.ark", matrices), matrices.values(), strict=True):
        found = read_matrix(spec)
        assert found.dtype == kind
        np.testing.assert_array_equal(found, matrix)


def matrix(rows, columns, kind=b"FM "):
    return b"\0B" + kind + b"\4" + struct.pack("<i", rows) + b"\4" + struct.pack("<i", columns)


def wav(said, samples=100):
    return (
        b"RIFF"
        + struct.pack("<I", said)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
        + (b"data" + struct.pack("<I", 2 * samples) + bytes(2 * samples))
    )


MATRICES = {
    "more rows": (matrix(11, 80) + bytes(4 * 800), "a matrix of 11 rows and 80 columns is more than the archive holds"),
    "terabytes": (matrix(2**31 - 1, 2**31 - 1), "2,147,483,647 rows"),
    "negative": (matrix(-1, -80) + bytes(4 * 80), "-1 rows"),
    "doubles": (matrix(10, 80, b"DM ") + bytes(4 * 800), "more than the archive holds"),
    "compressed": (matrix(10, 80, b"CM2 ") + bytes(4 * 800), "a compressed matrix"),
    "a vector": (matrix(10, 80, b"FV ") + bytes(4 * 800), "something else"),
    "cut header": (matrix(10, 80)[:14], "a matrix"),
    "no sizes": (b"\0BFM " + bytes(100), "a matrix"),
    "text": (b" [\n 1 2 3 ]\n", "something else"),
    "numpy's": (b"NPY\1\x10", "numpy's format"),
    "audio": (wav(236), "audio"),
}
AUDIO = {
    "more bytes": (wav(237), "the audio has 245 bytes by its header, the archive 244 from there on"),
    "4 GB": (wav(0xFFFFFFFF), "the audio has 4,294,967,303 bytes"),
    "nothing": (wav(0), "unreadable audio"),
    "less": (wav(36 + 198), "cut off: 99 samples, 100 by its header"),
    "exabytes": (b"AUDIO\x08" + b"\x7f" * 8 + wav(236), "bytes by its header"),
    "a long number": (b"AUDIO\xff" + b"\x7f" * 300, "bytes by its header"),
    "cut number": (b"AUDIO", "unreadable audio"),
    "flac": (b"fLaC" + bytes(100), "unreadable audio"),
    "matrix": (matrix(2, 2) + bytes(16), "the archive holds no audio at this offset, but a matrix"),
    "list": (b"AUDIO\x01\x30" + bytes(0x30), "unreadable audio"),
}


@pytest.mark.parametrize(("content", "message"), MATRICES.values(), ids=MATRICES)
def test_hostile_matrices(tmp_path, content, message):
    (tmp_path / "feats.ark").write_bytes(b"x " + content)
    refused(read_matrix, f"{tmp_path}/feats.ark:2", message)


@pytest.mark.parametrize(("content", "message"), AUDIO.values(), ids=AUDIO)
def test_hostile_audio(tmp_path, content, message):
    (tmp_path / "a.ark").write_bytes(b"x " + content)
    refused(read_audio, f"{tmp_path}/a.ark:2", message)


@pytest.mark.parametrize("read", [read_audio, read_matrix])
def test_nothing_is_unpickled(tmp_path, read):
    (tmp_path / "a.ark").write_bytes(b"x PKL" + pickle.dumps(Evil(tmp_path / "ran")))
    refused(read, f"{tmp_path}/a.ark:2", "a pickle, which may run anything")
    assert not (tmp_path / "ran").exists()
    kaldiio.load_mat(f"{tmp_path}/a.ark:2")
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("read", [read_audio, read_matrix])
def test_offsets_lie_within_the_archive(tmp_path, read):
    (tmp_path / "a.ark").write_bytes(b"x " + matrix(1, 80) + bytes(320))
    for offset in (337, 10**17):
        refused(read, f"{tmp_path}/a.ark:{offset}", "the archive ends before this offset, after 337 bytes")
    for spec in (f"{tmp_path}/a.ark:{'9' * 19}", f"{tmp_path}/a.ark:-2", f"{tmp_path}/a.ark:2[0:1]"):
        refused(read, spec, "no such audio file|want an entry of an archive")


def test_a_large_archive_is_not_read_for_a_small_entry(tmp_path):
    content = b"x " + wav(236)
    (tmp_path / "a.ark").write_bytes(content)
    with open(tmp_path / "a.ark", "r+b") as stream:
        stream.truncate(1 << 29)  # sparse
    tracemalloc.start()
    assert len(read_audio(f"{tmp_path}/a.ark:2")[0]) == 100
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


COMMANDS = ["|:0", "touch RAN |", "| touch RAN", "touch RAN|:0", "touch RAN |: 12", " | touch RAN", "touch RAN |[0:3]"]
COMMANDS += [
    "touch RAN |:5[0:1]",
    "touch RAN | ",
    "sh -c 'touch RAN |",
    '"touch RAN |:0',
    "touch RAN |:-1",
    "touch RAN|:+1",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_run(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    for file, value in {"wav.scp": command, "text": "a", "utt2spk": "s", "utt2lang": "hi"}.items():
        Path("d", file).write_text(f"u1 {value}\n")
    (problem,) = parse("d").problems
    assert problem.kind == "wav-scp" and " is a command: a data directory must not run programs" in problem.what
    with pytest.raises(DataError, match=" is a command: "):
        read_audio(command)
    with pytest.raises(DataError, match=" is a command: "):
        write_data_dir("e", [Utterance("u1", "u1", command, None, None, "a", "s", "hi")])
    assert not Path("RAN").exists()


def test_a_bar_within_a_name_is_no_command(tmp_path):
    for name in ("a|b.wav", "a|[0].wav", "a|:.wav"):
        soundfile.write(tmp_path / name, INT16, 16000)
        assert len(read_audio(str(tmp_path / name))[0]) == len(INT16)


def test_features_of_a_foreign_folder(tmp_path):
    """A folder `dump/` may come from elsewhere, too."""
    data = tmp_path / "data"
    soundfile.write(tmp_path / "a.wav", INT16, 16000)
    write_data_dir(data, [Utterance("u1", "u1", str(tmp_path / "a.wav"), None, None, "a", "s", "hi")])
    list(extract([(data, tmp_path / "dump")]))
    feats = read_feats(tmp_path / "dump")["u1"]
    np.testing.assert_array_equal(feats.load(), kaldiio.load_mat(f"{feats.archive}:{feats.offset}"))
    index = tmp_path / "dump/feats.scp"
    index.write_text("u1 touch RAN |:0\n")
    refused(lambda dump: read_feats(dump)["u1"].load(), tmp_path / "dump", "no such file|want an entry|ends before")
    index.write_text("u1\n")
    refused(read_feats, tmp_path / "dump", "feats.scp: want lines of `utterance value`")
    index.write_bytes(b"u1 \xff:1\n")
    refused(read_feats, tmp_path / "dump", "feats.scp: want lines of `utterance value`")
    for offset in ("-1", "", "9" * 17, "1e3"):
        index.write_text(f"u1 feats.ark:{offset}\n")
        refused(read_feats, tmp_path / "dump", "utterance u1 has no offset")
    index.write_text("u2 feats.ark:3\n")
    refused(read_feats, tmp_path / "dump", f"{' and '.join(INDEX)} name different utterances")
    write_archive(tmp_path / "dump", [("u", np.zeros((3, 5), np.float32))])
    refused(lambda dump: feature_stats(dumped(dump)), tmp_path / "dump", "feats.ark: features of 5 channels, want 80")
