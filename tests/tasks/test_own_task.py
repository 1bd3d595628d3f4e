"""A task of a recipe's own, as docs/tasks.md has it, through all stages with nothing else touched."""

import json
import re
from pathlib import Path

import pytest
import yaml
from result_lines import rows
from small_runs import SMALL
from tiny_data import write_set

from pelasr.cli.main import main
from pelasr.score.results import read_results
from pelasr.storage import read_description

PAGE = Path(__file__).parents[2] / "docs/tasks.md"
LANGUAGES = "hi ur"
PLACE = ["--langs", LANGUAGES]
EXPERIMENTS = {
    "A1": {"description": "language vector"},
    "A5": {"description": "A1 + adapters", "adapt": "A1", "compare": "A1"},
}
ADAPTER = {"adapter": "houlsby", "adapter_conf": {"bottleneck": 2}, "max_epoch": 1, "batch_size": 6, "warmup_steps": 1}


def block(kind: str) -> str:
    return re.search(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL).group(1)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe's folder after all stages."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "local/tasks").mkdir(parents=True)
    (folder / "local/tasks/sentences.py").write_text(block("python"), encoding="utf-8")
    (folder / "conf").mkdir()
    config = yaml.safe_load(block("yaml")) | SMALL | {"max_epoch": 1, "warmup_steps": 1}
    for name, content in {"rnnt": config, "experiments": EXPERIMENTS, "houlsby": ADAPTER}.items():
        (folder / f"conf/{name}.yaml").write_text(yaml.safe_dump(content))
    for number, name in enumerate(("train", "dev", "test")):
        for language in LANGUAGES.split():
            write_set(folder / f"data/{name}_{language}", language, 4, ["ab cd", "cd"], seed=10 * number)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb in (
            ["data", "--config", "conf/rnnt.yaml"],
            ["tokens"],
            ["stats"],
            ["train", "--config", "conf/rnnt.yaml", "--exp", "A1"],
            ["adapt", "--adapter", "conf/houlsby.yaml", "--exp", "A5"],
            ["decode", "--exp", "A1"],
            ["decode", "--exp", "A5"],
            ["score", "--exps", "A1 A5", "--recipe", "tiny"],
            ["table", "--recipe", "tiny"],
        ):
            main([*verb, *PLACE])
    return folder


def test_it_is_short():
    assert len(block("python").splitlines()) <= 60


def test_training_looks_at_its_figure(recipe):
    for path in ("A1", "A5/fit_hi_ur"):
        for entry in json.loads((recipe / f"exp/{path}/history.json").read_text()):
            for scores in (*entry["dev"].values(), entry["mean"]):
                assert list(scores) == ["loss", "right", "higher_is_better"] and 0 <= scores["right"] <= 100
    assert read_description(recipe / "exp/A1/backbone.yaml", "")["task"] == "sentences"


def test_it_scores(recipe):
    lines = read_results(recipe / "exp/results.jsonl")
    assert {line["task"] for line in lines} == {"sentences"}
    found = {(line["experiment"], line["metric"], line["language"]) for line in lines}
    languages = [*LANGUAGES.split(), "mean"]
    wanted = {(name, metric, key) for name in EXPERIMENTS for metric in ("right", "first") for key in languages}
    assert found == wanted | {("A5", "right_minus_A1", key) for key in languages}
    texts = {}
    for folder in (recipe / "exp/A1/decode/test_hi", recipe / "data/test_hi"):
        texts[folder] = [line.split(maxsplit=1)[1:] for line in sorted((folder / "text").read_text().splitlines())]
    right = sum(one == other for one, other in zip(*texts.values(), strict=True))
    values = {(line["experiment"], line["metric"], line["language"]): line for line in lines}
    assert values["A1", "right", "hi"]["value"] == 25 * right
    head, *rest = (recipe / "exp/A1/decode/test_hi/score.tsv").read_text().splitlines()
    assert head == "utt\tright\tfirst\tref\thyp" and len(rest) == 4
    assert (recipe / "exp/A1/decode/test_hi/result.txt").read_text().startswith(f"right sentences (%) {25 * right}.00")


def test_it_has_a_page(recipe):
    page = (recipe / "exp/RESULTS.md").read_text(encoding="utf-8")
    table = rows(page, "## right sentences (%)")
    assert table[""] == ["experiment", "hi", "ur", "mean", "trainable parameters", "total parameters"]
    assert list(table) == ["", "A1", "A5"] and "Sentences without an error over the set `test`." in page
    assert "## right first words (%)" in page and "### A5 against A1" in page
    assert "![right sentences by language and experiment](RESULTS.png)" in page
    assert (recipe / "exp/RESULTS.png").read_bytes().startswith(b"\x89PNG")


def test_scoring_again_adds_nothing(recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    before = Path("exp/results.jsonl").read_bytes()
    main(["score", "--exps", "A1 A5", "--recipe", "tiny", *PLACE])
    assert Path("exp/results.jsonl").read_bytes() == before


def test_a_card_has_its_figures(recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    main(["packs", "export", "exp/A5/packs/hi", "card"])
    assert "| test | right sentences, % |" in Path("card/README.md").read_text(encoding="utf-8")


def test_an_unknown_task_is_named(recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    known = "known: recognition, sentences, translation"
    with pytest.raises(SystemExit, match=f"task: no task 'words'; {known}"):
        main(["train", "--config", "conf/rnnt.yaml", "--exp", "A1", "--task", "words", *PLACE])
    with pytest.raises(SystemExit, match=r"holds a run with other settings \(task"):
        main(["train", "--config", "conf/rnnt.yaml", "--exp", "A1", "--task", "recognition", *PLACE])
