"""The model card: what a hub reads of it, and that what it tells to run runs."""

import re
from dataclasses import replace

import pytest
import soundfile
import yaml
from tiny_exp import make_exp
from tiny_speech import RATE, make_recogniser, noise

from pelasr.packs.card import dev_score, figures_of, make_card
from pelasr.packs.pack import read_pack
from pelasr.tasks.base import task_of

FIGURE = {
    "set": "test",
    "task": "translation",
    "metric": "bleu",
    "value": 30.0,
    "lo": 28.0,
    "hi": 32.0,
    "utterances": 100,
    "scorer": "s|1",
}


@pytest.fixture
def exp(tmp_path):
    return make_exp(tmp_path / "exp")


def head(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_head_and_facts(exp):
    pack = read_pack(exp / "A5/packs/uk")
    card = make_card(pack, [], task_of)
    assert card.startswith("---\nlanguage:\n- uk\n")
    assert head(card) == {
        "language": ["uk"],
        "library_name": "pelasr",
        "tags": ["automatic-speech-recognition", "multilingual", "adapter", "houlsby"],
    }
    for row in (
        "| method | houlsby (bottleneck: 4) |",
        "| parameters | 169 |",
        "| tokens of its own | 2 |",
        "| training data | 1.25 h, 1,200 utterances |",
        "| dev data | wer 12.50 |",
        f"| backbone, sha256 of its tensors | `{pack.backbone_sha256}` |",
    ):
        assert row in card.splitlines()
    assert "No test figures came with this pack." in card
    assert make_card(pack, [], task_of) == card


def test_pairs_variants_and_figures(exp):
    pack = read_pack(exp / "A5/packs/hi")
    assert head(make_card(replace(pack, language="en-de"), [], task_of))["language"] == ["en", "de"]
    assert head(make_card(replace(pack, language="en-de"), [], task_of))["tags"][0] == "speech-translation"
    assert head(make_card(replace(pack, language="zh.Hant-pa_Guru"), [], task_of))["language"] == ["zh", "pa"]
    card = make_card(pack, [FIGURE], task_of)
    assert "| test | BLEU | 30.00 | 28.00 to 32.00 | 100 | s\\|1 |" in card


def test_what_is_not_known_is_not_claimed(exp):
    pack = replace(read_pack(exp / "A5/packs/hi"), training={})
    card = make_card(pack, [], task_of)
    assert "| training data | not recorded |" in card and "| dev data | not recorded |" in card
    merged = [{"language": "hi", "weight": 0.25}, {"language": "ur", "weight": 0.75}]
    assert "| average of | ur, weight 0.750 |" in make_card(replace(pack, training={"merged": merged}), [], task_of)
    assert dev_score(pack) == "" and dev_score(replace(pack, training={"dev": {"loss": 1.5}})) == "loss 1.50"


def test_a_pack_outside_an_experiment_has_no_figures(exp):
    assert figures_of(exp / "A5/packs/hi", read_pack(exp / "A5/packs/hi")) == []


def test_the_code_in_the_card_runs(monkeypatch, tmp_path):
    """On the pack's folder, at a model that does not have it, and audio in its language."""
    exp = make_recogniser(tmp_path / "exp").parent
    card = make_card(read_pack(exp / "A5/packs/uk"), [], task_of)
    (exp / "A5/packs/uk").rename(tmp_path / "uk")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("exp/NAME", str(exp / "A5"))
    monkeypatch.chdir(tmp_path)
    soundfile.write("talk.wav", noise(1.0), RATE)
    names = {}
    exec(code, names)
    assert "uk" in names["model"].languages and len(names["model"].decode(["talk.wav"], language="uk")) == 1
    commands = re.search(r"```sh\n(.*?)```", card, re.DOTALL)[1].splitlines()
    assert commands == ["pelasr packs verify --model exp/NAME uk", "pelasr packs import uk --model exp/NAME"]
