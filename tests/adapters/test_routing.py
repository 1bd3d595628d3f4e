"""The route of a batch is its thread's and its block's alone, and leaves nothing behind; copies and pickles of what it
goes through."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import ST_ENCODERS, TAGS
from torch import nn
from torch.utils.checkpoint import checkpoint
from toy_banks import METHODS, Toy, logits, make_bank

from pelasr.adapters.bank import Bank
from pelasr.adapters.finetune import make_bank as make_any
from pelasr.adapters.freeze import freeze
from pelasr.adapters.own import OwnParts, install
from pelasr.errors import PelasrError
from pelasr.train.loop import Objective

FRAMES = [40, 31, 22]
MIXED = ["hi", "ur", "pa"]
BRANCHES = {"encoder": "e_branchformer", "encoder_conf": ST_ENCODERS["e_branchformer"]}
TRANSDUCER = {"decoder": "transducer", "decoder_conf": {"hidden_size": 8}}
MODELS = {
    "lstm": ("rnnt", {"language_vector": "embedding", "ctc_weight": 0.3}),
    "espnet": ("rnnt", {"encoder": "conformer", **TRANSDUCER}),
    "transformer": ("st", {}),
    "conformer": ("st", {"encoder": "conformer"}),
    "e_branchformer": ("st", {**BRANCHES, "ctc_weight": 0.3}),
}
HERE = {"rnnt": "layer", "st": "ffn"}  # sites


@pytest.fixture
def make(make_model):
    """Factory of a frozen model of MODELS, and a bank of hi, ur and a new language, pa, everything random."""

    def build(name: str, method: str = "houlsby"):
        family, options = MODELS[name]
        model = make_model(family, options)
        install(model)
        freeze(model)
        torch.manual_seed(0)
        conf = {} if method == "full" else {"bottleneck": 3, "sites": HERE[family]}
        bank = make_any(method, conf, model)
        for language in ("hi", "ur"):
            bank.add(language)
        bank.add("pa", own=OwnParts(model, ["x", "y"], vector=True))
        for parameter in bank.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        return model, bank.eval()

    return build


def losses(model, batch):
    """Of encoder, decoder and output layers; (B,)."""
    prefix = torch.full((len(batch), 1), TAGS[0]) if hasattr(model, "end") else None
    enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
    return model.loss(enc, lens, batch.targets, batch.target_lens, prefix).total


def gradients(bank, run) -> dict[str, torch.Tensor]:
    """Of all of a bank's parameters by a loss, none where there is none."""
    bank.zero_grad()
    run().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in bank.named_parameters() if parameter.grad is not None}


def same(found: dict, wanted: dict, **options) -> None:
    assert set(found) == set(wanted) and len(found) > 5
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, **options)


def elsewhere(work):
    """What `work` returns in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.mark.parametrize("method", ["houlsby", "full"])
def test_a_route_is_of_its_thread(method, make, make_batch):
    """While one is open another thread has the backbone itself, or routes of its own."""
    model, bank = make("transformer", method)
    batch = make_batch(["hi", "hi"])

    @torch.no_grad()
    def run(language=None):
        if language is None:
            return losses(model, batch)
        with bank.route([language] * 2):
            return losses(model, batch)

    plain, hindi, urdu = run(), run("hi"), run("ur")
    assert not torch.allclose(plain, hindi) and not torch.allclose(hindi, urdu)
    with torch.no_grad(), bank.route(["ur", "ur"]):
        assert torch.equal(elsewhere(run), plain)
        assert torch.equal(elsewhere(lambda: run("hi")), hindi)
        assert torch.equal(losses(model, batch), urdu)
        with pytest.raises(PelasrError, match="no adapters for language 'de'"):
            elsewhere(lambda: run("de"))
        assert torch.equal(losses(model, batch), urdu)
    assert torch.equal(run(), plain)


@pytest.mark.parametrize("method", ["houlsby", "full"])
def test_the_innermost_block_counts(method, make, make_batch):
    model, bank = make("transformer", method)
    other = make_bank(model, languages=["hi"], sites="ffn")
    batch = make_batch(["hi", "hi"])
    with torch.no_grad(), bank.route(["ur", "ur"]):
        urdu = losses(model, batch)
        with other.route(["hi", "hi"]):
            inner = losses(model, batch)
        with bank.route(["hi", "hi"]):
            hindi = losses(model, batch)
        assert torch.equal(losses(model, batch), urdu)
    with torch.no_grad(), other.route(["hi", "hi"]):
        assert torch.equal(losses(model, batch), inner)
        with bank.route(["hi", "hi"]):
            assert torch.equal(losses(model, batch), hindi)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("languages", [["hi", "ur", "pa"], ["pa", "pa", "pa"]], ids=["mixed", "one"])
@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_gradients_after_a_pass_without(name, languages, mode, make, make_batch):
    """In the same route: those of a route of their own, of adapters and of own parts."""
    model, bank = make(name)
    batch = make_batch(["hi", "hi", "hi"], frames=FRAMES)
    with bank.route(languages):
        wanted = gradients(bank, lambda: losses(model, batch))
    with bank.route(languages):
        with mode():
            first = losses(model, batch)
        found = gradients(bank, lambda: losses(model, batch))
        with torch.no_grad():
            assert torch.equal(losses(model, batch), first)
    same(found, wanted, rtol=0, atol=0)
    assert any(name.startswith("own") for name in found)


def test_a_step_is_seen_by_the_next_pass_without_gradients(make, make_batch):
    model, bank = make("lstm")
    batch = make_batch(["hi", "ur", "pa"])
    with bank.route(MIXED):
        with torch.no_grad():
            before = losses(model, batch)
        gradients(bank, lambda: losses(model, batch))
        torch.optim.SGD(bank.parameters(), lr=0.1).step()
        with torch.no_grad():
            after = losses(model, batch)
    with torch.no_grad(), bank.route(MIXED):
        assert torch.equal(losses(model, batch), after)
    assert (after != before).all()


class Checkpointed(nn.Module):
    """A layer that is computed again in the backward pass; reentrant: what comes in must have a gradient."""

    def __init__(self, layer, reentrant):
        super().__init__()
        self.layer, self.reentrant = layer, reentrant

    def forward(self, x, *args):
        if self.reentrant and not x.requires_grad:
            x = x.detach().requires_grad_()
        return checkpoint(self.layer, x, *args, use_reentrant=self.reentrant)


def checkpoint_layers(model, reentrant=False):
    """Encoder's and decoder's."""
    for module in list(model.modules()):
        if hasattr(module, "encoders") or hasattr(module, "decoders"):
            layers = module.encoders if hasattr(module, "encoders") else module.decoders
        elif type(module).__name__ == "LSTMEncoder":
            layers = module.layers
        else:
            continue
        for n, layer in enumerate(layers):
            layers[n] = Checkpointed(layer, reentrant)


# Torch's reentrant kind sees no gradient of tensors in tuples, which a Conformer's layers take.
KINDS = [(name, False) for name in MODELS] + [("lstm", True), ("transformer", True)]


@pytest.mark.parametrize("languages", [MIXED, ["pa"] * 3], ids=["mixed", "one"])
@pytest.mark.parametrize(("name", "reentrant"), KINDS)
def test_checkpointed_layers_have_the_same_gradients(name, reentrant, languages, make, make_batch):
    model, bank = make(name)
    batch = make_batch(["hi", "hi", "hi"], frames=FRAMES)
    with bank.route(languages):
        wanted = gradients(bank, lambda: losses(model, batch))
        checkpoint_layers(model, reentrant)
        with torch.no_grad():
            losses(model, batch)
        first, second = losses(model, batch).sum(), losses(model, make_batch(["ur"] * 3)).sum()
        found = gradients(bank, lambda: losses(model, batch))
        bank.zero_grad()
        (first + 0 * second).backward()  # another batch came between
    same(found, wanted, rtol=1e-4, atol=1e-6)
    same({key: p.grad for key, p in bank.named_parameters() if p.grad is not None}, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "reentrant"), KINDS)
def test_checkpoints_outside_of_the_route_are_refused(name, reentrant, make, make_batch):
    """A backward pass there would compute the layers without adapters."""
    model, bank = make(name)
    batch = make_batch(["hi", "ur", "hi"])
    with bank.route(batch.languages):
        checkpoint_layers(model, reentrant)
    with bank.route(batch.languages):
        found = losses(model, batch).sum()
    with pytest.raises(PelasrError, match="site .*: computed again in a backward pass .* inside the block"):
        found.backward()
    with bank.route(batch.languages):
        losses(model, batch).sum().backward()


def test_espnets_own_checkpoints(make_st, make_batch):
    """`gradient_checkpoint_layers` of its encoder and its decoder."""
    conf = {"attention_heads": 2, "linear_units": 8, "num_blocks": 2}
    found = []
    for layers in ([], [1, 2]):
        encoder = {**BRANCHES, "encoder_conf": {**BRANCHES["encoder_conf"], "gradient_checkpoint_layers": layers}}
        model = make_st(**encoder, decoder_conf={**conf, "gradient_checkpoint_layers": layers})
        freeze(model)
        bank = make_bank(model, sites="ffn")
        batch = make_batch(["hi", "ur", "pa"], frames=FRAMES)
        with bank.route(batch.languages):
            found.append(gradients(bank, lambda model=model, batch=batch: losses(model, batch)))
    same(found[1], found[0], rtol=1e-5, atol=1e-6)


def state(model) -> dict:
    """What the modules hold besides parameters, buffers and submodules."""
    return {(path, key): value for path, part in model.named_modules() for key, value in vars(part).items()}


@pytest.mark.parametrize("name", MODELS)
def test_a_pass_leaves_nothing_in_the_modules(name, make, make_batch):
    """Neither a loss nor a search, in any encoder or decoder: what another thread would read, a copy would copy."""
    model, bank = make(name)
    batch = make_batch(["hi", "ur", "hi"], frames=FRAMES)
    before = state(model)
    with bank.route(MIXED):
        losses(model, batch)
        model.search(*model.encode(batch.feats, batch.lens, batch.language_ids))
    after = state(model)
    assert before.keys() == after.keys()
    changed = {key for key, value in after.items() if value is not before[key]}
    # ESPnet's prediction network is told the device, always the same.
    assert changed == ({("prediction.decoder", "device")} if name == "espnet" else set())


@pytest.mark.parametrize("name", ["transformer", "conformer", "e_branchformer"])
def test_positions_of_a_long_utterance_are_no_others(name, make, make_batch):
    """Longer than there are positions: they are extended for it alone, in encoder and search."""
    model, bank = make(name)
    for module in model.modules():
        if hasattr(module, "pe"):
            module.pe = None
            module.extend_pe(torch.zeros(1, 9))
    short, long = make_batch(["hi"], frames=[30]), make_batch(["hi"], frames=[90])

    def run(batch):
        with bank.route(["ur"]), torch.no_grad():
            enc, lens = model.encode(batch.feats, batch.lens)
            return losses(model, batch), enc, model.search(enc, lens, beam_size=2)

    before = run(short)
    run(long)
    after = run(short)
    assert torch.equal(after[0], before[0]) and torch.equal(after[1], before[1]) and after[2] == before[2]


def everything(model, bank, batch):
    with torch.no_grad(), bank.route(batch.languages[:1] * len(batch)):
        return losses(model, batch)


@pytest.mark.parametrize(
    ("name", "method"), [*((name, "houlsby") for name in MODELS), ("espnet", "full"), ("conformer", "full")]
)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_are_true(way, name, method, make, make_batch):
    """Of a frozen backbone and its bank, trained before: each has its own; the other way round too."""
    model, bank = make(name, method)
    batch = make_batch(["hi", "hi"])
    gradients(bank, lambda: _routed(bank, model, batch))
    plain, wanted = losses(model, batch), everything(model, bank, batch)
    for pair in ((model, bank), (bank, model)):
        pair = copied(pair, way)
        twin, other = pair if isinstance(pair[1], Bank) else pair[::-1]
        assert torch.equal(everything(twin, other, batch), wanted) and torch.equal(losses(twin, batch), plain)
        assert not {id(p) for p in (*twin.parameters(), *other.parameters())} & {id(p) for p in bank.parameters()}
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.1)
        changed = everything(twin, other, batch)
        assert not torch.equal(changed, wanted) and torch.equal(everything(model, bank, batch), wanted)
        with torch.no_grad():
            for parameter in bank.parameters():
                parameter.mul_(1.5)
        assert torch.equal(everything(twin, other, batch), changed)
        wanted = everything(model, bank, batch)
        twin.train()
        assert all(part.training == isinstance(part, nn.RNNBase) for part in twin.modules())
        assert torch.equal(losses(twin, batch), plain)
        other.add("te")
        assert other.languages == [*bank.languages, "te"]


def _routed(bank, model, batch):
    with bank.route(batch.languages):
        return losses(model, batch)


def copied(value, way):
    if way == "deepcopy":
        return copy.deepcopy(value)
    if way == "pickle":
        return pickle.loads(pickle.dumps(value))
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("method", METHODS)
def test_a_copy_of_the_bank_alone_works_on_the_backbone(method, make_rnnt, make_batch):
    """And the bank on a copy of the backbone: whichever is routed acts."""
    model, batch = make_rnnt(), make_batch(MIXED)
    bank = make_bank(model, method=method)
    other = copy.deepcopy(bank)
    with bank.route(MIXED):
        wanted = logits(model, batch)
        assert torch.equal(logits(copy.deepcopy(model), batch), wanted)
    with other.route(MIXED):
        assert torch.equal(logits(model, batch), wanted)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    with other.route(MIXED):
        assert not torch.equal(logits(model, batch), wanted)
    with bank.route(MIXED):
        assert torch.equal(logits(model, batch), wanted)


def test_two_banks_on_the_same_site_have_one_hook(make_rnnt, make_batch):
    model, batch = make_rnnt(), make_batch(MIXED)
    banks = [make_bank(model, method=method, sites="joint") for method in ("houlsby", "lora")]
    found = []
    for bank in banks:
        with bank.route(MIXED):
            found.append(logits(model, batch))
    hosts = [model.get_submodule(path) for path in model.sites()["joint"]]
    assert [(len(host._forward_hooks), len(host._forward_pre_hooks)) for host in hosts] == [(1, 0), (1, 0)]
    assert not torch.allclose(*found)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch"])
def test_what_is_trained_can_be_sent_to_other_processes(way, make, make_batch):
    model, bank = make("lstm")
    objective = copied(Objective(model, bank), way)
    objective.train()
    assert not objective.backbone.prediction.embed.training and objective.bank.training
    batch = make_batch(["hi", "ur", "hi"])
    with objective.eval().route(batch):
        found = objective(batch)
    with bank.route(batch.languages):
        assert torch.equal(found, Objective(model, bank)(batch))
    found.sum().backward()
    assert all(p.grad is None for p in [*bank.parameters(), *objective.backbone.parameters()])


def test_only_whole_parts_are_fine_tuned():
    model = Toy()
    model.sites = lambda: {"encoder": {"host": 4}, "decoder": {"idle": 4}}
    with pytest.raises(PelasrError, match="full fine-tuning needs whole parts"):
        make_any("full", {}, model)
