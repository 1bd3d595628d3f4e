"""Packs from anywhere: with whatever they say, and with hashes that are right, they can at worst be refused."""

import pytest
import torch
from tiny_exp import make_exp, retensor, rewrite

from pelasr.backbones.store import load_backbone
from pelasr.errors import PelasrError
from pelasr.files import sha256_file
from pelasr.packs.pack import load_bank, open_pack

HI = "A5/packs/hi"


@pytest.fixture
def exp(tmp_path):
    return make_exp(tmp_path)


def refused(exp, message):
    """Loading the pack of `hi` is an error of one line."""
    with pytest.raises(PelasrError, match=message) as caught:
        load_bank(exp / "A5/packs", ["hi"], load_backbone(exp / "A1"))
    text = str(caught.value)
    assert text.isprintable() and len(text) < 400
    return text


NAMES = ["../../etc", "hi/x", "", "hi\n", ".hi", "hi.", "hi..x", "a" * 41, 5, "hi-", "-hi", "a-b-c", "हि", "C:hi"]
NO_TOKENS = "\x9b\u00ad\u200b\u200e\u2028\u2029\u202e\u2066\ue000\ufeff\U000e0041\U0010ffff\u0378"
FUSION = {"method": "houlsby", "method_conf": {"bottleneck": 4}, "sources": ["hi"]}
HOSTILE = [
    *(("own_tokens", [token]) for token in NO_TOKENS),
    ("training", {"utterances": -1}),
    ("adapter_conf", {"bottleneck": True}),
    ("adapter_conf", {"bottleneck": 4, "dropout": "x"}),
    *(("language", name) for name in NAMES),
    *(("own_tokens", tokens) for tokens in ("abc", [5], ["ab"], ["<lang:de>"], ["\x1b"], ["\u00a0"], [""], ["я", "я"])),
    ("own_tokens", ["a"]),
    *(("own_tokens", [token]) for token in ("</s>", "<pad>", "я я", "я" * 17, "<U+0041>", "<U+D800>", "<U+FFFFFF>")),
    ("own_vector", 1),
    ("backbone_sha256", "0" * 63),
    ("tokens_sha256", 5),
    ("parameters", 251),
    ("parameters", -1),
    ("parameters", 10**300),
    ("sites", ["encoder.layers.0"]),
    ("sites", {"encoder.layers.0": "6"}),
    ("adapter", ["houlsby"]),
    ("adapter", "../houlsby"),
    ("adapter", "__init__"),
    ("adapter_conf", []),
    ("adapter_conf", {5: 1}),
    ("adapter_conf", {"bottleneck": -1}),
    ("adapter_conf", {"bottleneck": 0}),
    ("adapter_conf", {"bottleneck": "4"}),
    ("adapter_conf", {"bottleneck": float("inf")}),
    ("adapter_conf", {"bottleneck": float("nan")}),
    ("adapter_conf", {"bottleneck": 2**62}),
    ("adapter_conf", {"bottleneck": 10**300}),
    ("adapter_conf", {"bottleneck": 10**9}),
    ("adapter_conf", {"bottleneck": {"side": 4}}),
    ("adapter_conf", {"bottleneck": 4, "sites": 5}),
    ("adapter_conf", {"bottleneck": 4, "sites": [[1]]}),
    ("adapter_conf", {"bottleneck": 4, "sites": []}),
    ("adapter_conf", {"bottleneck": 4, "host": "x"}),
    *(("adapter_conf", FUSION | {"method_conf": conf}) for conf in (5, {"sites": 5}, {"bottleneck": {"a": {"b": 1}}})),
    *(("adapter_conf", FUSION | {"sources": sources}) for sources in ([], 5, ["hi"] * 2, [["hi"]], "../hi")),
    ("adapter_conf", FUSION),
    ("adapter_conf", FUSION | {"method": "simadapter"}),
    ("training", [1]),
    ("training", {"hours": "<script>"}),
    ("training", {"dev": {"wer": "1"}}),
    ("training", {"merged": [5]}),
]


@pytest.mark.parametrize(("key", "value"), HOSTILE)
def test_hostile_descriptions(exp, key, value):
    """With the right hash: whoever makes a pack can write that."""
    rewrite(exp / HI, **{key: value})
    refused(exp, "hi/pack.yaml: |hi: holds ")
    backbone = load_backbone(exp / "A1")
    with pytest.raises(PelasrError, match="hi/pack.yaml: |hi: holds "):
        open_pack(exp / HI, backbone, "hi")


def test_several_letters_and_hidden_ones_may_be_own_tokens(exp):
    backbone, own = load_backbone(exp / "A1"), ["дж", "<U+200B>"]
    rewrite(exp / "A5/packs/uk", own_tokens=own)
    assert load_bank(exp / "A5/packs", ["uk"], backbone).own_tokens("uk") == own
    tokenizer = backbone.tokenizer.with_own(own)
    first = len(tokenizer)
    assert tokenizer.encode("джa") == [first, *backbone.tokenizer.encode("a")]
    assert tokenizer.decode([first + 1, first]) == "дж" and tokenizer.unknown("джж") == ["ж"]


def test_joiners_may_be_own_tokens(exp):
    backbone = load_backbone(exp / "A1")
    rewrite(exp / "A5/packs/uk", own_tokens=["\u200c", "\u200d"])
    assert load_bank(exp / "A5/packs", ["uk"], backbone).own_tokens("uk") == ["\u200c", "\u200d"]


def test_nothing_is_allocated_for_what_a_pack_claims(exp):
    """A hundred terabytes of adapters, in a consistent description, are compared with the file first."""
    bottleneck = 2**40
    rewrite(exp / HI, adapter_conf={"bottleneck": bottleneck}, parameters=2 * (2 * 6 * bottleneck + bottleneck + 3 * 6))
    refused(exp, r"hi/pack.safetensors: tensor \S+ is \(4,\) torch.float32, expected \(1099511627776,\)")


def test_a_file_larger_than_its_tensors_is_not_read(exp):
    path = exp / HI / "pack.safetensors"
    with open(path, "r+b") as stream:
        stream.truncate(1 << 40)  # sparse
    refused(exp, "hi/pack.safetensors: damaged: 1099511627776 bytes")
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    refused(exp, "hi/pack.safetensors: damaged: 10 bytes with a header of 4611686018427387904")


def test_names_of_tensors_are_no_paths(exp, tmp_path):
    retensor(exp / HI, lambda tensors: tensors.update({"../../evil\n\x1b[2J": torch.ones(2)}))
    text = refused(exp, r"tensor \.\./\.\./evil \\x1b\[2J is unexpected")
    assert "\x1b" not in text
    assert not list(tmp_path.parent.glob("evil*"))


def test_a_pickle_is_no_pack(exp):
    path = exp / HI / "pack.safetensors"
    torch.save({"x": torch.ones(3)}, path)
    rewrite(exp / HI, safetensors_sha256=sha256_file(path))
    refused(exp, "hi/pack.safetensors: damaged")


def test_files_that_are_none(exp):
    for name in ("pack.safetensors", "pack.yaml"):
        (exp / HI / name).unlink()
        (exp / HI / name).mkdir()
        refused(exp, f"hi/{name}: no such file")
