"""The translation Transformer: the paper's sizes to the integer, the loss by hand, padding, the forced tag, CTC."""

import itertools
from pathlib import Path

import pytest
import torch
from tiny_models import LANGUAGES, MELS, ST_ENCODERS, ST_VOCABULARY, TAGS
from torch import nn

from pelasr.adapters.bank import Bank
from pelasr.adapters.freeze import freeze
from pelasr.backbones.base import build_backbone
from pelasr.backbones.st import normalise
from pelasr.config import load_yaml
from pelasr.errors import PelasrError
from pelasr.stages.settings import split_options
from pelasr.storage import state_sha256

CONF = Path(__file__).parents[2] / "conf"
END = ST_VOCABULARY - 1
JOINT = {"ctc_weight": 0.3}


def paper(vocabulary, name="st_le2021", device="meta"):
    family, options, *_ = split_options(load_yaml(CONF / f"{name}.yaml"), name)
    with torch.device(device):
        return build_backbone(family, options, vocab_size=vocabulary, num_languages=9)


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def prefix_of(batch, tag=TAGS[0]):
    return torch.full((len(batch), 1), tag)


def encode(model, batch):
    return model.encode(batch.feats, batch.lens, batch.language_ids)


def loss(model, batch, prefix=None):
    return model.loss(*encode(model, batch), batch.targets, batch.target_lens, prefix)


def test_size_of_the_papers_models():
    model = paper(10_000)
    assert size(model) == 32_096_256
    assert size(model.encoder) == 17_503_232
    assert size(model.encoder.subsampler) == 1_721_856
    assert sum(p.numel() for name, p in model.named_parameters() if name.startswith("decoder.")) == 14_593_024
    assert size(paper(8_000)) == 31_072_256
    assert size(paper(8_000, device="cpu")) == 31_072_256
    assert size(paper(10_000, "st_le2021_m")) == 76_327_936


def test_embeddings_are_not_tied(make_st):
    decoder = make_st().decoder
    embedding, output = decoder.embed[0].weight, decoder.output_layer.weight
    assert embedding.shape == output.shape and embedding.data_ptr() != output.data_ptr()
    assert decoder.output_layer.bias is None
    assert not torch.equal(embedding, output)


def test_features_are_normalised_by_utterance():
    draw = torch.Generator().manual_seed(0)
    x, lens = torch.randn(2, 30, 4, generator=draw) * torch.arange(1.0, 5.0) + 7.0, torch.tensor([30, 11])
    x[1, 11:] = 100.0
    x[1, :, 2] = 3.0  # a constant channel
    found = normalise(x, lens)
    assert not found[1, 11:].any() and found[1, :, 2].abs().max() < 1e-3
    assert torch.isfinite(found).all()
    for row, channels in ((0, [0, 1, 2, 3]), (1, [0, 1, 3])):
        inside = found[row, : lens[row], channels]
        torch.testing.assert_close(inside.mean(0), torch.zeros(len(channels)), rtol=0, atol=1e-5)
        torch.testing.assert_close(inside.var(0, correction=0), torch.ones(len(channels)), rtol=1e-4, atol=0)
    torch.testing.assert_close(normalise(3 * x[:1] - 5, lens[:1]), found[:1], rtol=1e-4, atol=1e-4)


def test_augmentation_sees_normalised_features(make_st, make_batch):
    model, batch, seen = make_st(), make_batch(["hi", "ur"]), []

    def augment(x, lens):
        seen.append(x)
        return x * 0, lens

    masked, _ = model.encode(batch.feats, batch.lens, None, augment)
    assert torch.equal(seen[0], normalise(batch.feats, batch.lens))
    silent, _ = model.encode(batch.feats * 0, batch.lens)
    assert torch.equal(masked, silent)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("tagged", [False, True])
def test_loss_by_hand(smoothing, tagged, make_st, make_batch):
    """Every utterance by itself: its labels and the end, after `<sos/eos>` and the tag."""
    model, batch = make_st(label_smoothing=smoothing), make_batch(["hi", "ur", "pa"])
    enc, lens = encode(model, batch)
    found = model.loss(enc, lens, batch.targets, batch.target_lens, prefix_of(batch) if tagged else None)
    assert list(found.parts) == ["attention"] and torch.equal(found.total, found.parts["attention"])
    forced = [TAGS[0]] if tagged else []
    for row in range(3):
        labels = batch.targets[row, : batch.target_lens[row]].tolist()
        given = torch.tensor([[END, *forced, *labels]])
        logits, _ = model.decoder(
            enc[row : row + 1, : lens[row]], lens[row : row + 1], given, torch.tensor([given.numel()])
        )
        log_probs = logits[0, len(forced) :].log_softmax(-1)
        right = log_probs[range(len(labels) + 1), [*labels, END]]
        wanted = -((1 - smoothing) * right + smoothing * log_probs.mean(-1)).sum()
        torch.testing.assert_close(found.total[row], wanted, rtol=1e-5, atol=1e-5)


def test_smoothing_is_espnets_but_for_a_constant(make_st, make_batch):
    """ESPnet shares out among the other tokens alone, and takes the entropy of the smoothed labels off."""
    from espnet.nets.pytorch_backend.transformer.label_smoothing_loss import LabelSmoothingLoss

    model, batch = make_st(label_smoothing=0.1), make_batch(["hi"])
    enc, lens = encode(model, batch)
    labels = torch.cat([batch.targets, torch.tensor([[END]])], dim=1)
    given = torch.cat([torch.tensor([[END]]), batch.targets], dim=1)
    logits, _ = model.decoder(enc, lens, given, torch.tensor([4]))
    others = 0.1 / ST_VOCABULARY
    espnets = LabelSmoothingLoss(ST_VOCABULARY, -1, others * (ST_VOCABULARY - 1))(logits, labels)
    smoothed = torch.full((ST_VOCABULARY,), others)
    smoothed[0] += 0.9
    entropy = -(smoothed * smoothed.log()).sum()
    found = model.loss(enc, lens, batch.targets, batch.target_lens).total[0]
    torch.testing.assert_close(found, espnets + 4 * entropy, rtol=1e-5, atol=1e-5)


def test_the_prefix_is_no_part_of_the_loss(make_st, make_batch):
    """Whatever probability the tag has, as the first output, the loss is the same; of the next output it is not."""
    model, batch = make_st(), make_batch(["hi", "ur"])
    prefix, before = prefix_of(batch), {}

    def disturb(position):
        def hook(module, args, logits):
            logits = logits.clone()
            logits[:, position, TAGS[0]] += 5.0
            return logits

        with_hook = model.decoder.output_layer.register_forward_hook(hook)
        total = loss(model, batch, prefix).total
        with_hook.remove()
        return total

    before = loss(model, batch, prefix).total
    assert torch.equal(disturb(0), before)
    assert (disturb(1) > before + 0.1).all()
    assert not torch.allclose(loss(model, batch, prefix_of(batch, TAGS[1])).total, before, atol=1e-3)


def test_padding_of_labels_is_no_part_of_the_loss(make_st, make_batch):
    model, batch = make_st(**JOINT), make_batch(["hi", "ur", "pa"])
    before = loss(model, batch, prefix_of(batch)).total
    batch.targets = torch.nn.functional.pad(batch.targets, (0, 3), value=2)
    for row, count in enumerate(batch.target_lens):
        batch.targets[row, count:] = 5
    assert torch.equal(loss(model, batch, prefix_of(batch)).total, before)


@pytest.mark.parametrize("encoder", ST_ENCODERS)
@torch.no_grad()
def test_an_utterance_is_the_same_alone_and_in_a_batch(encoder, make_st, make_batch):
    """Encoder output, losses and hypotheses, beside longer ones and shorter ones."""
    model, batch = make_st(encoder, **JOINT), make_batch(["hi", "ur", "pa", "hi"], frames=[61, 40, 31, 5])
    batch.feats += (torch.arange(61) >= batch.lens[:, None])[..., None] * 7.0  # padding need not be zero
    prefix = torch.tensor([TAGS, TAGS]).view(4, 1)
    enc, lens = encode(model, batch)
    losses = model.loss(enc, lens, batch.targets, batch.target_lens, prefix)
    found = model.search(enc, lens, prefix, beam_size=3)
    for row in range(4):
        one = slice(row, row + 1)
        alone, alone_lens = model.encode(batch.feats[one, : batch.lens[row]], batch.lens[one])
        assert alone_lens.item() == lens[row] == alone.shape[1]
        torch.testing.assert_close(alone[0], enc[row, : lens[row]], rtol=1e-5, atol=1e-5)
        targets = batch.targets[one, : batch.target_lens[row]]
        parts = model.loss(alone, alone_lens, targets, batch.target_lens[one], prefix[one]).parts
        for name in ("ctc", "attention"):
            torch.testing.assert_close(parts[name][0], losses.parts[name][row], rtol=1e-5, atol=1e-5)
        (hypothesis,) = model.search(alone, alone_lens, prefix[one], beam_size=3)
        assert (hypothesis.tokens, hypothesis.limited) == (found[row].tokens, found[row].limited)
        assert hypothesis.score == pytest.approx(found[row].score, abs=1e-5)


@torch.no_grad()
def test_the_forced_tag_decides_the_hypothesis(make_st, make_batch):
    """Its score is that of the labels after the tag, which is left out; no longer than the encoder output."""
    model, batch = make_st(seed=1), make_batch(["hi", "ur", "pa"], frames=[61, 40, 31])
    enc, lens = encode(model, batch)
    by_tag = {tag: model.search(enc, lens, prefix_of(batch, tag), beam_size=3) for tag in TAGS}
    assert all(one.tokens != two.tokens for one, two in zip(*by_tag.values(), strict=True))
    for tag, found in by_tag.items():
        for row, hypothesis in enumerate(found):
            tokens = hypothesis.tokens + [END] * (not hypothesis.limited)
            given = torch.tensor([[END, tag, *tokens[:-1]]])
            logits, _ = model.decoder(enc[row : row + 1], lens[row : row + 1], given, torch.tensor([given.numel()]))
            total = logits[0, 1:].log_softmax(-1)[range(len(tokens)), tokens].sum()
            count = len(tokens) + (len(tokens) == int(lens[row]))
            assert hypothesis.score == pytest.approx(float(total) / count, abs=1e-5)
            assert len(tokens) <= lens[row]


def test_search_without_a_tag_is_greedy_by_default(make_st, make_batch):
    model, batch = make_st(**JOINT), make_batch(["hi", "ur"])
    enc, lens = encode(model, batch)
    assert model.search(enc, lens) == model.search(enc, lens, torch.empty(2, 0, dtype=torch.long), beam_size=1)


def test_ctc_alone(make_st, make_batch):
    """No decoder; the best path, of all paths there are, without blanks and repetitions."""
    model = make_st(ctc_weight=1.0, vocab_size=4)
    assert model.decoder is None and {"ffn", "encoder"} <= set(model.sites()) and "decoder" not in model.sites()
    model.ctc.weight.data *= 3
    batch = make_batch(["hi", "ur"], frames=[20, 13])
    batch.targets %= 2
    batch.targets += 1
    enc, lens = encode(model, batch)
    losses = model.loss(enc, lens, batch.targets, batch.target_lens)
    assert list(losses.parts) == ["ctc"] and torch.equal(losses.total, losses.parts["ctc"])
    found = model.search(enc, lens, prefix_of(batch, 3), beam_size=5)
    assert lens.tolist() == [5, 4]
    for row, hypothesis in enumerate(found):
        log_probs = model.ctc(enc[row, : lens[row]]).log_softmax(-1)
        paths = torch.tensor(list(itertools.product(range(4), repeat=int(lens[row]))))
        scores = log_probs.gather(1, paths.T).sum(0)
        best = paths[scores.argmax()].tolist()
        assert hypothesis.tokens == [label for label, _ in itertools.groupby(best) if label]
        assert hypothesis.score == pytest.approx(scores.max().item(), abs=1e-5)
    assert len({len(hypothesis.tokens) for hypothesis in found} | {0}) > 1


def test_the_joint_loss_is_weighted(make_st, make_batch):
    model, batch = make_st(**JOINT), make_batch(["hi", "ur"])
    losses = loss(model, batch)
    torch.testing.assert_close(losses.total, 0.3 * losses.parts["ctc"] + 0.7 * losses.parts["attention"])


@pytest.mark.parametrize("encoder", ST_ENCODERS)
def test_every_tensor_gets_a_gradient(encoder, make_st, make_batch):
    model, batch = make_st(encoder, **JOINT), make_batch(["hi", "ur"])
    loss(model, batch, prefix_of(batch)).total.sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("encoder", ST_ENCODERS)
def test_adapters_in_every_layer(encoder, make_st, make_batch):
    """A fresh one is exactly the identity, a trained one is not; all of a language get gradients."""
    model, batch = make_st(encoder), make_batch(["hi", "ur"])
    before, _ = encode(model, batch)
    freeze(model)
    torch.manual_seed(0)
    bank = Bank("houlsby", {"bottleneck": 4, "sites": "ffn"}, model)
    assert len(bank.sites) == 4
    for language in LANGUAGES:
        bank.add(language)
    with bank.route(batch.languages):
        assert torch.equal(encode(model, batch)[0], before)
        loss(model, batch, prefix_of(batch)).total.sum().backward()
    bank.check_gradients(["hi", "ur"])
    for name, parameter in bank.named_parameters():
        assert (parameter.grad is None) == ("pa" in name.split("/")[0])
        nn.init.normal_(parameter)
    with bank.route(batch.languages):
        assert not torch.allclose(encode(model, batch)[0], before, atol=0.1)


def test_sites_are_modules_that_are_there(make_st):
    """An E-Branchformer has no feed-forward parts unless it is asked for them."""
    conf = {**ST_ENCODERS["e_branchformer"], "use_ffn": False}
    model = make_st("e_branchformer", encoder_conf=conf)
    assert list(model.sites()["ffn"]) == ["decoder.decoders.0.feed_forward", "decoder.decoders.1.feed_forward"]
    model = make_st()
    assert len(model.sites()["ffn"]) == 4
    sites = model.sites()
    for path, width in itertools.chain(*(sites[kind].items() for kind in ("ffn", "encoder", "decoder"))):
        assert isinstance(model.get_submodule(path), nn.Module) and width == 6


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("houlsby", {"bottleneck": 4, "sites": "ffn"}),
        ("lora", {"rank": 3, "alpha": 3, "sites": ["q", "v"]}),
        ("lora", {"rank": 3, "alpha": 3}),
        ("bitfit", {}),
    ],
)
@torch.no_grad()
def test_adapters_follow_the_rows_of_the_search(beam_size, method, options, make_st, make_batch):
    """A batch of several languages, whose utterances are done at different times, as each language alone."""
    languages = ["hi", "ur", "pa", "ur", "hi"]
    model, batch = make_st(seed=2), make_batch(languages, frames=[13, 61, 40, 51, 31])
    bank = Bank(method, options, model)
    for language in LANGUAGES:
        bank.add(language)
    torch.manual_seed(0)
    for parameter in bank.parameters():
        nn.init.normal_(parameter, std=0.7)
    with bank.route(languages):
        enc, lens = encode(model, batch)
        mixed = model.search(enc, lens, prefix_of(batch), beam_size)
    plain = model.search(enc, lens, prefix_of(batch), beam_size)
    for row, language in enumerate(languages):
        one = slice(row, row + 1)
        with bank.route([language]):
            (alone,) = model.search(enc[one, : lens[row]], lens[one], prefix_of(batch)[one], beam_size)
        assert alone.tokens == mixed[row].tokens
        assert alone.score == pytest.approx(mixed[row].score, abs=1e-4)
    assert mixed != plain and len({len(hypothesis.tokens) for hypothesis in mixed}) > 1


@pytest.mark.parametrize("encoder", ST_ENCODERS)
def test_espnets_subsampling(encoder, make_st, make_batch):
    model = make_st(encoder, encoder_conf={**ST_ENCODERS[encoder], "input_layer": "conv2d2"}, num_mels=2 * MELS)
    assert model.encoder.subsampler is None and model.subsampling == 2
    batch = make_batch(["hi", "ur"])
    batch.feats = batch.feats.repeat(1, 1, 2)
    assert loss(model, batch).total.isfinite().all()


def test_positions_are_added_once(make_st, make_batch):
    """ESPnet's Transformer encoder adds none after a subsampler that is not its own; its Conformers do."""
    assert make_st().encoder.position is not None
    assert make_st("conformer").encoder.position is make_st("e_branchformer").encoder.position is None
    model = make_st()
    frames = torch.ones(1, 16, MELS) * torch.arange(MELS)
    enc, _ = model.encode(frames, torch.tensor([16]))
    assert not torch.allclose(enc[0, 1], enc[0, 2], atol=1e-3)


def test_same_seed_same_weights(make_st):
    assert state_sha256(make_st(seed=1).state_dict()) == state_sha256(make_st(seed=1).state_dict())
    assert state_sha256(make_st(seed=1).state_dict()) != state_sha256(make_st(seed=2).state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "conformr"}, "encoder: 'conformr'; did you mean 'conformer'"),
        ({"ctc_weight": 1.5}, "ctc_weight: 1.5 is not between 0 .* and 1"),
        ({"encoder_conf": {"num_blocks": 1}}, "encoder_conf: output_size is missing"),
        ({"encoder_conf": {"output_size": 4, "num_block": 1}}, "encoder_conf: unknown key 'num_block'"),
        ({"encoder_conf": {"output_size": 4}, "decoder_conf": {"heads": 1}}, "decoder_conf: unknown key 'heads'"),
        ({"encoder_conf": {"output_size": 4}, "subsampler_conf": {"chanels": 1}}, "subsampler_conf: .*'channels'"),
    ],
)
def test_unknown_options(options, message):
    with torch.device("meta"), pytest.raises(PelasrError, match=message):
        build_backbone("st", options, vocab_size=7, num_languages=2)
