"""Fitting as stage 5 does it, and decoding: what is skipped, continued, refused, and made again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load, save_file

from pelasr.backbones.base import build_backbone
from pelasr.backbones.store import describe_backbone
from pelasr.data.features import USUAL
from pelasr.data.kaldi import read_data_dir
from pelasr.data.place import Place
from pelasr.data.tokenizer import Tokenizer
from pelasr.errors import PelasrError
from pelasr.stages.adapt import fit_adapters
from pelasr.stages.decode import decode, decoded
from pelasr.stages.experiment import Decoding, Experiment
from pelasr.stages.stats import make_features
from pelasr.storage import save_weights
from pelasr.train import fit as fitting
from pelasr.train import loop as train
from pelasr.train.loop import Fit

OPTIONS = {
    "encoder_conf": {"num_layers": 2, "hidden_size": 8, "output_size": 6, "reduction_layer": 1},
    "decoder_conf": {"num_layers": 1, "hidden_size": 8, "output_size": 6},
    "joint_net_conf": {"joint_space_size": 6},
}
ADAPTED = Experiment("A5", "", "A1", "backbone", True, {}, None)
PLAIN = Experiment("A1", "", "A1", "backbone", False, {}, None)
CONFIG = {"adapter": "houlsby", "adapter_conf": {"bottleneck": 3}, "max_epoch": 2, "batch_size": 8, "warmup_steps": 1}


@pytest.fixture(scope="module")
def started(prepared, tmp_path_factory) -> Path:
    """Data and features of hi, ta and ur, and a backbone of random weights for the first two."""
    folder = tmp_path_factory.mktemp("stages")
    for name in ("data", "dump"):
        shutil.copytree(prepared / name, folder / name)
    tokens = prepared / "exp/tokens"
    torch.manual_seed(0)
    module = build_backbone("rnnt", OPTIONS, len(Tokenizer.load(tokens)), 2)
    save_weights(folder / "exp/A1/backbone.safetensors", module.state_dict())
    describe_backbone(folder / "exp/A1", "rnnt", OPTIONS, ["hi", "ta"], tokens, {})
    return folder


@pytest.fixture
def place(started, tmp_path, monkeypatch) -> Place:
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # paths of audio are relative
    return Place(Path("data"), Path("dump"), Path("exp"), ["hi", "ta"])


def fit(place, *languages, go_on=False, tokens="auto", **options):
    return fit_adapters(place, ADAPTED, CONFIG | options, "test", list(languages) or place.languages, 0, tokens, go_on)


def history(place, languages="hi_ta"):
    return json.loads((place.exp / f"A5/fit_{languages}/history.json").read_text())


def pack(place, language):
    return load((place.exp / f"A5/packs/{language}/pack.safetensors").read_bytes())


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_stops_by_itself(place, capsys):
    """With a learning rate of nothing no validation is better than the first."""
    settings = {"scheduler": "wsd", "patience": 2, "decay_epochs": 3, "max_epoch": 20, "optim_conf": {"lr": 0.0}}
    assert fit(place, **settings)
    assert [entry["epoch"] for entry in history(place)] == list(range(6))
    assert "hi: dev WER" in (told := capsys.readouterr().out) and "after epoch 0 of 5" in told
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


@pytest.fixture
def fitted(place) -> Place:
    assert fit(place)
    return place


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


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


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


@pytest.mark.parametrize(("mean", "wanted"), [(30.25, 1), (21.55, 2), (20.0, 2)])
def test_an_average_is_not_worse_than_the_best(tmp_path, mean, wanted, monkeypatch):
    from pelasr.train.evaluate import LanguageScores
    from pelasr.train.kept import BestBackbones
    from pelasr.train.loop import Data
    from pelasr.train.options import TrainingOptions

    model = torch.nn.Linear(1, 1, bias=False)
    best = BestBackbones(tmp_path, model, TrainingOptions(keep_nbest_models=2))
    entries = []
    for epoch, wer in enumerate((99.0, 21.55, 22.0)):
        model.weight.data.fill_(float(epoch))
        entries.append({"epoch": epoch, "mean": {"loss": 1.0, "wer": wer}, "candidates": ["mean"]})
        best.validated(entries)
    said = []

    class Run:
        data, history, monitor = (
            Data([], [], None, {}, None),
            entries,
            type("Monitor", (), {"say": staticmethod(said.append)}),
        )
        fabric = type("Fabric", (), {"broadcast": staticmethod(lambda value: value)})

        def evaluate(self, dev):
            assert model.weight.item() == 1.5
            return {"hi": LanguageScores(1.0, mean)}

    state, facts = fitting._average(Run(), best)
    assert len(facts["averaged"]) == wanted and state["weight"].item() == (1.5 if wanted == 2 else 1.0)
    assert ("worse than 21.6 of epoch 1 alone" in said[0]) == (wanted == 1)
    assert facts["dev"]["wer"] == (mean if wanted == 2 else 21.55)


def test_a_fit_without_its_done_file_is_left_alone(place):
    (place.exp / "A5/fit_hi_ta/snapshots/hi").mkdir(parents=True)
    save_file({"w": torch.ones(1)}, place.exp / "A5/fit_hi_ta/snapshots/hi/000.safetensors")
    with pytest.raises(PelasrError, match="A5/fit_hi_ta: holds a fit, but no adapt.json says of what"):
        fit(place)
