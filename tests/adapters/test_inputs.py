"""Methods that change what goes into their hosts: prefixes of keys and values, prompts, reprogramming."""

import pytest
import torch
from espnet.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
from method_pages import write_methods
from torch import nn
from toy_banks import make_bank

from pelasr.adapters import Adapter
from pelasr.adapters.bank import Bank
from pelasr.adapters.base import find_method
from pelasr.adapters.freeze import freeze
from pelasr.backbones.st import normalise
from pelasr.errors import PelasrError
from pelasr.nn.mixed import Stack
from pelasr.nn.stateless import make_stateless

SHIFT = '''
import torch
from torch import nn

from pelasr.adapters import Adapter


class Shift(Adapter):
    """Reprogramming: s is added to every frame."""

    sites = ("input",)

    def __init__(self, channels: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))

    def before(self, args, kwargs):
        x, lens = args
        return (x + self.shift.unsqueeze(-2), lens), kwargs
'''
LONGER = """
import torch
from torch import nn

from pelasr.adapters import Adapter


class Longer(Adapter):
    def __init__(self):
        super().__init__()
        self.more = nn.Parameter(torch.zeros(1))

    def before(self, args, kwargs):
        return (torch.cat([args[0], args[0] + self.more], dim=1), *args[1:]), kwargs
"""
MAPPED_PREFIX = '''
import torch
from torch import nn
from torch.nn import functional as F

from pelasr.adapters import Adapter
from pelasr.errors import PelasrError


class MappedPrefix(Adapter):
    """Keys and values get `frames` more, which are mapped as the others are. Parameters: 2 frames D."""

    sites = ("attention",)
    by_row = True

    def __init__(self, host: nn.Module, frames: int = 4):
        super().__init__()
        if hasattr(host, "linear_pos"):
            raise PelasrError("prefix: relative positions have none for a prefix; use a transformer encoder")
        self.key, self.value = (nn.Parameter(torch.randn(frames, host.linear_k.in_features)) for _ in range(2))

    def before(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        query, key, value, mask = args
        key = torch.cat([self.key.expand(len(key), -1, -1), key], dim=1)
        value = torch.cat([self.value.expand(len(value), -1, -1), value], dim=1)
        return (query, key, value, F.pad(mask, (self.key.shape[-2], 0), value=True)), kwargs
'''
CHANNELS = {"rnnt": 5 * 2 + 3, "st": 5}
CASES = [  # method, backbone, options
    ("mapped_prefix", "st", {"frames": 3}),
    ("prompt", "st", {"frames": 8, "channels": CHANNELS["st"]}),
    ("prompt", "rnnt", {"frames": 2, "channels": CHANNELS["rnnt"]}),
    ("shift", "rnnt", {"channels": CHANNELS["rnnt"]}),
]
METHODS = pytest.mark.parametrize(("method", "family", "options"), CASES, ids=lambda x: x if isinstance(x, str) else "")
LANGUAGES = ["hi", "ur", "hi", "pa"]


@pytest.fixture(autouse=True)
def _methods(tmp_path, monkeypatch):
    write_methods(tmp_path)
    (tmp_path / "local/methods/mapped_prefix.py").write_text(MAPPED_PREFIX)
    (tmp_path / "local/methods/shift.py").write_text(SHIFT)
    (tmp_path / "local/methods/longer.py").write_text(LONGER)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make(make_model):
    """Factory of a frozen backbone with a bank of three languages, random; `fresh`: as they begin."""

    def build(method, family, options, fresh=False):
        model = make_model(family, {})
        freeze(model)
        bank = Bank(method, options, model)
        torch.manual_seed(1)
        for language in ("hi", "ur", "pa"):
            bank.add(language)
        for parameter in () if fresh else bank.parameters():
            nn.init.normal_(parameter)
        return model, bank

    return build


def losses(model, batch, rows=None):
    rows = list(range(len(batch))) if rows is None else rows
    prefix = torch.full((len(rows), 1), 5) if hasattr(model, "end") else None
    enc, lens = model.encode(batch.feats[rows], batch.lens[rows], batch.language_ids[rows])
    return model.loss(enc, lens, batch.targets[rows], batch.target_lens[rows], prefix).total


def gradients(bank):
    found = {name: p.grad.clone() for name, p in bank.named_parameters() if p.grad is not None}
    bank.zero_grad()
    return found


@METHODS
@pytest.mark.parametrize("by_row", [True, False], ids=["by_row", "vmap"])
def test_a_mixed_batch_is_one_by_one(method, family, options, by_row, make, make_batch, monkeypatch):
    """Losses, hypotheses and gradients."""
    monkeypatch.setattr(find_method(method), "by_row", by_row)
    model, bank = make(method, family, options)
    batch = make_batch(LANGUAGES, frames=[31] * 4)
    with bank.route(LANGUAGES):
        mixed = losses(model, batch)
        mixed.sum().backward()
        found = model.search(*model.encode(batch.feats, batch.lens, batch.language_ids))
    bank.check_gradients(LANGUAGES)
    wanted = gradients(bank)
    for row, language in enumerate(LANGUAGES):
        with bank.route([language]):
            alone = losses(model, batch, [row])
            alone.sum().backward()
            one = slice(row, row + 1)
            hypotheses = model.search(*model.encode(batch.feats[one], batch.lens[one], batch.language_ids[one]))
        torch.testing.assert_close(alone[0], mixed[row], rtol=1e-5, atol=1e-5)
        assert hypotheses[0].tokens == found[row].tokens
    for name, gradient in gradients(bank).items():
        torch.testing.assert_close(gradient, wanted.pop(name), rtol=1e-4, atol=1e-5)
    assert not wanted


@METHODS
def test_other_languages_are_bit_equal(method, family, options, make, make_batch):
    """Whatever is changed in the adapters of one, with it in the batch; and outside of a route all is as before."""
    model, bank = make(method, family, options)
    batch = make_batch(LANGUAGES)
    plain = losses(model, batch)
    found = []
    for _ in range(2):
        with bank.route(LANGUAGES):
            found.append(losses(model, batch))
        for parameter in bank.of("ur").values():
            nn.init.normal_(next(parameter.parameters()))
    assert torch.equal(found[0][[0, 2, 3]], found[1][[0, 2, 3]]) and found[0][1] != found[1][1]
    assert torch.equal(losses(model, batch), plain) and not torch.isclose(found[0], plain).any()


def test_a_fresh_reprogramming_is_the_identity(make, make_batch):
    model, bank = make("shift", "rnnt", {"channels": CHANNELS["rnnt"]}, fresh=True)
    batch = make_batch(LANGUAGES)
    with bank.route(LANGUAGES):
        found = losses(model, batch)
    assert torch.equal(found, losses(model, batch))


@pytest.mark.parametrize("mixed", [True, False])
def test_a_prompt_is_what_stands_before_the_frames(mixed, make, make_batch):
    """The encoder, which is given the longer utterance by hand, finds the same, and as many frames."""
    model, bank = make("prompt", "st", {"frames": 8, "channels": 5})
    batch = make_batch(["hi", "ur"] if mixed else ["hi", "hi"])
    with bank.route(batch.languages), torch.no_grad():
        found, lens = model.encode(batch.feats, batch.lens)
    prompts = torch.stack([bank.tensors(language)["encoder/prompt"] for language in batch.languages])
    with torch.no_grad():
        longer = torch.cat([prompts, normalise(batch.feats, batch.lens)], dim=1)
        wanted, frames = model.encoder(longer, batch.lens + 8)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert lens.tolist() == frames.tolist() == ((batch.lens + 8 + 3) // 4).tolist()


class Attends(nn.Module):
    """ESPnet's attention of the frames to themselves, called by position or by keyword."""

    def __init__(self, by_keyword=False):
        super().__init__()
        self.attention, self.by_keyword = MultiHeadedAttention(2, 6, 0.0), by_keyword
        make_stateless(self.attention)

    def forward(self, x, mask):
        if self.by_keyword:
            return self.attention(key=x + 1, mask=mask, value=x, query=x)
        return self.attention(x, x + 1, x, mask)

    def sites(self):
        return {"attention": {"attention": 6}}


@pytest.fixture
def frames():
    torch.manual_seed(0)
    return torch.randn(2, 5, 6), torch.ones(2, 1, 5, dtype=torch.bool)


def test_a_prefix_is_what_queries_also_attend_to(frames):
    """Attention that is given the longer keys and values by hand; values and gradients."""
    x, mask = frames
    mask[1, :, 3:] = False
    model = Attends()
    bank = Bank("mapped_prefix", {"frames": 3}, model)
    for language in ("hi", "ur"):
        bank.add(language)
    with bank.route(["hi", "ur"]):
        found = model(x, mask)
    found.square().sum().backward()
    for row, language in enumerate(["hi", "ur"]):
        tensors = {name: tensor.detach().requires_grad_() for name, tensor in bank.tensors(language).items()}
        part, seen = x[row : row + 1], torch.cat([torch.ones(1, 1, 3, dtype=torch.bool), mask[row : row + 1]], dim=-1)
        key, value = (tensors[f"attention/{name}"][None] for name in ("key", "value"))
        wanted = model.attention(part, torch.cat([key, part + 1], 1), torch.cat([value, part], 1), seen)
        torch.testing.assert_close(found[row], wanted[0])
        wanted.square().sum().backward()
        for name, tensor in bank.tensors(language).items():
            torch.testing.assert_close(tensor.grad, tensors[name].grad)


@pytest.mark.parametrize("languages", [["hi", "hi"], ["hi", "ur"]])
def test_hosts_may_be_called_by_keyword(languages, frames):
    """Whatever the order: x is the first that the module's `forward` names."""
    models = Attends(), Attends(by_keyword=True)
    models[1].load_state_dict(models[0].state_dict())
    found, outside = [], models[0](*frames)
    for model in models:
        bank = make_bank(model, languages=["hi", "ur"], sites="attention")
        seen = []
        bank.of("hi")["attention"].register_forward_pre_hook(lambda host, args, seen=seen: seen.append(args[0]))
        with bank.route(languages):
            found.append(model(*frames))
        assert all(torch.equal(x, frames[0]) for x in seen)
    assert torch.equal(*found) and not torch.equal(found[0], outside)


def test_relative_positions_take_no_prefix(make_model):
    bank = Bank("mapped_prefix", {}, make_model("st", {"encoder": "conformer"}))
    with pytest.raises(PelasrError, match="^site encoder.*self_attn: prefix: relative positions have none"):
        bank.add("hi")


@pytest.mark.parametrize("languages", [["hi"] * 4, LANGUAGES])
@pytest.mark.parametrize("sites", ["joint", "input"])
def test_a_longer_input_needs_its_length(sites, languages, make, make_batch):
    """A linear map has none, and the encoder's frames were left as they are."""
    model, bank = make("longer", "rnnt", {"sites": sites})
    with bank.route(languages), pytest.raises(PelasrError, match="^site .*: the input gets another length, but no"):
        losses(model, make_batch(languages))


class Plus(Adapter):
    """Adds a number to the first argument."""

    def __init__(self):
        super().__init__()
        self.more = nn.Parameter(torch.ones(1))

    def before(self, args, kwargs):
        return (args[0] + self.more, *args[1:]), kwargs


@pytest.mark.parametrize("by_row", [True, False])
def test_rows_of_a_language_without_an_adapter_stay(by_row, monkeypatch):
    """And what is no tensor, or of the whole batch."""
    monkeypatch.setattr(Plus, "by_row", by_row)
    stack, x, shared = Stack("host", [Plus(), None]), torch.randn(3, 1), torch.randn(1, 7)
    (found, same, mask), kwargs = stack.before(torch.tensor([0, 1, 0]), (x, shared, None), {"deep": (x, 5)})
    assert torch.equal(found, x + torch.tensor([[1.0], [0.0], [1.0]]))
    assert same is shared and mask is None and torch.equal(kwargs["deep"][0], x) and kwargs["deep"][1] == 5


def test_a_longer_input_is_for_all_languages_of_a_batch():
    stack = Stack("host", [find_method("longer")(), None])
    with pytest.raises(PelasrError, match="site host: the input gets another shape for some of the batch's languages"):
        stack.before(torch.tensor([0, 1]), (torch.randn(2, 4, 3),), {})
