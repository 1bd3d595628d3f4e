"""A family of a recipe's own, as docs/backbones.md writes it, that hears 40 channels: through all stages."""

import re
from pathlib import Path

import pytest
from tiny_data import TRAINING, write_set
from tiny_speech import noise

import pelasr
from pelasr.backbones.base import build_backbone
from pelasr.backbones.store import load_backbone
from pelasr.cli.main import main
from pelasr.config import load_yaml
from pelasr.data.features import Feats, read_feats
from pelasr.data.hears import LogMel
from pelasr.errors import PelasrError

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/backbones.md").read_text(encoding="utf-8")
LANGS = ["--langs", "hi"]
EXPERIMENTS = "A1: {description: a backbone}\nA5: {description: adapters, adapt: A1}\n"
CONFIG = {"backbone": "tiny", "width": 8, **TRAINING}
ADAPTER = {"adapter": "houlsby", "adapter_conf": {"bottleneck": 2}, **TRAINING}


def write_yaml(path: Path, content: dict) -> None:
    path.write_text("".join(f"{key}: {value}\n" for key, value in content.items()))
    assert load_yaml(path) == content


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe's folder after stages 1 to 6."""
    folder = tmp_path_factory.mktemp("recipe")
    for name, count in (("train", 6), ("dev", 2), ("test", 2)):
        write_set(folder / f"data/{name}_hi", "hi", count)
    (folder / "local/backbones").mkdir(parents=True)
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (folder / "local/backbones/tiny.py").write_text(code)
    (folder / "conf").mkdir()
    (folder / "conf/experiments.yaml").write_text(EXPERIMENTS)
    write_yaml(folder / "conf/tiny.yaml", CONFIG)
    write_yaml(folder / "conf/houlsby.yaml", ADAPTER)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = ["--config", "conf/tiny.yaml"]
        main(["data", *LANGS, *config, "--nj", "1"])
        main(["tokens", *LANGS])
        main(["stats", *LANGS, *config, "--nj", "1"])
        main(["train", *LANGS, *config, "--exp", "A1"])
        main(["adapt", *LANGS, "--adapter", "conf/houlsby.yaml", "--exp", "A5"])
        main(["decode", *LANGS, "--exp", "A5"])
    return folder


def test_what_it_hears_is_made_and_kept(recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    assert {feats.load().shape[1] for feats in read_feats("dump/test_hi").values()} == {40}
    assert load_backbone("exp/A1").module.hears == LogMel(40)


def test_decoded_from_audio_as_from_features(recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    lines = (recipe / "exp/A5/decode/test_hi/text").read_text(encoding="utf-8").splitlines()
    model = pelasr.load("exp/A5")
    assert model.decode([f"data/test_hi/{n}.wav" for n in range(2)], "hi") == [line.partition(" ")[2] for line in lines]


def test_a_new_language(recipe, monkeypatch, tmp_path):
    """Its features are those that the backbone hears, wherever they are made."""
    monkeypatch.chdir(recipe)
    for name in ("train", "dev"):
        write_set(tmp_path / name, "uk", 2, ["ї a"])
    model = pelasr.load("exp/A5")
    model.add_language("uk", bottleneck=2)
    model.fit("uk", tmp_path / "train", tmp_path / "dev", folder=tmp_path / "fit", **TRAINING)
    assert isinstance(model.decode([noise(1.0)], "uk")[0], str)


def test_other_features_are_refused(recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    (recipe / "conf/more.yaml").write_text("A2: {description: another}\n")
    train = ["train", *LANGS, "--config", "conf/tiny.yaml", "--num_mels", "24", "--exp", "A2"]
    with pytest.raises(SystemExit, match="statistics of .40,. and .40,., the backbone hears 24 channels"):
        main([*train, "--experiments", "conf/more.yaml"])
    with pytest.raises(SystemExit, match="--num_mels: of which backbone. add --config FILE"):
        main(["stats", *LANGS, "--num_mels", "24"])
    load = Feats.load
    monkeypatch.setattr(Feats, "load", lambda feats: load(feats)[:, :24])
    with pytest.raises(SystemExit, match="features of 24 channels, the backbone hears 40"):
        main(["decode", *LANGS, "--exp", "A1"])


def test_incomplete_families_are_refused(recipe, monkeypatch):
    """With the name of what they lack."""
    monkeypatch.chdir(recipe)
    code = (recipe / "local/backbones/tiny.py").read_text().replace("def subsampling", "def subsample")
    (recipe / "local/backbones/half.py").write_text(code)
    with pytest.raises(PelasrError, match="backbone half: .*abstract method subsampling"):
        build_backbone("half", {}, 7, 1)
