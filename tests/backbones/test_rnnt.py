"""The RNN-T: prediction network, search, losses, options."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pelasr.backbones.base import build_backbone
from pelasr.backbones.rnnt import ProjectedLSTM
from pelasr.errors import PelasrError
from pelasr.storage import state_sha256

PREDICTIONS = {
    "lstm": {},
    "transducer": {"decoder": "transducer", "decoder_conf": {"num_layers": 2, "hidden_size": 5}},
    "gru": {"decoder": "transducer", "decoder_conf": {"num_layers": 2, "hidden_size": 5, "rnn_type": "gru"}},
}


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
