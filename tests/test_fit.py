"""Which weights a run keeps."""

import json

import pytest
import torch
from torch import nn

from pelasr.backbones import load_weights
from pelasr.fit import BestBackbones
from pelasr.options import TrainingOptions

BLEU = [None, 3.0, 9.0, 4.0, 8.0, 1.0]  # by epoch; 0 is before training


@pytest.fixture
def run(tmp_path):
    """Six validations of a model whose weight is its epoch; returns the averaged weight."""

    def make(metric: str, **options) -> torch.Tensor:
        model = nn.Linear(1, 1, bias=False)
        best = BestBackbones(tmp_path, model, TrainingOptions(max_epoch=5, **options))
        history = []
        for epoch, bleu in enumerate(BLEU):
            model.weight.data.fill_(epoch / 3)
            value = 0.0 if bleu is None else bleu if metric == "bleu" else 100 - bleu
            history.append({"epoch": epoch, "mean": {"loss": 1.0, metric: value}})
            (tmp_path / "history.json").write_text(json.dumps(history))
            best(epoch, {})
        best.average()
        kept = sorted(int(path.stem) for path in (tmp_path / "epochs").iterdir())
        weight = load_weights(tmp_path / "backbone.safetensors")["weight"]
        mean = torch.stack([torch.tensor(epoch / 3) for epoch in kept]).double().mean().float()
        assert torch.equal(weight.flatten()[0], mean)
        return kept

    return make


@pytest.mark.parametrize("metric", ["wer", "bleu"])
def test_the_best_are_kept(run, metric):
    """The highest BLEU, the lowest WER."""
    assert run(metric, keep_nbest_models=2) == [2, 4]


def test_the_last_are_kept(run):
    assert run("bleu", keep_last_models=3) == [3, 4, 5]


def test_more_than_there_are(run):
    assert run("bleu", keep_last_models=10) == [1, 2, 3, 4, 5]
