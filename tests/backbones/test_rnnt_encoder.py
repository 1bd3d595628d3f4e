"""The RNN-T's encoder: time scales, streaming, padding, its features and its language vector."""

import pytest
import torch
from torch import nn

from pelasr.adapters.bank import Bank
from pelasr.backbones.base import build_backbone
from pelasr.backbones.rnnt import reduce_time, stack_frames
from pelasr.errors import PelasrError


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


def test_language_vector(make_rnnt):
    x, ids = torch.randn(2, 4, 3), torch.tensor([2, 0])
    onehot = make_rnnt(language_vector="onehot").language_vector
    assert torch.equal(onehot(x, ids)[..., :3], x)
    assert onehot(x, ids)[:, 1, 3:].tolist() == [[0, 0, 1], [1, 0, 0]]
    embedding = make_rnnt(language_vector="embedding", language_vector_size=2).language_vector
    assert torch.equal(embedding(x, ids)[0, 3, 3:], embedding.embedding.weight[2])
    assert torch.equal(make_rnnt(language_vector="none").language_vector(x, ids), x)


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


def test_too_short_for_espnets_subsampling(make_rnnt, make_batch):
    model, batch = make_rnnt("conformer"), make_batch(["hi"], frames=[4])
    with pytest.raises(PelasrError, match="too short for encoder_conf.input_layer"):
        model.encode(batch.feats, batch.lens, batch.language_ids)


def test_one_frame_is_enough_for_the_lstm(make_rnnt, make_batch):
    model, batch = make_rnnt(), make_batch(["hi"], frames=[1])
    enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
    assert model.loss(enc, lens, batch.targets, batch.target_lens).total.isfinite()
