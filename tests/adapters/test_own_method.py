"""A method of a recipe's own, as docs/methods.md shows it, from the file to hypotheses, with nothing else touched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from method_pages import blocks, write_methods
from tiny_exp import RNNT

from pelasr.backbones.base import build_backbone
from pelasr.backbones.store import describe_backbone
from pelasr.data.tokenizer import Tokenizer
from pelasr.storage import load_weights, read_description, save_weights

ROOT = Path(__file__).parents[2]
LANGUAGES = ["hi", "ta", "ur"]


@pytest.fixture
def recipe(prepared, tmp_path) -> Path:
    """A recipe after stage 4, with a backbone of random weights; the method and its configuration are the page's."""
    for name in ("data", "dump"):
        (tmp_path / name).symlink_to(prepared / name)
    shutil.copytree(prepared / "exp", tmp_path / "exp")
    tokens, options = tmp_path / "exp/tokens", {**RNNT, "num_mels": 80}
    torch.manual_seed(0)
    module = build_backbone("rnnt", options, len(Tokenizer.load(tokens).tokens), len(LANGUAGES))
    save_weights(tmp_path / "exp/A1/backbone.safetensors", module.state_dict())
    describe_backbone(tmp_path / "exp/A1", "rnnt", options, LANGUAGES, tokens, {})
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/experiments.yaml").write_text("A1: {}\nA5: {adapt: A1}\n")
    (tmp_path / "conf/ia3.yaml").write_text(next(block for block in blocks("yaml") if block.startswith("adapter: ia3")))
    write_methods(tmp_path)
    return tmp_path


def run(recipe: Path, verb: str, *more: str) -> str:
    command = [sys.executable, "-m", "pelasr", verb, "--langs", " ".join(LANGUAGES), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=recipe, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_method_of_the_page(recipe):
    run(recipe, "adapt", "--exp", "A5", "--adapter", "conf/ia3.yaml")
    for language in LANGUAGES:
        pack = recipe / "exp/A5/packs" / language
        assert read_description(pack / "pack.yaml", "")["adapter"] == "ia3"
        tensors = load_weights(pack / "pack.safetensors")
        assert set(tensors) == {"encoder.layers.0/scale", "encoder.layers.1/scale"}
        assert all(tensor.any() for tensor in tensors.values())
    run(recipe, "decode", "--exp", "A5", "--sets", "test")
    texts = [recipe / f"exp/A5/decode/test_{language}/text" for language in LANGUAGES]
    assert all(len(path.read_text().splitlines()) > 1 for path in texts)


def test_methods_of_the_page_are_short():
    assert all(len(block.splitlines()) <= 30 for block in blocks("python"))


def test_an_unknown_method_lists_those_of_the_recipe(recipe):
    (recipe / "conf/ia3.yaml").write_text("adapter: ia4\n")
    with pytest.raises(AssertionError, match="adapter: no method 'ia4'; did you mean 'ia3'.*known: .*ia3.*prefix"):
        run(recipe, "adapt", "--exp", "A5", "--adapter", "conf/ia3.yaml")
