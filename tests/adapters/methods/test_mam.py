"""Mix-and-match: what its two parts do, and their sizes."""

import pytest
import torch
from adapted_encoders import LANGUAGES, check_rows, heard, make_bank, make_ctc
from torch import nn

from pelasr.backbones.base import build_backbone
from pelasr.errors import PelasrError


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_rows_of_a_batch(kind):
    model = make_ctc(kind)
    bank = make_bank(model, "mam", frames=3, bottleneck=4, network=5)
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    check_rows(model, bank, LANGUAGES, *heard(kind))


def test_it_is_its_parts(make_st, make_batch):
    """A fresh one is its prefix alone, without which the parallel adapters are a method of their own."""
    model, batch = make_st(), make_batch(["hi", "ur"])
    mam = make_bank(model, "mam", frames=3, bottleneck=4)
    prefix, parallel = make_bank(model, "prefix", frames=3), make_bank(model, "parallel", bottleneck=4)
    assert mam.sites.keys() == prefix.sites.keys() | parallel.sites.keys()
    assert mam.size("hi") == prefix.size("hi") + parallel.size("hi")
    found = []
    with torch.no_grad():
        for language in ("hi", "ur"):
            for name, tensor in prefix.tensors(language).items():
                tensor.copy_(mam.tensors(language)[name])
        for bank in (mam, prefix):
            with bank.route(batch.languages):
                found.append(model.encode(batch.feats, batch.lens)[0])
    assert torch.equal(*found)


def test_size_of_hubert():
    """2 l D of each attention, and 2 D d + d + D of each feed-forward sub-layer."""
    with torch.device("meta"):
        model = build_backbone("ctc", {"encoder": "hubert", "objective": "none"}, 3, 1)
        size = make_bank(model, "mam", languages=["hi"], frames=30, bottleneck=256, network=800).size("hi")
    assert size == 12 * (2 * 30 * 768 + 2 * 768 * 256 + 256 + 768) == 5_283_840


def test_no_attention(make_rnnt):
    with pytest.raises(PelasrError, match="adapter mam needs a site 'k': an LSTM has no attention"):
        make_bank(make_rnnt(), "mam")
