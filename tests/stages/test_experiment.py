"""Experiments files, and the done-files of stages."""

from pathlib import Path

import pytest

from pelasr.config import load_yaml
from pelasr.data.place import Place
from pelasr.errors import PelasrError
from pelasr.stages.experiment import find_experiment, load_experiments, resolve

ROOT = Path(__file__).parents[2]


def put(tmp_path, content):
    path = tmp_path / "experiments.yaml"
    path.write_text(content)
    return path


def test_the_papers_experiments():
    found = load_experiments(ROOT / "egs/mini_indic/asr1/conf/experiments.yaml")
    added = found.pop("F")
    assert (added.backbone, added.adapter, added.serve, added.adapted) == ("A1", "full_mini", "pa", True)
    assert list(found) == ["A0", "A1", "A2", "A3", "A4", "A5"]
    assert {name: e.backbone for name, e in found.items()} == {
        **{name: name for name in ("A0", "A1", "A2", "A4")},
        "A3": "A4",
        "A5": "A1",
    }
    assert [name for name, e in found.items() if e.adapted] == ["A5"]
    assert {name: e.weights for name, e in found.items() if e.weights != "backbone"} == {"A3": "early"}
    assert found["A5"].compare == "A1" and found["A1"].compare is None
    assert found["A0"].overrides == {"language_vector": "none"}
    assert found["A1"].overrides == found["A3"].overrides == found["A5"].overrides == {}
    assert found["A2"].overrides == {"language_vector": "none", "alpha": found["A4"].overrides["alpha"]}
    assert found["A4"].overrides["early_epoch"] > 0
    assert found["A0"].description == "multilingual RNN-T"


def test_a_bare_name_is_an_experiment(tmp_path):
    found = load_experiments(put(tmp_path, "B0:\nB1:\n  alpha: 0.5\n"))
    assert found["B0"].description == "B0" and found["B0"].overrides == {}
    assert found["B1"].overrides == {"alpha": 0.5} and found["B1"].backbone == "B1"


def test_command_line_wins_over_experiment_over_file(tmp_path):
    found = load_experiments(put(tmp_path, "B:\n  alpha: 0.5\n  optim_conf: {lr: 2}\n  seed: 2\n"))
    config = {"alpha": 0.1, "optim_conf": {"lr": 1, "eps": 1}, "max_epoch": 1}
    assert resolve(config, found["B"], {"optim_conf": {"eps": 3}, "seed": 3}) == {
        "alpha": 0.5,
        "optim_conf": {"lr": 2, "eps": 3},
        "max_epoch": 1,
        "seed": 3,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("A1:\nA5:\n  adapt: A2\n", "A5 refers to 'A2'; known: A1, A5"),
        ("A1:\nA3:\n  read_early: A9\n", "A3 refers to 'A9'"),
        ("A1:\nA5:\n  adapt: A1\n  compare: B\n", "A5 refers to 'B'"),
        ("A4:\nA3:\n  read_early: A4\n  alpha: 1\n", "A3 has the settings of A4: unknown key 'alpha'"),
        ("A1:\nA5:\n  adapt: A1\n  read_early: A1\n", "A5 has the settings of A1: unknown key 'adapt'"),
        ("A1:\n  langs: no\n", "A1: langs: expected languages in one string, found False"),
        ("A1:\n  each: please\n", "A1: each: expected true or false, found 'please'"),
        ("A1:\nA5:\n  adapt: A1\n  langs: hi\n", "A5 has the languages and tokens of A1, not its own langs"),
        ("A1:\nA5:\n  adapt: A1\n  fuse: A4\n", "A5 refers to 'A4'"),
        ("A1:\nA5:\n  adapt: A1\n  fuse: A1\n", "A5: fuse: A1 has no adapters of its own on the same backbone"),
        ("A1:\nA5:\n  adapt: A1\n  fuse: A5\n", "A5: fuse: A5 has no adapters of its own"),
        ("A1:\nB:\nA5:\n  adapt: B\nA6:\n  adapt: A1\n  fuse: A5\n", "A6: fuse: A5 has no adapters of its own"),
        ("A1:\nA5:\n  adapt: A1\nA6:\n  fuse: A5\n", "A6: fuse: A5 has no adapters of its own"),
        ("A1:\n  each: true\nA5:\n  adapt: A1\n", "A5 refers to 'A1', which trains no backbone of its own for all"),
    ],
)
def test_bad_references(tmp_path, content, message):
    with pytest.raises(PelasrError, match=f"experiments.yaml: {message}"):
        load_experiments(put(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        "A4:\nA3:\n  read_early: A4\nA6:\n  adapt: A3\n",
        "A1:\nA5:\n  adapt: A1\nA6:\n  adapt: A5\n",
        "A4:\n  adapt: A4\nA6:\n  read_early: A4\n",
    ],
)
def test_a_source_must_train_a_backbone_of_its_own(tmp_path, content):
    """Otherwise a backbone of the source's name would be trained, without the settings of whom it reads."""
    with pytest.raises(PelasrError, match="A6.*backbone"):
        load_experiments(put(tmp_path, content))


def test_adapters_of_another_experiment(tmp_path):
    found = load_experiments(
        put(tmp_path, "A1:\n5:\n  adapt: A1\nA6:\n  adapt: A1\n  adapter: simadapter_mini\n  fuse: 5\n")
    )
    assert (found["A6"].fuse, found["A6"].adapter, found["A6"].overrides) == ("5", "simadapter_mini", {})
    assert found["5"].fuse is None


def test_a_backbone_that_was_imported(tmp_path):
    """The experiment adapts itself, and another one adapts it too; stage 4 trains neither's."""
    found = load_experiments(put(tmp_path, "3:\n  adapt: 3\nB:\n  adapt: 3\nA1:\n"))
    assert [found[name].backbone for name in found] == ["3", "3", "A1"]
    assert [found[name].adapted for name in found] == [True, True, False]
    assert [found[name].trains for name in found] == [False, False, True]


@pytest.mark.parametrize("entry", ["A1: 5\n", "A1: words\n", "A1: [alpha, 1]\n"])
def test_an_entry_that_is_no_mapping(tmp_path, entry):
    with pytest.raises(PelasrError, match="experiments.yaml: A1"):
        load_experiments(put(tmp_path, entry))


NAMES = [
    "../x",
    "a/b",
    ".",
    "..",
    ".done",
    "-x",
    "",
    " ",
    "a b",
    "a\\b",
    '"a\\tb"',
    '"a\\eb"',
    '"a\\u202eb"',
    "a" * 101,
]
NAMES += ["'../x'", "true", "no", "null", "1.5", "2024-01-01", "/etc", "[a]"]


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_a_folder_in_exp(tmp_path, name):
    with pytest.raises(
        PelasrError, match=r"experiments.yaml: (experiment .*want a name of a folder|not valid|expected)"
    ):
        load_experiments(put(tmp_path, f"A1:\n{name or repr('')}:\n  description: x\n"))


@pytest.mark.parametrize("name", ["A1", "1", "A-1.b_c+d", "हिंदी", "A=1"])
def test_names_of_experiments(tmp_path, name):
    assert list(load_experiments(put(tmp_path, f"{name}:\n"))) == [name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("2:\n'2':\n", "the experiment '2' comes a second time"),
        ("A1:\nA1:\n", "line 2: the key 'A1' comes a second time"),
        ("tokens:\n", "tokens: this is the folder of the token lists: choose another name"),
        ("all:\n", "all: this is how every experiment or method is asked for"),
        ("A5:\n  adapt: A1\nA1: 5\n", "A1: expected `key: value` lines, found 5"),
        ("A1:\nA5:\n  adapt: ../A1\n", "A5 refers to '../A1'; known"),
        ("A1:\nA5:\n  adapt: [A1]\n", "A5 refers to"),
        ("A1:\nA5:\n  adapt: A1\n  adapter: ../../x\n", "A5: adapter '../../x': want a name"),
        ("A1:\nA5:\n  adapt: A1\n  adapter: {a: b}\n", "A5: adapter .*: want a name"),
        ("A1:\nA5:\n  adapt: A1\n  serve: ../pa\n", "A5: '../pa' is no language"),
        ("A1:\nA5:\n  adapt: A1\n  serve: 5\n", "A5: '5' is no language"),
        ("A1:\n  langs: hi ../x\n", "A1: '../x' is no language"),
        ("A1:\n  langs: hi ur hi\n", "A1: langs 'hi ur hi': 'hi' comes twice; name it once"),
        ("A1:\n  description: 5\n", "A1: description: expected words, found 5"),
        ("A1:\n  vocab_size: x\n", "A1: vocab_size: expected a number of tokens, found 'x'"),
    ],
)
def test_references_stay_within_exp_too(tmp_path, content, message):
    with pytest.raises(PelasrError, match=f"experiments.yaml: .*{message}"):
        load_experiments(put(tmp_path, content))


def test_find_experiment(tmp_path):
    found = load_experiments(put(tmp_path, "A0:\nA1:\n"))
    assert find_experiment(found, "A1") is found["A1"]
    with pytest.raises(PelasrError, match="no experiment 'A2'; .*known: A0, A1"):
        find_experiment(found, "A2")


def test_experiments_name_real_options():
    """Every override of the shipped experiments is a key of a configuration."""
    from pelasr.stages.settings import split_adapter_options, split_options

    configs = {
        "mini_indic/asr1": "conf/rnnt_mini.yaml",
        "mini_europe/st1": "conf/st_mini.yaml",
        "must_c/st1": "conf/st_le2021.yaml",
        "mboshi/asr1": "egs/mboshi/asr1/conf/rnnt_mboshi.yaml",
        "mboshi/st1": "egs/mboshi/st1/conf/st_mboshi.yaml",
    }
    for recipe, config in configs.items():
        for experiment in load_experiments(ROOT / "egs" / recipe / "conf/experiments.yaml").values():
            if experiment.adapted:
                path, split = ROOT / f"conf/adapter/{experiment.adapter or 'houlsby_mini'}.yaml", split_adapter_options
            else:
                path, split = ROOT / config, split_options
            split(resolve(load_yaml(path), experiment, {}), experiment.name)


def test_place():
    place = Place(Path("data"), Path("dump"), Path("exp"), ["hi", "ur"])
    assert place.dirs("dev", "test") == [Path("data") / name for name in ("dev_hi", "dev_ur", "test_hi", "test_ur")]
    assert (place.tokens, place.stats, place.targets("dev")) == (Path("exp/tokens"), Path("exp/stats.npz"), {})
    part = place.of(["ur"])
    assert (part.tokens, part.stats, part.languages) == (Path("exp/tokens_ur"), place.stats, ["ur"])
    assert part.of(["hi"]).recipe == ["hi", "ur"]


def test_folders_of_pairs(tmp_path):
    """Pairs share their source's directory, or have audio of their own, which is the source's too."""
    place = Place(tmp_path, tmp_path, tmp_path, ["en-de", "en-fr"])
    assert place.dirs("train") == [tmp_path / "train_en"]
    assert place.targets("train") == {tmp_path / "train_en": ["de", "fr"]}
    (tmp_path / "train_en-de").mkdir()
    (tmp_path / "train_en-fr").mkdir()
    assert place.dirs("train") == [tmp_path / "train_en-de", tmp_path / "train_en-fr"]
    assert place.targets("train") == {tmp_path / "train_en-de": ["de"], tmp_path / "train_en-fr": ["fr"]}
    (tmp_path / "train_en-es").mkdir()  # no pair of this recipe
    assert place.of(["en"]).dirs("train") == place.dirs("train")
    assert place.folder("dev", "en-de") == tmp_path / "dev_en"


def test_experiments_of_rows(tmp_path):
    content = (
        "asr:\n  langs: en\n  token_type: char\n  ctc_weight: 1.0\n"
        "1:\n  each: true\n  vocab_size: 80\n  compare: 2\n2:\n8:\n  adapt: 2\n  adapter: full\n  max_epoch: 3\n"
        "en:\n  langs: en\n  vocab_size: 30\nadapted:\n  adapt: en\n"
    )
    found = load_experiments(put(tmp_path, content))
    place = Place(tmp_path, tmp_path, Path("exp"), ["en-de", "en-fr"])
    assert found["asr"].languages == ["en"] and found["asr"].tokens == {"token_type": "char"}
    assert found["asr"].overrides == {"ctc_weight": 1.0}
    assert found["asr"].backbones(place) == {Path("exp/asr"): place.of(["en"])}
    assert list(found["1"].backbones(place)) == [Path("exp/1/en-de"), Path("exp/1/en-fr")]
    assert [part.tokens.name for part in found["1"].backbones(place).values()] == ["tokens_en-de", "tokens_en-fr"]
    alone = Place(tmp_path, tmp_path, Path("exp"), ["en-de"])  # even there row 1 has tokens of its own
    assert [part.tokens.name for part in found["1"].backbones(alone).values()] == ["tokens_en-de"]
    assert [part.tokens.name for part in found["2"].backbones(alone).values()] == ["tokens"]
    row = found["8"]
    assert (found["adapted"].languages, found["adapted"].tokens) == (["en"], {"vocab_size": 30})  # as its backbone
    assert (row.backbone, row.adapted, row.adapter, row.overrides) == ("2", True, "full", {"max_epoch": 3})
