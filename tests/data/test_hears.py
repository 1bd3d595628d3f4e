"""What backbones hear: against transformers' extractors, and by itself."""

import pickle
import sys

import numpy as np
import pytest
import torch
from tiny_speech import noise

from pelasr.data.hears import RATE, USUAL, Extracted, Hears, LogMel, Waveform, hearing, num_frames, one_thread
from pelasr.errors import PelasrError

ALL = [LogMel(), LogMel(24), Waveform(True), Waveform(False), Extracted(), Extracted(kind="whisper", channels=128)]
ALL += [Extracted(kind="seamless", channels=160)]


@pytest.mark.parametrize("hears", ALL, ids=str)
def test_shape_and_facts(hears: Hears):
    for samples in (560, 720, 16000, 16001, 20479):
        found = hears(noise(samples / RATE))
        assert found.dtype == np.float32 and found.flags["C_CONTIGUOUS"] and np.isfinite(found).all()
        assert found.shape == (hears.rows(samples), hears.channels)
    assert hearing(hears.facts()) == hears == pickle.loads(pickle.dumps(hears))
    assert hash(hearing(hears.facts())) == hash(hears)
    assert (hears.dumped, hears.has_stats) == (isinstance(hears, LogMel),) * 2


def test_the_usual_is_log_mel_of_80_channels():
    assert LogMel(80) == USUAL and USUAL.facts() == {"name": "log_mel", "channels": 80}


@pytest.mark.parametrize("normalise", [True, False])
def test_a_waveform_is_as_transformers_has_it(normalise):
    """Alone and in a batch, bit for bit."""
    from transformers import Wav2Vec2FeatureExtractor

    extract = Wav2Vec2FeatureExtractor(do_normalize=normalise, return_attention_mask=True)
    audios = [0.1 + noise(1.0, 1), noise(0.33, 2)]
    alone = [extract(audio, sampling_rate=RATE, return_tensors="np")["input_values"][0] for audio in audios]
    batch = extract(audios, sampling_rate=RATE, padding=True, return_tensors="np")["input_values"]
    for audio, one, row in zip(audios, alone, batch, strict=True):
        found = Waveform(normalise)(audio)[:, 0]
        np.testing.assert_array_equal(found, one)
        np.testing.assert_array_equal(found, row[: len(audio)])


def test_silence_stays_silence():
    np.testing.assert_array_equal(Waveform(True)(np.zeros(500, np.float32)), np.zeros((500, 1)))


@pytest.mark.parametrize("channels", [80, 128])
def test_whisper_hears_as_in_transformers(channels):
    from transformers import WhisperFeatureExtractor

    hears, audios = Extracted(kind="whisper", channels=channels), [noise(1.5, 1), noise(0.4, 2)]
    extract = WhisperFeatureExtractor(feature_size=channels)
    batch = extract(audios, sampling_rate=RATE, return_tensors="np")["input_features"]
    for audio, row in zip(audios, batch, strict=True):
        np.testing.assert_allclose(hears(audio), row.T, atol=1e-5)


def test_seamless_hears_as_in_transformers():
    """Alone bit for bit, and in a batch what the mask leaves."""
    from transformers import SeamlessM4TFeatureExtractor

    hears, audios = Extracted(kind="seamless", channels=160), [noise(1.5, 1), noise(0.405, 2), noise(0.41, 3)]
    extract = SeamlessM4TFeatureExtractor()
    batch = extract(audios, sampling_rate=RATE, return_tensors="np")
    for audio, row, mask in zip(audios, batch["input_features"], batch["attention_mask"], strict=True):
        found = hears(audio)
        alone = extract(audio, sampling_rate=RATE, return_tensors="np")
        np.testing.assert_array_equal(found, alone["input_features"][0][: alone["attention_mask"].sum()])
        np.testing.assert_array_equal(found, row[: mask.sum()])


@pytest.mark.parametrize(
    ("hears", "samples", "message"),
    [
        (LogMel(), 256, "256 samples are too short for features; cure: drop what is under 25 ms"),
        (Waveform(), 0, "0 samples are too short"),
        (Extracted(kind="seamless", channels=160), 559, "559 samples are too short .* drop what is under 35 ms"),
        (Extracted(), 30 * RATE + 1, r"30.0 s, more than the 30 s that the backbone can hear; cure: cut it"),
    ],
)
def test_what_cannot_be_heard(hears, samples, message):
    with pytest.raises(PelasrError, match=message):
        hears(np.zeros(samples, np.float32))


def test_transformers_may_be_missing(monkeypatch):
    from pelasr.data import hears

    hears._extractor.cache_clear()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PelasrError, match="transformers is not installed; cure: tools/install.sh hf"):
        Extracted()(noise(0.1))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "called 'None'; known: extracted, log_mel, waveform"),
        ({"name": "wavefrom", "normalise": True}, "did you mean 'waveform'"),
        ({"name": "waveform", "normalise": 1}, "waveform: want the keys normalise with values"),
        ({"name": "waveform"}, "waveform: want the keys normalise"),
        ({"name": "log_mel", "channels": 80, "more": 1}, "log_mel: want the keys channels"),
        ({"name": "log_mel", "channels": -1}, "log_mel: -1 channels"),
        ({"name": "extracted", "kind": "mfcc", "channels": 80}, "no extractor 'mfcc'; known: seamless, whisper"),
        ({"name": "extracted", "kind": "whisper", "channels": 81}, "whisper: 81 channels; want 80 or 128"),
    ],
)
def test_facts_that_are_none(facts, message):
    with pytest.raises(PelasrError, match=message):
        hearing(facts)


def test_frames_are_of_10_ms_whatever_is_heard():
    assert [num_frames(samples) for samples in (1, 159, 160, 16000)] == [1, 1, 2, 101]


def test_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
