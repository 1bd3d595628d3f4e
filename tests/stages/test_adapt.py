"""Fitting as stage 5 does it: what is skipped, continued, refused, and made again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_fits import ADAPTED, fit, flip, history, pack, same

from pelasr.errors import PelasrError
from pelasr.stages.decode import decode
from pelasr.train import fit as fitting
from pelasr.train import loop as train
from pelasr.train.loop import Fit


def test_it_stops_by_itself(place, capsys):
    """With a learning rate of nothing no validation is better than the first."""
    settings = {"scheduler": "wsd", "patience": 2, "decay_epochs": 3, "max_epoch": 20, "optim_conf": {"lr": 0.0}}
    assert fit(place, **settings)
    assert [entry["epoch"] for entry in history(place)] == list(range(6))
    assert "hi: dev WER" in (told := "".join(capsys.readouterr())) and "after epoch 0 of 5" in told
    assert "no validation was better" in told and "--continue" not in told


ENDS = {"hi": 3, "ta": 1}  # after which epoch the rate goes down


def test_a_language_that_ended_is_not_computed_any_more(place, monkeypatch):
    seen: dict[int, set[str]] = {}
    backward = Fit._backward

    def spy(run, batch, size):
        seen.setdefault(run.place.epoch, set()).update(batch.languages)
        return backward(run, batch, size)

    def decay(entries, name, options, first):
        return ENDS[name] if entries and entries[-1]["epoch"] >= ENDS[name] else None

    monkeypatch.setattr(Fit, "_backward", spy)
    monkeypatch.setattr(train, "decay_start", decay)
    monkeypatch.setattr(Fit, "_save", lambda run: None)
    assert fit(place, scheduler="wsd", decay_epochs=1, max_epoch=9, optim_conf={"lr": 0.01})
    both = {"hi", "ta"}
    assert seen == {0: both, 1: both, 2: {"hi"}, 3: {"hi"}}
    dev = [entry["dev"] for entry in history(place)]
    assert len(dev) == 5 and dev[0]["ta"] != dev[1]["ta"] != dev[2]["ta"]
    assert dev[2]["ta"] == dev[3]["ta"] == dev[4]["ta"] and dev[2]["hi"] != dev[3]["hi"] != dev[4]["hi"]


@pytest.mark.parametrize("more", [False, True])
def test_a_short_training_slows_down_all_the_time(place, monkeypatch, more):
    """Also one that goes on from another."""
    rates = []
    monkeypatch.setattr(Fit, "_step", lambda run, parts, step=Fit._step: (step(run, parts), rates.append(rate(run))))

    def rate(run):
        return run.schedule.get_last_lr()[0]

    if more:
        assert fit(place)
        rates.clear()
    wsd = {"scheduler": "wsd", "decay_epochs": 8, "max_epoch": 2, "optim_conf": {"lr": 0.01}, "warmup_steps": 0}
    assert fit(place, go_on=more, **wsd)
    assert rates == sorted(rates, reverse=True) and rates[0] < 0.01 and rates[-1] == 0


def test_it_says_that_more_would_help(place, capsys):
    settings = {"scheduler": "wsd", "patience": 5, "decay_epochs": 1, "max_epoch": 3, "optim_conf": {"lr": 0.01}}
    assert fit(place, **settings)
    assert "it was still improving when max_epoch ended it: go on with --continue true" in capsys.readouterr().out


def test_a_fit_is_continued(fitted):
    before, start = history(fitted), {name: pack(fitted, name) for name in fitted.languages}
    assert not fit(fitted)  # fitted already
    assert fit(fitted, go_on=True, max_epoch=3, optim_conf={"lr": 0.01})
    after = history(fitted)
    assert after[: len(before)] == before and [entry["epoch"] for entry in after] == list(range(6))
    assert [entry["step"] for entry in after] == sorted(entry["step"] for entry in after)
    for language in fitted.languages:
        best = min(after, key=lambda e: (e["dev"][language]["wer"], e["dev"][language]["loss"]))
        assert same(pack(fitted, language), start[language]) == (best["epoch"] < 3)
    # The command that began it finds it done, and one more continuation goes on from there.
    assert not fit(fitted)
    assert fit(fitted, go_on=True) and len(history(fitted)) == 8
    marker = json.loads((fitted.exp / "A5/fit_hi_ta/adapt.json").read_text())
    assert [part["max_epoch"] for part in marker["inputs"]["continued"]] == [3, 2]


def test_a_continuation_starts_from_the_best_of_each(fitted, monkeypatch):
    starts = []
    monkeypatch.setattr(Fit, "run", lambda self: starts.append(self))
    monkeypatch.setattr(fitting, "save_pack", lambda *a: None)
    best = {name: pack(fitted, name) for name in fitted.languages}
    fit(fitted, go_on=True)
    (run,) = starts
    assert run.first == 2 and run.place.epoch == 2 and run.place.step == history(fitted)[-1]["step"]
    for language in fitted.languages:
        assert same(dict(run.objective.bank.tensors(language)), best[language])


@pytest.mark.parametrize("killed", ["before its first checkpoint", "after an epoch", "at its end"])
def test_a_continuation_that_was_killed_goes_on(fitted, killed, monkeypatch):
    twin = replace(fitted, exp=Path("twin"))
    shutil.copytree(fitted.exp, twin.exp)
    fit(twin, go_on=True, max_epoch=3)

    class Killed(BaseException):
        pass

    def die(*given, **named):
        raise Killed

    with monkeypatch.context() as patch:
        if killed == "before its first checkpoint":
            patch.setattr(Fit, "run", die)
        elif killed == "after an epoch":
            validate = Fit._validate
            patch.setattr(Fit, "_validate", lambda self: die() if self.place.epoch == 4 else validate(self))
        else:
            patch.setattr(fitting, "save_pack", die)
        with pytest.raises(Killed):
            fit(fitted, go_on=True, max_epoch=3)
    with pytest.raises(PelasrError, match="was being continued with other settings"):
        fit(fitted, go_on=True, max_epoch=4)
    fit(fitted)  # by either command
    assert history(fitted) == history(twin)
    assert all(same(pack(fitted, name), pack(twin, name)) for name in fitted.languages)


def test_what_may_not_change_in_a_continuation(fitted):
    for options in ({"adapter_conf": {"bottleneck": 4}}, {"adapter": "lora", "adapter_conf": {}}):
        with pytest.raises(PelasrError, match=r"A5/fit_hi_ta holds a run with other settings \(adapter"):
            fit(fitted, go_on=True, **options)
    with pytest.raises(
        PelasrError, match=r"other settings \(max_epoch: 2 -> 3\): .* an experiment of its own; .*--cont"
    ):
        fit(fitted, max_epoch=3)


def test_a_new_language_is_continued(place):
    assert fit(place, "ur", tokens="own")
    before = pack(place, "ur")
    assert fit(place, "ur", tokens="own", go_on=True, max_epoch=4, optim_conf={"lr": 0.01})
    assert not same(pack(place, "ur"), before) and len(history(place, "ur")) == 7


def test_a_damaged_backbone_is_called_that(fitted):
    flip(fitted.exp / "A1/backbone.safetensors")
    for stage in (lambda: fit(fitted), lambda: decode(fitted, ADAPTED, ["test"], ["hi"], 0)):
        with pytest.raises(PelasrError, match=r"A1/backbone.safetensors: damaged: not the file that stage 4") as caught:
            stage()
        assert "A5" not in str(caught.value)  # nothing is wrong with the fit


def test_a_damaged_pack_is_made_again_from_its_snapshot(fitted):
    before = {name: pack(fitted, name) for name in fitted.languages}
    flip(fitted.exp / "A5/packs/hi/pack.safetensors")
    (fitted.exp / "A5/packs/ta/pack.yaml").unlink()
    assert fit(fitted)
    assert all(same(pack(fitted, name), before[name]) for name in fitted.languages)


@pytest.mark.parametrize("what", ["snapshots/hi", "history.json", "adapt.json"])
@pytest.mark.parametrize("damage", ["deleted", "cut", "flipped"])
def test_a_damaged_fit_never_becomes_a_pack(fitted, what, damage):
    """Nor is it lost: the packs that there are stay."""
    path = fitted.exp / "A5/fit_hi_ta" / what
    path = next(path.glob("*")) if path.is_dir() else path
    before = {name: pack(fitted, name) for name in fitted.languages}
    if damage == "deleted":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        flip(path)
    (fitted.exp / "A5/packs/ta/pack.yaml").unlink()  # so that packs must be made
    with pytest.raises(PelasrError, match=r"A5/fit_hi_ta(:|/)"):
        fit(fitted)
    with pytest.raises(PelasrError, match=r"A5/fit_hi_ta(:|/)"):
        fit(fitted, go_on=True)
    assert all(same(pack(fitted, name), before[name]) for name in fitted.languages)


def test_a_fit_without_its_done_file_is_left_alone(place):
    (place.exp / "A5/fit_hi_ta/snapshots/hi").mkdir(parents=True)
    save_file({"w": torch.ones(1)}, place.exp / "A5/fit_hi_ta/snapshots/hi/000.safetensors")
    with pytest.raises(PelasrError, match="A5/fit_hi_ta: holds a fit, but no adapt.json says of what"):
        fit(place)
