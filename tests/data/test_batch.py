"""Examples to batches: audio that several targets share is loaded and encoded once, and nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pelasr.adapters.finetune import make_bank
from pelasr.data.batch import Collate, Example, batches
from pelasr.data.features import read_feats, write_archive
from pelasr.decode.recognise import encode
from pelasr.errors import PelasrError

PAIRS = ["en-de", "en-fr"]


@pytest.fixture
def examples(tmp_path) -> list[Example]:
    """Two utterances of noise, the first into two languages."""
    rng = np.random.default_rng(0)
    feats = {name: rng.normal(size=(frames, 5)).astype(np.float32) for name, frames in (("a", 40), ("b", 31))}
    write_archive(tmp_path, feats.items())
    where = read_feats(tmp_path)
    wanted = [("a", "en-de", [2, 3]), ("b", "en-de", [4]), ("a", "en-fr", [5, 2, 2])]
    return [
        Example(name, f"train_{pair}", where[name], labels, pair, "", [6 + PAIRS.index(pair)])
        for name, pair, labels in wanted
    ]


def test_shared_audio_comes_once(examples):
    batch = Collate(PAIRS)(examples)
    assert batch.feats.shape == (2, 40, 5) and batch.lens.tolist() == [40, 31] and batch.rows.tolist() == [0, 1, 0]
    assert batch.targets.tolist() == [[2, 3, 1], [4, 1, 1], [5, 2, 2]] and batch.target_lens.tolist() == [2, 1, 3]
    assert batch.prefix.tolist() == [[6], [6], [7]] and batch.language_ids.tolist() == [0, 0, 1]
    assert len(batch) == 3


def test_audio_of_its_own(examples):
    batch = Collate(PAIRS)(examples[:2])
    assert batch.rows is None and batch.feats.shape == (2, 40, 5)


def test_an_unknown_language(examples):
    with pytest.raises(PelasrError, match="utterance a: the backbone has no language 'en-fr': en-de"):
        Collate(["en-de"])(examples)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_loaded_is_said_in_one_line(examples, workers):
    """Also by a process that reads ahead: without its traceback."""
    broken = replace(examples[1], feats=replace(examples[1].feats, checksum="0" * 16))
    found = batches([examples[0], broken], [[0], [1]], Collate(PAIRS), workers)
    assert next(found).ids == ["a"]
    with pytest.raises(PelasrError) as error:
        next(found)
    assert str(error.value).endswith("and run stage 3 again")
    assert "features of utterance b are damaged" in str(error.value) and "Traceback" not in str(error.value)


@pytest.mark.parametrize("encoder", ["transformer", "conformer"])
def test_encoding_once_is_encoding_each(examples, make_st, encoder):
    model, batch = make_st(encoder=encoder), Collate(PAIRS)(examples)
    once, lens = encode(model, None, batch)
    for row, example in enumerate(examples):
        alone = Collate(PAIRS)([example])
        each, frames = encode(model, None, alone)
        assert lens[row] == frames[0]
        torch.testing.assert_close(once[row, : frames[0]], each[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("which", [[0, 1], [0, 1, 2]])
def test_what_is_too_short_is_named(examples, make_st, which):
    conf = {"output_size": 16, "attention_heads": 2, "num_blocks": 1, "input_layer": "conv2d"}
    model, batch = make_st(encoder_conf=conf, num_mels=10), Collate(PAIRS)([examples[n] for n in which])
    batch.feats, batch.lens[1] = batch.feats.repeat(1, 1, 2), 6
    with pytest.raises(PelasrError, match="utterance b: 6 frames are too short .*, which needs 7; cure: drop it"):
        encode(model, None, batch)


def test_adapters_of_the_encoder_get_every_row(examples, make_st):
    """With an adapter for each language the same audio is encoded once for each."""
    model, batch = make_st(), Collate(PAIRS)(examples)
    bank = make_bank("houlsby", {"sites": "ffn", "bottleneck": 3}, model)
    for pair in PAIRS:
        bank.add(pair)
    for parameter in bank.parameters():
        nn.init.normal_(parameter, std=0.5)
    with bank.route(batch.languages):
        enc, lens = encode(model, bank, batch)
    assert len(enc) == 3 and not torch.allclose(enc[0, : lens[0]], enc[2, : lens[2]])
    for row, example in enumerate(examples):
        alone = Collate(PAIRS)([example])
        with bank.route(alone.languages):
            each, frames = encode(model, bank, alone)
        torch.testing.assert_close(enc[row, : frames[0]], each[0], atol=1e-5, rtol=1e-5)


def test_mixed_batches_are_homogeneous_ones(examples, make_st):
    """The same loss and the same hypotheses, with adapters in encoder and decoder."""
    model, batch = make_st(), Collate(PAIRS)(examples)
    bank = make_bank("houlsby", {"sites": "ffn", "bottleneck": 3}, model)
    for pair in PAIRS:
        bank.add(pair)
    for parameter in bank.parameters():
        nn.init.normal_(parameter, std=0.5)

    def run(batch):
        with torch.no_grad(), bank.route(batch.languages):
            enc, lens = encode(model, bank, batch)
            losses = model.loss(enc, lens, batch.targets, batch.target_lens, batch.prefix).total
            return losses, [hypothesis.tokens for hypothesis in model.search(enc, lens, batch.prefix, 3)]

    losses, found = run(batch)
    for row, example in enumerate(examples):
        alone, hypotheses = run(Collate(PAIRS)([example]))
        torch.testing.assert_close(losses[row : row + 1], alone, atol=1e-5, rtol=1e-5)
        assert found[row] == hypotheses[0]
