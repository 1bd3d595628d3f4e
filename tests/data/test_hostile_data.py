"""Data directories, archives and audio files that another hand made: each is refused in lines, or does no harm."""

import io
import os
import pickle
import random
import struct
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
from hostile import refusal

from pelasr.cli.transcribe import find_audio, read_languages
from pelasr.data.archive import read_matrix
from pelasr.data.audio import read_audio, read_file
from pelasr.data.audio_index import index_audio
from pelasr.data.features import dumped, extract, feature_stats, read_feats, read_num_frames
from pelasr.data.kaldi import audio_sha256, data_sha256, parse, read_data_dir
from pelasr.data.tokenizer import train_graphemes
from pelasr.data.validate import drop, validate

IDS = ("u1", "u2", "u3")
TEXTS = {"text": "a b", "text.de": "c", "utt2spk": "s", "utt2lang": "hi"}


class Evil:
    def __reduce__(self):
        return os.system, ("touch RAN",)


def noise(count=4000):
    return (np.random.default_rng(0).uniform(-0.3, 0.3, count) * 32767).astype(np.int16)


def encoded(name, subtype=None, count=4000, rate=16000):
    stream = io.BytesIO()
    soundfile.write(stream, noise(count), rate, format=name, subtype=subtype)
    return stream.getvalue()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A data directory `d` of three utterances, in its audio files, in the working directory; features in `dump`."""
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    for name in IDS:
        soundfile.write(f"{name}.wav", noise(), 16000)
    lines("wav.scp", *(f"{name}.wav" for name in IDS))
    for file, value in TEXTS.items():
        lines(file, *[value] * 3)
    list(extract([("d", Path("dump"))]))
    return tmp_path


def lines(file, *values):
    Path("d", file).write_text("".join(f"{name} {value}\n" for name, value in zip(IDS, values, strict=True)))


def everything():
    """All that is ever done with a data directory; what is the first refusal of each."""
    wav = [entry.value for entry in parse("d").tables.get("wav.scp", {}).values()]
    calls = {
        "read": lambda: read_data_dir("d"),
        "hash": lambda: (data_sha256([Path("d")]), audio_sha256(Path("d"))),
        "validate": lambda: [str(problem) for problem in validate([Path("d")]).problems],
        "drop": lambda: drop("d", validate([Path("d")]).bad_in("d")),
        "tokens": lambda: train_graphemes([utterance.text for utterance in parse("d").utterances]),
        "extract": lambda: list(extract([("d", Path("new"))])),
        "index": lambda: list(index_audio([(Path("d"), Path("index"))])),
        "frames": lambda: read_num_frames("dump"),
        "statistics": lambda: feature_stats(dumped("dump")),
        "languages": lambda: read_languages(Path("d/utt2lang"), ["u1.wav"]),
        "folder": lambda: find_audio(["."]),
        **{f"audio {n}": lambda value=value: read_audio(value) for n, value in enumerate(wav)},
        **{f"file {n}": lambda value=value: read_file(value) for n, value in enumerate(wav)},
        **{f"features {n}": lambda value=value: read_matrix(value) for n, value in enumerate(wav)},
        "dump": lambda: [feats.load() for feats in read_feats("dump").values()],
    }
    found = {name: refusal(call) for name, call in calls.items() if name != "drop"}
    found["drop"] = refusal(calls["drop"])
    assert not Path("RAN").exists()
    return found


def commands(draws):
    forms = ["{} |", "|{}", "{}|:0", "{} |: 3", "{} |:1[0:2]", "|:0 {} |", " {}  | ", "'{} |", "$({})|", "`{}`|:07"]
    lines(
        "wav.scp", draws.choice(forms).format("touch RAN"), draws.choice(["$(touch RAN).wav", ";touch RAN"]), "u3.wav"
    )


def archives(draws):
    wav, kinds = encoded("WAV"), ("PKL", "NPY", "AUDIO", "header", "matrix", "vector", "text", "noise")
    content = b""
    for kind in draws.sample(kinds, 3):
        start = len(content) + 3
        entry = {
            "PKL": b"PKL" + pickle.dumps(Evil()),
            "NPY": b"NPY\1\xff" + draws.randbytes(255),
            "AUDIO": b"AUDIO" + bytes([draws.randrange(256)]) + draws.randbytes(20) + wav,
            "header": wav[:4] + struct.pack("<I", draws.getrandbits(32)) + wav[8:],
            "matrix": b"\0BFM \4" + draws.randbytes(4) + b"\4" + draws.randbytes(4) + bytes(400),
            "vector": b"\0B\4" + draws.randbytes(4) + bytes(400),
            "text": b" [ " + b"1 " * draws.randrange(9999),
            "noise": draws.randbytes(500),
        }[kind]
        content += b"id " + entry
        kinds = [*kinds]
        kinds.append(f"a.ark:{start}")
    Path("a.ark").write_bytes(content)
    lines("wav.scp", *kinds[-3:])


def offsets(draws):
    kaldiio.save_ark("a.ark", {"u1": (16000, noise()), "u2": np.ones((3, 80), np.float32)})
    forms = [
        "a.ark:{}",
        "a.ark:{}[0:3]",
        "a.ark:-{}",
        "a.ark:{}:{}",
        "a.ark:0x{}",
        "a.ark:{} ",
        "a.ark: {}",
        "./a.ark:00{}",
    ]
    lines("wav.scp", *(f.format(draws.randrange(9000), 3) for f in draws.sample(forms, 3)))


def wav_headers(draws):
    for name in IDS:
        content = bytearray(encoded("WAV"))
        field, size = draws.choice([(4, 4), (16, 4), (20, 2), (22, 2), (24, 4), (28, 4), (32, 2), (34, 2), (40, 4)])
        value = draws.choice([0, 1, 7, 999, 10_000_019, 0x7FFFFFFF, 0xFFFFFFFF, draws.getrandbits(32)])
        content[field : field + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        Path(f"{name}.wav").write_bytes(content)


def damaged(draws):
    formats = [
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", None),
        ("AIFF", "PCM_16"),
        ("CAF", "PCM_16"),
    ]
    formats += [
        ("AU", "ULAW"),
        ("W64", "PCM_16"),
        ("RF64", "PCM_16"),
        ("NIST", "PCM_16"),
        ("WAV", "IMA_ADPCM"),
        ("VOC", None),
    ]
    formats += [("MAT5", None), ("SDS", None), ("HTK", None), ("PAF", None), ("XI", None), ("CAF", "ALAC_16")]
    for name, (format_, subtype) in zip(IDS, draws.sample(formats, 3), strict=True):
        content = bytearray(encoded(format_, subtype, rate=44100 if format_ == "XI" else 16000))
        for _ in range(draws.randrange(1, 6)):
            content[int(len(content) * draws.random() ** 4)] = draws.choice([0, 0x7F, 0x80, 0xFF, draws.randrange(256)])
        Path(f"{name}.wav").write_bytes(content[: draws.choice([len(content), draws.randrange(len(content))])])


def claims(draws):
    """FLAC files of any length by their headers, and silence that is compressed to nothing."""
    for name in IDS:
        content = bytearray(encoded("FLAC"))
        said = draws.choice([0, 1, (1 << 36) - 1, 1 << 30, 60_000_000, draws.getrandbits(36)])
        rate = draws.choice([16000, 1, 655350, draws.randrange(1 << 20)])
        content[18:26] = (rate << 44 | draws.randrange(8) << 41 | 15 << 36 | said).to_bytes(8, "big")
        Path(f"{name}.wav").write_bytes(content)


def no_files(draws):
    for path in draws.sample(
        [
            "d/text",
            "d/wav.scp",
            "d/utt2spk",
            "d/utt2lang",
            "d/segments",
            "d/text.de",
            "d/skipped.txt",
            "u1.wav",
            "u2.wav",
            "dump/feats.scp",
            "dump/feats.ark",
            "dump/utt2num_frames",
        ],
        4,
    ):
        Path(path).unlink(missing_ok=True)
        match draws.randrange(6):
            case 0:
                os.mkfifo(path)
            case 1:
                Path(path).mkdir()
            case 2:
                Path(path).symlink_to(Path(path).name)
            case 3:
                Path(path).symlink_to(
                    draws.choice(["/dev/zero", "/dev/random", "/dev/tty", "/proc/kmsg", "/proc/self/mem"])
                )
            case 4:
                os.mkfifo(f"{path}.pipe")
                Path(path).symlink_to(f"{Path(path).name}.pipe")
            case 5:
                Path(path).symlink_to("../../../../../../etc/passwd")


def encodings(draws):
    words = [
        "a\0b",
        "\x1b[2Ja",
        "a\u202eb",
        "\ufeffa",
        "a\u2028b",
        "a\rb",
        "a\x85b",
        "\ud800",
        "é" * 9,
        "e\u0301",
        "\t",
        "a\x0bb",
        "𝒳",
    ]
    for file in draws.sample(["wav.scp", *TEXTS], 3):
        path, text = Path("d", file), Path("d", file).read_text()
        match draws.randrange(8):
            case 0:
                path.write_bytes(text.encode(draws.choice(["utf-16", "utf-32", "utf-8-sig"])))
            case 1:
                path.write_bytes(text.replace("\n", "\r\n").encode())
            case 2:
                path.write_bytes(draws.randbytes(3000))
            case 3:
                path.write_bytes(b"x" * (3 << 20))
            case 4:
                path.write_bytes(text.encode() + b"\xff\xfe\n\n\n" + text.encode())
            case _:
                found = "".join(f"{name}{draws.choice(words)} {draws.choice(words)}\n" for name in IDS)
                path.write_bytes(found.encode("utf-8", "surrogatepass"))


def segments(draws):
    numbers = ["0", "1e308", "-1", "nan", "inf", "1e-320", "0.1", "0.2", "99", "0x10", "١", "1_0", "-0.0", "9" * 400]
    lines("segments", *(f"{draws.choice(IDS)} {draws.choice(numbers)} {draws.choice(numbers)}" for _ in IDS))
    if draws.random() < 0.3:
        lines("segments", *(f"u1 {draws.choice(numbers)}" for _ in IDS))


def sizes(draws):
    for path in draws.sample(
        ["d/text", "d/wav.scp", "u1.wav", "u2.wav", "dump/feats.ark", "dump/utt2num_frames", "d/utt2spk"], 3
    ):
        with open(path, "r+b") as stream:
            stream.truncate(draws.choice([0, 10, 1 << 31, 1 << 40, 45]))
    content = bytearray(encoded("WAV", "PCM_U8"))
    content[4:8] = content[40:44] = struct.pack("<I", (1 << 32) - 1000)
    Path("u3.wav").write_bytes(content)
    with open("u3.wav", "r+b") as stream:
        stream.truncate((1 << 32) - 900)


def features(draws):
    values = ["feats.ark:{}", "x:{}", "touch RAN |:{}", "../../etc/passwd:{}", "{}", "feats.ark", "", "feats.ark:-{}"]
    for file in ("feats.scp", "utt2num_frames"):
        if draws.random() < 0.7:
            text = "".join(f"{name} {draws.choice(values).format(draws.randrange(9000))}\n" for name in IDS)
            Path("dump", file).write_text(text + draws.choice(["", "u4", "\n", "u1 1\n", "u5 \x1b[2J\n"]))
    content = bytearray(Path("dump/feats.ark").read_bytes())
    for _ in range(4):
        content[draws.choice([draws.randrange(20), draws.randrange(len(content))])] = draws.randrange(256)
    Path("dump/feats.ark").write_bytes(content)


POISONS = [commands, archives, offsets, wav_headers, damaged, claims, no_files, encodings, segments, sizes, features]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.__name__)
def test_a_poisoned_data_directory(place, poison, seed):
    poison(random.Random(seed))
    found = everything()
    if poison is commands:
        assert all("is a command" in found[name] for name in ("read", "audio 0"))
    elif poison in (archives, no_files, sizes):
        assert any(found.values())


def test_the_unpoisoned_is_read(place):
    assert {name for name, line in everything().items() if line} == {"features 0", "features 1", "features 2"}
