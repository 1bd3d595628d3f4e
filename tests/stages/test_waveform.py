"""A family that hears the waveform, through all stages: an index of the audio, and neither features nor statistics."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import waveform_family
from safetensors.torch import load_file
from tiny_data import TRAINING, write_set
from tiny_speech import noise

import pelasr
from pelasr.backbones.format import read_backbone
from pelasr.cli.main import main
from pelasr.data.hears import Waveform
from pelasr.score.results import read_results

LANGS = ["--langs", "hi"]
CONFIG = ["--config", "conf/wave.yaml"]
EXPERIMENTS = "A1: {description: a backbone}\nA2: {description: the same}\nA5: {description: adapters, adapt: A1}\n"


def write_yaml(path: Path, content: dict) -> None:
    path.write_text("".join(f"{key}: {value}\n" for key, value in content.items()))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe's folder after stages 1 to 7."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "local/backbones").mkdir(parents=True)
    shutil.copy(waveform_family.__file__, folder / "local/backbones/wave.py")
    (folder / "conf").mkdir()
    (folder / "conf/experiments.yaml").write_text(EXPERIMENTS)
    write_yaml(folder / "conf/wave.yaml", {"backbone": "wave", **TRAINING})
    write_yaml(folder / "conf/houlsby.yaml", {"adapter": "houlsby", "adapter_conf": {"bottleneck": 2}, **TRAINING})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed, (name, count) in enumerate((("train", 6), ("dev", 2), ("test", 3))):
            write_set(Path(f"data/{name}_hi"), "hi", count, seed=10 * seed)
        main(["data", *LANGS, *CONFIG, "--nj", "1"])
        main(["tokens", *LANGS])
        main(["stats", *LANGS, *CONFIG, "--nj", "1"])
        main(["train", *LANGS, *CONFIG, "--exp", "A1"])
        main(["adapt", *LANGS, "--adapter", "conf/houlsby.yaml", "--exp", "A5"])
        main(["decode", *LANGS, "--exp", "A5"])
        main(["score", *LANGS, "--exps", "A5", "--recipe", "wave"])
    return folder


@pytest.fixture
def at(recipe, tmp_path, monkeypatch) -> Path:
    """A copy, gone to."""
    shutil.copytree(recipe, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_stage_3_does_what_is_needed(recipe, capsys, monkeypatch):
    monkeypatch.chdir(recipe)
    for name in ("train", "dev", "test"):
        assert {path.name for path in (recipe / f"dump/{name}_hi").iterdir()} == {"utt2audio", "audio.json"}
    assert not (recipe / "exp/stats.npz").exists()
    first = (recipe / "dump/test_hi/utt2audio").read_text().splitlines()[1].split()
    assert first[:2] == ["u1", str(round(1.1 * 16000))]
    main(["stats", *LANGS, *CONFIG])
    assert "the index of the audio is made already" in capsys.readouterr().out


def test_what_it_hears_is_written_down(recipe):
    assert read_backbone(recipe / "exp/A1").heard == Waveform(True)
    assert {line["metric"] for line in read_results(recipe / "exp/results.jsonl")} >= {"wer", "cer"}
    assert read_backbone(recipe / "exp/A1").training["hours"] == pytest.approx(7.5 / 3600, abs=1e-4)


def test_decoded_from_files_as_in_stage_6(recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    lines = (recipe / "exp/A5/decode/test_hi/text").read_text(encoding="utf-8").splitlines()
    model = pelasr.load("exp/A5")
    model._described.clear()
    assert model.decode([f"data/test_hi/{n}.wav" for n in range(3)], "hi") == [line.partition(" ")[2] for line in lines]
    assert model.decode([noise(0.024), noise(45.0)], "hi")[0] == ""


def test_workers_change_nothing(at):
    main(["train", *LANGS, *CONFIG, "--exp", "A2", "--num_workers", "2"])
    one, other = (load_file(at / f"exp/{name}/backbone.safetensors") for name in ("A1", "A2"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_new_language(recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(recipe)
    for name in ("train", "dev"):
        write_set(tmp_path / name, "uk", 2, ["ab"])
    model = pelasr.load("exp/A5")
    model.add_language("uk", bottleneck=2)
    model.fit("uk", tmp_path / "train", tmp_path / "dev", folder=tmp_path / "fit", **TRAINING)
    assert isinstance(model.decode([noise(1.0)], "uk")[0], str)
    assert not (tmp_path / "fit/stats.npz").exists()


@pytest.mark.parametrize("damage", ["gone", "cut", "replaced", "not finite"])
def test_audio_that_changed_is_named(at, damage):
    """Where stage 3 has seen it as it was; what is written in its place is refused at the first stage that reads it."""
    path = at / "data/test_hi/1.wav"
    samples = {"cut": noise(0.5), "replaced": noise(1.1, 99), "not finite": np.full(17600, np.nan, np.float32)}
    shutil.rmtree(at / "exp/A5/decode")
    path.unlink()
    if damage != "gone":
        soundfile.write(path, samples[damage], 16000, subtype="FLOAT")
    wanted = "utterance u1: .*1.wav: no such audio file" if damage == "gone" else "not of data/test_hi as it is; run"
    with pytest.raises(SystemExit, match=wanted):
        main(["decode", *LANGS, "--exp", "A5"])
