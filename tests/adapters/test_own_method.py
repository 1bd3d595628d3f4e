"""A method of a recipe's own, as docs/methods.md shows it, from the file to hypotheses, with nothing else touched."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from method_pages import blocks, write_methods
from tiny_exp import RNNT
from tiny_pretrained import CONV
from warm import Warm

from pelasr.backbones.base import build_backbone
from pelasr.backbones.store import describe_backbone
from pelasr.data.tokenizer import SPECIAL, Tokenizer
from pelasr.storage import load_weights, read_description, save_weights

ROOT = Path(__file__).parents[2]
LANGUAGES = ["hi", "ta", "ur"]


CONFORMER = {"output_size": 8, "attention_heads": 2, "linear_units": 8, "num_blocks": 2, "cnn_module_kernel": 3}
DECODER = {"attention_heads": 2, "linear_units": 8, "num_blocks": 1}
FAMILIES = {  # family and options
    "rnnt": ("rnnt", {**RNNT, "num_mels": 80}),
    "rnnt conformer": ("rnnt", {**RNNT, "num_mels": 80, "encoder": "conformer", "encoder_conf": CONFORMER}),
    "st": ("st", {"encoder": "conformer", "encoder_conf": CONFORMER, "decoder_conf": DECODER}),
    "ctc": ("ctc", {"encoder": "conformer", "encoder_conf": CONFORMER}),
    "hubert": ("ctc", {"encoder": "hubert", "encoder_conf": CONV, "objective": "none"}),
}


def make_recipe(folder: Path, prepared: Path, family: str) -> Path:
    """A recipe after stage 4, with a backbone of random weights; the method and its configuration are the page's."""
    for name in ("data", *(["dump"] if family != "hubert" else [])):
        (folder / name).symlink_to(prepared / name)
    shutil.copytree(prepared / "exp", folder / "exp")
    tokens, (name, options) = folder / "exp/tokens", FAMILIES[family]
    if family == "hubert":
        Tokenizer(SPECIAL).save(tokens := folder / "exp/A1/tokens")
    torch.manual_seed(0)
    module = build_backbone(name, options, len(Tokenizer.load(tokens).tokens), len(LANGUAGES))
    save_weights(folder / "exp/A1/backbone.safetensors", module.state_dict())
    describe_backbone(folder / "exp/A1", name, options, LANGUAGES, tokens, {})
    (folder / "conf").mkdir()
    (folder / "conf/experiments.yaml").write_text("A1: {}\nA5: {adapt: A1}\n")
    (folder / "conf/ia3.yaml").write_text(next(block for block in blocks("yaml") if block.startswith("adapter: ia3")))
    write_methods(folder)
    return folder


def run(warm: Warm, recipe: Path, verb: str, *more: str) -> str:
    command = [*warm.command, verb, "--langs", " ".join(LANGUAGES), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=recipe, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_the_method_of_the_page(family, prepared, tmp_path, warm):
    """From the file to hypotheses, on every family."""
    recipe = make_recipe(tmp_path, prepared, family)
    if family == "hubert":  # which hears the audio itself
        (recipe / "conf/hubert.yaml").write_text(yaml.safe_dump({"backbone": "ctc", **FAMILIES[family][1]}))
        run(warm, recipe, "stats", "--config", "conf/hubert.yaml")
    # An output layer of zeros, which each language has there, lets no gradient through at first.
    more = ["--max_epoch", "6"] if family == "hubert" else []
    run(warm, recipe, "adapt", "--exp", "A5", "--adapter", "conf/ia3.yaml", *more)
    for language in LANGUAGES:
        pack = recipe / "exp/A5/packs" / language
        assert read_description(pack / "pack.yaml", "")["adapter"] == "ia3"
        tensors = {name: tensor for name, tensor in load_weights(pack / "pack.safetensors").items() if "scale" in name}
        assert len(tensors) >= 2 and all(tensor.any() for tensor in tensors.values())
        assert all(re.fullmatch(r"encoder\..*(layers|encoders)\.\d/scale", name) for name in tensors)
    run(warm, recipe, "decode", "--exp", "A5", "--sets", "test")
    texts = [recipe / f"exp/A5/decode/test_{language}/text" for language in LANGUAGES]
    assert all(len(path.read_text().splitlines()) > 1 for path in texts)


def test_methods_of_the_page_are_short():
    assert all(len(block.splitlines()) <= 30 for block in blocks("python"))


def test_an_unknown_method_lists_those_of_the_recipe(prepared, tmp_path, warm):
    recipe = make_recipe(tmp_path, prepared, "rnnt")
    (recipe / "conf/ia3.yaml").write_text("adapter: ia4\n")
    with pytest.raises(AssertionError, match="adapter: no method 'ia4'; did you mean 'ia3'.*known: .*ia3.*prompt"):
        run(warm, recipe, "adapt", "--exp", "A5", "--adapter", "conf/ia3.yaml")
