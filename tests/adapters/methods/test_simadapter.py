"""SimAdapter: its maths, what is trained, the guide loss, and what is refused."""

import pytest
import torch
from toy_banks import Toy, encode, loss

from pelasr.adapters import find_method
from pelasr.adapters.bank import Bank
from pelasr.adapters.freeze import freeze
from pelasr.adapters.hooks import added_losses
from pelasr.adapters.own import OwnParts, install
from pelasr.backbones.base import build_backbone
from pelasr.errors import PelasrError

HOUSLBY = {"method": "houlsby", "method_conf": {"bottleneck": 3}}
SOURCES = ["hi", "ur"]


def fused(width=4, count=3, language="pa", guide=1.0, **changed):
    """An adapter of this language with random sources and weights."""
    torch.manual_seed(0)
    given = {"width": width, "width_in": width, "host": torch.nn.Identity(), "path": "host", "index": 0, "alone": False}
    given |= {"language": language, "sources": [f"source{n}" for n in range(count - 1)], **HOUSLBY}
    made = find_method("simadapter")(**given | {"guide": guide} | changed)
    for parameter in made.parameters():
        if parameter is not made.there:
            parameter.data += torch.randn_like(parameter)
    return made


def source_of(adapter, number):
    """One of the sources as an adapter."""
    made = find_method("houlsby")(adapter.query.in_features, **HOUSLBY["method_conf"])
    made.load_state_dict({name: p[number] for name, p in adapter.source.named_parameters()})
    return made


def make_bank(model, sources=SOURCES, new="pa", **options):
    bank = Bank("simadapter", {**HOUSLBY, "sources": sources, **options}, model)
    for language in ["hi", "ur"]:
        bank.add(language)
    if new:
        bank.add(new, OwnParts(model, ["a"], vector=True))
    torch.manual_seed(0)
    for name, parameter in bank.named_parameters():
        if not name.endswith("there"):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return bank


def test_sizes_of_the_paper():
    """197,120 at a layer of 256, 3,548,160 in 12 layers of an encoder and 6 of a decoder; the sources do not count."""
    bank = make_bank(Toy(width=256), new=None)
    assert bank.size("hi") == 197_120 == 3 * 256**2 + 2 * 256
    shape = {"attention_heads": 4, "linear_units": 2048}
    options = {
        "encoder_conf": {"output_size": 256, "num_blocks": 12, **shape},
        "decoder_conf": {"num_blocks": 6, **shape},
    }
    with torch.device("meta"):
        model = build_backbone("st", options, 50, 2)
        bank = Bank("simadapter", {"method": "houlsby", "method_conf": {"sites": "ffn"}, "sources": SOURCES}, model)
        bank.add("hi")
    assert bank.size("hi") == 3_548_160


def test_as_the_formula_says():
    adapter, (x, y) = fused(guide=0.0), torch.randn(2, 2, 5, 4)
    adapter.eval()
    f = [source_of(adapter, number)(x, y) - y for number in range(3)]
    q = y @ adapter.query.weight.T + adapter.query.bias
    scores = [(q * (each @ adapter.key.weight.T + adapter.key.bias)).sum(-1) for each in f]
    shares = torch.stack(scores).exp() / torch.stack(scores).exp().sum(0)
    wanted = y + sum(share[..., None] * (each @ adapter.value.weight.T) for share, each in zip(shares, f, strict=True))
    torch.testing.assert_close(adapter(x, y), wanted, rtol=1e-4, atol=1e-5)
    attention = adapter.attention(y, adapter.added(x, y))
    torch.testing.assert_close(attention, shares.movedim(0, 1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(attention.sum(1), torch.ones(2, 5))


def test_fresh_weights():
    adapter = find_method("simadapter")(4, 4, torch.nn.Identity(), "host", 0, "pa", False, "houlsby", ["hi"])
    wanted = torch.full((4, 4), 1e-6).fill_diagonal_(1.0)
    assert torch.equal(adapter.value.weight, wanted) and adapter.value.bias is None


@torch.no_grad()
def test_a_single_source_is_its_own_adapter():
    """With W_v = I."""
    adapter, (x, y) = fused(count=1, language="hi", sources=["hi"]).eval(), torch.randn(2, 3, 5, 4)
    adapter.value.weight.copy_(torch.eye(4))
    torch.testing.assert_close(adapter(x, y), source_of(adapter, 0)(x, y), rtol=1e-6, atol=1e-6)


def test_the_own_adapter_is_the_first_source_of_every_language():
    assert len(fused(language="hi", sources=["hi", "ur"]).there) == 2
    assert len(fused(language="pa", sources=["hi", "ur"]).there) == 3


@torch.no_grad()
def test_fewer_sources_in_a_batch_with_more(make_rnnt, make_batch):
    """Those that a row does not have get no attention, whatever stands there."""
    model = make_rnnt()
    install(model)
    bank, batch = make_bank(model).eval(), make_batch(["hi", "ur", "hi"], frames=[20] * 3)
    adapters = [bank.of(language)["encoder.layers.0"] for language in ("hi", "pa")]
    assert [len(adapter.there) for adapter in adapters] == [2, 3]
    with bank.route(["hi", "pa", "ur"]):
        mixed = encode(model, batch)
    for row, language in enumerate(["hi", "pa", "ur"]):
        with bank.route([language] * 3):
            torch.testing.assert_close(encode(model, batch)[row], mixed[row], rtol=1e-5, atol=1e-5)


def test_the_guide_loss(make_rnnt, make_batch):
    """-log of the share of the own adapter, over an utterance's own frames; a step along it gives that a larger one. It
    is there in training alone."""
    model, batch = make_rnnt(), make_batch(["hi", "ur"], frames=[31, 17])
    freeze(model)
    bank = make_bank(model, new=None, guide=0.5)
    optimizer = torch.optim.SGD([p for p in bank.parameters() if p.requires_grad], lr=0.1)

    def guide():
        with bank.route(batch.languages):
            loss(model, batch)
            return torch.stack(added_losses())

    first = guide()
    assert first.shape == (3, 2)
    shares = []
    layer = model.get_submodule("encoder.layers.1")
    handle = layer.register_forward_pre_hook(lambda host, args: shares.append(args[0]))
    with bank.route(["ur", "ur"]):
        model.encode(batch.feats, batch.lens, batch.language_ids)
    handle.remove()
    adapter, x = bank.of("ur")["encoder.layers.1"], shares[0]
    y = layer(x)
    own = adapter.attention(y, adapter.added(x, y))[1, 0, :9]  # 17 frames, every second of them
    torch.testing.assert_close(first[1, 1], -0.5 * own.log().mean())
    first.sum().backward()
    optimizer.step()
    assert (guide() < first).all()
    bank.eval()
    with bank.route(batch.languages):
        loss(model, batch)
        assert added_losses() == []


def test_sources_stay_as_they_are(make_rnnt, make_batch):
    """To the bit, under weight decay too; and so do own tokens and the language vector."""
    model = make_rnnt()
    install(model)
    freeze(model)
    bank, batch = make_bank(model), make_batch(["hi", "ur", "hi"])
    before = {name: parameter.clone() for name, parameter in bank.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in bank.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        with bank.route(["hi", "ur", "pa"]):
            total = loss(model, batch)
            sum(added_losses(), total).sum().backward()
        optimizer.step()
    same = {name for name, parameter in bank.named_parameters() if torch.equal(parameter, before[name])}
    assert same == {name for name in before if ".source." in name or name.endswith("there") or name.startswith("own")}
    assert bank.size("pa") == bank.size("hi") == 3 * (3 * 36 + 2 * 6)


def test_where_new_languages_alone_have_adapters(make_rnnt):
    """The own one stays there, and nothing is trained."""
    model = make_rnnt()
    install(model)
    conf = {"bottleneck": 3, "sites": {"known": "layer", "new": ["layer", "prediction"]}}
    bank = make_bank(model, method_conf=conf).eval()
    alone = {path: adapter for path, adapter in bank.of("pa").items() if path.startswith("prediction")}
    assert alone and all(path not in bank.of("hi") for path in alone)
    x, y = torch.randn(2, 2, 5, 6)
    for adapter in alone.values():
        assert not any(parameter.requires_grad for parameter in adapter.parameters())
        single = find_method("houlsby")(6, bottleneck=3)
        single.load_state_dict({name: p[0] for name, p in adapter.source.named_parameters()})
        torch.testing.assert_close(adapter(x, y), single(x, y))


def test_a_decoder_is_guided_too(make_st, make_batch):
    """Over the labels of each utterance: what pads a batch does not count."""
    model, batch = make_st(), make_batch(["hi", "ur"])
    freeze(model)
    bank = make_bank(model, new=None, method_conf={"bottleneck": 3, "sites": "ffn"})
    found = []
    for rows in ([0, 1], [1]):
        with bank.route([batch.languages[row] for row in rows]):
            enc, lens = model.encode(batch.feats[rows], batch.lens[rows], None)
            model.loss(enc, lens, batch.targets[rows], batch.target_lens[rows])
            found.append(torch.stack(added_losses())[:, -1])
    assert len(found[0]) == 4
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changed", [{"method": "lora", "method_conf": {"rank": 2}}, {"method": "bitfit", "method_conf": {}}]
)
@torch.no_grad()
def test_other_methods_are_fused(changed, make_rnnt, make_batch):
    """Where they hang by themselves; with W_v = I and one source as without."""
    model, batch = make_rnnt("conformer"), make_batch(["hi", "hi"])
    bank = make_bank(model, sources=["hi"], new=None, **changed).eval()
    plain = Bank(changed["method"], changed["method_conf"], model)
    plain.add("hi")
    plain.eval()
    for path, adapter in bank.of("hi").items():
        adapter.value.weight.copy_(torch.eye(len(adapter.value.weight)))
        plain.of("hi")[path].load_state_dict({name: p[0] for name, p in adapter.source.named_parameters()})
    with plain.route(["hi", "hi"]):
        wanted = encode(model, batch)
    with bank.route(["hi", "hi"]):
        torch.testing.assert_close(encode(model, batch), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sources": []}, r"sources: \[\]: want different languages"),
        ({"sources": "hi"}, "sources: 'hi': want different languages"),
        ({"sources": {"hi": 1}}, "sources: .* want different languages"),
        ({"sources": ["hi", 5]}, "sources: .* want different languages"),
        ({"sources": ["hi", "hi"]}, "want different languages"),
        ({"method": "full"}, "simadapter fuses adapters, which full is not made of"),
        ({"method": "simadapter"}, "simadapter fuses adapters, which simadapter is not made of"),
        ({"method": "houslby"}, "no method 'houslby'; did you mean 'houlsby'"),
        ({"method_conf": {"rank": 3}}, "method_conf of houlsby: unknown key 'rank'"),
        ({"method_conf": 3}, "method_conf of houlsby: expected `key: value` lines"),
        ({"method_conf": {"bottleneck": "x"}}, "method_conf: bottleneck: expected a whole number"),
    ],
)
def test_refused(changed, message, make_rnnt):
    with pytest.raises(PelasrError, match=message):
        make_bank(make_rnnt(), **changed)


def test_without_packs(make_rnnt):
    with pytest.raises(PelasrError, match="simadapter is made of another experiment's packs.*`fuse: EXPERIMENT`"):
        Bank("simadapter", {}, make_rnnt())


def test_methods_that_do_not_work_by_row(make_rnnt, monkeypatch):
    monkeypatch.setattr(find_method("houlsby"), "by_row", False)
    with pytest.raises(PelasrError, match="method: houlsby: its adapters do not work on one frame's output by row"):
        make_bank(make_rnnt())
