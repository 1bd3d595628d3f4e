"""What the results say of an experiment: parameter counts of the paper's table, on the modules that train."""

from pathlib import Path

import pytest

from pelasr.config import load_yaml
from pelasr.data.kaldi import Utterance, write_data_dir
from pelasr.data.place import Place
from pelasr.errors import PelasrError
from pelasr.stages.experiment import Experiment, load_experiments, resolve
from pelasr.stages.params import count
from pelasr.stages.score import _read_facts, new_languages
from pelasr.tasks.translation import parameter_cell

ROOT = Path(__file__).parents[2]
PAIRS = 8
# Le et al. 2021: trained and total parameters of rows 1 to 8, and the paper's strings for them, in millions.
PAPER = {
    "1": (8 * 31_072_256, 8 * 31_072_256, "8×31.1/8×31.1"),
    "2": (32_096_256, 32_096_256, "32.1/32.1"),
    "3": (8 * 201_600, 33_709_056, "8×0.2/33.7"),
    "4": (8 * 604_800, 36_934_656, "8×0.6/36.9"),
    "5": (8 * 398_592, 35_284_992, "8×0.4/35.3"),
    "6": (8 * 1_195_776, 41_662_464, "8×1.2/41.7"),
    "7": (8 * 14_593_024, 8 * 32_096_256, "8×14.6/8×32.1"),
    "8": (8 * 32_096_256, 8 * 32_096_256, "8×32.1/8×32.1"),
}


def row(name: str) -> tuple[int, int, str]:
    """A row of egs/must_c/st1, as it is configured."""
    experiment = load_experiments(ROOT / "egs/must_c/st1/conf/experiments.yaml")[name]
    config = load_yaml(ROOT / "conf/st_le2021.yaml")
    vocab_size = experiment.tokens.get("vocab_size", 10_000)
    if not experiment.adapted:
        report = count(resolve(config, experiment, {}), None, name, vocab_size, PAIRS)
        models = PAIRS if experiment.each else 1
        method, dictionary = "backbone", "mono" if experiment.each else "multi"
        trained = total = models * report["total"]
    else:
        adapter = resolve(load_yaml(ROOT / f"conf/adapter/{experiment.adapter or 'houlsby_st'}.yaml"), experiment, {})
        report = count(config, adapter, name, vocab_size, PAIRS)
        method, dictionary = adapter["adapter"], "multi"
        trained, total = report["trainable"], report["total"]
    line = {"method": method, "dict": dictionary, "trainable_parameters": trained, "total_parameters": total}
    return trained, total, parameter_cell(line, PAIRS)


@pytest.mark.parametrize("name", PAPER)
def test_the_rows_of_the_paper(name):
    found = row(name)
    print(name, *found)
    assert found == PAPER[name]


def test_the_larger_model():
    """D = 512 with adapters of 256: 76.3 M, and 4.8 M a pair."""
    adapter = load_yaml(ROOT / "conf/adapter/houlsby_st.yaml")
    adapter["adapter_conf"]["bottleneck"] = 256
    report = count(load_yaml(ROOT / "conf/st_le2021_m.yaml"), adapter, "", 10_000, PAIRS)
    assert (report["backbone"], report["adapter_per_language"]) == (76_327_936, 4_750_848)


@pytest.mark.parametrize("content", ['{"total_parameters": 1, "se', '{"total_parameters": 1, "seed": 0}', "[]"])
def test_facts_that_are_cut_off(tmp_path, content):
    (tmp_path / "facts.json").write_text(content)
    with pytest.raises(PelasrError, match="facts.json: .*; restore it, or delete the folder and train again"):
        _read_facts(tmp_path / "facts.json")


def test_sets_whose_names_begin_alike(tmp_path):
    """`test_clean_hi` is the set `test_clean`, not the set `test` in a language `clean_hi`."""
    place = Place(tmp_path / "data", tmp_path / "dump", tmp_path / "exp", ["hi"])
    for folder, language in (("test_hi", "hi"), ("test_clean_hi", "hi"), ("test_pa", "pa")):
        write_data_dir(place.data / folder, [Utterance("u", "u", "u.wav", None, None, "a", "s", language)])
        (place.exp / f"A5/decode/{folder}").mkdir(parents=True)
        (place.exp / f"A5/decode/{folder}/text").write_text("u a\n")
    experiment = Experiment("A5", "", "A1", "backbone", True, {}, None)
    assert new_languages(place, experiment, "test") == ["pa"]
    assert new_languages(place, experiment, "test_clean") == []
    for folder in ("test_clean_hi", "test_pa"):  # then packs and training data tell
        (place.data / folder / "utt2lang").unlink()
    assert new_languages(place, experiment, "test") == []
    (place.exp / "A5/packs/pa").mkdir(parents=True)
    assert new_languages(place, experiment, "test") == ["pa"]


@pytest.mark.parametrize(
    ("backbone", "adapter", "size"),
    [
        ("rnnt_mini", "lora_mini", 32 * ((320 + 256) + (256 + 256))),
        # Queries and values of three self-attentions in the encoder, and of two of each kind in the decoder.
        ("st_mini", "lora_st_mini", 8 * (3 + 2 * 2) * 2 * (96 + 96)),
        ("rnnt_mini", "bitfit_mini", 3 * 320 + 256),
        (
            "st_mini",
            "bitfit_st_mini",
            (256 + 192)  # subsampler
            + 3 * (4 * 96 + 2 * (384 + 96) + 5 * 96 + 96 + (192 + 96 + 96))  # attention, ffn, norms, convolutions
            + 96
            + 2 * (8 * 96 + (384 + 96) + 3 * 96)
            + 96,
        ),
    ],
)
def test_sizes_of_the_configured_methods(backbone, adapter, size):
    config, options = load_yaml(ROOT / f"conf/{backbone}.yaml"), load_yaml(ROOT / f"conf/adapter/{adapter}.yaml")
    report = count(config, options, "test", vocab_size=50, num_languages=3)
    integers = {"lora_mini": 34_816, "lora_st_mini": 21_504, "bitfit_mini": 1_216, "bitfit_st_mini": 10_624}
    assert report["adapter_per_language"] == size == integers[adapter]
    assert report["trainable"] == 3 * size and report["total"] == report["backbone"] + 3 * size
