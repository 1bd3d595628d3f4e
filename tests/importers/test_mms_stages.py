"""An imported model goes through stages 4 to 7, and its packs are trained further."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import TRAINING, write_set
from tiny_exp import rewrite

from pelasr.cli.main import main
from pelasr.errors import PelasrError
from pelasr.packs.pack import read_pack
from pelasr.score.results import read_results
from pelasr.train import fit as fitting
from pelasr.train.loop import Fit

LANGS = ["--langs", "hi te"]
ADAPT = ["adapt", *LANGS, "--exp", "mms", "--adapter", "conf/houlsby.yaml"]
TEXTS = {"hi": ["कख क", "ख"], "te": ["క కక", "కగ"]}  # ga is no token of the model


@pytest.fixture(scope="module")
def imported(made, tmp_path_factory) -> Path:
    """A recipe's folder with an imported experiment, after stage 3."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree(made, folder / "exp/mms")
    (folder / "conf").mkdir()
    experiments = "mms: {adapt: mms}\nL: {adapt: mms, adapter: lora}\n"
    (folder / "conf/experiments.yaml").write_text(experiments)
    houlsby = {"adapter": "houlsby", "adapter_conf": {"bottleneck": 4}, **TRAINING}
    lora = {"adapter": "lora", "adapter_conf": {"rank": 2}, **TRAINING}
    config = {"backbone": "ctc", "objective": "none", **TRAINING}
    for name, content in (("houlsby", houlsby), ("lora", lora), ("ctc", config)):
        (folder / f"conf/{name}.yaml").write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for language, texts in TEXTS.items():
            for seed, (name, count) in enumerate((("train", 5), ("dev", 2), ("test", 2))):
                write_set(Path(f"data/{name}_{language}"), language, count, texts, seed=10 * seed)
        main(["data", *LANGS, "--config", "conf/ctc.yaml", "--exps", "mms", "--nj", "1"])
        main(["stats", *LANGS, "--config", "conf/ctc.yaml", "--nj", "1"])
    return folder


@pytest.fixture
def at(imported, tmp_path, monkeypatch) -> Path:
    """A copy, gone to."""
    folder = Path(shutil.copytree(imported, tmp_path / "copy"))
    monkeypatch.chdir(folder)
    return folder


def packs(exp: Path = Path("exp/mms")) -> dict[str, dict[str, torch.Tensor]]:
    return {language: load_file(exp / f"packs/{language}/pack.safetensors") for language in TEXTS}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refused(message: str, *options: str) -> None:
    with pytest.raises(SystemExit, match=message) as caught:
        main([*ADAPT, *options])
    assert len(str(caught.value).splitlines()) == 1


def test_from_the_backbone_to_the_table(at, capsys):
    main(["train", *LANGS, "--config", "conf/ctc.yaml", "--exp", "L"])
    assert "the backbone exp/mms was imported" in capsys.readouterr().out
    main(["adapt", *LANGS, "--exp", "L", "--adapter", "conf/houlsby.yaml"])
    for name in ("mms", "L"):
        main(["decode", *LANGS, "--exp", name])
    main(["score", *LANGS, "--exps", "mms L", "--recipe", "test"])
    lines = read_results(at / "exp/results.jsonl")
    assert {(line["experiment"], line["language"]) for line in lines} >= {("mms", "hi"), ("mms", "te"), ("L", "hi")}
    assert {line["trainable_parameters"] for line in lines if line["experiment"] == "mms"} == {1266 + 1299}
    main(["table", *LANGS, "--recipe", "test"])
    assert "mms" in (at / "exp/RESULTS.md").read_text()


def test_an_experiment_without_its_backbone(at):
    shutil.rmtree("exp/mms")
    with pytest.raises(SystemExit, match="exp/mms: no backbone.yaml, and mms adapts itself: import a backbone"):
        main(["train", *LANGS, "--config", "conf/ctc.yaml", "--exp", "mms"])


def test_an_imported_pack_is_not_lost(at):
    before = packs()
    refused(
        "packs/hi: no fit here has made it, and this one would overwrite it: train it .* --continue true, or delete"
    )
    assert all(same(found, before[name]) for name, found in packs().items()) and not Path("exp/mms/fit_hi_te").exists()
    shutil.rmtree("exp/mms/packs/hi")
    main([*ADAPT, "--fit_langs", "hi"])
    assert read_pack(Path("exp/mms/packs/hi")).own_tokens == ["<space>", "क", "ख"]
    # A pack that a fit has made may be overwritten by another one here, that of Telugu may not.
    refused("packs/te: no fit here has made it")
    shutil.rmtree("exp/mms/packs/te")
    main(ADAPT)
    assert read_pack(Path("exp/mms/packs/hi")).training["fitted_with"] == ["hi", "te"]


def test_an_imported_pack_is_trained_further(at, monkeypatch, capsys):
    before, starts = packs(), []
    run = Fit.run

    def spy(self):
        bank = self.objective.bank
        starts.append({name: {key: t.detach().clone() for key, t in bank.tensors(name).items()} for name in TEXTS})
        run(self)

    monkeypatch.setattr(Fit, "run", spy)
    main([*ADAPT, "--continue", "true", "--optim_conf", "lr=0.1"])
    said = "".join(capsys.readouterr())
    assert (
        "te: 2 of " in said and "unknown to the pack: గ" in said and "hi: starts from the pack that was there" in said
    )
    assert all(same(starts[0][name], before[name]) for name in TEXTS)
    assert not any(same(found, before[name]) for name, found in packs().items())
    found = read_pack(Path("exp/mms/packs/te"))
    assert found.own_tokens == ["<s>", "<space>", "క"] and found.training["fitted_with"] == ["hi", "te"]
    assert found.training["code"] == "tel"  # by which it is exported
    marker = json.loads(Path("exp/mms/fit_hi_te/adapt.json").read_text())
    assert marker["inputs"]["started"].keys() == TEXTS.keys()
    kept = Path("exp/mms/fit_hi_te/started/te/pack.safetensors")
    assert same(load_file(kept), before["te"])
    # Again it is done; its packs, where they are gone, are made again; and it can be trained further as any fit.
    trained = packs()
    shutil.rmtree("exp/mms/packs/te")
    for _ in range(2):
        main([*ADAPT, "--optim_conf", "lr=0.1"])
    assert all(same(found, trained[name]) for name, found in packs().items())
    main([*ADAPT, "--continue", "true"])
    assert len(json.loads(Path("exp/mms/fit_hi_te/history.json").read_text())) == 3


@pytest.mark.parametrize("killed", ["before the copies", "at its end"])
def test_a_fit_that_was_killed_goes_on(at, monkeypatch, killed):
    more = [*ADAPT, "--continue", "true", "--optim_conf", "lr=0.1"]
    shutil.copytree("exp", "twin")
    main([*more, "--exp_dir", "twin"])

    class Killed(BaseException):
        pass

    def die(*given, **named):
        raise Killed

    with monkeypatch.context() as patch:
        what = "keep_started" if killed == "before the copies" else "_report"
        patch.setattr(fitting, what, die)
        with pytest.raises(Killed):
            main(more)
    main([word for word in more if word not in ("--continue", "true")])  # by either command
    assert all(same(found, packs(Path("twin/mms"))[name]) for name, found in packs().items())


def test_what_a_fit_cannot_start_from(at):
    more = ["--continue", "true"]
    refused("packs/hi/pack.yaml: adapter_conf is {'bottleneck': 4}", *more, "--adapter_conf", "bottleneck=8")
    assert not Path("exp/mms/fit_hi_te").exists()
    rewrite(Path("exp/mms/packs/hi"), backbone_sha256="0" * 64)
    refused("packs/hi/pack.yaml: backbone_sha256", *more)
    assert not Path("exp/mms/fit_hi_te").exists()


def test_another_pack_comes_while_a_fit_is_under_way(at, monkeypatch):
    def die(*given):
        raise PelasrError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "keep_started", die)
        refused("killed", "--continue", "true")
    rewrite(Path("exp/mms/packs/hi"), training={"seed": 1})
    refused("packs/hi: no fit here has made it, and this one would overwrite it: delete exp/mms/fit_hi_te, or")
