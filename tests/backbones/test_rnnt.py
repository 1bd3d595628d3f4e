"""The RNN-T: sizes against the paper's formula, streaming, padding, and its parts one by one."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pelasr.adapters.bank import Bank, count_parameters
from pelasr.adapters.freeze import freeze
from pelasr.backbones.base import build_backbone
from pelasr.backbones.rnnt import LSTMEncoder, ProjectedLSTM, reduce_time, stack_frames
from pelasr.cli.main import main
from pelasr.config import load_yaml, override
from pelasr.errors import PelasrError
from pelasr.stages.params import count
from pelasr.stages.settings import split_options
from pelasr.storage import state_sha256

ROOT = Path(__file__).parents[2]
KANNAN = ROOT / "conf/rnnt_kannan2019.yaml"
H, P = 2048, 640  # cells and projection of the paper's layers
PREDICTIONS = {
    "lstm": {},
    "transducer": {"decoder": "transducer", "decoder_conf": {"num_layers": 2, "hidden_size": 5}},
    "gru": {"decoder": "transducer", "decoder_conf": {"num_layers": 2, "hidden_size": 5, "rnn_type": "gru"}},
}


def projected_lstm(inputs):
    """The paper's layer, and the second bias vector that torch's has."""
    return 4 * H * (inputs + P) + 4 * H + H * P + 4 * H


def kannan(vocabulary, languages, vector=True):
    inputs = 80 * 4 + (languages if vector else 0)
    encoder = projected_lstm(inputs) + projected_lstm(2 * P) + 6 * projected_lstm(P) + 8 * 2 * P
    prediction = vocabulary * P + 2 * projected_lstm(P)
    joint = (P * P + P) + P * P + (P * vocabulary + vocabulary)
    return encoder + prediction + joint


def meta_backbone(**overrides):
    family, options, _ = split_options(override(load_yaml(KANNAN), overrides), "test")
    with torch.device("meta"):
        return build_backbone(family, options, vocab_size=500, num_languages=9)


def test_size_of_the_papers_model():
    layers = [projected_lstm(n) - 4 * H for n in (329, 640, 1280)]
    assert layers[0] + layers[2] + 6 * layers[1] == 97_132_544  # the arithmetic of the paper's encoder
    backbone = count_parameters(meta_backbone())["backbone"]
    assert backbone == kannan(500, 9)
    assert 121e6 < backbone < 123e6
    without = count_parameters(meta_backbone(language_vector="none"))["backbone"]
    assert without == kannan(500, 9, vector=False) == backbone - 4 * H * 9


@pytest.mark.parametrize(("bottleneck", "size"), [(256, 2_638_848), (240, 2_474_880), (128, 1_327_104)])
def test_size_of_the_papers_adapters(bottleneck, size):
    model = meta_backbone()
    freeze(model)
    with torch.device("meta"):
        bank = Bank("houlsby", {"bottleneck": bottleneck}, model)
        for language in ("hi", "ur"):
            bank.add(language)
    report = count_parameters(model, bank)
    assert report["adapter_per_language"] == size == 8 * (2 * P + 2 * P * bottleneck + bottleneck + P)
    assert report["trainable"] == 2 * size
    assert report["total"] == report["backbone"] + 2 * size
    assert size <= 0.025 * report["backbone"]


def test_params_command(capsys):
    """Counted on live modules, with the real configuration files."""
    adapter = ROOT / "conf/adapter/houlsby.yaml"
    main(["params", "--config", str(KANNAN), "--adapter", str(adapter), "--vocab_size", "321", "--json"])
    backbone, each = kannan(321, 9), 2_638_848
    assert json.loads(capsys.readouterr().out) == {
        "backbone": backbone,
        "adapter_per_language": each,
        "trainable": 9 * each,
        "total": backbone + 9 * each,
    }


def test_count_without_adapters():
    report = count(load_yaml(ROOT / "conf/rnnt_mini.yaml"), None, "test", vocab_size=50, num_languages=3)
    assert report["trainable"] == report["backbone"] == report["total"] and report["adapter_per_language"] == 0


def test_one_step_of_the_full_model():
    """122 M parameters on a CPU: the loss falls after a step of the backbone, and after one of the adapters alone."""
    family, options, _ = split_options(load_yaml(KANNAN), "test")
    torch.manual_seed(0)
    model = build_backbone(family, options, vocab_size=500, num_languages=9)
    feats, lens, ids, losses = torch.randn(2, 40, 80), torch.tensor([40, 35]), torch.tensor([0, 8]), []
    targets, target_lens = torch.randint(1, 500, (2, 4)), torch.tensor([4, 3])

    def step(parameters):
        enc, enc_lens = model.encode(feats, lens, ids)
        loss = model.loss(enc, enc_lens, targets, target_lens).total.sum()
        loss.backward()
        torch.optim.SGD(parameters, lr=1e-3).step()
        losses.append(loss.item())

    step(model.parameters())
    model.zero_grad()
    freeze(model)
    bank = Bank("houlsby", {"bottleneck": 256}, model)
    bank.add("hi")
    bank.add("ur")
    before = state_sha256(model.joint.state_dict())
    with bank.route(["hi", "ur"]):
        step(bank.parameters())
        step(bank.parameters())
    bank.check_gradients(["hi", "ur"])
    assert losses[0] > losses[1] > losses[2]
    assert state_sha256(model.joint.state_dict()) == before


def test_layers_and_time_scales():
    model = meta_backbone()
    assert model.subsampling == 6
    assert model.sites()["layer"] == {f"encoder.layers.{n}": 640 for n in range(8)}
    assert [layer.lstm.input_size for layer in model.encoder.layers] == [329, 640, 1280, *[640] * 5]
    assert [layer.lstm.proj_size for layer in model.encoder.layers] == [640] * 8


@pytest.mark.parametrize("encoder", ["lstm", "conformer", "transformer"])
def test_subsampling_and_sites(encoder, make_rnnt, make_batch):
    model, found = make_rnnt(encoder), []
    assert len(model.sites()["layer"]) == {"lstm": 3}.get(encoder, 2)
    for frames in (400, 400 + 10 * model.subsampling):
        batch = make_batch(["hi"], frames=[frames])
        enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
        assert enc.shape == (1, lens.item(), 6)
        found.append(lens.item())
    assert found[1] - found[0] == 10
    assert 400 / model.subsampling - 4 < found[0] <= 400 / model.subsampling


def reduced_after(layer):
    return {"num_layers": 3, "hidden_size": 8, "output_size": 6, "reduction_layer": layer}


@pytest.mark.parametrize("layer", [1, 2])
def test_time_is_reduced_after_the_layer_asked_for(layer, make_rnnt, make_batch):
    model, batch = make_rnnt(encoder_conf=reduced_after(layer)), make_batch(["hi"], frames=[40])
    seen = []
    for module in model.encoder.layers:
        module.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape[1:])))
    _, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
    assert seen == [(20, 13), *[(20, 6)] * (layer - 1), (10, 12), *[(10, 6)] * (2 - layer)]
    assert lens.item() == 40 // model.subsampling == 10


@pytest.mark.parametrize("layer", [0, 3, 4])
def test_time_must_be_reduced_between_two_layers(layer, make_rnnt):
    """Anywhere else `subsampling`, or the width of the output, would not be what the encoder says."""
    with pytest.raises(PelasrError, match="reduction_layer"):
        build_backbone("rnnt", {"encoder_conf": reduced_after(layer)}, vocab_size=7, num_languages=2)


def test_stack_frames():
    x = torch.arange(1.0, 8.0)[None, :, None]
    stacked, lens = stack_frames(x, torch.tensor([7]), stack=3, stride=2)
    assert stacked.tolist() == [[[0, 0, 1], [1, 2, 3], [3, 4, 5], [5, 6, 7]]]
    assert lens.tolist() == [4]
    for length in range(1, 8):
        stacked, lens = stack_frames(x[:, :length], torch.tensor([length]), stack=4, stride=3)
        assert stacked.shape[1] == lens.item() == -(-length // 3)


def test_reduce_time():
    x = torch.arange(1.0, 6.0)[None, :, None].repeat(2, 1, 1)
    reduced, lens = reduce_time(x, torch.tensor([5, 3]))
    assert reduced.tolist() == [[[1, 2], [3, 4], [5, 0]], [[1, 2], [3, 0], [0, 0]]]
    assert lens.tolist() == [3, 2]


@pytest.mark.parametrize(("stack", "stride", "reduction_layer"), [(4, 3, 2), (2, 2, 1), (1, 1, 2)])
def test_streaming(stack, stride, reduction_layer, make_rnnt, make_batch):
    """Output k sees input up to frame stride (2 k + 1) and, to show that the bound is sharp, that frame itself."""
    conf = {"num_layers": 3, "hidden_size": 8, "output_size": 6, "reduction_layer": reduction_layer}
    model = make_rnnt(stack=stack, stride=stride, encoder_conf=conf)
    batch = make_batch(["ur", "hi"], frames=[25, 25])
    bank = Bank("houlsby", {"bottleneck": 4}, model)
    bank.add("hi")
    bank.add("ur")
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    with bank.route(batch.languages):
        before, _ = model.encode(batch.feats, batch.lens, batch.language_ids)
        for frame in range(25):
            feats = batch.feats.clone()
            feats[:, frame:] += 1.0
            after, _ = model.encode(feats, batch.lens, batch.language_ids)
            for k in range(before.shape[1]):
                if frame > stride * (2 * k + 1):
                    assert torch.equal(after[:, k], before[:, k])
                elif frame == stride * (2 * k + 1):
                    assert not torch.equal(after[:, k], before[:, k])


@pytest.mark.parametrize("encoder", ["lstm", "conformer", "transformer"])
def test_padding_never_matters(encoder, make_rnnt, make_batch):
    """Outputs, losses and hypotheses of an utterance are the same alone and in a batch; odd lengths too."""
    model = make_rnnt(encoder, ctc_weight=0.5)
    languages = ["hi", "ur", "pa", "hi", "ur"]
    batch = make_batch(languages, frames=[31, 30, 29, 23, 17])
    batch.feats += (torch.arange(31) >= batch.lens[:, None])[..., None] * 7.0  # padding need not be zero
    enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
    losses = model.loss(enc, lens, batch.targets, batch.target_lens)
    found = model.search(enc, lens)
    for b in range(5):
        feats, targets = batch.feats[b : b + 1, : batch.lens[b]], batch.targets[b : b + 1, : batch.target_lens[b]]
        alone, alone_lens = model.encode(feats, batch.lens[b : b + 1], batch.language_ids[b : b + 1])
        assert alone_lens.item() == lens[b] == alone.shape[1]
        torch.testing.assert_close(enc[b, : lens[b]], alone[0], rtol=1e-6, atol=1e-6)
        loss = model.loss(alone, alone_lens, targets, batch.target_lens[b : b + 1])
        for name in ("rnnt", "ctc"):
            torch.testing.assert_close(loss.parts[name][0], losses.parts[name][b], rtol=1e-5, atol=1e-5)
        (hypothesis,) = model.search(alone, alone_lens)
        assert hypothesis.tokens == found[b].tokens
        assert hypothesis.score == pytest.approx(found[b].score, abs=1e-4)


@pytest.mark.parametrize("encoder", ["lstm", "conformer", "transformer"])
def test_padding_beyond_the_longest_utterance(encoder, make_rnnt, make_batch):
    model, batch = make_rnnt(encoder), make_batch(["hi", "ur"])
    enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
    wider, same_lens = model.encode(nn.functional.pad(batch.feats, (0, 0, 0, 9)), batch.lens, batch.language_ids)
    assert torch.equal(lens, same_lens)
    torch.testing.assert_close(wider[:, : enc.shape[1]], enc, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_prediction_step_by_step_equals_the_whole_sequence(kind, make_rnnt):
    model = make_rnnt(**PREDICTIONS[kind])
    labels = torch.randint(1, 7, (3, 6))
    whole = model.predict(labels)
    steps, state = [], None
    for column in nn.functional.pad(labels, (1, 0)).T:
        output, state = model.prediction(column[:, None], state)
        steps.append(output[:, 0])
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-5, atol=1e-6)
    changed = labels.clone()
    changed[:, 3] = changed[:, 3] % 6 + 1
    assert torch.equal(model.predict(changed)[:, :4], whole[:, :4])  # a label is seen from the next position on
    assert not torch.equal(model.predict(changed)[:, 4], whole[:, 4])


class Operations(TorchDispatchMode):
    """Records the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__)
        return function(*args, **(kwargs or {}))


def test_a_single_step_does_without_onednn(make_rnnt):
    """Which arranges an LSTM's weights anew at every call."""
    model = make_rnnt(decoder_conf={"hidden_size": 8, "output_size": 8})
    _, state = model.prediction(torch.zeros(2, 1, dtype=torch.long))
    with Operations() as seen, torch.no_grad():
        model.prediction(torch.ones(2, 1, dtype=torch.long), state)
    assert "mkldnn_rnn_layer.default" not in seen.names and "addmm.default" in seen.names


@pytest.mark.parametrize("output_size", [8, 5])
def test_a_single_step_of_a_layer_is_torchs(output_size):
    """With projection and without; gradients too."""
    torch.manual_seed(0)
    layer = ProjectedLSTM(3, 8, output_size, layer_norm=False, dropout=0.0)
    plain = nn.LSTM(3, 8, proj_size=layer.lstm.proj_size, batch_first=True)
    plain.load_state_dict(layer.lstm.state_dict())
    state = torch.randn(1, 4, output_size), torch.randn(1, 4, 8)
    for frames in (1, 2):
        x = torch.randn(4, frames, 3)
        found, after = layer.step(x, state)
        wanted, wanted_after = plain(x, state)
        torch.testing.assert_close((found, *after), (wanted, *wanted_after), rtol=1e-5, atol=1e-6)
        found.sum().backward()
        wanted.sum().backward()
        for (name, mine), other in zip(layer.lstm.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(("kind", "blank"), [("lstm", 1.5), ("transducer", 0.0), ("gru", 5.0)])
def test_search_equals_utterance_by_utterance(kind, blank, make_rnnt, make_batch):
    """And no path is likelier than the sum over all paths of its labels."""
    model = make_rnnt(**PREDICTIONS[kind])
    with torch.no_grad():
        for parameter in (*model.joint.parameters(), *model.prediction.parameters()):
            parameter.mul_(4)
        model.joint.lin_out.bias[0] += blank
    batch = make_batch(["hi", "ur", "pa"])
    enc, lens = model.encode(batch.feats * 3, batch.lens, batch.language_ids)
    found = model.search(enc, lens)
    assert 0 < sum(len(hypothesis.tokens) for hypothesis in found) < 5 * int(lens.sum())
    for b, hypothesis in enumerate(found):
        (alone,) = model.search(enc[b : b + 1, : lens[b]], lens[b : b + 1])
        assert alone.tokens == hypothesis.tokens and alone.score == pytest.approx(hypothesis.score, abs=1e-4)
        tokens = torch.tensor([hypothesis.tokens], dtype=torch.long)
        length = torch.tensor([len(hypothesis.tokens)])
        loss = model.loss(enc[b : b + 1, : lens[b]], lens[b : b + 1], tokens, length).total
        assert hypothesis.score <= -loss.item() + 1e-4


def test_losses(make_rnnt, make_batch):
    batch = make_batch(["hi", "ur"])
    plain, both = make_rnnt(), make_rnnt(ctc_weight=0.3)
    assert plain.ctc is None and not any("ctc" in name for name in plain.state_dict())
    for model, names in ((plain, {"rnnt"}), (both, {"rnnt", "ctc"})):
        enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
        loss = model.loss(enc, lens, batch.targets, batch.target_lens)
        assert set(loss.parts) == names and loss.total.shape == (2,)
        wanted = loss.parts["rnnt"] + (0.3 * loss.parts["ctc"] if "ctc" in names else 0)
        assert torch.equal(loss.total, wanted)
    enc, lens = both.encode(batch.feats[:1], batch.lens[:1], batch.language_ids[:1])
    log_probs = both.ctc(enc)[0].log_softmax(-1)
    one = both.loss(enc, lens, batch.targets[:1, :1], torch.tensor([1])).parts["ctc"].item()
    # CTC of a single label: a run of blanks, a run of the label, a run of blanks.
    label, frames = batch.targets[0, 0], len(log_probs)
    paths = [
        log_probs[:start, 0].sum() + log_probs[start:stop, label].sum() + log_probs[stop:, 0].sum()
        for start in range(frames)
        for stop in range(start + 1, frames + 1)
    ]
    assert one == pytest.approx(-torch.stack(paths).logsumexp(0).item(), rel=1e-5)


def test_joint_network_is_espnets(make_rnnt, make_batch):
    """The fused loss computes what the joint network's own forward would: here of no labels, blank at every frame."""
    model, batch = make_rnnt(), make_batch(["hi"])
    enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
    log_probs = model.joint(enc[:, :, None], model.predict(batch.targets[:, :0])[:, None]).log_softmax(-1)
    loss = model.loss(enc, lens, batch.targets[:, :0], torch.tensor([0])).total
    torch.testing.assert_close(loss, -log_probs[..., 0].sum((1, 2)))


def test_every_tensor_gets_a_gradient(make_rnnt, make_batch):
    model, batch = make_rnnt(language_vector="embedding", ctc_weight=0.3), make_batch(["hi", "ur"])
    enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
    model.loss(enc, lens, batch.targets, batch.target_lens).total.sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_language_vector(make_rnnt):
    x, ids = torch.randn(2, 4, 3), torch.tensor([2, 0])
    onehot = make_rnnt(language_vector="onehot", spare_languages=2).language_vector
    assert torch.equal(onehot(x, ids)[..., :3], x)
    assert onehot(x, ids)[:, 1, 3:].tolist() == [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]
    embedding = make_rnnt(language_vector="embedding", language_vector_size=2).language_vector
    assert torch.equal(embedding(x, ids)[0, 3, 3:], embedding.embedding.weight[2])
    assert torch.equal(make_rnnt(language_vector="none").language_vector(x, ids), x)


def test_a_spare_slot_leaves_the_others_alone(make_rnnt, make_batch):
    """A model trained with spare slots gives every language the same, whatever the spare weights are."""
    model, batch = make_rnnt(spare_languages=1), make_batch(["hi", "ur"])
    before, _ = model.encode(batch.feats, batch.lens, batch.language_ids)
    with torch.no_grad():
        model.encoder.layers[0].lstm.weight_ih_l0[:, -1] += 1.0
    after, _ = model.encode(batch.feats, batch.lens, batch.language_ids)
    assert torch.equal(after, before)


def test_features_are_normalised(make_rnnt, make_batch):
    model, batch = make_rnnt(), make_batch(["hi"])
    before, _ = model.encode(batch.feats, batch.lens, batch.language_ids)
    mean, std = torch.arange(5.0), torch.arange(1.0, 6.0)
    model.set_feature_stats(mean.double(), std.double())
    after, _ = model.encode(batch.feats * std + mean, batch.lens, batch.language_ids)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.state_dict()["feature_mean"], mean)


def test_augmentation_sees_normalised_features(make_rnnt, make_batch):
    model, batch = make_rnnt(), make_batch(["hi"])
    model.set_feature_stats(torch.full((5,), 3.0), torch.full((5,), 2.0))
    seen = []

    def augment(x, lens):
        seen.append(x)
        return x * 0, lens

    masked, _ = model.encode(batch.feats, batch.lens, batch.language_ids, augment)
    assert torch.equal(seen[0], (batch.feats - 3.0) / 2.0)
    average, _ = model.encode(torch.full_like(batch.feats, 3.0), batch.lens, batch.language_ids)
    assert torch.equal(masked, average)


def test_same_seed_same_weights(make_rnnt):
    assert state_sha256(make_rnnt(seed=1).state_dict()) == state_sha256(make_rnnt(seed=1).state_dict())
    assert state_sha256(make_rnnt(seed=1).state_dict()) != state_sha256(make_rnnt(seed=2).state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "lstn", "encoder_conf": {}}, "encoder: 'lstn'; did you mean 'lstm'"),
        ({"decoder": "rnn"}, "decoder: 'rnn'; .*known: lstm, transducer"),
        ({"language_vector": "one-hot"}, "language_vector: 'one-hot'; did you mean 'onehot'"),
        ({"encoder_conf": {"num_layer": 2}}, "encoder_conf: unknown key 'num_layer'; did you mean 'num_layers'"),
        ({"decoder_conf": {"hiden_size": 2}}, "decoder_conf: unknown key 'hiden_size'; did you mean 'hidden_size'"),
        ({"joint_net_conf": {"lin_dec_bias": True}}, "joint_net_conf: unknown key 'lin_dec_bias'"),
        ({"decoder": "transducer", "decoder_conf": {"dunits": 4}}, "decoder_conf: unknown key 'dunits'"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(PelasrError, match=message):
        build_backbone("rnnt", options, vocab_size=7, num_languages=2)


def test_too_short_for_espnets_subsampling(make_rnnt, make_batch):
    model, batch = make_rnnt("conformer"), make_batch(["hi"], frames=[4])
    with pytest.raises(PelasrError, match="too short for encoder_conf.input_layer"):
        model.encode(batch.feats, batch.lens, batch.language_ids)


def test_one_frame_is_enough_for_the_lstm(make_rnnt, make_batch):
    model, batch = make_rnnt(), make_batch(["hi"], frames=[1])
    enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
    assert model.loss(enc, lens, batch.targets, batch.target_lens).total.isfinite()


def test_encoder_defaults_are_the_papers():
    with torch.device("meta"):
        encoder = LSTMEncoder(input_size=329)
    assert sum(p.numel() for p in encoder.parameters()) == 97_132_544 + 8 * 4 * H + 8 * 2 * P
