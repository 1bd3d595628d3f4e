"""Translation, all stages and a row of each kind, on a corpus in exactly the layout of MuST-C."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from must_c import make_must_c

from pelasr.data.kaldi import read_data_dir, write_data_dir
from pelasr.packs.pack import read_pack
from pelasr.score.results import KEYS, read_results

ROOT = Path(__file__).parents[2]
RUN = ROOT / "egs/must_c/st1/run.sh"
ROWS = ["1", "2", "3", "8"]
SMALL = {"max_epoch": 2, "batch_size": 8, "warmup_steps": 4, "optim_conf": {"lr": 0.002}}
CONFIG = {
    "backbone": "st",
    "encoder": "conformer",
    "encoder_conf": {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 16,
        "num_blocks": 1,
        "rel_pos_type": "latest",
        "cnn_module_kernel": 3,
    },
    "decoder_conf": {"attention_heads": 2, "linear_units": 16, "num_blocks": 1},
    "subsampler_conf": {"channels": 16},
    **SMALL,
}
EXPERIMENTS = {
    "asr": {"langs": "en", "token_type": "char", "ctc_weight": 1.0},
    1: {"each": True, "vocab_size": 32, "compare": 2},
    2: {"description": "multilingual"},
    3: {"adapt": 2, "adapter_conf": {"bottleneck": {"encoder": 0, "decoder": 4}}, "compare": 2},
    8: {"adapt": 2, "adapter": "full", "compare": 2},
}


@pytest.fixture(scope="module")
def run(warm) -> Callable[..., subprocess.CompletedProcess]:
    """Run the recipe in a folder that `prepare` has filled, with more options."""

    def run(folder: Path, *options: str) -> subprocess.CompletedProcess:
        places = [f"--{name}_dir={folder / name}" for name in ("data", "dump", "exp")]
        files = {"config": "st.yaml", "adapter": "houlsby.yaml", "experiments": "experiments.yaml"}
        files |= {"must_c": "must_c", "results": "RESULTS.md"}
        given = ["--langs", "en-de en-fr", "--vocab_size", "40", "--ngpu", "0", "--nj", "1", "--rows", " ".join(ROWS)]
        given += [f"--{name}={folder / file}" for name, file in files.items()]
        command = ["bash", str(RUN), *places, *given, *options]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | warm.environment)

    return run


def prepare(folder: Path) -> None:
    make_must_c(folder / "must_c", ["en-de", "en-fr"])
    houlsby = {"adapter": "houlsby", "adapter_conf": {"sites": "ffn", "bottleneck": 4}, **SMALL}
    files = {"st": CONFIG, "experiments": EXPERIMENTS, "houlsby": houlsby, "full": {"adapter": "full", **SMALL}}
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run) -> Path:
    folder = tmp_path_factory.mktemp("must_c")
    prepare(folder)
    done = run(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_row_has_its_figures(finished):
    results = read_results(finished / "exp/results.jsonl")
    assert all(list(line) == KEYS for line in results)
    found = {(line["experiment"], line["language"], line["metric"]) for line in results}
    for row in ROWS:
        for language in ("en-de", "en-fr", "mean"):
            assert {(row, language, "bleu"), (row, language, "chrf"), (row, language, "limited")} <= found
            assert ((row, language, "bleu_minus_2") in found) == (row != "2")
    signatures = {line["scorer"] for line in results if line["metric"] == "bleu"}
    assert len(signatures) == 1 and "tok:13a" in signatures.pop()
    page = (finished / "RESULTS.md").read_text(encoding="utf-8")
    assert "tst-COMMON" in page and "ACL" in page and (finished / "RESULTS.png").stat().st_size > 5000


def test_parameters_of_the_rows(finished):
    """Trained and in all: of a model for each pair, of one, of adapters, of parts of it and of all of it."""
    lines = read_results(finished / "exp/results.jsonl")
    count = {
        line["experiment"]: (line["trainable_parameters"], line["total_parameters"])
        for line in lines
        if line["metric"] == "bleu"
    }
    trained, whole = count["2"]
    assert trained == whole
    adapter = 2 * 16 * 4 + 4 + 3 * 16
    assert count["3"] == (2 * adapter, whole + 2 * adapter)
    assert count["8"] == (2 * whole, 2 * whole)
    assert count["1"][0] == count["1"][1] == 2 * (whole - 2 * 16 * (40 - 32))  # each with its own 32 tokens


def test_hypotheses_are_detokenised_text_without_tags(finished):
    for row in ROWS:
        for language in ("en-de", "en-fr"):
            folder = finished / f"exp/{row}/decode/test_{language}"
            ids = [line.split()[0] for line in (folder / "text").read_text(encoding="utf-8").splitlines()]
            wanted = (finished / f"data/test_{language}/text").read_text(encoding="utf-8").splitlines()
            assert ids == [line.split()[0] for line in wanted]
            text = (folder / "text").read_text(encoding="utf-8")
            assert "<" not in text and "▁" not in text and (folder / "limited").exists()


def test_packs_of_fine_tuning_are_models(finished):
    pack = read_pack(finished / "exp/8/packs/en-de")
    assert pack.adapter == "full" and pack.sites == {"encoder": 16, "decoder": 16}
    assert sorted(path.name for path in (finished / "exp/8").glob("fit_*")) == ["fit_en-de", "fit_en-fr"]
    assert sorted(path.name for path in (finished / "exp/1").glob("en-*")) == ["en-de", "en-fr"]


def test_encoders_start_from_recognition(finished):
    train = json.loads((finished / "exp/2/train.json").read_text())["inputs"]
    assert len(train["init"]) == 64
    assert "init" not in json.loads((finished / "exp/asr/train.json").read_text())["inputs"]
    history = json.loads((finished / "exp/asr/history.json").read_text())
    assert "wer" in history[-1]["mean"] and history[0]["dev"].keys() == {"en"}


def test_again_nothing_is_left_to_do(finished, run):
    stamps = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    again = run(finished)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("decode is made already") == len(ROWS)
    assert stamps == {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}


def test_bad_segments_stop_before_training_or_are_dropped(tmp_path, run):
    prepare(tmp_path)
    index = tmp_path / "must_c/en-de/data/train/txt/train.yaml"
    lines = index.read_text().splitlines()
    lines[2] = lines[2].replace("offset: ", "offset: 90")
    index.write_text("\n".join(lines) + "\n")
    text = tmp_path / "must_c/en-fr/data/dev/txt/dev.fr"
    text.write_text("\n" + "".join(text.read_text().splitlines(keepends=True)[1:]))
    refused = run(tmp_path, "--stop_stage", "1")
    assert refused.returncode != 0 and "train.yaml:3" in refused.stderr and "dev.fr:1" in refused.stderr
    assert not (tmp_path / "data").exists()
    done = run(tmp_path, "--stop_stage", "1", "--skip_bad", "true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "train.yaml:3" in (tmp_path / "data/train_en-de/skipped.txt").read_text()
    assert len((tmp_path / "data/dev_en-fr/text.fr").read_text().splitlines()) == 3


def test_an_unknown_pair(tmp_path, run):
    prepare(tmp_path)
    refused = run(tmp_path, "--langs", "en-de en-xx")
    assert refused.returncode != 0 and "en-xx" in refused.stderr and "en-de" in refused.stderr


def test_a_new_pair_from_folders_elsewhere(finished, run):
    """Another target comes later: its tag and its letters are its own; the old pairs' files are left alone."""
    for name in ("train", "dev", "test"):
        utterances = [
            replace(u, translations={"xx": f"ж {u.translations['de']}"})
            for u in read_data_dir(finished / f"data/{name}_en-de")
        ]
        write_data_dir(finished / f"elsewhere/{name}", utterances)
    old = sorted(finished.glob("exp/*/packs/*/pack.*")) + sorted(finished.glob("exp/*/decode/*/text"))
    before = {path: path.read_bytes() for path in old}
    folders = [part for n in ("train", "dev", "test") for part in (f"--{n}_dir", str(finished / f"elsewhere/{n}"))]
    done = run(finished, "--stage", "5", "--rows", "1 2 3 8", "--langs", "en-xx", "--tokens", "own", *folders)
    assert done.returncode == 0, done.stderr[-3000:]
    assert before == {path: path.read_bytes() for path in old}
    pack = read_pack(finished / "exp/3/packs/en-xx")
    assert pack.own_tokens[:2] == ["<lang:xx>", "ж"] and not pack.own_vector
    lines = [line for line in read_results(finished / "exp/results.jsonl") if line["language"] == "en-xx"]
    assert {line["experiment"] for line in lines if line["metric"] == "bleu"} == {"3", "8"}  # 1 and 2 have no tag
    assert "## Added later: en-xx" in (finished / "RESULTS.md").read_text(encoding="utf-8")
