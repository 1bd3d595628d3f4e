"""Backbones on disk: a round trip is exact, and whatever is not as it was saved is refused."""

import os
import time
import tracemalloc

import pytest
import torch

from pelasr.backbones.base import backbone_options, build_backbone, find_backbone
from pelasr.backbones.rnnt import RNNT
from pelasr.backbones.store import describe_backbone, load_backbone, load_encoder
from pelasr.data.tokenizer import Tokenizer, train_graphemes
from pelasr.errors import PelasrError
from pelasr.files import sha256_file
from pelasr.stages.settings import split_options
from pelasr.storage import check_tensors, load_weights, read_description, save_weights, state_sha256, write_description

OPTIONS = {
    "encoder_conf": {"num_layers": 2, "hidden_size": 8, "output_size": 6, "reduction_layer": 1},
    "decoder_conf": {"num_layers": 1, "hidden_size": 8, "output_size": 6},
    "joint_net_conf": {"joint_space_size": 6},
    "num_mels": 5,
}


@pytest.fixture
def saved(tmp_path):
    """Folder of a backbone of random weights with seven tokens, two languages, and statistics of its features."""
    tokenizer = Tokenizer(train_graphemes(["abcd"]))
    tokenizer.save(tmp_path / "tokens")
    torch.manual_seed(0)
    module = build_backbone("rnnt", OPTIONS, len(tokenizer.tokens), num_languages=2)
    module.set_feature_stats(torch.arange(5.0), torch.full((5,), 2.0))
    save_weights(tmp_path / "exp" / "backbone.safetensors", module.state_dict())
    describe_backbone(tmp_path / "exp", "rnnt", OPTIONS, ["hi", "ur"], tmp_path / "tokens", {"training": {"epochs": 3}})
    return tmp_path / "exp", module


def rewrite(folder, **changes):
    """backbone.yaml with other values and the right hash; None takes the key out."""
    path = folder / "backbone.yaml"
    description = {**read_description(path, ""), **changes}
    write_description(path, {key: value for key, value in description.items() if value is not None})


def test_round_trip_is_exact(saved):
    folder, module = saved
    loaded = load_backbone(folder)
    assert list(loaded.module.state_dict()) == list(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor)
    assert loaded.sha256 == state_sha256(module.state_dict())
    assert loaded.languages == ["hi", "ur"] and loaded.tokenizer.decode([2, 5]) == "ad"
    assert loaded.description.training == {"epochs": 3}
    assert not any(part.training for part in loaded.module.modules())


def test_other_weights_of_the_same_folder(saved):
    folder, module = saved
    early = {name: tensor + 1 for name, tensor in module.state_dict().items()}
    save_weights(folder / "early.safetensors", early)
    with pytest.raises(PelasrError, match="backbone.yaml: has no weights 'early'; known: backbone"):
        load_backbone(folder, "early")
    describe_backbone(folder, "rnnt", OPTIONS, ["hi", "ur"], folder.parent / "tokens", {})
    assert load_backbone(folder, "early").sha256 == state_sha256(early) != load_backbone(folder).sha256


def test_files_do_not_depend_on_the_source_folder(saved, tmp_path):
    (tmp_path / "tokens" / "tokens.txt").write_text("")
    assert load_backbone(saved[0]).tokenizer.tokens[2] == "a"


def test_hash_sees_names_types_shapes_and_values():
    state = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3)}
    others = [
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"]},
        {"a": state["a"].T, "b": state["b"]},
        {"a": state["a"].double(), "b": state["b"]},
        {"a": state["a"].view(torch.int32), "b": state["b"]},
        {"a": torch.tensor([[1.0, 2.0000002]]), "b": state["b"]},
        {"a": torch.tensor([[2.0, 1.0]]), "b": state["b"]},
        {"a": state["a"], "b": torch.tensor(4)},
    ]
    assert len({state_sha256(each) for each in [state, *others]}) == 1 + len(others)
    assert state_sha256({"b": state["b"], "a": state["a"]}) == state_sha256(state)
    strided = torch.tensor([[1.0, 9.0, 2.0]])[:, ::2].requires_grad_()
    assert state_sha256({"a": strided, "b": state["b"]}) == state_sha256(state)


def test_tampering_with_the_weights(saved):
    folder, module = saved
    path, state = folder / "backbone.safetensors", module.state_dict()
    name = "joint.lin_out.bias"

    def refused(message, changed):
        save_weights(path, changed)
        rewrite(folder, weights={"backbone": sha256_file(path)})
        with pytest.raises(PelasrError, match=message) as caught:
            load_backbone(folder)
        assert str(path) in str(caught.value)

    refused(f"tensor {name} is missing", {key: value for key, value in state.items() if key != name})
    refused("tensor extra is unexpected", {**state, "extra": torch.ones(1)})
    refused(rf"tensor {name} is \(6,\) torch.float32, expected \(7,\)", {**state, name: torch.ones(6)})
    refused(rf"tensor {name} is \(7,\) torch.float64, expected", {**state, name: torch.ones(7).double()})
    refused(f"tensor {name} holds NaN", {**state, name: torch.full((7,), torch.nan)})
    refused(f"tensor {name} holds NaN or infinity", {**state, name: torch.full((7,), torch.inf)})


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights(saved, size):
    path = saved[0] / "backbone.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(PelasrError, match="backbone.safetensors: not the file that was described"):
        load_backbone(saved[0])
    rewrite(saved[0], weights={"backbone": sha256_file(path)})
    with pytest.raises(PelasrError, match="backbone.safetensors: damaged"):
        load_backbone(saved[0])


def test_what_is_absent_is_named(saved, tmp_path):
    with pytest.raises(PelasrError, match="nowhere/backbone.yaml: no such file"):
        load_backbone(tmp_path / "nowhere")
    rewrite(saved[0], weights={"backbone": "0" * 64, "early": "0" * 64})
    with pytest.raises(PelasrError, match="early.safetensors: no such file"):
        load_backbone(saved[0], "early")
    (saved[0] / "tokens/tokens.txt").unlink()
    with pytest.raises(PelasrError, match="tokens.txt: no token list"):
        load_backbone(saved[0])


def test_other_tokens(saved):
    Tokenizer(train_graphemes(["abce"])).save(saved[0] / "tokens")
    with pytest.raises(PelasrError, match="not the token list that .*backbone.yaml was trained with"):
        load_backbone(saved[0])


@pytest.mark.parametrize("key", ["backbone", "options", "languages", "tokens_sha256", "weights"])
def test_a_key_is_missing(saved, key):
    rewrite(saved[0], **{key: None})
    with pytest.raises(PelasrError, match=f"backbone.yaml: .*missing.*{key}|backbone.yaml: .*{key}.* missing"):
        load_backbone(saved[0])
    rewrite(saved[0], **{key: 5})
    with pytest.raises(PelasrError, match=f"backbone.yaml: {key}: expected a (str|dict|list), found 5"):
        load_backbone(saved[0])


def test_other_description(saved):
    rewrite(saved[0], languages=["hi", "ur", "pa"])
    with pytest.raises(PelasrError, match=r"tensor encoder.layers.0.lstm.weight_ih_l0 is \(32, 22\)"):
        load_backbone(saved[0])
    rewrite(saved[0], languages=["hi", "ur"], options={**OPTIONS, "encodr": "lstm"})
    with pytest.raises(PelasrError, match="unknown key 'encodr'; did you mean 'encoder'"):
        load_backbone(saved[0])
    rewrite(saved[0], backbone="rnn")
    with pytest.raises(PelasrError, match="no family 'rnn'; did you mean 'rnnt'"):
        load_backbone(saved[0])


def test_what_espnet_has_another_default_for_is_saved(tmp_path):
    """And where an older description says nothing of it the backbone is refused, not computed in another way."""
    tokens, folder = tmp_path / "tokens", tmp_path / "exp"
    Tokenizer(train_graphemes(["abcde"])).save(tokens)
    conf = {"output_size": 6, "attention_heads": 2, "linear_units": 8, "num_blocks": 1, "input_layer": "linear"}
    options = {**OPTIONS, "encoder": "conformer", "encoder_conf": conf}
    torch.manual_seed(0)
    module = build_backbone("rnnt", options, len(Tokenizer.load(tokens).tokens), num_languages=2)
    save_weights(folder / "backbone.safetensors", module.state_dict())
    describe_backbone(folder, "rnnt", options, ["hi", "ur"], tokens, {})
    assert load_backbone(folder).description.options["encoder_conf"] == {**conf, "rel_pos_type": "latest"}
    config = {"backbone": "rnnt", "encoder": "conformer", "encoder_conf": conf}
    assert split_options(config, "test")[1]["encoder_conf"]["rel_pos_type"] == "latest"  # a run goes on with no other
    rewrite(folder, options=options)
    for load in (load_backbone, lambda path: load_encoder(module, path)):
        with pytest.raises(PelasrError, match="backbone.yaml: options: encoder_conf says no rel_pos_type: .*again"):
            load(folder)
    rewrite(folder, options={**options, "encoder_conf": {**conf, "rel_pos_type": "legacy"}})
    with pytest.raises(PelasrError, match="encoder_conf: rel_pos_type: legacy: .* use `rel_pos_type: latest`"):
        load_backbone(folder)


ENCODER = OPTIONS["encoder_conf"]
HOSTILE = {
    "languages": [[], ["hi", "hi"], ["hi", 5], ["hi", "../x"], ["hi", "en-de"], [["hi"]], ["hi\n", "ur"]],
    "tokens_sha256": ["x", "A" * 64],
    "weights": [{"backbone": 5}, {5: "a" * 64}, {"backbone": "a"}],
    "backbone": ["../rnnt", "__init__", "", "rnnt\x1b[2J"],
    "training": [5, {"hours": "x", "utterances": 3}, {"utterances": -1}, {"hours": float("nan")}, {"utterances": True}],
    "folded": [5],
    "surplus": [5],
    "options": [
        {**OPTIONS, "stride": 0},
        {**OPTIONS, "stride": -1},
        {**OPTIONS, "stride": 1.5},
        {**OPTIONS, "stack": "4"},
        {**OPTIONS, "stack": 101},
        {**OPTIONS, "num_mels": 0},
        {**OPTIONS, "num_mels": [5]},
        {**OPTIONS, "ctc_weight": "x"},
        {**OPTIONS, "encoder": "../lstm"},
        {**OPTIONS, "encoder": ["lstm"]},
        {**OPTIONS, "encoder_conf": [1]},
        {**OPTIONS, "encoder_conf": "words"},
        {**OPTIONS, "encoder_conf": 5},
        {**OPTIONS, 5: 5},
        {**OPTIONS, "encoder_conf": {**ENCODER, "hidden_size": -8}},
        {**OPTIONS, "encoder_conf": {**ENCODER, "hidden_size": 8.5}},
        {**OPTIONS, "encoder_conf": {**ENCODER, "hidden_size": 10**300}},
        {**OPTIONS, "encoder_conf": {**ENCODER, "dropout": float("inf")}},
        {**OPTIONS, "encoder_conf": {**ENCODER, "num_layers": 10_000}},
        {**OPTIONS, "encoder_conf": {**ENCODER, "num_layers": 100_000}},
        {**OPTIONS, "encoder_conf": {**ENCODER, "num_layers": 10**12}},
        {**OPTIONS, "encoder_conf": {**ENCODER, "hidden_size": 16_000, "output_size": 16_000}},
        {**OPTIONS, "encoder": "conformer", "encoder_conf": {"num_blocks": 10_000, "output_size": 8}},
        {**OPTIONS, "encoder": "conformer", "encoder_conf": {"attention_heads": 0}},
        {**OPTIONS, "decoder_conf": {"num_layers": 16_000}},
        {**OPTIONS, "decoder": "transducer", "decoder_conf": {"num_layers": 16_000, "hidden_size": 1}},
        {**OPTIONS, "joint_net_conf": {"joint_space_size": 16_000}},
        {**OPTIONS, "joint_net_conf": {"joint_activation_type": 5}},
    ],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in HOSTILE.items() for value in values])
def test_hostile_descriptions(saved, key, value):
    """With the right hash: whoever makes a backbone can write that. It is refused before anything of the size that it
    asks for is made."""
    rewrite(saved[0], **{key: value})
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(PelasrError, match=r"backbone.yaml: |backbone.safetensors: tensor \S+ is ") as caught:
        load_backbone(saved[0])
    assert tracemalloc.get_traced_memory()[1] < 50e6 and time.monotonic() - start < 5
    tracemalloc.stop()
    text = str(caught.value)
    assert text.isprintable() and len(text) < 600 and str(saved[0]) in text


def test_weights_that_are_not_there(saved):
    """Terabytes of holes, of which a consistent header and hash could be made."""
    path = saved[0] / "backbone.safetensors"
    with open(path, "r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(PelasrError, match="backbone.safetensors: damaged: 1099511627776 bytes"):
        load_backbone(saved[0])
    with pytest.raises(PelasrError, match="backbone.safetensors: damaged .*holes"):
        load_weights(path, "a" * 64)


def test_a_model_that_cannot_be_run(saved, monkeypatch):
    """Whose options fit the weights, but not each other."""
    monkeypatch.setattr(RNNT, "encode", lambda *args: 1 / 0)
    with pytest.raises(PelasrError, match="backbone.yaml: options: no model can be run with them .division by zero"):
        load_backbone(saved[0])


@pytest.mark.parametrize("name", ["tokens", "tokens/tokens.txt", "backbone.safetensors", "backbone.yaml"])
def test_a_pipe_in_the_place_of_a_file(saved, name):
    path = saved[0] / name
    path.rename(path.with_name("aside"))
    os.mkfifo(path)
    with pytest.raises(PelasrError, match="no such file, but a named pipe|no token list"):
        load_backbone(saved[0])
    path.unlink()
    path.mkdir()
    with pytest.raises(PelasrError, match="no such file, but a folder|no token list"):
        load_backbone(saved[0])


def test_only_the_tokens_are_copied(saved, tmp_path):
    os.mkfifo(tmp_path / "tokens/pipe")
    describe_backbone(tmp_path / "exp", "rnnt", OPTIONS, ["hi", "ur"], tmp_path / "tokens", {})
    assert [path.name for path in (tmp_path / "exp/tokens").iterdir()] == ["tokens.txt"]


def test_weights_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(path, {"x": torch.ones(3)})
    with pytest.raises(AttributeError):
        save_weights(path, {"x": "not a tensor"})
    assert torch.equal(load_weights(path)["x"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_same_tensors_same_bytes(tmp_path):
    state = {"x": torch.ones(3), "y": torch.arange(4.0)}
    save_weights(tmp_path / "a", state)
    save_weights(tmp_path / "b", dict(reversed(state.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_families():
    assert find_backbone("rnnt") is RNNT
    with pytest.raises(PelasrError, match="backbone: no family 'rnnd'; did you mean 'rnnt'.*known:.*rnnt"):
        find_backbone("rnnd")
    assert {"encoder", "encoder_conf", "stack", "ctc_weight"} <= set(backbone_options("rnnt"))
    assert not {"vocab_size", "num_languages", "self"} & set(backbone_options("rnnt"))
    for key in ("encodr", "vocab_size"):
        with pytest.raises(PelasrError, match=f"backbone rnnt: unknown key '{key}'"):
            build_backbone("rnnt", {key: 1}, 7, 2)


def test_integers_are_never_called_infinite():
    check_tensors({"n": torch.tensor(3)}, {"n": torch.tensor(4)}, "here")


def test_an_encoder_is_taken_from_another_backbone(tmp_path, make_st):
    """Of a recogniser without decoder and with other tokens."""
    recogniser = make_st(seed=1, vocab_size=9, ctc_weight=1.0)
    Tokenizer(train_graphemes(["abcd"])).save(tmp_path / "of_asr")
    save_weights(tmp_path / "backbone.safetensors", recogniser.state_dict())
    describe_backbone(tmp_path, "st", {"encoder_conf": {"output_size": 16}}, ["en"], tmp_path / "of_asr", {})
    model = make_st(seed=2)
    decoder = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    load_encoder(model, tmp_path)
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, recogniser.encoder.state_dict()[name])
    assert all(torch.equal(tensor, decoder[name]) for name, tensor in model.decoder.state_dict().items())
    with pytest.raises(PelasrError, match=r"backbone.safetensors: tensor encoder\.\S+ is "):
        load_encoder(make_st(encoder="conformer"), tmp_path)
    content = bytearray((tmp_path / "backbone.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "backbone.safetensors").write_bytes(content)
    with pytest.raises(PelasrError, match="backbone.safetensors: not the file that was described"):
        load_encoder(model, tmp_path)
