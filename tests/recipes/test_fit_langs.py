"""Which languages a recipe trains backbones on, and which it fits and decodes: its commands, printed."""

import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted(str(path.parent.relative_to(ROOT / "egs")) for path in ROOT.glob("egs/*/*/run.sh"))
OF_ROWS = ["mboshi/st1", "mini_europe/st1", "must_c/st1"]


def recipe(folder: Path, *options: str, name: str = "mini_indic/asr1") -> subprocess.CompletedProcess:
    """A recipe's command, typed in a folder."""
    command = ["bash", str(ROOT / "egs" / name / "run.sh"), "--exp_dir", "exp", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def languages(folder: Path, *options: str) -> dict[str, tuple[str, str | None]]:
    """`--langs` and `--fit_langs` of each verb, as the recipe would run them."""
    done = recipe(folder, "--dry_run", "--exps", "A5", *options)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("'pelasr'")]
    found = {verb: dict(zip(words[::2], words[1::2], strict=True)) for _, verb, *words in lines}
    return {verb: (given["--langs"], given.get("--fit_langs")) for verb, given in found.items()}


def test_what_adapters_begin_as(tmp_path):
    for given, wanted in (([], "fresh"), (["--start", "nearest"], "nearest")):
        done = recipe(tmp_path, "--dry_run", "--exps", "A5", "--stage", "5", "--fit_langs", "pa", *given)
        assert f"'--start' '{wanted}'" in done.stdout, done.stderr


def trained(folder: Path, langs: str) -> None:
    (folder / "exp").mkdir()
    (folder / "exp/langs").write_text(f"{langs}\n")


def test_all_of_the_recipes_are_fitted(tmp_path):
    found = languages(tmp_path, "--langs", "hi ur")
    assert found["train"] == ("hi ur", None) and found["adapt"] == found["decode"] == ("hi ur", "hi ur")
    assert "add" not in found


def test_from_stage_5_on(tmp_path):
    """Some of them, and a new one; the others' backbone is what it was."""
    trained(tmp_path, "hi ur")
    found = languages(tmp_path, "--stage", "5", "--fit_langs", "ur pa", "--forgetting")
    assert found["add"] == found["forgetting"] == ("hi ur", "pa")
    assert found["adapt"] == found["decode"] == ("hi ur", "ur pa")
    assert found["score"] == ("hi ur", None)
    again = languages(tmp_path, "--stage", "5", "--langs", "hi ur", "--fit_langs", "ur pa", "--forgetting")
    assert again == found


def test_from_the_data_to_a_new_language_at_once(tmp_path):
    found = languages(tmp_path, "--langs", "hi ur", "--fit_langs", "hi ur pa", "--train_dir", "mine")
    assert found["data"] == found["train"] == ("hi ur", None)
    assert found["add"] == ("hi ur", "pa") and found["adapt"] == ("hi ur", "hi ur pa")


@pytest.mark.parametrize("options", [["--langs", "pa"], ["--langs", "hi pa"], []])
@pytest.mark.parametrize("stage", ["5", "6", "7"])
def test_the_old_spelling_from_stage_5_on(tmp_path, stage, options):
    trained(tmp_path, "hi ur")
    given = ["--stage", stage, *options, *(["--forgetting"] if options else [])]
    new = [option.replace("--langs", "--fit_langs") for option in given]
    assert languages(tmp_path, *given) == languages(tmp_path, *new)
    assert all(langs == "hi ur" for langs, _ in languages(tmp_path, *given).values())


def test_where_nothing_is_trained_the_recipes_own(tmp_path):
    nine = "hi mr bn te gu ta ml kn ur"
    for option in ("--langs", "--fit_langs"):
        assert languages(tmp_path, "--stage", "5", option, "pa")["adapt"] == (nine, "pa")
    assert languages(tmp_path, "--stage", "5", "--langs", "hi ur", "--fit_langs", "ur")["adapt"] == ("hi ur", "ur")


def test_others_than_those_of_the_backbone_are_refused(tmp_path):
    trained(tmp_path, "hi ur")
    done = recipe(tmp_path, "--stage", "5", "--langs", "hi", "--fit_langs", "pa", "--dry_run")
    assert done.returncode == 2 and "is about 'hi ur'; leave --langs out" in done.stderr


@pytest.mark.parametrize("name", RECIPES)
def test_help_speaks_of_experiments_or_of_rows(tmp_path, name):
    done = recipe(tmp_path, "--help", name=name)
    assert ("  --rows " in done.stdout) == (name in OF_ROWS) != ("  --exps " in done.stdout)
    assert "  --fit_langs " in done.stdout and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mini_europe/st1", "mini_indic/asr1"])
def test_both_spellings_work_everywhere(tmp_path, name):
    wanted = {"mini_europe/st1": "8", "mini_indic/asr1": "A1"}[name]
    exps, rows = (recipe(tmp_path, "--dry_run", option, wanted, name=name).stdout for option in ("--exps", "--rows"))
    assert exps == rows and f"'--exps' '{wanted}'" in rows
