"""Which weights a run keeps, that they are as they were written, and that none is lost whenever it is killed."""

import pytest
import torch
from torch import nn

from pelasr.errors import PelasrError
from pelasr.storage import save_weights
from pelasr.train.kept import BestBackbones, BestSnapshots
from pelasr.train.options import TrainingOptions

BLEU = [None, 3.0, 9.0, 4.0, 8.0, 1.0]  # by epoch; 0 is before training


@pytest.fixture
def run(tmp_path):
    """Six validations of a model whose weight is its epoch; what was kept of them, and the history."""

    def make(metric: str = "wer", **options) -> tuple[BestBackbones, list[dict]]:
        model = nn.Linear(1, 1, bias=False)
        best = BestBackbones(tmp_path, model, TrainingOptions(max_epoch=5, **options))
        history = []
        for epoch, bleu in enumerate(BLEU):
            model.weight.data.fill_(epoch / 3)
            value = 0.0 if bleu is None else bleu if metric == "bleu" else 100 - bleu
            history.append({"epoch": epoch, "mean": {"loss": 1.0, metric: value}, "candidates": ["mean"]})
            best.validated(history)
            best.check()
            best.prune()
        return best, history

    return make


def averaged(best, history):
    kept = [entry["epoch"] for entry in best.averaged(history)]
    weight = best.average(history)["weight"]
    mean = torch.stack([torch.tensor(epoch / 3) for epoch in kept]).double().mean().float()
    assert torch.equal(weight.flatten()[0], mean)
    return sorted(kept)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("metric", ["wer", "cer", "bleu"])
def test_the_best_are_averaged(run, metric, tmp_path):
    """The highest BLEU, the lowest error rate."""
    assert averaged(*run(metric, keep_nbest_models=2)) == [2, 4]
    assert files(tmp_path) == ["epochs/002.safetensors", "epochs/004.safetensors"]


def test_the_last_are_averaged_and_the_best_is_there(run, tmp_path):
    assert averaged(*run("bleu", keep_last_models=2)) == [4, 5]
    assert files(tmp_path) == ["epochs/002.safetensors", "epochs/004.safetensors", "epochs/005.safetensors"]


def test_more_than_there_are(run):
    assert averaged(*run("bleu", keep_last_models=10)) == [1, 2, 3, 4, 5]


def test_the_early_one_is_kept(run, tmp_path):
    run(keep_nbest_models=1, early_epoch=3)
    assert files(tmp_path) == ["early.safetensors", "epochs/002.safetensors"]


@pytest.mark.parametrize("name", ["early.safetensors", "epochs/002.safetensors"])
@pytest.mark.parametrize("damage", ["deleted", "cut", "a bit"])
def test_damage_is_noticed(run, tmp_path, name, damage):
    best, history = run(keep_nbest_models=1, early_epoch=3)
    content = bytearray((tmp_path / name).read_bytes())
    (tmp_path / name).unlink()
    content[-1] ^= 1
    if damage != "deleted":
        (tmp_path / name).write_bytes(content if damage == "a bit" else content[:-1])
    with pytest.raises(PelasrError, match=f"{name}: damaged or missing, so the training cannot go on"):
        best.check()
    with pytest.raises(PelasrError, match=f"{name}: "):
        best.load(name)


class Bank:
    """Two languages whose only weight is the epoch."""

    languages = ("hi", "zh.Hant")

    def __init__(self):
        self.adapters = nn.ModuleDict()
        self.epoch = 0.0

    def tensors(self, language):
        return {"w": torch.tensor([self.epoch])}


def test_each_language_keeps_its_own_best_and_what_a_checkpoint_names_is_never_overwritten(tmp_path):
    """By the error, ties by the loss."""
    bank, history = Bank(), []
    best = BestSnapshots(tmp_path, bank)
    wers = {"hi": [90, 50, 50, 50, 60], "zh.Hant": [80, 90, 70, 95, 70]}
    losses = {"hi": [9, 5, 4, 4.5, 1], "zh.Hant": [8, 1, 7, 1, 7]}
    for epoch in range(5):
        bank.epoch = float(epoch)
        dev = {name: {"loss": losses[name][epoch], "wer": wers[name][epoch]} for name in wers}
        history.append({"epoch": epoch, "dev": dev, "candidates": list(wers)})
        before = dict(best.hashes)
        best.validated(history)
        for name in before:  # until the next checkpoint is written
            assert (tmp_path / name).exists()
        best.prune()
        best.check()
    assert files(tmp_path) == ["snapshots/hi/002.safetensors", "snapshots/zh.Hant/002.safetensors"]
    assert best.best("hi", history)["w"].item() == best.best("zh.Hant", history)["w"].item() == 2.0


def test_a_stray_file_is_not_averaged(run, tmp_path):
    best, history = run(keep_nbest_models=2)
    save_weights(tmp_path / "epochs/009.safetensors", {"weight": torch.ones(1, 1)})
    assert averaged(best, history) == [2, 4]
