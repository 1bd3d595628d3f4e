"""Methods that look beyond a frame, on encoders of every family: banks, what is heard, rows of mixed batches."""

import torch
from tiny_pretrained import TINY, audio_of

from pelasr.adapters.bank import Bank
from pelasr.adapters.freeze import freeze
from pelasr.backbones.base import build_backbone

LANGUAGES = ["hi", "ur", "hi", "pa"]


def make_bank(model, method, languages=("hi", "ur", "pa"), **options):
    """A bank on a backbone that is frozen for it, as it begins."""
    torch.manual_seed(1)
    freeze(model)
    bank = Bank(method, options, model)
    for language in languages:
        bank.add(language)
    return bank.eval()


def make_ctc(kind):
    """A tiny pretrained encoder with random weights and CTC."""
    torch.manual_seed(0)
    encoder, conf = TINY[kind]
    conf = {**conf, "feature_projection_input_dim": 160} if encoder == "wav2vec2_bert" else conf
    return build_backbone("ctc", {"encoder": encoder, "encoder_conf": conf}, 7, 3).eval()


def heard(kind, padded=True):
    """What four utterances, of different lengths if `padded`, give an encoder to hear."""
    is_bert = TINY[kind][0] == "wav2vec2_bert"
    lens = [40, 33, 12, 20] if is_bert else [9000, 5000, 2000, 8999]
    lens = lens if padded else lens[:1] * 4
    if is_bert:
        return torch.randn(len(lens), max(lens), 160, generator=torch.Generator().manual_seed(1)), torch.tensor(lens)
    return audio_of(kind, lens)


def check_rows(model, bank, languages, feats, lens, ids=None):
    """Each row of a mixed batch is what its utterance alone gives; outside of the route the backbone is itself."""
    with torch.no_grad():
        plain, _ = model.encode(feats, lens, ids)
        with bank.route(languages):
            found, frames = model.encode(feats, lens, ids)
            assert torch.equal(model.encode(feats, lens, ids)[0], found)
        for row, language in enumerate(languages):
            one = slice(row, row + 1)
            with bank.route([language]):
                alone, count = model.encode(feats[one, : lens[row]], lens[one], None if ids is None else ids[one])
            assert count == frames[row]
            torch.testing.assert_close(found[row, : frames[row]], alone[0], rtol=1e-4, atol=1e-5)
            assert not torch.equal(found[row], plain[row])
        assert torch.equal(model.encode(feats, lens, ids)[0], plain)
