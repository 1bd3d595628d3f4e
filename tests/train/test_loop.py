"""Training end to end on a corpus of seconds: resuming, several processes, what is not finite, what is refused."""

import json
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
from small_runs import SMALL, as_torchrun_does

from pelasr.data.features import INDEX, marker_of, read_feats, write_archive
from pelasr.done import Marker
from pelasr.storage import state_sha256
from pelasr.train.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
LANGS = "hi ta ur"
ADAPTER = {"adapter": "houlsby", "adapter_conf": {"bottleneck": 4}, "max_epoch": 2, "batch_size": 6, "warmup_steps": 2}


@pytest.fixture(scope="module")
def recipe(prepared, tmp_path_factory) -> Path:
    """A folder with prepared data of three languages and configurations of a tiny model."""
    folder = tmp_path_factory.mktemp("recipe")
    for name in ("data", "dump"):
        (folder / name).symlink_to(prepared / name)
    mini = yaml.safe_load((ROOT / "conf/rnnt_mini.yaml").read_text(encoding="utf-8"))
    (folder / "backbone.yaml").write_text(yaml.safe_dump({**mini, **SMALL}), encoding="utf-8")
    (folder / "adapter.yaml").write_text(yaml.safe_dump(ADAPTER), encoding="utf-8")
    (folder / "experiments.yaml").write_text("A1: {}\nA5: {adapt: A1}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def start(warm, recipe) -> Callable[..., subprocess.Popen]:
    """Start one stage in processes of its own, in an experiments folder that has the tokens and statistics."""

    def start(exp: str, verb: str, *more: str, folder: Path = recipe, **environment: str) -> subprocess.Popen:
        if not (folder / exp).exists():
            shutil.copytree((folder / "data").resolve().parent / "exp", folder / exp)
        which = ["--config", "backbone.yaml"] if verb == "train" else ["--adapter", "adapter.yaml"]
        words = [verb, "--langs", LANGS, "--exp_dir", exp, "--experiments", "experiments.yaml", *which, *more]
        words += ["--exp", "A1" if verb == "train" else "A5"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*warm.command, *words], cwd=folder, env=os.environ | environment, **pipes)

    return start


@pytest.fixture(scope="module")
def run(start) -> Callable[..., tuple[str, str]]:
    """Run one stage to its end, in two processes with `together`; what it printed on stdout and stderr."""

    def run(*what: str, together: bool = False, code: int = 0, **more: Any) -> tuple[str, str]:
        ranks = as_torchrun_does() if together else [{}]
        started = [start(*what, **more, **environment) for environment in ranks]
        printed = [process.communicate() for process in started]
        assert all(process.returncode == code for process in started), printed[0][1][-3000:]
        return printed[0]

    return run


def weights(recipe: Path, exp: str) -> dict[str, torch.Tensor]:
    return load_file(recipe / exp / "A1/backbone.safetensors")


@pytest.fixture(scope="module")
def trained(recipe, run) -> Path:
    """The recipe after an uninterrupted run of stages 4 and 5 in `exp`."""
    run("exp", "train")
    run("exp", "adapt")
    return recipe


def test_same_seed_same_bytes_another_seed_not(trained, run):
    run("again", "train")
    run("other", "train", "--seed", "1")
    assert state_sha256(weights(trained, "again")) == state_sha256(weights(trained, "exp"))
    assert state_sha256(weights(trained, "other")) != state_sha256(weights(trained, "exp"))


def test_killed_in_mid_training_and_continued_ends_with_the_same_weights(trained, start, run):
    checkpoint = trained / "killed/A1/last.ckpt"
    for kills in range(3):
        process = start("killed", "train", "--checkpoint_seconds", "0")
        seen = set()
        while len(seen) < 4 and process.poll() is None:  # the fourth checkpoint of this process is in mid-epoch
            if checkpoint.exists():
                seen.add(checkpoint.stat().st_mtime_ns)
            time.sleep(0.001)
        process.kill()
        errors = process.communicate()[1]
        assert kills == 0 or "going on after epoch" in errors
    place = load_checkpoint(checkpoint)["place"]
    assert 0 < place["step"] < 18
    run("killed", "train", "--checkpoint_seconds", "0")
    assert state_sha256(weights(trained, "killed")) == state_sha256(weights(trained, "exp"))
    histories = [(trained / exp / "A1/history.json").read_text(encoding="utf-8") for exp in ("killed", "exp")]
    assert histories[0] == histories[1]


def test_two_processes_train_as_one(trained, run):
    run("two", "train", "--specaug_conf", "null", together=True)
    run("one", "train", "--specaug_conf", "null")
    one, two = weights(trained, "one"), weights(trained, "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-5, rtol=1e-3, msg=name)
    run("two", "adapt", together=True)
    run("one", "adapt")
    history = [json.loads((trained / exp / "A5/fit_hi_ta_ur/history.json").read_text()) for exp in ("one", "two")]
    for a, b in zip(*history, strict=True):
        for language in LANGS.split():
            assert a["dev"][language]["loss"] == pytest.approx(b["dev"][language]["loss"], rel=1e-3)


def test_a_batch_without_a_language_in_one_process(trained, run):
    """Batches of two over two processes: a process has one language, the other another."""
    shutil.copytree(trained / "exp", trained / "exp2")
    run("exp", "adapt", "--batch_size", "2", "--max_epoch", "1", "--only", "hi ur", together=True)
    for language in ("hi", "ur"):
        pack = load_file(trained / f"exp/A5/packs/{language}/pack.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in pack.values())
    run("exp2", "adapt", "--batch_size", "2", "--max_epoch", "1", "--only", "hi ur")
    for language in ("hi", "ur"):
        one, two = (load_file(trained / f"{exp}/A5/packs/{language}/pack.safetensors") for exp in ("exp2", "exp"))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-3, msg=name)


def test_adapters_leave_the_backbone_and_are_bound_to_it(trained):
    before = state_sha256(weights(trained, "exp"))
    pack = yaml.safe_load((trained / "exp/A5/packs/ta/pack.yaml").read_text(encoding="utf-8"))
    assert pack["backbone_sha256"] == before and pack["language"] == "ta"


def test_each_language_keeps_its_own_best_snapshot(trained):
    history = json.loads((trained / "exp/A5/fit_hi_ta_ur/history.json").read_text(encoding="utf-8"))
    for language in LANGS.split():
        best = min(history, key=lambda entry: (entry["dev"][language]["wer"], entry["dev"][language]["loss"]))
        pack = yaml.safe_load((trained / f"exp/A5/packs/{language}/pack.yaml").read_text(encoding="utf-8"))
        if language == "ta":  # the others may have been fitted again by another test
            assert pack["training"]["epoch"] == best["epoch"]


def test_finished_work_is_skipped_and_other_settings_are_refused(trained, run):
    stamp = (trained / "exp/A1/backbone.safetensors").stat().st_mtime_ns
    assert "trained already" in run("exp", "train")[0]
    assert (trained / "exp/A1/backbone.safetensors").stat().st_mtime_ns == stamp
    _, refused = run("exp", "train", "--max_epoch", "4", code=1)
    assert "max_epoch: 3 -> 4" in refused and "Traceback" not in refused


def test_a_truncated_checkpoint_says_what_to_do(trained, run):
    run("truncated", "train", "--max_epoch", "1")
    folder = trained / "truncated/A1"
    Marker(folder / "train.json", json.loads((folder / "train.json").read_text())["inputs"]).write(done=False)
    (folder / "last.ckpt").write_bytes(b"PK\x03\x04")
    _, failed = run("truncated", "train", "--max_epoch", "1", code=1)
    assert "last.ckpt: cannot go on from it" in failed and "Traceback" not in failed


def test_what_is_not_finite_stops_with_the_utterance_and_never_enters_the_weights(recipe, tmp_path, run):
    folder = tmp_path
    for name in ("data", "backbone.yaml", "experiments.yaml"):
        (folder / name).symlink_to((recipe / name).resolve())
    shutil.copytree((recipe / "dump").resolve(), folder / "dump")
    dump = folder / "dump/train_ur"
    feats = {name: np.array(found.load()) for name, found in read_feats(dump).items()}
    bad = sorted(feats)[3]
    feats[bad][5] = np.nan
    write_archive(dump, feats.items())
    made = [dump / file for file in ("feats.ark", *INDEX)]
    marker_of(folder / "data/train_ur", dump).write(done=True, outputs=made)
    _, stopped = run("exp", "train", "--max_skips", "2", code=1, folder=folder)
    assert f"not finite (loss) in {bad}" in stopped and "2 steps were skipped" in stopped
    state = load_checkpoint(folder / "exp/A1/last.ckpt")["trained"]
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
