"""The verbs' options, and what is said of wrong ones."""

import pytest

from pelasr.cli.arguments import fit_langs_of, place_of
from pelasr.cli.main import build_parser, main
from pelasr.errors import PelasrError

ADAPT = ["adapt", "--exp", "A", "--adapter", "a", "--experiments", "e.yaml", "--langs", "hi ur"]


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text("A:\n")


def ended(*arguments: str) -> str | int | None:
    """How a verb ends: its message, or the exit code of argparse's."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


@pytest.mark.parametrize(
    "arguments",
    [
        ["stats", "--langs", "hi hi"],
        ["stats", "--langs", "hi", "--sets", "train dev train"],
        [*ADAPT, "--fit_langs", "ur ur"],
        ["tokens", "--langs", "hi", "--exps", "A A", "--experiments", "e.yaml"],
        ["add", "--langs", "hi", "--fit_langs", "pa pa", "--config", "e.yaml"],
    ],
)
def test_nothing_is_named_twice(arguments):
    assert "comes twice; name it once" in str(ended(*arguments))


@pytest.mark.parametrize("language", ["../x", "hi/x", ".", "1", "a-b-c"])
def test_languages_are_no_paths(language):
    assert f"--langs: {language!r} is no language" in str(ended("stats", "--langs", language))


def test_languages_or_pairs():
    assert "want languages (hi ur) or pairs" in str(ended("stats", "--langs", "hi en-de"))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [([], ["hi", "ur"]), (["--fit_langs", "ur pa"], ["ur", "pa"]), (["--only", "pa"], ["pa"])],
)
def test_languages_to_fit(tmp_path, given, wanted):
    """By default the recipe's; the old name of the option is taken too."""
    (tmp_path / "data/train_pa").mkdir(parents=True)
    known, rest = build_parser().parse_known_args([*ADAPT, *given])
    assert fit_langs_of(known, place_of(known), ["train"]) == wanted and rest == []


def test_a_language_to_fit_that_there_is_no_data_of():
    known, _ = build_parser().parse_known_args([*ADAPT, "--fit_langs", "uu"])
    message = "^--fit_langs: no language 'uu', and no data/train_uu; known: hi, ur$"
    with pytest.raises(PelasrError, match=message):
        fit_langs_of(known, place_of(known), ["train"])


def test_two_names_of_an_option_are_not_given_at_once(capsys):
    assert ended(*ADAPT, "--only", "hi", "--fit_langs", "ur") == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["add", "adapt", "decode", "forgetting"])
def test_help_has_the_new_name_alone(capsys, verb):
    assert ended(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert "--fit_langs" in shown and "--only" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["score", "--langs", "hi", "--exps", "A", "--recipe", "r", "--max_epoch", "3"],
            "unknown option '--max_epoch' of",
        ),
        (["add", "--langs", "hi", "--config", "c"], "arguments --fit_langs is required"),
        (["decode", "--langs", "hi", "--exp", "A", "--beam_size", "0"], "'0': a whole number from 1 on"),
        (["decode", "--langs", "hi", "--exp", "A", "--lm", "l", "--lm_weight", "nan"], "'nan': a number"),
        (["decode", "--langs", "hi", "--exp", "A", "--lm", "l", "--word_bonus", "much"], "'much': a number"),
        (["add", "--langs", "hi", "--config", "c", "--skip_bad", "yes"], "'yes': true or false"),
        (["trian"], "invalid choice: 'trian'"),
    ],
)
def test_a_wrong_option_is_one_line(capsys, arguments, message):
    assert ended(*arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_weights_of_no_language_model():
    for option in ("--lm_weight", "--word_bonus"):
        said = ended("transcribe", "--lang", "hi", "--model", "exp", option, "1", "one.wav")
        assert "of which language model? Name it with --lm" in said


def test_a_new_language_is_none_of_the_recipes():
    assert "the backbone was trained on it" in ended("add", "--langs", "hi", "--fit_langs", "hi", "--config", "e.yaml")


def test_one_directory_of_two_languages(tmp_path):
    two = ["add", "--langs", "hi", "--fit_langs", "pa si", "--config", "e.yaml", "--train_dir", "x"]
    assert "--train_dir: of which of pa si? Add them one by one" in ended(*two)


def test_names_of_experiments(tmp_path, capsys):
    (tmp_path / "e.yaml").write_text("A:\nB: {adapt: A}\nC: {read_early: A}\n")
    for which, names in (("backbones", "A"), ("adapted", "B")):
        main(["experiments", "--experiments", "e.yaml", "--exps", "B C A", "--which", which])
        assert capsys.readouterr().out == f"{names}\n"
