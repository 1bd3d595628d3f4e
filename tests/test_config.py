"""Configuration files, overrides of the command line, and what is said of a wrong key."""

import sys

import pytest

from pelasr.adapters.base import find_method
from pelasr.backbones.base import find_backbone
from pelasr.config import arguments_of, check_keys, construct, load_yaml, override, parse_overrides, suggest
from pelasr.errors import PelasrError, nearest


class Box:
    def __init__(self, width: int, height: int = 2, *rest, depth: int = 3, **more):
        if height < 0:
            raise ValueError("height\nis negative")
        if height == 13:
            raise PelasrError("inner error")
        self.sizes = (width, height, depth)


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_load_yaml(tmp_path):
    path = put(tmp_path / "a.yaml", "lr: 3.0e-3\nlangs: [hi, पंजाबी]\nencoder_conf:\n  layers: 2\nnone:\n")
    wanted = {"lr": 0.003, "langs": ["hi", "पंजाबी"], "encoder_conf": {"layers": 2}, "none": None}
    assert load_yaml(path) == load_yaml(str(path)) == wanted
    assert load_yaml(put(tmp_path / "empty.yaml", "# nothing\n")) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: [1\nc: 2\n", "a.yaml: not valid YAML: .*line 3"),
        ("a: b: c\n", "a.yaml: not valid YAML: .*line 1"),
        ("a: 1\n\tb: 2\n", "a.yaml: not valid YAML: .*line 2"),
        ("a: !!python/object/apply:os.getcwd []\n", "a.yaml: not valid YAML: .*python/object"),
        ("- a\n- b\n", "a.yaml: expected `key: value` lines, found list"),
        ("word\n", "a.yaml: expected `key: value` lines, found str"),
        (b"a: \xff\n", "a.yaml"),
    ],
)
def test_faults_name_the_file_and_the_line(tmp_path, content, message):
    with pytest.raises(PelasrError, match=message) as caught:
        load_yaml(put(tmp_path / "a.yaml", content))
    assert "\n" not in str(caught.value)


HOSTILE = {
    "a key twice": ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' comes a second time"),
    "a key of a mapping twice": ("a:\n  lr: 1\n  lr: 2\n", "line 3: the key 'lr' comes a second time"),
    "a key twice on a line": ("a: {b: 1, c: {d: 1, 'd': 2}}\n", "line 1: the key 'd' comes a second time"),
    "an alias": ("a: &x [1]\nb: *x\n", "line 1: it has anchors, aliases or tags"),
    "laughs": (
        "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9) if n else 1}]\n" for n in range(30)),
        "line 1: it has anchors, aliases or tags",
    ),
    "merges": ("a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}\n", "anchors, aliases or tags"),
    "itself": ("a: &a [*a]\n", "anchors, aliases or tags"),
    "depth": ("a: " + "[" * 100_000 + "\n", "too deeply nested"),
    "values": ("a: [" + "1, " * 60_000 + "1]\n", "too many values"),
    "a long word": ("a: " + "b" * 20_000 + "\n", "too long ones"),
    "a long number": ("a: " + "9" * 5000 + "\n", "not valid YAML"),
    "a number of hours": ("b: c\na: 1" + ":59" * 3000 + "\n", "line 2: a number of too many digits"),
    "no date": ("a: 2024-99-99\n", "not valid YAML"),
    "a megabyte": ("a: b\n" + "# \n" * 400_000, "more than 1048576 bytes"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_yaml_from_anywhere(tmp_path, content, message):
    with pytest.raises(PelasrError, match=f"a.yaml: .*{message}") as caught:
        load_yaml(put(tmp_path / "a.yaml", content))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_keys_that_only_look_alike(tmp_path):
    assert load_yaml(put(tmp_path / "a.yaml", "a: {b: 1}\nc: {b: 2}\n1: x\n'1': y\n")) == {
        "a": {"b": 1},
        "c": {"b": 2},
        1: "x",
        "1": "y",
    }


def test_no_file(tmp_path):
    with pytest.raises(PelasrError, match="b.yaml: no such file"):
        load_yaml(tmp_path / "b.yaml")


def test_override_merges_mappings():
    config = {"lr": 1, "encoder_conf": {"layers": 8, "size": 640}, "specaug_conf": {"masks": 2}, "optim_conf": None}
    given = {"lr": 2, "encoder_conf": {"layers": 3}, "specaug_conf": None, "optim_conf": {"lr": 4}, "new": 5}
    assert override(config, given) == {
        "lr": 2,
        "encoder_conf": {"layers": 3, "size": 640},
        "specaug_conf": None,
        "optim_conf": {"lr": 4},
        "new": 5,
    }
    assert config["encoder_conf"] == {"layers": 8, "size": 640} and config["lr"] == 1


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("", {}),
        ("--max_epoch 3", {"max_epoch": 3}),
        ("--max_epoch=3 --name a=b", {"max_epoch": 3, "name": "a=b"}),
        ("--lr -0.5", {"lr": -0.5}),
        ("--skip true", {"skip": True}),
        ("--optim_conf lr=0.001 weight_decay=0", {"optim_conf": {"lr": 0.001, "weight_decay": 0}}),
        ("--optim_conf lr=1 --x 2 --optim_conf eps=3", {"optim_conf": {"lr": 1, "eps": 3}, "x": 2}),
        ("--optim_conf lr=1 --optim_conf lr=2", {"optim_conf": {"lr": 2}}),
        ("--optim_conf=lr=1", {"optim_conf": {"lr": 1}}),
        ("--optim_conf betas=[0.9,0.98]", {"optim_conf": {"betas": [0.9, 0.98]}}),
        ("--specaug_conf null", {"specaug_conf": None}),
    ],
)
def test_parse_overrides(arguments, wanted):
    assert parse_overrides(arguments.split()) == wanted


def test_a_whole_mapping_as_one_value():
    assert parse_overrides(["--optim_conf", "{lr: 1, eps: 2}"]) == {"optim_conf": {"lr": 1, "eps": 2}}


def test_numbers_in_scientific_notation():
    """YAML 1.1 takes `1e-3`, without a point, for a word; people write learning rates like that."""
    assert parse_overrides(["--optim_conf", "lr=1e-3"]) == {"optim_conf": {"lr": 0.001}}
    assert parse_overrides(["--alpha", "5e-1"]) == {"alpha": 0.5}


def test_numbers_in_scientific_notation_in_a_file(tmp_path):
    assert load_yaml(put(tmp_path / "a.yaml", "lr: 1e-3\nbig: 1E+6\nword: 1e\n")) == {
        "lr": 0.001,
        "big": 1e6,
        "word": "1e",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("max_epoch 3", "unexpected argument 'max_epoch': options are `--key value`"),
        ("--max_epoch", "--max_epoch: a value is missing"),
        ("--max_epoch --lr 3", "--max_epoch: a value is missing"),
        ("--max_epoch 3 4", "--max_epoch: more than one value"),
        ("--max_epoch 3 --max_epoch 4", "--max_epoch: more than one value"),
        ("--optim_conf lr=1 eps", "--optim_conf: "),
        ("--alpha [1", "--alpha: "),
        ("--optim_conf lr=[1", "--optim_conf: "),
    ],
)
def test_bad_overrides(arguments, message):
    with pytest.raises(PelasrError, match=message):
        parse_overrides(arguments.split())


def test_nearest():
    assert nearest("max_epochs", ["lr", "max_epoch"]) == "did you mean 'max_epoch'? known: lr, max_epoch"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


def test_check_keys():
    check_keys({"a": 1}, iter(["b", "a"]), "a.yaml")
    with pytest.raises(PelasrError, match="a.yaml: unknown key 'alhpa'; did you mean 'alpha'.* known: alpha, beta"):
        check_keys({"beta": 1, "alhpa": 2}, ["beta", "alpha"], "a.yaml")


@pytest.mark.parametrize("key", [True, 3, None])
def test_keys_that_are_not_words(key):
    """`on: 1` and `3: 1` in a YAML file."""
    with pytest.raises(PelasrError, match="a.yaml: unknown key .*known: alpha"):
        check_keys({key: 1}, ["alpha"], "a.yaml")


def test_arguments_are_known_from_the_signature():
    assert list(arguments_of(Box)) == ["width", "height", "depth"]


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("height", "2", "a whole number, found '2'"),
        ("height", 2.0, "a whole number, found 2.0"),
        ("depth", True, "a whole number, found True"),
        ("depth", [1], r"a whole number, found \[1\]"),
        ("share", "x", "a number, found 'x'"),
        ("share", float("nan"), "a number, found nan"),
        ("open", 1, "true or false, found 1"),
        ("label", 5, "a word, found 5"),
    ],
)
def test_values_have_the_kind_of_their_argument(key, value, what):
    def make(height: int = 2, depth: int = 3, share: float = 0.5, open: bool = True, label: str = "a"):
        return height

    assert construct(make, {"height": 5, "share": 1, "open": False, "label": "b"}, "conf") == 5
    with pytest.raises(PelasrError, match=f"^conf: {key}: expected {what}"):
        construct(make, {key: value}, "conf")
    for conf in ("words", [1], 5):
        with pytest.raises(PelasrError, match="^conf: expected `key: value` lines"):
            construct(make, conf, "conf")


def test_construct():
    assert construct(Box, {"depth": 5}, "box_conf", width=1).sizes == (1, 2, 5)
    assert construct(Box, None, "box_conf", width=1).sizes == (1, 2, 3)
    with pytest.raises(
        PelasrError, match="box_conf: unknown key 'heigth'; did you mean 'height'.*known: depth, height$"
    ):
        construct(Box, {"heigth": 5}, "box_conf", width=1)
    with pytest.raises(PelasrError, match="box_conf: unknown key 'width'"):
        construct(Box, {"width": 5}, "box_conf", width=1)
    with pytest.raises(PelasrError, match="^box_conf: height is negative$"):
        construct(Box, {"height": -1}, "box_conf", width=1)
    with pytest.raises(PelasrError, match="^inner error$"):
        construct(Box, {"height": 13}, "box_conf", width=1)
    with pytest.raises(PelasrError, match="box_conf: .*width"):
        construct(Box, {}, "box_conf")


def test_an_option_of_the_recipe_is_suggested():
    keys, others = ["max_epoch", "adapt_max_epoch", "subsampler_conf"], ["stage", "stop_stage", "exps", "sets"]
    for name, meant in (("stgae", "stage"), ("stop_stge", "stop_stage"), ("exp", "exps")):
        with pytest.raises(PelasrError, match=f"^unknown key '{name}'; did you mean --{meant}\\?$"):
            suggest(["--max_epoch", "3", f"--{name}", "5"], keys, others)
    suggest(["--max_epochs", "3", "--subsampler_conf", "x=1", "--zzz", "1"], keys, others)  # for others to refuse


OWN = {
    "methods/wide.py": "from pelasr.adapters.methods.houlsby import Houlsby\n\n\nclass Wide(Houlsby):\n    pass\n",
    "methods/typed.py": """from __future__ import annotations

from dataclasses import dataclass

from pelasr.adapters import Adapter


@dataclass
class Options:
    width: int = 1


class Typed(Adapter):
    pass
""",
    "methods/empty.py": "from pelasr.adapters import Adapter\n",
    "methods/broken.py": "1 / 0\n",
    "methods/__init__.py": "",
    "backbones/empty.py": "",
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A recipe's own files, in its folder."""
    for name, content in OWN.items():
        path = tmp_path / "local" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("local.")]:
        monkeypatch.delitem(sys.modules, name)


def test_a_files_own_class_counts(own):
    """Not one that it imports; a file may hold a dataclass."""
    assert find_method("wide").__name__ == "Wide" and find_method("wide") is find_method("wide")
    assert find_method("typed").__name__ == "Typed"


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (find_method, "empty", "local/methods/empty.py: it has no class of the kind Adapter"),
        (find_backbone, "empty", "local/backbones/empty.py: the line `BACKBONE: .*` is missing"),
        (find_method, "__init__", "no method '__init__'; known: .*bitfit, broken, .*decoder, "),
        (find_method, ["houlsby"], "no method .*houlsby.*; did you mean 'houlsby'"),
        (find_backbone, {"rnnt": 1}, "no family .*; known: "),
        (find_method, None, "no method 'None'; "),
    ],
)
def test_what_no_file_has(own, find, name, message):
    with pytest.raises(PelasrError, match=message):
        find(name)


def test_a_file_that_cannot_be_run_is_run_again(own):
    with pytest.raises(ZeroDivisionError):
        find_method("broken")
    (own / "local/methods/broken.py").write_text(OWN["methods/wide.py"], encoding="utf-8")
    assert find_method("broken").__name__ == "Wide"
