"""The modules that methods may hang on: what belongs to which kind, and that every one of them is used."""

import pytest
import torch
from tiny_models import ENCODERS, ST_ENCODERS, TAGS
from torch import nn

from pelasr.adapters.bank import Bank
from pelasr.adapters.freeze import freeze
from pelasr.errors import PelasrError

MACARON = {**ST_ENCODERS["conformer"], "macaron_style": True}
BRANCHES = {**ST_ENCODERS["e_branchformer"], "macaron_ffn": True}
MODELS = {
    "rnnt lstm": ("rnnt", {"ctc_weight": 0.3}),
    "rnnt conformer": (
        "rnnt",
        {
            "encoder": "conformer",
            "encoder_conf": {**ENCODERS["conformer"], "macaron_style": True},
            "decoder": "transducer",
            "decoder_conf": {"hidden_size": 8, "num_layers": 2},
        },
    ),
    "st transformer": ("st", {}),
    "st conformer": ("st", {"encoder": "conformer", "encoder_conf": MACARON, "ctc_weight": 0.3}),
    "st e_branchformer": ("st", {"encoder": "e_branchformer", "encoder_conf": BRANCHES}),
}
COUNTS = {
    "rnnt lstm": {"linear": 2, "joint": 2, "norm": 3, "lstm": 5},
    # The subsampling's linear map; in a layer attention's four and two of two each; the joint network's.
    "rnnt conformer": {
        "linear": 1 + 2 * (4 + 2 * 2) + 2,
        **dict.fromkeys("qkv", 2),
        "out": 2,
        "ffn_in": 2 * 2,
        "ffn_out": 2 * 2,
        "attention": 2,
        "joint": 2,
        "norm": 2 * (5 + 1) + 1,  # five layer norms and a batch norm
        "conv": 2 + 2 * 3,
        "lstm": 2,
    },
    "st transformer": {
        "linear": 2 * (4 + 2) + 2 * (8 + 2),
        **dict.fromkeys("qkv", 2 + 2 * 2),
        "out": 2 + 2 * 2,
        "ffn_in": 2 + 2,
        "ffn_out": 2 + 2,
        "attention": 2,
        "norm": 2 * 2 + 1 + 2 * 3 + 1,
        "conv": 2,
    },
}
KINDS = {"lora": ["linear", ["q", "v"], ["k", "out"], ["ffn_in", "ffn_out"], "joint"], "bitfit": [None, "norm"]}
KINDS["houlsby"] = ["conv", "lstm", "linear"]
WHOLE = (
    "input",
    "top",
    "layer",
    "layer_norm",
    "position",
    "ffn",
    "prediction",
    "output",
    "encoder",
    "decoder",
)  # kinds that the backbones name themselves


@pytest.mark.parametrize("name", COUNTS)
def test_kinds(name, make_model):
    sites = make_model(*MODELS[name]).sites()
    found = {kind: len(paths) for kind, paths in sites.items() if kind not in WHOLE}
    assert found == COUNTS[name]


def test_paths(make_model):
    sites = make_model(*MODELS["rnnt conformer"]).sites()
    assert list(sites["joint"].items()) == [("joint.lin_enc", 6), ("joint.lin_dec", 6)]
    assert list(sites["q"]) == [f"encoder.encoder.encoders.{n}.self_attn.linear_q" for n in range(2)]
    assert sites["lstm"] == {f"prediction.decoder.decoder.{n}": 8 for n in range(2)}
    sites = make_model(*MODELS["st conformer"]).sites()
    assert [path for path in sites["ffn_in"] if path.startswith("encoder.stack.encoder.encoders.0.")] == [
        "encoder.stack.encoder.encoders.0.feed_forward.w_1",
        "encoder.stack.encoder.encoders.0.feed_forward_macaron.w_1",
    ]
    assert [path for path in sites["v"] if path.startswith("decoder.decoders.0.")] == [
        "decoder.decoders.0.self_attn.linear_v",
        "decoder.decoders.0.src_attn.linear_v",
    ]
    assert set(sites["ffn_in"].values()) == {8} and set(sites["ffn_out"].values()) == {6}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_no_site(name, make_model):
    """But as `output`: output layers, whose weights a loss may read without a call, embeddings, and maps that the rows
    share."""
    model = make_model(*MODELS[name])
    whole = ("encoder", "decoder", "output")
    sites = {path for kind, paths in model.sites().items() if kind not in whole for path in paths}
    linear = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    left_out = {path for path in linear - sites if not path.endswith("linear_pos")}
    assert left_out == {"joint.lin_out", "decoder.output_layer", "ctc"} & linear
    assert not any(isinstance(model.get_submodule(path), nn.Embedding) for path in sites)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("method", "kinds"), [(method, kinds) for method in KINDS for kinds in KINDS[method]])
def test_every_site_is_used_row_by_row(name, method, kinds, make_model, make_batch):
    """Its module sees a row for each of the batch, as wide as is said, and its adapters get gradients."""
    model, batch = make_model(*MODELS[name]), make_batch(["hi", "ur", "pa", "ur"])
    if kinds is not None and not set([kinds] if isinstance(kinds, str) else kinds) <= set(model.sites()):
        with pytest.raises(PelasrError, match=f"adapter {method} needs a site"):
            Bank(method, {"sites": kinds}, model)
        return
    freeze(model)
    bank = Bank(method, {"sites": kinds} if kinds else {}, model)
    for language in ("hi", "ur", "pa"):
        bank.add(language)
    for path, width in bank.sites.items():
        host = model.get_submodule(path)
        channel = 1 if isinstance(host, nn.Conv1d | nn.Conv2d | nn.BatchNorm1d) else -1

        def check(host, args, output, path=path, width=width, channel=channel):
            y = output[0] if isinstance(output, tuple) else output
            assert len(args[0]) == len(y) == 4 and y.shape[channel] == width, path

        host.register_forward_hook(check)
    prefix = None if name.startswith("rnnt") else torch.full((4, 1), TAGS[0])
    with bank.route(batch.languages):
        enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
        model.loss(enc, lens, batch.targets, batch.target_lens, prefix).total.sum().backward()
    bank.check_gradients(["hi", "ur", "pa"])
