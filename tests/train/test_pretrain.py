"""Pretraining on audio, and fits on the frozen encoder, end to end on a corpus of seconds: the same after kills, and by
two processes."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_runs import as_torchrun_does
from tiny_pretrained import CONV

from pelasr.backbones.store import load_backbone
from pelasr.data.hears import LogMel
from pelasr.errors import PelasrError
from pelasr.packs.pack import load_bank
from pelasr.storage import state_sha256
from pelasr.train.checkpoint import load_checkpoint
from pelasr.train.monitor import read_history
from pelasr.train.units import make_units, mfcc

LANGS = "hi ta ur"
CONFIG = {
    "backbone": "ctc",
    "encoder": "hubert",
    "encoder_conf": {**CONV, "layerdrop": 0.3, "hidden_dropout": 0.1},
    "objective": "masked",
    "layers": "sum",
    "train_frontend": True,
    "num_clusters": 8,
    "mask_length": 4,
    "unmasked_weight": 0.5,
    "max_epoch": 2,
    "batch_size": 6,
    "warmup_steps": 2,
}
ADAPTER = {"adapter": "houlsby", "adapter_conf": {"bottleneck": 4}, "max_epoch": 2, "batch_size": 6, "warmup_steps": 2}
ADAPTER |= {"specaug_conf": {"mask_time_prob": 0.2, "mask_feature_prob": 0.1}, "optim_conf": {"lr": 0.01}}
STILL = ["--encoder_conf", "layerdrop=0.0", "hidden_dropout=0.0", "attention_dropout=0.0", "activation_dropout=0.0"]
STILL += ["feat_proj_dropout=0.0"]


@pytest.fixture(scope="module")
def recipe(prepared, tmp_path_factory, warm) -> Path:
    """A folder with prepared data of three languages, an index of their audio, and configurations of a tiny encoder."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "data").symlink_to(prepared / "data")
    (folder / "ssl.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    (folder / "adapter.yaml").write_text(yaml.safe_dump(ADAPTER), encoding="utf-8")
    (folder / "experiments.yaml").write_text("P: {}\nS2: {adapt: P}\n", encoding="utf-8")
    stats = ["stats", "--langs", LANGS, "--config", "ssl.yaml", "--sets", "train dev", "--nj", "1"]
    subprocess.run([*warm.command, *stats], cwd=folder, check=True, capture_output=True)
    assert not list((folder / "dump").rglob("*.ark"))
    assert not (folder / "exp/stats.npz").exists()
    return folder


@pytest.fixture(scope="module")
def start(warm, recipe) -> Callable[..., subprocess.Popen]:
    """Start one stage in a process of its own, in an experiments folder that has the tokens."""

    def start(exp: str, verb: str, *more: str, **environment: str) -> subprocess.Popen:
        if not (recipe / exp).exists():
            shutil.copytree((recipe / "data").resolve().parent / "exp", recipe / exp)
        which = ["--config", "ssl.yaml"] if verb == "train" else ["--adapter", "adapter.yaml"]
        words = [verb, "--langs", LANGS, "--exp_dir", exp, "--experiments", "experiments.yaml", *which, *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [*warm.command, *words, "--exp", "S2"]
        return subprocess.Popen(command, cwd=recipe, env=os.environ | environment, **pipes)

    return start


@pytest.fixture(scope="module")
def run(start) -> Callable[..., str]:
    """Run one stage to its end, in two processes with `together`; what it printed on stderr."""

    def run(*what: str, together: bool = False) -> str:
        started = [start(*what, **environment) for environment in (as_torchrun_does() if together else [{}])]
        printed = [process.communicate()[1] for process in started]
        assert all(process.returncode == 0 for process in started), printed[0][-3000:]
        return printed[0]

    return run


@pytest.fixture(scope="module")
def trained(recipe, run) -> Path:
    run("exp", "train")
    run("exp", "adapt")
    return recipe


def weights(recipe: Path, exp: str) -> dict[str, Any]:
    return load_file(recipe / exp / "P/backbone.safetensors")


def packs(recipe: Path, exp: str) -> dict[str, str]:
    return {x: state_sha256(load_file(recipe / exp / f"S2/packs/{x}/pack.safetensors")) for x in LANGS.split()}


def kill_and_go_on(folder: Path, start: Callable, run: Callable, verb: str) -> None:
    checkpoint = next((folder / "S2").glob("fit_*"), folder / "P") if verb == "adapt" else folder / "P"
    process, seen = start(folder.name, verb, *OFTEN[verb]), set()
    while len(seen) < 4 and process.poll() is None:
        for path in [*folder.glob("P/last.ckpt"), *folder.glob("S2/fit_*/last.ckpt")]:
            seen.add(path.stat().st_mtime_ns)
        time.sleep(0.001)
    process.kill()
    process.communicate()
    (checkpoint,) = [*folder.glob("P/last.ckpt"), *folder.glob("S2/fit_*/last.ckpt")]
    assert load_checkpoint(checkpoint)["place"]["step"] > 0
    assert "going on after epoch" in run(folder.name, verb, *OFTEN[verb])


OFTEN = {"train": ["--checkpoint_seconds", "0"], "adapt": ["--checkpoint_seconds", "0"]}


def test_killed_and_continued_ends_with_the_same_weights(trained, start, run):
    """What LayerDrop, dropout and masks draw is what they would have drawn."""
    shutil.copytree((trained / "data").resolve().parent / "exp", trained / "killed")
    kill_and_go_on(trained / "killed", start, run, "train")
    assert state_sha256(weights(trained, "killed")) == state_sha256(weights(trained, "exp"))
    kill_and_go_on(trained / "killed", start, run, "adapt")
    assert packs(trained, "killed") == packs(trained, "exp")


def test_two_processes_train_as_one(trained, run):
    run("two", "train", *STILL, together=True)
    run("one", "train", *STILL)
    one, two = weights(trained, "one"), weights(trained, "two")
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, atol=2e-3, rtol=2e-2, msg=lambda text, name=name: f"{name}: {text}"
        )
    scores = [read_history(trained / exp / "P")[-1]["mean"] for exp in ("one", "two")]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-3)


def test_it_learns(trained):
    history = read_history(trained / "exp/P")
    assert history[-1]["mean"]["loss"] < history[0]["mean"]["loss"]
    assert 0 <= history[-1]["mean"]["units"] <= 100


def test_languages_bring_output_layers(trained):
    backbone = load_backbone(trained / "exp/P")
    assert backbone.tokenizer.tokens == ["<blank>", "<unk>", "<sos/eos>"]
    bank = load_bank(trained / "exp/S2/packs", LANGS.split(), backbone)
    for language in LANGS.split():
        own = bank.own_of(language)
        assert own is not None
        assert own.at("ctc")["weight"].shape == (3 + len(own.tokens), 32)
        assert own.at("layer_sum")["weights"].shape == (4,)


class Sound:
    """In the place of an utterance's audio."""

    def __init__(self, samples: np.ndarray):
        self.samples, self.frames = samples, 1 + len(samples) // 160

    def load(self) -> np.ndarray:
        return self.samples[:, None]


class Spoken:
    def __init__(self, samples: np.ndarray):
        self.id, self.feats = "u", Sound(samples)


def tones(*pitches: float) -> np.ndarray:
    time_ = np.arange(8000) / 16000
    return np.concatenate([np.sin(2 * np.pi * pitch * time_) for pitch in pitches]).astype(np.float32)


def frames_of(samples: int) -> int:
    return (samples - 400) // 320 + 1


def test_units_tell_sounds_apart_and_are_kept(tmp_path):
    train = [Spoken(tones(300, 2500)), Spoken(tones(2500, 300))]
    dev = [Spoken(tones(300, 2500, 300))]
    path = tmp_path / "units.npz"
    units = make_units(path, train, dev, frames_of, 6, 0, "a")
    assert [len(each) for each in units] == [frames_of(16000), frames_of(16000), frames_of(24000)]
    low, high = units[0][5], units[0][-5]
    assert low != high
    assert units[1][5] == high and units[1][-5] == low
    assert [units[2][n] for n in (5, 37, -5)] == [low, high, low]
    before = path.stat().st_mtime_ns
    assert make_units(path, train, dev, frames_of, 6, 0, "a") == units
    assert path.stat().st_mtime_ns == before
    make_units(path, train, dev, frames_of, 6, 0, "another run")
    assert path.stat().st_mtime_ns != before


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_damaged_units_are_named(tmp_path, content):
    (tmp_path / "units.npz").write_bytes(content)
    with pytest.raises(PelasrError, match=r"units.npz: damaged \(.*\); delete it, and it is made again"):
        make_units(tmp_path / "units.npz", [Spoken(tones(300))], [], frames_of, 2, 0, "a")


def test_an_utterance_that_is_too_short_is_named(tmp_path):
    with pytest.raises(PelasrError, match="utterance u: 399 samples are too short for the encoder; cure: drop it"):
        make_units(tmp_path / "units.npz", [Spoken(tones(300)[:399])], [], frames_of, 2, 0, "a")


@pytest.mark.parametrize("samples", [400, 719, 720, 1039, 1040, 3210])
def test_every_frame_has_a_unit(samples):
    assert len(mfcc(tones(300)[:samples], frames_of(samples))) == frames_of(samples)
    assert len(mfcc(tones(300)[:samples], samples // 320 + 1)) == samples // 320 + 1  # of shorter kernels


def test_a_unit_is_of_the_middle_of_its_frame():
    """Encoder frame t is of the samples from 320 t to 320 t + 400, feature frame 2 t + 1 centred on 320 t + 160."""
    samples = np.random.default_rng(0).normal(size=3200).astype(np.float32)
    found = mfcc(samples, frames_of(3200))
    assert found.shape == (9, 39)
    assert len(LogMel(40)(samples)) == 21
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
