import numpy as np
import pytest
import soundfile

from pelasr.data.features import (
    INDEX,
    dumped,
    extract,
    feature_stats,
    features_sha256,
    load_stats,
    marker_of,
    read_feats,
    read_num_frames,
    save_stats,
)
from pelasr.data.hears import USUAL as log_mel
from pelasr.data.hears import num_frames
from pelasr.data.kaldi import Utterance, write_data_dir
from pelasr.errors import PelasrError


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def make_data(directory, samples, rate=16000):
    """A data directory of one noise file an entry of `samples` (a length, or the samples themselves)."""
    directory.mkdir(parents=True)
    utterances = []
    for number, content in enumerate(samples):
        name, path = f"utt{number:03}", directory / f"{number:03}.wav"
        audio = noise(content, number) if isinstance(content, int) else content
        soundfile.write(path, audio, rate, subtype="FLOAT")
        utterances.append(Utterance(name, name, str(path), None, None, "a", "s", "hi"))
    write_data_dir(directory, utterances)
    return directory


def content(dump_dir):
    return {file: (dump_dir / file).read_bytes() for file in ("feats.ark", "utt2num_frames", "utt2checksum")}


@pytest.mark.parametrize("samples", [257, 400, 1599, 1600, 1601, 17000])
def test_shape(samples):
    feats = log_mel(noise(samples))
    assert feats.shape == (1 + samples // 160, 80) == (num_frames(samples), 80)
    assert feats.dtype == np.float32 and np.isfinite(feats).all()


def test_too_short():
    with pytest.raises(PelasrError, match="256 samples are too short"):
        log_mel(noise(256))


def test_equals_espnet_layers_on_a_padded_batch():
    import torch
    from espnet2.layers.log_mel import LogMel
    from espnet2.layers.stft import Stft

    audios = [noise(16000, 1), noise(9999, 2)]
    batch = torch.zeros(2, 16000)
    for row, audio in zip(batch, audios, strict=True):
        row[: len(audio)] = torch.from_numpy(audio)
    spectrum, lengths = Stft(n_fft=512, win_length=400, hop_length=160)(batch, torch.tensor([16000, 9999]))
    expected, lengths = LogMel(fs=16000, n_fft=512, n_mels=80)(spectrum[..., 0] ** 2 + spectrum[..., 1] ** 2, lengths)
    np.testing.assert_allclose(log_mel(audios[0]), expected[0].numpy(), atol=1e-5)
    # The end of the shorter one is mirrored here, padded with zeros in the batch: its last two frames may differ.
    inner = int(lengths[1]) - 2
    np.testing.assert_allclose(log_mel(audios[1])[:inner], expected[1, :inner].numpy(), atol=1e-5)


def test_equals_a_plain_fourier_transform():
    import librosa

    audio = noise(3200)
    padded = np.pad(audio.astype(np.float64), 256, mode="reflect")
    window = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400), 56)
    frames = np.stack([padded[first : first + 512] * window for first in range(0, len(padded) - 511, 160)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    mel = librosa.filters.mel(sr=16000, n_fft=512, n_mels=80)
    np.testing.assert_allclose(log_mel(audio), np.log(np.maximum(power @ mel.T, 1e-10)), atol=1e-4)


def test_silence_has_the_floor():
    np.testing.assert_allclose(log_mel(np.zeros(1600, np.float32)), np.log(1e-10), rtol=1e-6)


def test_extract_and_read_back(tmp_path):
    lengths = [4000, 3200, 8000]
    list(extract([(make_data(tmp_path / "data", lengths), tmp_path / "dump")]))
    feats = read_feats(tmp_path / "dump")
    assert list(feats) == ["utt000", "utt001", "utt002"]
    for number, (name, found) in enumerate(feats.items()):
        loaded = found.load()
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, log_mel(noise(lengths[number], number)))
        assert read_num_frames(tmp_path / "dump")[name] == len(loaded)
        assert found.frames == len(loaded)
    assert {file.name for file in (tmp_path / "dump").iterdir()} == {"feats.ark", *INDEX, "done.json"}


def test_kaldiio_reads_the_index(tmp_path):
    import kaldiio

    list(extract([(make_data(tmp_path / "data", [4000, 3200]), tmp_path / "dump")]))
    stored = kaldiio.load_scp(str(tmp_path / "dump/feats.scp"))
    np.testing.assert_array_equal(stored["utt001"], log_mel(noise(3200, 1)))


def test_a_moved_directory_is_read(tmp_path):
    list(extract([(make_data(tmp_path / "data", [4000]), tmp_path / "dump")]))
    (tmp_path / "dump").rename(tmp_path / "moved")
    assert read_feats(tmp_path / "moved")["utt000"].load().shape == (26, 80)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\n"])
def test_damaged_files_are_one_line(tmp_path, content):
    dump = tmp_path / "dump"
    list(extract([(make_data(tmp_path / "data", [4000]), dump)]))
    spec = read_feats(dump)["utt000"]
    readers = {
        "feats.ark": spec.load,
        "utt2num_frames": lambda: read_num_frames(dump),
        "feats.scp": lambda: read_feats(dump),
        "stats.npz": lambda: load_stats(dump / "stats.npz"),
    }
    for file, read in readers.items():
        (dump / file).write_bytes(content)
        with pytest.raises(PelasrError, match="delete .*run stage 3"):
            read()


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    data = make_data(tmp_path / "data", [2000 + 37 * number for number in range(70)], rate=8000)
    list(extract([(data, tmp_path / "one")], nj=1))
    list(extract([(data, tmp_path / "two")], nj=2))
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_features_that_are_not_finite_name_the_utterance(tmp_path):
    bad = noise(4000)
    bad[1000] = np.nan
    data = make_data(tmp_path / "data", [4000, bad])
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump/feats.scp").write_text("old old.ark:1\n")
    with pytest.raises(PelasrError, match=r"utterance utt001: .*001.wav: features are not finite; cure: mend"):
        list(extract([(data, tmp_path / "dump")]))
    assert not list((tmp_path / "dump").iterdir())
    with pytest.raises(PelasrError, match=r"feats.scp: no features; cure: run stage 3"):
        read_feats(tmp_path / "dump")


def test_an_error_in_a_worker_process_arrives(tmp_path):
    data = make_data(tmp_path / "data", [400] * 40 + [100])
    with pytest.raises(PelasrError, match=r"utterance utt040: .*: 100 samples are too short"):
        list(extract([(data, tmp_path / "dump")], nj=2))


def test_threads_of_torch_are_restored(tmp_path):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(extract([(make_data(tmp_path / "data", [400]), tmp_path / "dump")]))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_stats_equal_numpy(tmp_path):
    list(extract([(make_data(tmp_path / "a/data", [4000, 8000]), tmp_path / "a/dump")]))
    list(extract([(make_data(tmp_path / "b/data", [3333]), tmp_path / "b/dump")]))
    dumps = [tmp_path / "a/dump", tmp_path / "b/dump"]
    frames = np.concatenate([found.load() for dump in dumps for found in read_feats(dump).values()])
    mean, std = feature_stats(feats for dump in dumps for feats in dumped(dump))
    assert mean.dtype == std.dtype == np.float64
    np.testing.assert_allclose(mean, frames.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(std, frames.std(0, dtype=np.float64), rtol=1e-8)
    save_stats(tmp_path / "stats.npz", mean, std)
    first = (tmp_path / "stats.npz").read_bytes()
    save_stats(tmp_path / "stats.npz", mean, std)
    assert (tmp_path / "stats.npz").read_bytes() == first
    for saved, given in zip(load_stats(tmp_path / "stats.npz"), (mean, std), strict=True):
        np.testing.assert_array_equal(saved, given)


def test_a_constant_band_has_deviation_one(tmp_path):
    list(extract([(make_data(tmp_path / "data", [np.zeros(4000, np.float32)]), tmp_path / "dump")]))
    np.testing.assert_array_equal(feature_stats(dumped(tmp_path / "dump"))[1], np.ones(80))


def test_stats_without_features(tmp_path):
    with pytest.raises(PelasrError, match="no features to take statistics of"):
        feature_stats([])
    with pytest.raises(PelasrError, match="stats.npz: no statistics; cure"):
        load_stats(tmp_path / "stats.npz")


@pytest.fixture
def made(tmp_path):
    """A data directory and its features."""
    data, dump = make_data(tmp_path / "data", [4000, 3200]), tmp_path / "dump"
    list(extract([(data, dump)]))
    return data, dump


def test_replaced_audio_is_noticed_and_gone_audio_is_not(made):
    data, dump = made
    before = features_sha256(data, dump)
    assert marker_of(data, dump).done
    soundfile.write(data / "000.wav", noise(4000, 7), 16000, subtype="FLOAT")
    with pytest.raises(PelasrError, match=r"dump: features are not of .*data as it is; run stage 3"):
        features_sha256(data, dump)
    list(extract([made]))
    after = features_sha256(data, dump)
    assert after != before
    (data / "000.wav").unlink()  # nothing to compare with: the features stay what they are
    assert features_sha256(data, dump) == after


def test_another_text_needs_no_other_features(made):
    data, dump = made
    (data / "text").write_text("utt000 b\nutt001 c\n")
    assert marker_of(data, dump).done
    (data / "wav.scp").write_text("".join(f"utt00{n} {data}/00{1 - n}.wav\n" for n in (0, 1)))
    assert not marker_of(data, dump).done


@pytest.mark.parametrize("file", ["feats.ark", *INDEX, "done.json"])
@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_damaged_features_are_made_again(made, file, damage):
    data, dump = made
    before = {path.name: path.read_bytes() for path in dump.iterdir()}
    (dump / file).unlink()
    if damage == "cut":
        (dump / file).write_bytes(before[file][: len(before[file]) // 2])
    assert not marker_of(data, dump).done
    with pytest.raises(PelasrError, match="dump: features are (incomplete|not made); run stage 3"):
        features_sha256(data, dump)
    list(extract([made]))
    assert {path.name: path.read_bytes() for path in dump.iterdir()} == before


def test_a_flipped_bit_names_the_utterance(made):
    data, dump = made
    content = bytearray((dump / "feats.ark").read_bytes())
    content[-10] ^= 1  # in the second matrix
    (dump / "feats.ark").write_bytes(content)
    found = read_feats(dump)
    assert found["utt000"].load().shape == (26, 80)
    with pytest.raises(
        PelasrError, match=r"feats.ark: the features of utterance utt001 are damaged; cure: delete .*dump"
    ):
        found["utt001"].load()
    with pytest.raises(PelasrError, match="utterance utt001"):
        feature_stats(dumped(dump))
