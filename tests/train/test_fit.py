"""What becomes of a finished training."""

import pytest
import torch

from pelasr.train import fit as fitting
from pelasr.train.evaluate import LanguageScores
from pelasr.train.kept import BestBackbones
from pelasr.train.loop import Data
from pelasr.train.options import TrainingOptions


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
