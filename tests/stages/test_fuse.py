"""Packs that are made of those of another experiment: from stage 5 to a model that has them alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_fits import ADAPTED, CONFIG, fit, flip, pack

from pelasr.backbones.source import Source
from pelasr.backbones.store import load_backbone
from pelasr.data.place import Place
from pelasr.errors import PelasrError
from pelasr.packs.manage import merge_packs
from pelasr.packs.pack import load_bank, read_pack
from pelasr.stages.adapt import fit_adapters
from pelasr.storage import load_weights
from pelasr.train.fit import fit as fit_runs
from pelasr.train.options import AdapterConfig, TrainingOptions
from pelasr.train.runs import plan_adapters

FUSED = replace(ADAPTED, name="A6", fuse="A5")
SIM = {**CONFIG, "adapter": "simadapter", "adapter_conf": {}}
SITES = {"known": "layer", "new": ["layer", "prediction"]}
CONF = {"adapter_conf": {"bottleneck": 3, "sites": SITES}}


def fuse(place, *languages, experiment=FUSED, go_on=False, **options):
    wanted = list(languages) or place.languages
    return fit_adapters(place, experiment, SIM | {"adapter_conf": options}, "test", wanted, 0, "auto", go_on)


@pytest.fixture(scope="module")
def fused(started, tmp_path_factory):
    """A5 of hi, ta and the new ur, and A6 of all of these."""
    folder = tmp_path_factory.mktemp("fused")
    shutil.copytree(started, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        place = Place(Path("data"), Path("dump"), Path("exp"), ["hi", "ta"])
        fit(place, **CONF)
        fit(place, "ur", tokens="own", **CONF)
        assert fuse(place)
        assert fuse(place, "ur")
    return folder


@pytest.fixture
def place(fused, tmp_path, monkeypatch):
    shutil.copytree(fused, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return Place(Path("data"), Path("dump"), Path("exp"), ["hi", "ta"])


def test_what_a_pack_is_made_of(place):
    made = read_pack(place.exp / "A6/packs/ur")
    assert made.adapter == "simadapter"
    conf = {"method": "houlsby", "method_conf": CONF["adapter_conf"], "sources": ["hi", "ta"]}
    assert made.adapter_conf == conf
    assert made.parameters == read_pack(place.exp / "A6/packs/hi").parameters == 2 * (3 * 36 + 2 * 6)
    inputs = json.loads((place.exp / "A6/fit_ur/adapt.json").read_text())["inputs"]
    assert set(inputs["fuse"]) == {"hi", "ta", "ur"} and inputs["adapter_conf"] == conf


@pytest.mark.parametrize(
    ("language", "order"), [("hi", ["hi", "ta"]), ("ta", ["ta", "hi"]), ("ur", ["ur", "hi", "ta"])]
)
def test_sources_are_the_packs_to_the_bit(place, language, order):
    """The language's own first; its tokens and vector too; where it alone has an adapter, that."""
    tensors = load_weights(place.exp / f"A6/packs/{language}/pack.safetensors")
    for number, source in enumerate(order):
        theirs = pack(place, source)
        inside = {name for name in theirs if name.startswith("encoder.layers.")}
        assert inside
        for name in inside:
            path, _, parameter = name.partition("/")
            assert torch.equal(tensors[f"{path}/source.{parameter}"][number], theirs[name])
    rest = {name: tensor for name, tensor in pack(place, language).items() if not name.startswith("encoder.layers.")}
    assert bool(rest) == (language == "ur")
    for name, tensor in rest.items():
        path, _, parameter = name.partition("/")
        own = tensors[f"{path}/source.{parameter}"][0] if path.startswith("prediction.layers") else tensors[name]
        assert torch.equal(own, tensor), name


def test_packs_stand_alone(place):
    """Without the folder of their sources; all of them in one bank."""
    shutil.rmtree(place.exp / "A5")
    backbone = load_backbone(place.exp / "A1")
    bank = load_bank(place.exp / "A6/packs", ["hi", "ta", "ur"], backbone)
    assert bank.own_of("ur").vector and bank.own_of("hi") is None
    shares = [len(adapter.there) for language in ("hi", "ur") for adapter in bank.of(language).values()]
    assert shares == [2, 2, 3, 3, 1]


def test_what_is_done_is_not_done_again(place, capsys):
    assert not fuse(place) and not fuse(place, "ur")
    assert "the adapters of hi ta in exp/A6/fit_hi_ta are fitted already" in capsys.readouterr().out


def test_other_packs_make_another_fit(place):
    shutil.rmtree(place.exp / "A5")
    fit(place, **CONF, max_epoch=1)
    with pytest.raises(PelasrError, match="fit_hi_ta holds a run with other settings .*fuse"):
        fuse(place)


def test_a_pack_is_made_again(place):
    before = load_weights(place.exp / "A6/packs/hi/pack.safetensors")
    before = {name: tensor.clone() for name, tensor in before.items()}  # the file is mapped into memory
    flip(place.exp / "A6/packs/hi/pack.safetensors")
    assert fuse(place)
    after = load_weights(place.exp / "A6/packs/hi/pack.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_fit_is_gone_on_with(place):
    assert fuse(place, go_on=True)
    made = load_weights(place.exp / "A6/packs/hi/pack.safetensors")
    theirs = pack(place, "hi")
    assert torch.equal(made["encoder.layers.0/source.up.weight"][0], theirs["encoder.layers.0/up.weight"])


def test_they_have_no_average(place):
    packs = [place.exp / f"A6/packs/{language}" for language in ("hi", "ta")]
    with pytest.raises(PelasrError, match="merge: simadapter: packs that are made of others' adapters have no average"):
        merge_packs(packs, None, "hi", Path("out"), place.exp / "A6")


def test_some_sources(place):
    other = replace(FUSED, name="A7")
    assert fuse(place, "hi", experiment=other, sources=["ta"], guide=0.0)
    assert read_pack(place.exp / "A7/packs/hi").adapter_conf["sources"] == ["ta"]


def test_refused(place):
    other = replace(FUSED, name="A7")
    (place.exp / "A5/packs/ur").rename(place.exp / "ur")
    for error, languages, changed in [
        ("exp/A5/packs: no pack of ur, which is fused: fit A5 on it first", ["ur"], {}),
        ("sources: 5: want languages, in a list, or all", ["hi"], {"sources": 5}),
        ("sources: 'tq' is not the backbone's; .*known: hi, ta", ["hi"], {"sources": ["tq"]}),
        ("adapter_conf: method: is that of the packs in exp/A5/packs; leave it out", ["hi"], {"method": "lora"}),
    ]:
        with pytest.raises(PelasrError, match=error):
            fuse(place, *languages, experiment=other, **changed)
    with pytest.raises(PelasrError, match="A7: simadapter is made of another experiment's packs: add `fuse:"):
        fuse(place, experiment=replace(other, fuse=None))
    given = AdapterConfig("simadapter", {"method": "houlsby", "sources": ["hi"]}, TrainingOptions())
    run = plan_adapters(Path("exp/A8/fit_hi"), place, Source(place.exp / "A1", "backbone"), ["hi"], given)
    with pytest.raises(PelasrError, match="simadapter is made of another experiment's packs: fit it by a recipe's"):
        fit_runs([run], 0)
    with pytest.raises(PelasrError, match="test: adapter houlsby is not made of packs: leave out `fuse: A5`"):
        fit_adapters(place, other, CONFIG, "test", ["hi"], 0)
    fit(place, "ta", **CONF | {"adapter_conf": {"bottleneck": 2, "sites": SITES}})
    with pytest.raises(PelasrError, match="packs/ta: another method or options than hi: fit it again"):
        fuse(place, "hi", experiment=other)
