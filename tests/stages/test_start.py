"""What the adapters of a language begin as: another language's, the nearest's, or meta-trained ones."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import small_fits
import torch
from safetensors.torch import load
from small_fits import fit, flip, history, pack, same
from tiny_models import ENCODERS

from pelasr.errors import PelasrError
from pelasr.packs.format import read_checked
from pelasr.train import meta
from pelasr.train.loop import Fit

NOTHING = {"max_epoch": 1, "optim_conf": {"lr": 0.0}}  # a training that leaves what it began with
META = {"meta_conf": {"steps": 3, "inner_steps": 2}}
EVERYWHERE = {"adapter_conf": {"bottleneck": 3, "sites": {"known": "layer", "new": ["layer", "prediction"]}}}


def adapters(tensors):
    """Without the own parts, which are at the embedding, the output and the vector."""
    return {name: tensor for name, tensor in tensors.items() if "/down." in name or "/up." in name or "/norm." in name}


def done_file(place, languages="ur"):
    return json.loads((place.exp / f"A5/fit_{languages}/adapt.json").read_text())["inputs"]


def origin(place, language="ur"):
    return read_checked(place.exp / f"A5/packs/{language}/pack.yaml").training["origin"]


def trained(place, **options):
    """Packs of hi and ta that are not what they began with."""
    assert fit(place, optim_conf={"lr": 0.05}, max_epoch=3, scheduler="wsd", decay_epochs=3, **options)


@pytest.fixture
def packs(place):
    trained(place)
    return place


def test_from_another_language(packs, capsys):
    assert fit(packs, "ur", begin="hi", **NOTHING)
    hindi, urdu = adapters(pack(packs, "hi")), adapters(pack(packs, "ur"))
    assert hindi and same(hindi, urdu) and not same(adapters(pack(packs, "ta")), urdu)
    assert any(float(tensor.abs().max()) > 0 for name, tensor in urdu.items() if "/up." in name)
    assert "ur: its adapters begin as those of the pack hi" in capsys.readouterr().out
    sha256 = read_checked(packs.exp / "A5/packs/hi/pack.yaml").safetensors_sha256
    assert origin(packs) == done_file(packs)["origins"]["ur"] == {"pack": "hi", "sha256": sha256}
    assert not fit(packs, "ur", begin="hi", **NOTHING)  # fitted already


def test_sites_that_the_other_lacks_begin_fresh(place):
    """A language that is new has adapters where those of the backbone have none, as many as before."""
    trained(place, **EVERYWHERE)
    fresh = replace(place, exp=Path("fresh"))
    shutil.copytree(place.exp, fresh.exp)
    fit(place, "ur", begin="ta", **EVERYWHERE, **NOTHING)
    fit(fresh, "ur", **EVERYWHERE, **NOTHING)
    tamil, urdu, before = adapters(pack(place, "ta")), adapters(pack(place, "ur")), adapters(pack(fresh, "ur"))
    assert set(tamil) < set(urdu) == set(before)
    assert all(torch.equal(urdu[name], tamil.get(name, before[name])) for name in urdu)


def test_the_nearest_is_the_one_of_lowest_loss(packs, capsys):
    losses = {}
    for name in ("hi", "ta"):
        twin = replace(packs, exp=Path(name))
        shutil.copytree(packs.exp, twin.exp)
        fit(twin, "ur", begin=name, **NOTHING)
    capsys.readouterr()
    assert fit(packs, "ur", begin="nearest", **NOTHING)
    told = "".join(capsys.readouterr())
    found = origin(packs)
    line = next(line for line in told.splitlines() if "by the adapters to start from" in line)
    losses = {name: float(loss) for name, loss in (each.split() for each in line.rpartition(": ")[2].split(", "))}
    assert set(losses) == {"fresh", "hi", "ta"} and losses["hi"] != losses["ta"]
    nearest = min(("hi", "ta"), key=losses.__getitem__)
    assert found["pack"] == nearest and found["loss"] == pytest.approx(losses[nearest], abs=0.01)
    assert f"begin as those of the pack {nearest}, the nearest: its loss" in told
    assert same(pack(packs, "ur"), pack(replace(packs, exp=Path(nearest)), "ur"))


@pytest.mark.parametrize("begin", ["hi", "nearest"])
def test_a_prefix_begins_as_a_pack_which_lacks_its_network(place, monkeypatch, begin):
    """It is trained without one from there on, also where the fit is continued."""
    conformer = {"encoder": "conformer", "encoder_conf": ENCODERS["conformer"] | {"input_layer": "linear"}}
    monkeypatch.setattr(small_fits, "OPTIONS", small_fits.OPTIONS | conformer)
    shutil.copytree(place.exp / "A1/tokens", "listed")
    small_fits.start(place.exp.parent, Path("listed"))
    prefix = {"adapter": "prefix", "adapter_conf": {"frames": 2, "network": 3}}
    trained(place, **prefix)
    assert fit(place, "ur", begin=begin, **prefix, **NOTHING)
    prefixes = [
        {name: tensor for name, tensor in pack(place, language).items() if name.endswith("/prefix")}
        for language in (origin(place)["pack"], "ur")
    ]
    assert len(prefixes[0]) == 4 and same(*prefixes)
    assert fit(place, "ur", begin=begin, go_on=True, **prefix | {"max_epoch": 1})
    assert history(place, "ur")[-1]["epoch"] == 2


def test_what_was_nearest_is_not_looked_for_again(packs, monkeypatch):
    assert fit(packs, "ur", begin="nearest", **NOTHING)
    monkeypatch.setattr("pelasr.train.new_language.nearest_pack", None)
    assert not fit(packs, "ur", begin="nearest", **NOTHING)


def test_another_start_is_another_fit(packs):
    fit(packs, "ur", begin="hi", **NOTHING)
    for begin in ("fresh", "ta", "nearest", "meta"):
        with pytest.raises(PelasrError, match=r"A5/fit_ur holds a run with other settings \(start: \"hi\" -> "):
            fit(packs, "ur", begin=begin, **NOTHING)
    assert not (packs.exp / "A5/meta").exists()
    for name in ("fit_hi_ta", "packs/hi", "packs/ta"):
        shutil.rmtree(packs.exp / "A5" / name)
    trained(packs, seed=1)
    with pytest.raises(PelasrError, match=r"A5/fit_ur holds a run with other settings \(origins: .*delete the folder"):
        fit(packs, "ur", begin="hi", **NOTHING)


def test_a_fit_that_began_elsewhere_is_continued(packs):
    fit(packs, "ur", begin="hi")
    shutil.rmtree(packs.exp / "A5/packs/hi")  # nobody asks for it any more
    assert fit(packs, "ur", go_on=True, max_epoch=1) and len(history(packs, "ur")) == 4
    assert origin(packs)["pack"] == "hi"


def test_one_that_was_killed_goes_on_as_if_it_was_not(packs, monkeypatch):
    twin = replace(packs, exp=Path("twin"))
    shutil.copytree(packs.exp, twin.exp)
    fit(twin, "ur", begin="nearest")
    for epoch in (0, 1):
        killed_at(monkeypatch, epoch, lambda: fit(packs, "ur", begin="nearest"))
    fit(packs, "ur", begin="nearest")
    assert same(pack(packs, "ur"), pack(twin, "ur"))


class Killed(BaseException):
    pass


def killed_at(monkeypatch, epoch, run):
    def die(self, validate=Fit._validate):
        if self.place.epoch == epoch:
            raise Killed
        validate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "_validate", die)
        with pytest.raises(Killed):
            run()


@pytest.mark.parametrize(
    "begin, languages, options, why",
    [
        ("hi", ["hi"], {}, "--start hi: hi is to be fitted itself; to train its pack further say --continue true"),
        ("gu", ["ur"], {}, r"--start gu: no pack of it in exp/A5/packs; .*hi, meta, nearest, ta"),
        ("hi", ["ur"], {"adapter_conf": {"bottleneck": 4}}, "--start hi: .*packs/hi/pack.yaml: adapter_conf is .*3"),
        ("hi", ["ur"], {"adapter": "lora", "adapter_conf": {}}, "--start hi: .*: adapter is houlsby, .*lora"),
        ("nearest", ["ur"], {"adapter_conf": {"bottleneck": 4}}, "pack.yaml: adapter_conf is"),
    ],
)
def test_what_is_refused(fitted, begin, languages, options, why):
    """In a line, before anything is written."""
    with pytest.raises(PelasrError, match=why) as refused:
        fit(fitted, *languages, begin=begin, **options)
    assert "\n" not in str(refused.value) and not (fitted.exp / f"A5/fit_{'_'.join(languages)}/adapt.json").exists()


def test_the_nearest_of_none(place):
    with pytest.raises(PelasrError, match="--start nearest: no pack of another language in exp/A5/packs; fit others"):
        fit(place, begin="nearest")


def meta_trained(place):
    return load((place.exp / "A5/meta/adapters.safetensors").read_bytes())


def test_from_meta_trained_ones(place, capsys):
    """At the sites of new languages; those of the backbone have fewer."""
    assert fit(place, "ur", begin="meta", **META, **EVERYWHERE, **NOTHING)
    told = "".join(capsys.readouterr())
    initial, urdu = meta_trained(place), adapters(pack(place, "ur"))
    assert same(initial, urdu) and any("decoder" in name or "prediction" in name for name in initial)
    assert all(float(tensor.abs().max()) > 0 for name, tensor in initial.items() if "/up." in name)
    assert "exp/A5/meta: mean loss at the end of an episode" in told and "begin as the meta-trained ones" in told
    marker = json.loads((place.exp / "A5/meta/meta.json").read_text())
    assert marker["done"] and list(marker["outputs"]) == ["adapters.safetensors"]
    assert done_file(place)["start"] == "meta" and set(origin(place)) == {"meta"}
    assert fit(place, begin="meta", **META, **EVERYWHERE, **NOTHING)  # of the backbone's languages, without more of it
    hindi = adapters(pack(place, "hi"))
    assert set(hindi) < set(initial) and all(torch.equal(hindi[name], initial[name]) for name in hindi)
    assert "meta-training" not in "".join(capsys.readouterr())


def test_meta_training_goes_on_where_it_was_killed(place, monkeypatch):
    twin = replace(place, exp=Path("twin"))
    shutil.copytree(place.exp, twin.exp)
    fit(twin, "ur", begin="meta", **META, **NOTHING)
    step = meta._Training._step

    def die(self):
        if len(self.losses) == 2:
            raise Killed
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(meta._Training, "_step", die)
        with pytest.raises(Killed):
            fit(place, "ur", begin="meta", checkpoint_seconds=0.0, **META, **NOTHING)
    assert not (place.exp / "A5/meta/adapters.safetensors").exists()
    steps = []
    monkeypatch.setattr(meta._Training, "_step", lambda self: (steps.append(len(self.losses)), step(self)))
    fit(place, "ur", begin="meta", **META, **NOTHING)
    assert steps == [2] and same(meta_trained(place), meta_trained(twin))
    assert not (place.exp / "A5/meta/last.ckpt").exists()


def test_other_meta_training_is_refused_and_a_damaged_one_made_again(place):
    fit(place, "ur", begin="meta", **META, **NOTHING)
    with pytest.raises(PelasrError, match=r"A5/meta holds a run with other settings \(meta_conf: .*delete it and what"):
        fit(place, "ur", begin="meta", meta_conf={"steps": 4}, **NOTHING)
    before = meta_trained(place)
    flip(place.exp / "A5/meta/adapters.safetensors")
    for name in ("fit_ur", "packs"):
        shutil.rmtree(place.exp / "A5" / name)
    fit(place, "ur", begin="meta", **META, **NOTHING)
    assert same(meta_trained(place), before)


@pytest.mark.parametrize(
    "conf, why",
    [
        ({"steps": 0}, "meta_conf: steps: 0 is not a number above 0"),
        ({"inner_lr": -1.0}, "meta_conf: inner_lr: -1.0 is not a number above 0"),
        ({"inner_steps": 1.5}, "meta_conf: inner_steps: expected a whole number, found 1.5"),
        ({"outer_rate": 1}, "meta_conf: .*outer_rate.*outer_lr"),
    ],
)
def test_options_of_meta_training(place, conf, why):
    with pytest.raises(PelasrError, match=why):
        fit(place, "ur", begin="meta", meta_conf=conf)
