"""Exact sizes of the methods of papers, counted on the models that they name."""

from functools import partial

import pytest
from tiny_models import ROOT

from pelasr.config import load_yaml, override
from pelasr.stages.params import count


def counted(backbone, adapter, **options):
    config = override(load_yaml(ROOT / f"conf/adapter/{adapter}.yaml"), {"adapter_conf": options})
    return count(load_yaml(ROOT / f"conf/{backbone}.yaml"), config, "test", vocab_size=30, num_languages=2)


on_hubert, on_rnnt = partial(counted, "hubert_base"), partial(counted, "rnnt_kannan2019")
LAYERS, D = 12, 768


@pytest.mark.parametrize(
    ("adapter", "options", "size"),
    [
        ("houlsby_chen2022", {}, 599_424),
        ("houlsby_chen2022", {"norm": True}, 617_856),
        ("houlsby_houlsby2019", {}, 2_379_264),
        ("houlsby_houlsby2019", {"bottleneck": 128}, 4_740_096),  # Peng et al. 2023: 4.7 M
        ("bitfit_chen2022", {}, 101_376),
        ("lora_chen2022", {}, 294_912),
        ("lora", {}, 294_912),
        ("dora", {}, 294_912 + 2 * LAYERS * D),
        ("parallel", {}, 4_730_880),
        ("adapterbias_chen2022", {}, 18_444),
        ("adapterbias", {}, 46_092),
        ("norm", {}, 36_864),
        ("layerwise_otake2023", {}, 9_127_436),
        ("layerwise_otake2023", {"sites": ["layer", "top"]}, 4_737_036),
        ("layerwise_otake2023", {"sites": ["ffn", "layer_norm"]}, 4_786_176),
    ],
)
def test_on_hubert_base(adapter, options, size):
    """What an adapter has, without the language's output layer, whose size depends on its tokens."""
    found = on_hubert(adapter, **options)
    assert found["adapter_alone"] == size
    assert found["adapter_per_language"] == size + 30 * (D + 1) + 13  # and the weights of 13 layers


@pytest.mark.parametrize(
    ("bottleneck", "size"), [(16, 179_328), (32, 343_296), (48, 507_264), (57, 599_496), (64, 671_232)]
)
def test_tomanek_on_the_rnnt(bottleneck, size):
    """After 8 layers of 640; up to 57 they are less than 0.5 % of the model."""
    found = on_rnnt("tomanek2021", bottleneck=bottleneck)
    assert found["adapter_per_language"] == size
    assert "adapter_alone" not in found  # there is nothing else
    assert (size / found["backbone"] < 0.005) == (bottleneck <= 57)


def test_otake_on_wavlm_base():
    assert counted("wavlm_base", "layerwise_otake2023")["adapter_alone"] == 9_127_436
