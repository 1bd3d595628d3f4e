"""Batches of several languages: each row by its own language's adapters, as if it were alone."""

import pytest
import torch
from toy_banks import ENCODERS, LANGUAGES, METHODS, encode, logits, loss, make_bank

from pelasr.adapters.base import find_method
from pelasr.adapters.freeze import freeze
from pelasr.errors import PelasrError
from pelasr.nn.active_rows import only


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("by_row", [True, False], ids=["by_row", "vmap"])
@pytest.mark.parametrize("method", METHODS)
def test_mixed_batch_equals_one_language_at_a_time(encoder, by_row, method, make_rnnt, make_batch, monkeypatch):
    """Values and gradients; the rows keep the mixed batch's padding, so that the backbone does the same."""
    monkeypatch.setattr(find_method(method), "by_row", by_row)
    model, batch = make_rnnt(encoder), make_batch(["ur", "hi", "ur", "pa", "hi"], frames=[31] * 5)
    freeze(model)
    bank = make_bank(model, method=method)
    with bank.route(batch.languages):
        mixed, mixed_loss = logits(model, batch), loss(model, batch)
    mixed_loss.sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in bank.named_parameters()}
    bank.zero_grad()
    for language in LANGUAGES:
        rows = [row for row, other in enumerate(batch.languages) if other == language]
        with bank.route([language] * len(rows)):
            alone = loss(model, batch, rows)
            torch.testing.assert_close(logits(model, batch, rows), mixed[rows], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone, mixed_loss[rows], rtol=1e-5, atol=1e-5)
        alone.sum().backward()
    for name, parameter in bank.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n} {m}"
        )


@pytest.mark.parametrize("method", METHODS)
def test_rows_follow_their_language(method, make_rnnt, make_batch):
    """The same utterance in two languages gives two results, in whichever order the rows stand."""
    model, batch = make_rnnt(language_vector="none"), make_batch(["hi", "ur", "hi"], frames=[20] * 3)
    batch.feats[:] = batch.feats[0]
    bank = make_bank(model, method=method)
    with bank.route(["hi", "ur", "hi"]):
        first = logits(model, batch)
    with bank.route(["ur", "hi", "ur"]):
        second = logits(model, batch)
    assert torch.equal(first[0], first[2]) and not torch.allclose(first[0], first[1], atol=0.1)
    torch.testing.assert_close(second[[0, 1]], first[[1, 0]])


def test_rows_that_a_search_goes_on_with(make_rnnt, make_batch):
    """Modules see some rows of the batch, which keep their languages; any other number of rows is refused."""
    languages = ["hi", "ur", "pa", "ur"]
    model, batch = make_rnnt(), make_batch(languages, frames=[20] * 4)
    bank = make_bank(model)
    with bank.route(languages):
        all_rows = logits(model, batch)
        with only(torch.tensor([1, 2])):
            torch.testing.assert_close(logits(model, batch, [1, 2]), all_rows[[1, 2]])
            with only(torch.tensor([3])):
                torch.testing.assert_close(logits(model, batch, [3]), all_rows[[3]])
            with pytest.raises(PelasrError, match="site encoder.layers.0: its module works on 4 rows, but 2 have"):
                logits(model, batch)
        assert torch.equal(logits(model, batch), all_rows)
        with pytest.raises(PelasrError, match="works on 3 rows, but 4 have a language"):
            logits(model, batch, [0, 1, 2])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("houlsby", {}),
        ("houlsby", {"sites": "lstm"}),
        ("lora", {"sites": ["q", "v", "joint"]}),
        ("lora", {}),
        ("bitfit", {}),
    ],
)
@pytest.mark.parametrize("decoder", ["lstm", "transducer"])
@torch.no_grad()
def test_a_search_in_several_languages_equals_one_by_one(decoder, method, options, make_rnnt, make_batch):
    """The utterances take different numbers of steps, in the prediction network too."""
    languages = ["hi", "ur", "pa", "ur", "hi"]
    conf = {"decoder": decoder, **({"decoder_conf": {"hidden_size": 8}} if decoder == "transducer" else {})}
    model, batch = make_rnnt("conformer", **conf), make_batch(languages, frames=[13, 61, 40, 51, 31])
    model.joint.lin_out.weight.data *= 4
    bank = make_bank(model, method=method, **options)
    with bank.route(languages):
        enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
        mixed = model.search(enc, lens)
    plain = model.search(enc, lens)
    for row, language in enumerate(languages):
        one = slice(row, row + 1)
        with bank.route([language]):
            (alone,) = model.search(enc[one, : lens[row]], lens[one])
        assert alone.tokens == mixed[row].tokens
        assert alone.score == pytest.approx(mixed[row].score, rel=1e-5, abs=1e-5)
    counts = {len(hypothesis.tokens) for hypothesis in mixed}
    assert len(counts) > 1 and max(counts) > 2
    assert (mixed != plain) == any(not path.startswith("encoder.") for path in bank.sites)


@pytest.mark.parametrize("method", METHODS)
def test_an_utterance_has_no_gradient_for_other_languages(method, make_rnnt, make_batch):
    model, batch = make_rnnt(), make_batch(["hi", "ur"])
    bank = make_bank(model, method=method)
    with bank.route(batch.languages):
        loss(model, batch)[0].backward()
    assert all(tensor.grad.any() for tensor in bank.tensors("hi").values())
    assert not any(tensor.grad.any() for tensor in bank.tensors("ur").values())


def test_wrong_language(make_rnnt, make_batch):
    """It changes what a language vector or adapters give, and nothing where there is neither."""
    batch, wrong = make_batch(["hi", "ur"]), make_batch(["ur", "hi"])
    for kind, differs in (("onehot", True), ("embedding", True), ("none", False)):
        model = make_rnnt(language_vector=kind)
        assert torch.equal(logits(model, batch), logits(model, wrong)) is not differs
    bank = make_bank(model)
    with bank.route(batch.languages):
        right = logits(model, batch)
    with bank.route(wrong.languages):
        assert not torch.allclose(logits(model, wrong), right, atol=0.1)


def test_dropout_in_a_mixed_batch(make_rnnt, make_batch):
    """Every row draws its own mask in training; in evaluation there is none."""
    model, batch = make_rnnt(), make_batch(["hi", "ur", "hi"], frames=[20] * 3)
    batch.feats[:] = batch.feats[0]
    freeze(model)
    bank = make_bank(model, dropout=0.5)
    with bank.route(["hi", "ur", "hi"]):
        assert torch.equal(encode(model, batch), encode(model, batch))
        bank.train()
        torch.manual_seed(0)
        first = encode(model, batch)
        assert not torch.equal(first[0], first[2])
        assert not torch.equal(encode(model, batch), first)
        torch.manual_seed(0)
        assert torch.equal(encode(model, batch), first)
        loss(model, batch).sum().backward()
    bank.check_gradients(["hi", "ur"])
