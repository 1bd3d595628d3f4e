"""Where a model lies."""

import pytest
from tiny_exp import make_exp

from pelasr.errors import PelasrError
from pelasr.model import find_backbone_of


def test_backbones_and_experiments_with_packs(tmp_path):
    exp = make_exp(tmp_path)
    assert find_backbone_of(exp / "A1") == (exp / "A1", "backbone")
    folder, weights = find_backbone_of(exp / "A5")
    assert folder.resolve() == (exp / "A1").resolve() and weights == "backbone"
    (exp / "A5/model.yaml").write_text("backbone: ../A1\nweights: early\n")
    assert find_backbone_of(exp / "A5")[1] == "early"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbone: ../A1\n", "the key 'weights' is missing"),
        ("backbone: ../A1\nweights: last\n", "weights: expected backbone or early, found last"),
        ("backbone: ../A1\nweights: backbone\nlanguage: hi\n", "unknown key 'language'"),
        ("backbone: ../A2\nweights: backbone\n", "A2 has no backbone.yaml"),
    ],
)
def test_a_wrong_model_yaml(tmp_path, text, message):
    exp = make_exp(tmp_path)
    (exp / "A5/model.yaml").write_text(text)
    with pytest.raises(PelasrError, match=f"A5/model.yaml: .*{message}"):
        find_backbone_of(exp / "A5")


def test_no_model(tmp_path):
    with pytest.raises(PelasrError, match="neither model.yaml .* nor backbone.yaml"):
        find_backbone_of(tmp_path)
