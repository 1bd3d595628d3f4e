"""Files that say which methods are compared: those there are, and what is wrong with others."""

from pathlib import Path

import pytest
import yaml

from pelasr.cli.main import main
from pelasr.config import load_yaml
from pelasr.errors import PelasrError
from pelasr.stages.comparison import check_trained, expand, read_comparison
from pelasr.stages.experiment import find_experiment, load_experiments, resolve
from pelasr.stages.params import count
from pelasr.stages.settings import check_adapter, split_adapter_options

ROOT = Path(__file__).parents[2]
OURS = {  # and the experiments that they go with
    "rnnt_mini": "egs/mini_indic/asr1/conf/experiments.yaml",
    "ssl_mini": "conf/experiments/ssl_mini.yaml",
    "st_mini": "egs/mini_europe/st1/conf/experiments.yaml",
}
CONTENT = """
adapt: A1
baseline: A1
shared: {max_epoch: 3, optim_conf: {weight_decay: 0.5}}
methods:
  houlsby: {description: bottleneck, adapter: houlsby, adapter_conf: {bottleneck: 4}, lr: [1e-3, 0.01]}
  lora: {adapter: lora, lr: 2, max_epoch: 4}
  bitfit: {adapter: bitfit}
"""


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    experiments, comparison = tmp_path / "experiments.yaml", tmp_path / "comparison.yaml"
    experiments.write_text("A0:\nA1:\nA5: {adapt: A1, compare: A1}\n")
    comparison.write_text(CONTENT)
    return experiments, comparison


@pytest.mark.parametrize("name", OURS)
def test_ours_make_sense(name):
    """Every method has its options, and as many steps as the others."""
    path = ROOT / f"conf/comparison/{name}.yaml"
    comparison = read_comparison(path)
    found = load_experiments(ROOT / OURS[name], comparison.entries)
    assert comparison.baseline in found and {"houlsby", "lora", "bitfit", "full"} <= set(comparison.entries)
    trainings = []
    for method in comparison.entries:
        experiment = found[method]
        assert experiment.backbone == comparison.adapt and experiment.whole and len(experiment.rates) >= 3
        assert experiment.compare == (comparison.baseline if method != comparison.baseline else None)
        settings = resolve({}, experiment, {})
        check_adapter(settings, method)
        if experiment.fuse is None:  # one that does takes the sources' method from their packs
            config = load_yaml(ROOT / f"conf/{name}.yaml")
            assert count(config, settings, method, 20, 1)["adapter_per_language"] > 0
        trainings.append(split_adapter_options(settings, method).training)
    assert len({(each.max_epoch, each.batch_size, str(each.specaug_conf)) for each in trainings}) == 1
    assert load_yaml(path.with_name(f"{name}_note.yaml"))["note"]


def test_published_tables_are_whole():
    for paper in load_yaml(ROOT / "conf/comparison/papers.yaml")["papers"]:
        assert {len(row) for row in paper["rows"]} == {len(paper["columns"])}


def test_methods_are_experiments(files):
    experiments, comparison = files
    found = load_experiments(experiments, read_comparison(comparison).entries)
    houlsby = found["houlsby"]
    assert (houlsby.backbone, houlsby.compare, houlsby.rates) == ("A1", "A1", (0.001, 0.01))
    assert houlsby.overrides == {
        "adapter": "houlsby",
        "max_epoch": 3,
        "optim_conf": {"weight_decay": 0.5},
        "adapter_conf": {"bottleneck": 4},
    }
    assert found["lora"].overrides["max_epoch"] == 4 and found["lora"].rates == (2.0,) and not found["bitfit"].rates
    assert found["lora"].description == "lora" and not found["A5"].whole


def test_which_are_meant(files):
    experiments, comparison = files

    def names(exps, adapters, seeds):
        return [experiment.name for experiment in expand(experiments, exps, comparison, adapters, seeds)]

    assert names("", "lora houlsby", None) == ["A1", "lora", "houlsby"]
    assert names("", "all", "3 0") == [*(four := ["A1", "houlsby", "lora", "bitfit"]), *(f"{x}.seed0" for x in four)]
    assert names("A5 A1", "lora", None) == ["A5", "A1", "lora"]
    assert names("A5", "", "0 1") == ["A5", "A5.seed1"]


def test_another_seed_hangs_on_its_own_backbone(files):
    experiments, comparison = files
    found = load_experiments(experiments, read_comparison(comparison).entries)
    lora = find_experiment(found, "lora.seed2")
    assert (lora.name, lora.base, lora.backbone, lora.compare) == ("lora.seed2", "lora", "A1.seed2", "A1.seed2")
    assert resolve({"seed": 5}, lora, {"seed": 7})["seed"] == 2  # its name says it
    assert find_experiment(found, "A1.seed2").trains
    experiments.write_text("mms: {adapt: mms}\nB: {adapt: mms}\n")
    imported = load_experiments(experiments)
    assert find_experiment(imported, "B.seed1").backbone == find_experiment(imported, "mms.seed1").backbone == "mms"
    for name in ("A9.seed1", "B.seeds"):
        with pytest.raises(PelasrError, match=f"no experiment '{name}'"):
            find_experiment(imported, name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the key 'adapt' is missing"),
        ("adapt: A1\nbaseline: A1\nmethods: {}\nmethod: {}", "unknown key 'method'; did you mean 'methods'"),
        ("adapt: A1\nbaseline: A1\nmethods: [lora]", "methods: expected `key: value` lines"),
        ("adapt: A1\nbaseline: A1\nmethods: {lora: {lr: 1}}", "lora: which method"),
        ("adapt: A9\nbaseline: A1\nmethods: {lora: {adapter: lora}}", "lora refers to 'A9'"),
        ("adapt: A1\nbaseline: A9\nmethods: {lora: {adapter: lora}}", "lora refers to 'A9'"),
        ("adapt: A1\nbaseline: A1\nmethods: {A5: {adapter: lora}}", "'A5' is a method of the comparison too"),
        ("adapt: A1\nbaseline: A1\nmethods: {a/b: {adapter: lora}}", "want a name of a folder"),
        (
            "adapt: A1\nbaseline: A1\nmethods: {lora.seed1: {adapter: lora}}",
            "names are those of runs with another seed",
        ),
        (
            "adapt: A1\nbaseline: A1\nmethods: {lora: {adapter: lora, lr: [0.1, high]}}",
            "lr: 'high' is no number above 0",
        ),
        ("adapt: A1\nbaseline: A1\nmethods: {lora: {adapter: lora, lr: [true]}}", "lr: True is no number"),
        ("adapt: A1\nbaseline: A1\nmethods: {lora: {adapter: lora, lr: -1}}", "lr: -1 is no number"),
        ("adapt: A1\nbaseline: A1\nmethods: {lora: {adapter: lora, lr: []}}", "want one number or several"),
        ("adapt: A1\nbaseline: A1\nmethods: {lora: {adapter: lora, lr: [1, 1.0]}}", "each once"),
        ("adapt: A1\nbaseline: A1\nmethods: {lora: {adapter: lora, lr: [0.001, 0.00100000001]}}", "each once"),
        ("adapt: A1\nbaseline: A1\nmethods: {yes: {adapter: lora}}", "method 'True': want a name"),
        ("adapt: A1\nbaseline: A1\nmethods: {1: {adapter: lora}, '1': {adapter: lora}}", "'1' comes a second time"),
    ],
)
def test_what_is_wrong_is_said(files, content, said):
    experiments, comparison = files
    comparison.write_text(content)
    with pytest.raises(PelasrError, match=said):
        load_experiments(experiments, read_comparison(comparison).entries)


def test_the_comparison_is_named_where_it_is_wrong(files):
    """And not the experiments, beside which its entries stand."""
    files[1].write_text("adapt: A1\nbaseline: A1\nmethods: {lora: {adapter: lora, lr: high}}")
    with pytest.raises(PelasrError, match="comparison.yaml: lora: lr: 'high'"):
        expand(files[0], "", files[1], "lora", None)


def test_a_backbone_has_no_rates_to_choose_from(files):
    files[0].write_text("A1: {lr: [0.1, 0.2]}\n")
    with pytest.raises(PelasrError, match="A1: lr goes with adapt"):
        load_experiments(files[0])


def test_an_unknown_method_lists_those_there_are(files):
    with pytest.raises(PelasrError, match="no method 'lira' in .*did you mean 'lora'.*bitfit, houlsby, lora"):
        expand(*files[:1], "", files[1], "lira", None)
    with pytest.raises(PelasrError, match="of which comparison"):
        expand(files[0], "", None, "lora", None)
    with pytest.raises(PelasrError, match="no such file: nothing says which methods"):
        read_comparison(files[0].with_name("none.yaml"))


def test_a_backbone_that_is_not_trained_is_said_at_once(files, tmp_path):
    chosen = expand(files[0], "A0", files[1], "lora", "0 1")
    with pytest.raises(PelasrError, match=r"A1: no backbone yet for lora: run stage 4 first"):
        check_trained(tmp_path / "exp", chosen)
    (tmp_path / "exp/A1").mkdir(parents=True)
    (tmp_path / "exp/A1/backbone.yaml").touch()
    with pytest.raises(PelasrError, match=r"A1.seed1: no backbone yet for lora.seed1"):
        check_trained(tmp_path / "exp", chosen)


def test_the_first_seed_is_that_of_the_backbone(files, tmp_path):
    for name, seed in (("A1", 1), ("A1.seed0", 0), ("A1.seed2", 2)):
        (tmp_path / "exp" / name).mkdir(parents=True)
        (tmp_path / "exp" / name / "backbone.yaml").touch()
        (tmp_path / "exp" / name / "facts.json").write_text(f'{{"seed": {seed}}}')
    for seeds in ("1 0", "1 2 0", "1", "0"):
        check_trained(tmp_path / "exp", expand(files[0], "", files[1], "lora", seeds), seeds)
    with pytest.raises(PelasrError, match=r"exp/A1: trained with seed 1: name it first in --seeds, not 2"):
        check_trained(tmp_path / "exp", expand(files[0], "", files[1], "lora", "2 0"), "2 0")


def test_what_may_run_side_by_side(files, capsys):
    """Further seeds wait for the first, which chooses the learning rate."""

    def printed(which):
        words = ["--adapters", "lora bitfit", "--seeds", "0 1 2", "--which", which]
        main(["experiments", "--experiments", str(files[0]), "--comparison", str(files[1]), "--exps", "", *words])
        return capsys.readouterr().out.splitlines()

    assert printed("backbones") == ["A1 A1.seed1 A1.seed2"]
    assert printed("adapted") == ["lora bitfit", "lora.seed1 bitfit.seed1 lora.seed2 bitfit.seed2"]


def test_a_fusion_comes_after_what_it_is_made_of(files, capsys):
    """Also where its sources are not asked for, and on the packs of its own seed."""
    experiments, comparison = files
    comparison.write_text(CONTENT + "  sim: {adapter: simadapter, fuse: houlsby, lr: [1, 2]}\n")
    words = ["--adapters", "sim lora", "--seeds", "0 1", "--which", "adapted"]
    main(["experiments", "--experiments", str(experiments), "--comparison", str(comparison), "--exps", "", *words])
    assert capsys.readouterr().out.splitlines() == ["houlsby lora", "houlsby.seed1 lora.seed1", "sim", "sim.seed1"]
    found = load_experiments(experiments, read_comparison(comparison).entries)
    assert find_experiment(found, "sim.seed1").fuse == "houlsby.seed1"


def test_a_copy_may_have_another_grid(files):
    """What `--comparison` names is read as it is: a number as YAML writes it, or as people do."""
    content = yaml.safe_load(CONTENT)
    content["methods"]["lora"]["lr"] = [1e-05, 1]
    files[1].write_text(yaml.safe_dump(content))
    found = load_experiments(files[0], read_comparison(files[1]).entries)
    assert found["lora"].rates == (1e-5, 1.0)


@pytest.mark.parametrize("options", [5, "bottleneck", ["bottleneck"], True])
def test_options_of_adapters_are_a_mapping(options):
    with pytest.raises(PelasrError, match="a.yaml: adapter_conf: expected `key: value` lines, found"):
        split_adapter_options({"adapter": "houlsby", "adapter_conf": options}, "a.yaml")
