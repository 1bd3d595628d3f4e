"""A pretrained encoder from a folder, as a recipe's stages use it: packs, a new language, tables, transcripts."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tiny_pretrained import save_model

import pelasr
from pelasr.backbones.format import read_backbone
from pelasr.backbones.store import load_backbone
from pelasr.errors import PelasrError
from pelasr.files import sha256_file
from pelasr.packs.format import read_checked
from pelasr.score.results import read_results
from pelasr.stages.settings import configured_backbone, split_options

ROOT = Path(__file__).parents[2]
LANGS = ["--langs", "hi ta"]
CONFIG = ["--config", ROOT / "conf/ssl_ctc.yaml"]
EXPERIMENTS = ["--experiments", ROOT / "conf/experiments/ssl_ctc.yaml"]
ADAPTER = ["--adapter", ROOT / "conf/adapter/houlsby_mini.yaml"]
SHORT = ["--max_epoch", "2", "--num_workers", "0", "--batch_size", "4", "--warmup_steps", "1"]


@pytest.fixture(scope="module")
def run(warm, tmp_path_factory, prepared):
    """Type a verb in a folder with prepared data and a tiny WavLM in `wavlm`."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree(prepared / "data", folder / "data", symlinks=True)
    shutil.copytree(prepared / "exp/tokens", folder / "exp/tokens")
    save_model("wavlm", folder / "wavlm")

    def run(*words: object, code: int = 0) -> str:
        done = subprocess.run([*warm.command, *map(str, words)], cwd=folder, capture_output=True, text=True)
        assert done.returncode == code, done.stderr[-3000:]
        return done.stdout + done.stderr

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def trained(run) -> Path:
    """The folder after stages 3 to 7 with S1 and S2, and Urdu as a language that comes later."""
    model = ["--model", "wavlm"]
    run("stats", *LANGS, *CONFIG, *model, "--nj", "1")
    found = run("train", *LANGS, *EXPERIMENTS, *CONFIG, *model, "--exp", "S1")
    assert "taken as they are" in found
    for name in ("S1", "S2"):
        run("adapt", *LANGS, *EXPERIMENTS, *ADAPTER, "--exp", name, *SHORT)
        run("decode", *LANGS, *EXPERIMENTS, "--exp", name)
    run("add", *LANGS, *CONFIG, *model, "--fit_langs", "ur", "--nj", "1")
    run("adapt", *LANGS, *EXPERIMENTS, *ADAPTER, "--exp", "S2", "--fit_langs", "ur", *SHORT)
    run("decode", *LANGS, *EXPERIMENTS, "--exp", "S2", "--fit_langs", "ur")
    run("score", *LANGS, *EXPERIMENTS, "--exps", "S1 S2", "--recipe", "tiny")
    return run.folder


def test_the_backbone_is_the_folder_as_it_is(trained):
    description = read_backbone(trained / "exp/P")
    assert description.options["encoder"] == "wavlm"
    assert description.hears == {"name": "waveform", "normalise": False}
    assert not list((trained / "dump").rglob("*.ark"))
    assert not (trained / "exp/stats.npz").exists()


def test_done_is_not_done_again_and_another_model_is_refused(trained, run):
    again = run("train", *LANGS, *EXPERIMENTS, *CONFIG, "--model", "wavlm", "--exp", "S1")
    assert "is trained already" in again
    shutil.copytree(trained / "wavlm", trained / "other")
    weights = trained / "other/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = b"\0\0\0\0"
    weights.write_bytes(content)
    refused = run("train", *LANGS, *EXPERIMENTS, *CONFIG, "--model", "other", "--exp", "S1", code=1)
    assert "exp/P holds a run with other settings (model: " in refused


def test_every_language_is_a_pack(trained):
    for language in ("hi", "ta", "ur"):
        pack = read_checked(trained / f"exp/S2/packs/{language}/pack.yaml")
        assert pack.adapter == "houlsby" and len(pack.own_tokens) > 20
    assert read_checked(trained / "exp/S1/packs/hi/pack.yaml").sites == {}


def test_the_new_language_changed_nothing(trained, run):
    before = {path: sha256_file(path) for path in trained.glob("exp/S2/packs/*/pack.safetensors")}
    run("adapt", *LANGS, *EXPERIMENTS, *ADAPTER, "--exp", "S2", "--fit_langs", "hi ta ur", *SHORT)
    assert before == {path: sha256_file(path) for path in trained.glob("exp/S2/packs/*/pack.safetensors")}


def test_results_have_all(trained):
    lines = list(read_results(trained / "exp/results.jsonl"))
    found = {(line["experiment"], line["language"]) for line in lines if line["metric"] == "cer"}
    assert found == {(name, x) for name in ("S1", "S2") for x in ("hi", "ta", "mean")} | {("S2", "ur")}


def test_languages_are_transcribed_together(trained, run):
    audio = [str(next((trained / "data/wav" / language).rglob("*.wav"))) for language in ("hi", "ur")]
    model = pelasr.load(trained / "exp/S2")
    mixed = model.decode(audio, ["hi", "ur"])
    assert mixed == [model.decode([name], [language])[0] for name, language in zip(audio, ("hi", "ur"), strict=True)]
    printed = run("transcribe", audio[0], "--model", "exp/S2", "--lang", "hi")
    assert printed.startswith(f"{audio[0]}")
    assert model.decode(audio, ["hi", "ur"], beam_size=4)


def test_without_a_pack_it_says_so(trained, run):
    audio = str(next((trained / "data/wav/hi").rglob("*.wav")))
    said = run("transcribe", audio, "--model", "exp/P", "--lang", "hi", code=1)
    assert "no output layer, each language's pack has one" in said


def test_python_fits_a_language(trained, monkeypatch):
    monkeypatch.chdir(trained)
    model = pelasr.load(trained / "exp/S1")
    model.add_language("ur", "lora", rank=2, sites=["q", "v"])
    data = {name: trained / f"data/{name}_ur" for name in ("train", "dev")}
    scores = model.fit("ur", **data, folder=trained / "fitted", max_epoch=1, batch_size=4, warmup_steps=1)
    assert scores["loss"] > 0
    assert len(model.decode([next((trained / "data/wav/ur").rglob("*.wav"))], "ur")) == 1


def test_fine_tuning_with_shared_tokens(trained, run):
    """`objective: ctc`: the pretrained encoder is trained on all languages' texts, its convolutions are not."""
    (trained / "shared.yaml").write_text("A: {objective: ctc, layers: last, max_epoch: 1, batch_size: 4}\n")
    words = [*LANGS, "--experiments", "shared.yaml", *CONFIG, "--model", "wavlm", "--exp", "A"]
    run("train", *words, "--specaug_conf", "mask_time_prob=0.1")
    before, after = (load_backbone(trained / "exp" / name).module.state_dict() for name in ("P", "A"))
    same = {name for name in before if name in after and bool((before[name] == after[name]).all())}
    assert {name for name in before if name.startswith("frontend.")} <= same
    assert not any(name.endswith("q_proj.weight") for name in same)
    assert "ctc.weight" in after


def test_a_recipe_takes_the_configurations_experiments(tmp_path):
    def verbs(*options: str) -> dict[str, dict[str, str]]:
        command = ["bash", str(ROOT / "egs/mini_indic/asr1/run.sh"), "--dry_run", "true", *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = [shlex.split(line) for line in done.stdout.splitlines()]
        install = next(words for words in lines if words[0].endswith("install.sh"))
        assert ("hf" in install[1].split(",")) == ("--config" in options)
        given = [words for words in lines if words[0] == "pelasr"]
        return {verb: dict(zip(words[::2], words[1::2], strict=True)) for _, verb, *words in given}

    found = verbs("--config", str(ROOT / "conf/ssl_ctc.yaml"), "--model", "wavlm")
    assert found["train"]["--model"] == str(tmp_path / "wavlm")
    assert found["stats"]["--model"] == str(tmp_path / "wavlm")
    assert found["score"]["--exps"].split() == ["S1", "S2"]
    assert found["train"]["--exp_dir"] == "exp/ssl_ctc"
    assert found["train"]["--experiments"].endswith("conf/experiments/ssl_ctc.yaml")
    mine = verbs("--config", str(ROOT / "conf/ssl_mini.yaml"), "--exps", "S1", "--exp_dir", "mine")
    assert (mine["score"]["--exps"], mine["train"]["--exp_dir"]) == ("S1", str(tmp_path / "mine"))
    assert verbs()["train"]["--exp_dir"] == "exp"


def test_what_a_model_says_counts_unless_the_configuration_does(trained, monkeypatch):
    monkeypatch.chdir(trained)
    config = {**yaml.safe_load(CONFIG[1].read_text()), "model": "wavlm"}
    assert configured_backbone(config).encoder.num_layers == 3
    own = split_options(config | {"encoder_conf": {"layerdrop": 0.25}, "normalise": True}, "x").options
    assert (own["encoder_conf"]["layerdrop"], own["encoder_conf"]["hidden_size"], own["normalise"]) == (0.25, 32, True)
    with pytest.raises(PelasrError, match="wavlm is a wavlm, the configuration says 'hubert'"):
        split_options(config | {"encoder": "hubert"}, "x")
    with pytest.raises(PelasrError, match="x: model: of which pretrained encoder. Name its folder with --model DIR"):
        split_options(yaml.safe_load(CONFIG[1].read_text()), "x")
    with pytest.raises(PelasrError, match="goes into the backbone `ctc`, not 'rnnt'"):
        split_options({"backbone": "rnnt", "model": "wavlm"}, "x")
