"""Adapters on frozen backbones: identity, routing, isolation, freezing, and what is refused."""

import pytest
import torch
from tiny_models import TAGS
from torch import nn
from toy_banks import LANGUAGES, METHODS, Toy, encode, logits, make_bank

from pelasr.adapters.bank import Bank, count_parameters
from pelasr.adapters.base import find_method
from pelasr.adapters.freeze import check_frozen, freeze
from pelasr.errors import PelasrError
from pelasr.nn.active_rows import only
from pelasr.storage import state_sha256

ENCODERS = ["lstm", "conformer", "transformer"]


def search(model, batch):
    return model.search(*model.encode(batch.feats, batch.lens, batch.language_ids))


def loss(model, batch, rows=None):
    rows = list(range(len(batch)) if rows is None else rows)
    enc, lens = model.encode(batch.feats[rows], batch.lens[rows], batch.language_ids[rows])
    return model.loss(enc, lens, batch.targets[rows], batch.target_lens[rows]).total


def train(model, bank, batch, steps=3):
    """AdamW with weight decay over all the bank's parameters; returns it."""
    optimizer = torch.optim.AdamW(bank.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with bank.route(batch.languages):
            loss(model, batch).sum().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("method", METHODS)
def test_fresh_adapters_are_the_identity(encoder, method, make_rnnt, make_batch):
    model, batch = make_rnnt(encoder), make_batch(LANGUAGES * 2)
    before, losses, found = logits(model, batch), loss(model, batch), search(model, batch)
    bank = make_bank(model, trained=False, method=method)
    for languages in (batch.languages, ["ur"] * 6, ["pa"] * 6, list(reversed(batch.languages))):
        with bank.route(languages):
            assert torch.equal(logits(model, batch), before)
            assert torch.equal(loss(model, batch), losses)
            assert search(model, batch) == found


@pytest.mark.parametrize("method", METHODS)
def test_the_bank_is_silent_outside_a_route(method, make_rnnt, make_batch):
    model, batch = make_rnnt(), make_batch(LANGUAGES)
    before = logits(model, batch)
    bank = make_bank(model, method=method)
    with bank.route(batch.languages):
        assert not torch.allclose(logits(model, batch), before, atol=0.1)
    assert torch.equal(logits(model, batch), before)
    with pytest.raises(RuntimeError, match="inside"), bank.route(batch.languages):
        raise RuntimeError("inside")
    assert torch.equal(logits(model, batch), before)


def test_backbone_keys_never_change(make_rnnt):
    model = make_rnnt()
    before = list(model.state_dict())
    make_bank(model)
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("by_row", [True, False], ids=["by_row", "vmap"])
@pytest.mark.parametrize(
    ("method", "options"), [*((method, {}) for method in METHODS), ("houlsby", {"shared_ln": True})]
)
def test_mixed_batch_equals_one_language_at_a_time(
    encoder, by_row, method, options, make_rnnt, make_batch, monkeypatch
):
    """Values and gradients; the rows keep the mixed batch's padding, so that the backbone does the same."""
    monkeypatch.setattr(find_method(method), "by_row", by_row)
    model, batch = make_rnnt(encoder), make_batch(["ur", "hi", "ur", "pa", "hi"], frames=[31] * 5)
    freeze(model)
    bank = make_bank(model, method=method, **options)
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


@pytest.mark.parametrize("others", [["ur"], ["ur", "pa"]])
@pytest.mark.parametrize("method", METHODS)
def test_training_one_language_leaves_another_untouched(others, method, make_rnnt, make_batch):
    """Bit for bit, though the optimizer holds all languages and decays weights; `hi` was trained before as well."""
    model = make_rnnt()
    freeze(model)
    bank = make_bank(model, method=method)
    optimizer = train(model, bank, make_batch(LANGUAGES), steps=2)  # all have moments in the optimizer now
    hindi, batch = make_batch(["hi", "hi"], seed=5), make_batch(others * 2)
    with bank.route(hindi.languages):
        before = logits(model, hindi)
    tensors = {name: tensor.clone() for name, tensor in bank.tensors("hi").items()}
    urdu = {name: tensor.clone() for name, tensor in bank.tensors("ur").items()}
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        with bank.route(batch.languages):
            loss(model, batch).sum().backward()
        assert all(tensor.grad is None for tensor in bank.tensors("hi").values())
        optimizer.step()
    with bank.route(hindi.languages):
        assert torch.equal(logits(model, hindi), before)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in bank.tensors("hi").items())
    assert all(not torch.equal(tensor, urdu[name]) for name, tensor in bank.tensors("ur").items())


@pytest.mark.parametrize("method", METHODS)
def test_an_utterance_has_no_gradient_for_other_languages(method, make_rnnt, make_batch):
    model, batch = make_rnnt(), make_batch(["hi", "ur"])
    bank = make_bank(model, method=method)
    with bank.route(batch.languages):
        loss(model, batch)[0].backward()
    assert all(tensor.grad.any() for tensor in bank.tensors("hi").values())
    assert not any(tensor.grad.any() for tensor in bank.tensors("ur").values())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("method", METHODS)
def test_training_adapters_never_changes_the_backbone(encoder, method, make_rnnt, make_batch):
    """Every tensor, statistics of BatchNorm included, and only the tensors of the batch's languages have a gradient."""
    model, batch = make_rnnt(encoder), make_batch(["hi", "ur"] * 2)
    before = state_sha256(model.state_dict())
    freeze(model)
    bank = make_bank(model, trained=False, method=method)
    nn.ModuleList([model, bank]).train()
    with bank.route(batch.languages):
        first = loss(model, batch).detach()
    train(model, bank, batch, steps=6)
    with bank.route(batch.languages):
        assert loss(model, batch).sum() < first.sum() - 0.5
    assert state_sha256(model.state_dict()) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    each = len(bank.sites) * {"houlsby": 6, "lora": 2, "bitfit": 1}[method]
    for language, count in (("hi", each), ("ur", each), ("pa", 0)):
        assert sum(tensor.grad is not None for tensor in bank.tensors(language).values()) == count
    bank.check_gradients(["hi", "ur"])
    with pytest.raises(PelasrError, match="'pa' got no gradient"):
        bank.check_gradients(["hi", "pa"])


def test_check_frozen():
    model = Toy()
    with pytest.raises(PelasrError, match="8 tensors of the backbone would train, linear.weight first"):
        check_frozen(model)
    freeze(model)
    check_frozen(model)
    model.norm.bias.requires_grad_(True)
    with pytest.raises(PelasrError, match="1 tensors of the backbone would train, norm.bias first"):
        check_frozen(model)


def test_frozen_stays_in_evaluation_mode():
    """Through `train()` of the module that holds it: dropout stays off and BatchNorm's statistics stay fixed."""
    model = Toy()
    freeze(model)
    holder = nn.ModuleDict({"backbone": model, "other": nn.Dropout(0.5)})
    before = state_sha256(model.state_dict())
    x = torch.randn(3, 5, 4)
    wanted = model(x)
    for mode in (True, False, True):
        holder.train(mode)
        assert holder["other"].training == mode and not any(module.training for module in model.modules())
        assert torch.equal(model(x), wanted)
    assert state_sha256(model.state_dict()) == before
    unfrozen = Toy().train()
    unfrozen(x)
    assert unfrozen.norm.num_batches_tracked == 1  # what freezing prevents


def test_frozen_recurrent_layers_do_not_change_with_the_mode(make_rnnt, make_batch):
    """They are left in training mode for cuDNN's sake, which must make no difference."""
    model, batch = make_rnnt(), make_batch(LANGUAGES)
    freeze(model)
    for module in model.modules():
        module.training = False
    wanted = logits(model, batch)
    for mode in (True, False):
        model.train(mode)
        assert torch.equal(logits(model, batch), wanted)
        assert all(module.training == isinstance(module, nn.LSTM) for module in model.modules())


@pytest.mark.parametrize("shape", ["x", "mask", "pos"])
@pytest.mark.parametrize("languages", [["hi", "hi"], ["hi", "ur"]])
def test_hosts_may_return_tuples(shape, languages):
    model, plain = Toy(shape).eval(), Toy("x").eval()
    plain.load_state_dict(model.state_dict())
    bank = make_bank(model, languages=["hi", "ur"])
    plain_bank = make_bank(plain, languages=["hi", "ur"])
    x = torch.randn(2, 5, 4)
    with bank.route(languages), plain_bank.route(languages):
        found, output = model(x), plain(x)
    rest = []
    while isinstance(found, tuple):
        found, other = found
        rest.append(other)
    assert rest == {"x": [], "mask": ["mask"], "pos": ["mask", "pos"]}[shape]
    assert torch.equal(found, output)
    assert not torch.equal(found, plain(x))


def test_a_site_that_never_fires_is_named():
    model = Toy()
    bank = Bank("houlsby", {"bottleneck": 2, "sites": "idle"}, model)
    bank.add("hi")
    with bank.route(["hi", "hi"]):
        model(torch.randn(2, 5, 4)).sum().backward()
    with pytest.raises(PelasrError, match="site idle: the hook never fired"):
        bank.check_gradients(["hi"])


def test_a_site_whose_output_is_unused_is_named():
    model = Toy()
    model.register_forward_hook(lambda module, args, output: (module.idle(output), output)[1])
    bank = Bank("houlsby", {"bottleneck": 2, "sites": "idle"}, model)
    bank.add("hi")
    with bank.route(["hi", "hi"]):
        model(torch.randn(2, 5, 4)).sum().backward()
    with pytest.raises(PelasrError, match=r"site idle: norm.weight of 'hi' got no gradient"):
        bank.check_gradients(["hi"])


def test_what_is_unknown_is_refused_with_a_list(make_rnnt):
    model = make_rnnt()
    bank = make_bank(model)
    with (
        pytest.raises(PelasrError, match="no adapters for language 'de'; .*known: hi, pa, ur"),
        bank.route(["hi", "de"]),
    ):
        pass
    with pytest.raises(PelasrError, match="did you mean 'houlsby'.*known: bitfit, decoder, full, houlsby, lora"):
        find_method("houlsbi")
    with pytest.raises(PelasrError, match="houlsby needs a site 'q'; known: idle, layer"):
        Bank("houlsby", {"sites": "q"}, Toy())
    with pytest.raises(PelasrError, match="'hi' has adapters already"):
        bank.add("hi")
    with pytest.raises(PelasrError, match="unknown key 'botleneck'; did you mean 'bottleneck'"):
        make_bank(model, botleneck=3)
    with pytest.raises(PelasrError, match="unknown key 'width'"):
        make_bank(model, width=3)


@pytest.mark.parametrize("language", ["to", "cpu", "zh.Hant", "en-de", "pa_Guru"])
def test_any_language_code_will_do(language, make_rnnt, make_batch):
    """`to` is Tongan, and a method of every module."""
    model, batch = make_rnnt(), make_batch(["hi", "ur"])
    bank = make_bank(model, languages=["hi", language])
    assert bank.languages == ["hi", language]
    with bank.route(["hi", language]):
        logits(model, batch)
    assert len(bank.tensors(language)) == 18


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


def test_tensors_are_named_by_site_and_parameter(make_rnnt):
    bank = make_bank(make_rnnt())
    parameters = ["down.bias", "down.weight", "norm.bias", "norm.weight", "up.bias", "up.weight"]
    wanted = {f"encoder.layers.{layer}/{name}" for layer in range(3) for name in parameters}
    assert set(bank.tensors("ur")) == wanted
    assert {id(tensor) for tensor in bank.tensors("ur").values()} < {id(parameter) for parameter in bank.parameters()}


def test_languages_start_from_weights_of_their_own(make_rnnt):
    bank = make_bank(make_rnnt(), trained=False)
    hindi, urdu = (bank.tensors(language)["encoder.layers.0/down.weight"] for language in ("hi", "ur"))
    assert not torch.equal(hindi, urdu)
    assert hindi.data_ptr() != urdu.data_ptr()


def test_shared_layer_norm(make_rnnt, make_batch):
    """One object for all languages of the run: trained by each, counted once, and in each language's tensors."""
    model = make_rnnt()
    freeze(model)
    bank = make_bank(model, shared_ln=True)
    norms = {language: bank.tensors(language)["encoder.layers.0/norm.weight"] for language in LANGUAGES}
    assert norms["hi"] is norms["ur"] is norms["pa"]
    alone = make_bank(make_rnnt(), languages=["hi"])
    assert {n: t.shape for n, t in bank.tensors("hi").items()} == {n: t.shape for n, t in alone.tensors("hi").items()}
    one = 2 * 6 * 4 + 4 + 3 * 6
    assert count_parameters(model, bank)["trainable"] == 3 * (3 * one - 2 * 2 * 6)
    before = norms["hi"].clone()
    train(model, bank, make_batch(["ur", "ur"]))
    assert not torch.equal(norms["hi"], before)


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


def test_count_parameters(make_rnnt):
    model = make_rnnt()
    size = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(model) == {"backbone": size, "adapter_per_language": 0, "trainable": size, "total": size}
    freeze(model)
    each = 3 * (2 * 6 * 4 + 4 + 3 * 6)
    assert count_parameters(model, make_bank(model)) == {
        "backbone": size,
        "adapter_per_language": each,
        "trainable": 3 * each,
        "total": size + 3 * each,
    }


def test_sides_have_sizes_of_their_own(make_st):
    """Separate bottlenecks of encoder and decoder; 0 turns a side off (Le et al. 2021, rows 3 to 6)."""
    model = make_st()
    sites = model.sites()
    encoder = [path for path in sites["ffn"] if path.startswith("encoder.")]
    decoder = [path for path in sites["ffn"] if path.startswith("decoder.")]
    assert encoder and decoder and set(encoder + decoder) == set(sites["ffn"])

    def bank(size):
        made = Bank("houlsby", {"sites": "ffn", "bottleneck": size}, model)
        made.add("en-de")
        return made

    width = sites["ffn"][encoder[0]]
    cell = {size: 2 * width * size + size + 3 * width for size in (3, 5)}
    assert bank(3).size("en-de") == (len(encoder) + len(decoder)) * cell[3]
    both = bank({"encoder": 3, "decoder": 5})
    assert both.size("en-de") == len(encoder) * cell[3] + len(decoder) * cell[5]
    assert both.touches("encoder") and both.touches("decoder")
    one = bank({"encoder": 0, "decoder": 5})
    assert list(one.sites) == decoder and one.size("en-de") == len(decoder) * cell[5] and not one.touches("encoder")
    for size, message in [
        (0, "bottleneck 0 everywhere"),
        ({"encoder": 3}, "the key 'decoder' is missing"),
        ({"encoder": 3, "decoder": 3, "join": 3}, "unknown key 'join'"),
    ]:
        with pytest.raises(PelasrError, match=message):
            bank(size)


def test_no_sites_are_not_taken_for_no_bottleneck(make_st):
    for sites in ([], "", {"known": [], "new": "ffn"}):
        with pytest.raises(PelasrError, match="adapter_conf: sites is empty: name at least one; known: .*ffn"):
            Bank("houlsby", {"sites": sites, "bottleneck": 3}, make_st())


def test_a_site_whose_output_is_of_another_width(make_st, make_batch):
    """The decoder as a whole gives logits: it is a site for fine-tuning."""
    model = make_st()
    bank = make_bank(model, ["hi"], sites="decoder")
    batch = make_batch(["hi", "hi"])
    given = model.encode(batch.feats, batch.lens, batch.language_ids)
    with bank.route(["hi", "hi"]), pytest.raises(PelasrError, match="^site decoder: it was to put out 6 channels"):
        model.loss(*given, batch.targets, batch.target_lens, torch.tensor([TAGS[:1], TAGS[1:]]))


def test_no_graph_below_the_first_adapter(make_rnnt, make_batch):
    """Activations are kept for the backward pass only where an adapter is, or above one."""
    model, batch = make_rnnt(), make_batch(["hi", "ur"])
    freeze(model)
    bank = Bank("houlsby", {"sites": "joint", "bottleneck": 2}, model)
    bank.add("hi")
    seen = {}
    for path in ("encoder.layers.0", "encoder.layers.2", "prediction", "joint.lin_enc"):
        model.get_submodule(path).register_forward_hook(
            lambda host, args, output, path=path: seen.update({path: _first(output).requires_grad})
        )
    with bank.route(["hi", "hi"]):
        loss(model, batch).sum().backward()
    assert seen == {"encoder.layers.0": False, "encoder.layers.2": False, "prediction": False, "joint.lin_enc": True}


def _first(value):
    return value[0] if isinstance(value, tuple) else value
