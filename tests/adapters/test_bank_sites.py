"""Where adapters hang: sites by kind and side, what their hosts return, and sites that are none."""

import pytest
import torch
from tiny_models import TAGS
from toy_banks import Toy, loss, make_bank

from pelasr.adapters.bank import Bank
from pelasr.adapters.freeze import freeze
from pelasr.errors import PelasrError


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
    with bank.route(["hi"]):  # its hooks come before those below
        pass
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


@pytest.mark.parametrize("sites", [5, True, -0.5, [5], [["layer"]], [{}], [None], {"known": 5, "new": "layer"}])
def test_sites_are_words(sites, make_rnnt):
    with pytest.raises(PelasrError, match="adapter_conf: sites: .* want kinds of site, in a list"):
        Bank("houlsby", {"sites": sites}, make_rnnt())


@pytest.mark.parametrize(
    ("method", "sites", "missing"),
    [
        ("prefix", "k", "v"),
        ("prefix", ["v", "k"], "attention"),
        ("mam", ["ffn", "attention"], "k"),
        ("mam", {"known": ["ffn"], "new": ["k", "v"]}, "attention"),
        ("ladder", "layer", "top"),
        ("ladder", ["top"], "layer"),
    ],
)
def test_parts_that_go_together(method, sites, missing, make_st):
    """One without the others would fail in the first batch, or do nothing."""
    with pytest.raises(PelasrError, match=f"sites: of {method} .* go together; {missing} is missing"):
        Bank(method, {"sites": sites}, make_st())
    assert Bank("mam", {"sites": "ffn"}, make_st()).sites
