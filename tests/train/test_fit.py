"""What becomes of a finished training."""

import numpy as np
import pytest
import torch
from tiny_models import ENCODERS, ST_ENCODERS
from tiny_pretrained import CONV

from pelasr.backbones.base import build_backbone
from pelasr.data.features import save_stats
from pelasr.data.place import Place
from pelasr.data.tokenizer import SPECIAL, Tokenizer, train_graphemes
from pelasr.train import fit as fitting
from pelasr.train.evaluate import LanguageScores
from pelasr.train.kept import BestBackbones
from pelasr.train.loop import Data
from pelasr.train.options import BackboneConfig, TrainingOptions
from pelasr.train.runs import BackboneRun


@pytest.mark.parametrize(("mean", "wanted"), [(30.25, 1), (21.55, 2), (20.0, 2)])
def test_an_average_is_not_worse_than_the_best(tmp_path, mean, wanted, monkeypatch):
    model = torch.nn.Linear(1, 1, bias=False)
    best = BestBackbones(tmp_path, model, TrainingOptions(keep_nbest_models=2))
    entries = []
    for epoch, wer in enumerate((99.0, 21.55, 22.0)):
        model.weight.data.fill_(float(epoch))
        entries.append({"epoch": epoch, "mean": {"loss": 1.0, "wer": wer}, "candidates": ["mean"]})
        best.validated(entries)
    said = []

    class Run:
        data, history = Data([], [], None, {}, None), entries
        monitor = type("Monitor", (), {"say": staticmethod(said.append)})
        fabric = type("Fabric", (), {"broadcast": staticmethod(lambda value: value)})

        def evaluate(self, dev):
            assert model.weight.item() == 1.5
            return {"hi": LanguageScores(1.0, mean)}

    state, facts = fitting._average(Run(), best)
    assert len(facts["averaged"]) == wanted and state["weight"].item() == (1.5 if wanted == 2 else 1.0)
    assert ("worse than 21.6 of epoch 1 alone" in said[0]) == (wanted == 1)
    assert facts["dev"]["wer"] == (mean if wanted == 2 else 21.55)


ST = {"encoder": "conformer", "encoder_conf": ST_ENCODERS["conformer"], "num_mels": 5}
ST |= {"decoder_conf": {"attention_heads": 2, "linear_units": 8, "num_blocks": 1}, "subsampler_conf": {"channels": 4}}
RNNT = {"encoder_conf": ENCODERS["lstm"], "num_mels": 5}
SSL = {"encoder": "hubert", "encoder_conf": CONV, "objective": "none"}


@pytest.mark.parametrize(("family", "options"), [("st", ST), ("rnnt", RNNT), ("ctc", SSL)])
def test_first_weights_follow_from_the_seed_alone(tmp_path, family, options):
    """Whatever is asked of a backbone before it is made."""
    place = Place(tmp_path, tmp_path, tmp_path, ["hi", "ta"])
    Tokenizer(train_graphemes(["abcd"])).save(place.tokens)
    save_stats(place.stats, np.zeros(5), np.ones(5))
    config = BackboneConfig(family, options, TrainingOptions(seed=3))
    found, tokenizer = fitting._make(BackboneRun(tmp_path / "A1", place, config, None, None))
    assert len(tokenizer.tokens) == (len(SPECIAL) if family == "ctc" else 7)
    torch.manual_seed(3)
    wanted = build_backbone(family, options, len(tokenizer.tokens), 2)
    assert all(
        torch.equal(*pair) for pair in zip(found.state_dict().values(), wanted.state_dict().values(), strict=True)
    )
