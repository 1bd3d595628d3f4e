"""Decoding as stage 6 does it: what is skipped, refused and made again, and languages that the backbone has not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small_fits import ADAPTED, PLAIN, fit

from pelasr.backbones.rnnt import RNNT
from pelasr.data.hears import USUAL
from pelasr.data.kaldi import read_data_dir
from pelasr.data.tokenizer import Tokenizer
from pelasr.errors import PelasrError
from pelasr.search import lm
from pelasr.search.ctc import ctc_beam_search
from pelasr.search.lm import LMOptions
from pelasr.stages.decode import decode, decoded
from pelasr.stages.experiment import Decoding
from pelasr.stages.stats import make_features


def test_replaced_audio_reaches_every_stage(fitted):
    assert decode(fitted, ADAPTED, ["test"], ["hi", "ta"], 0)
    assert not decode(fitted, ADAPTED, ["test"], ["hi", "ta"], 0)
    for name in ("test", "train"):
        utterance = read_data_dir(fitted.data / f"{name}_hi")[0]
        soundfile.write(utterance.audio, np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    with pytest.raises(PelasrError, match="dump/test_hi: features are not of data/test_hi as it is; run stage 3"):
        decode(fitted, ADAPTED, ["test"], ["hi", "ta"], 0)
    with pytest.raises(PelasrError, match="dump/train_hi: features are not of data/train_hi as it is; run stage 3"):
        fit(fitted)
    assert make_features(fitted, ["train", "test"], nj=1, hears=USUAL)
    with pytest.raises(PelasrError, match="other settings .features_sha256"):
        fit(fitted)
    markers = decoded(fitted, ADAPTED, ["test"], ["hi", "ta"])
    assert {key: marker.done for key, marker in markers.items()} == {("test", "hi"): False, ("test", "ta"): True}
    assert decode(fitted, ADAPTED, ["test"], ["hi", "ta"], 0)


@pytest.mark.parametrize("file", ["text", "scores", "limited", "done.json"])
def test_damaged_hypotheses_are_made_again(fitted, file):
    decode(fitted, ADAPTED, ["test"], ["hi"], 0)
    path = fitted.exp / "A5/decode/test_hi" / file
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2] + b"x")
    assert decode(fitted, ADAPTED, ["test"], ["hi"], 0)
    assert path.read_bytes() == before


def hypotheses(place, experiment, language):
    return (place.exp / f"{experiment.name}/decode/test_{language}/text").read_text()


def test_a_new_language_decoded_as_a_known_one(fitted):
    """What the utterances would be given if they were said to be in it."""
    found = {}
    for experiment in (PLAIN, ADAPTED):
        for like in ("hi", "ta"):
            assert decode(fitted, experiment, ["test"], ["ur"], 0, Decoding(decode_as=like))
            assert not decode(fitted, experiment, ["test"], ["ur"], 0, Decoding(decode_as=like))
            found[experiment.name, like] = hypotheses(fitted, experiment, "ur")
    for name in ("text", "utt2lang"):
        shutil.copy(fitted.data / f"test_ur/{name}", fitted.data / f"test_ur/{name}.kept")
    path = fitted.data / "test_ur/utt2lang"
    path.write_text(path.read_text().replace(" ur\n", " ta\n"))
    shutil.move(fitted.data / "test_ur", fitted.data / "own_ta")
    shutil.move(fitted.dump / "test_ur", fitted.dump / "own_ta")
    for experiment in (PLAIN, ADAPTED):
        assert decode(fitted, experiment, ["own"], ["ta"], 0)
        wanted = (fitted.exp / f"{experiment.name}/decode/own_ta/text").read_text()
        assert found[experiment.name, "ta"] == wanted
    assert len(set(found.values())) > 1
    with pytest.raises(PelasrError, match="--decode_as: .*known: hi, ta"):
        decode(fitted, PLAIN, ["test"], ["ur"], 0, Decoding(decode_as="de"))


def test_a_language_with_a_pack_is_itself(place):
    assert fit(place, "ur", tokens="own")
    for like in (None, "hi"):
        decode(place, ADAPTED, ["test"], ["ur"], 0, Decoding(decode_as=like))
        marker = json.loads((place.exp / "A5/decode/test_ur/done.json").read_text())
        assert "decode_as" not in marker["inputs"]


class Prefers:
    """A language model of one word, of any file."""

    def __init__(self, path):
        self.likes = path.read_text()

    def start(self):
        return None

    def score(self, state, word):
        return (0.0 if word == self.likes else -2.0), None


def fused(backbone, enc, lens, fusions, beam_size):
    """As a family with CTC searches, on made-up logits: a space or one of two characters, all alike."""
    logits = torch.full((len(enc), enc.shape[1], len(fusions[0].texts)), -torch.inf)
    logits[..., [0, fusions[0].texts.index(" "), 5, 6]] = 0.0
    return ctc_beam_search(logits, lens, beam_size, fusions)


def test_language_models(fitted, monkeypatch):
    """Each language has its own, which counts, and is looked at when it is asked whether a set is decoded."""
    one, other = Tokenizer.load(fitted.exp / f"{ADAPTED.backbone}/tokens").tokens[5:7]
    how = Decoding(beam_size=32, lm=LMOptions("lm/{lang}.arpa", 3.0, 0.0))
    with pytest.raises(PelasrError, match="lm/hi.arpa: no such file; name a language model with --lm"):
        decode(fitted, ADAPTED, ["test"], ["hi", "ta"], 0, how)
    for language in ("hi", "ta"):
        Path("lm").mkdir(exist_ok=True)
        Path(f"lm/{language}.arpa").write_text(one)
    monkeypatch.setattr(lm, "LanguageModel", Prefers)
    with pytest.raises(PelasrError, match="--lm: this backbone is not searched with a language model"):
        decode(fitted, ADAPTED, ["test"], ["hi", "ta"], 0, how)
    monkeypatch.setattr(RNNT, "fused_search", fused)
    assert decode(fitted, ADAPTED, ["test"], ["hi", "ta"], 0, how)
    assert not decode(fitted, ADAPTED, ["test"], ["hi", "ta"], 0, how)
    before = hypotheses(fitted, ADAPTED, "hi"), hypotheses(fitted, ADAPTED, "ta")
    Path("lm/hi.arpa").write_text(other)
    markers = decoded(fitted, ADAPTED, ["test"], ["hi", "ta"], how)
    assert {key: marker.done for key, marker in markers.items()} == {("test", "hi"): False, ("test", "ta"): True}
    assert decode(fitted, ADAPTED, ["test"], ["hi", "ta"], 0, how)
    assert hypotheses(fitted, ADAPTED, "hi") != before[0] and hypotheses(fitted, ADAPTED, "ta") == before[1]
    assert all(one in text.split() and other not in text.split() for text in before)
    assert other in hypotheses(fitted, ADAPTED, "hi").split()
    for model in (replace(how.lm, weight=1.0), replace(how.lm, bonus=1.0), None):
        markers = decoded(fitted, ADAPTED, ["test"], ["hi"], replace(how, lm=model))
        assert not any(marker.done for marker in markers.values())
