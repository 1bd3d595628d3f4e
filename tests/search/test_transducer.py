"""Greedy search against a plain loop."""

import pytest
import torch
from torch import nn

from pelasr.nn.active_rows import remaining
from pelasr.search import transducer
from pelasr.search.transducer import greedy_search

J, V = 4, 5


class Predictor(nn.Module):
    """A small recurrent prediction network behind the interface of `greedy_search`."""

    def __init__(self, seed, label_bias=0.0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.rnn = nn.Embedding(V, J), nn.LSTM(J, J)
        self.out = nn.Linear(J, V)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn_like(parameter))
            self.out.bias[1:] += label_bias

    def forward(self, labels, state):
        output, state = self.rnn(self.embed(labels)[None], state)
        return output[0], state


@torch.no_grad()
def plain_search(model, enc, max_symbols):
    """One utterance (T, J), frame by frame: labels, score, and the labels of each frame."""
    pred, state = model(torch.tensor([0]), None)
    tokens, score, per_frame = [], 0.0, []
    for frame in enc:
        emitted = 0
        while True:
            log_probs = model.out((frame + pred[0]).tanh()).log_softmax(-1)
            symbol = int(log_probs.argmax()) if emitted < max_symbols else 0
            score += float(log_probs[symbol])
            if symbol == 0:
                break
            tokens.append(symbol)
            pred, state = model(torch.tensor([symbol]), state)
            emitted += 1
        per_frame.append(emitted)
    return tokens, score, per_frame


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_symbols", [1, 3])
def test_greedy_search_equals_a_plain_loop(seed, max_symbols):
    model = Predictor(seed)
    enc = torch.randn(4, 12, J, generator=torch.Generator().manual_seed(seed)) * 2
    lens = torch.tensor([12, 1, 7, 9])
    found = greedy_search(enc, lens, model, model.out, max_symbols)
    lengths = set()
    for b, hypothesis in enumerate(found):
        tokens, score, _ = plain_search(model, enc[b, : lens[b]], max_symbols)
        assert hypothesis.tokens == tokens
        assert hypothesis.score == pytest.approx(score, rel=1e-5)
        (alone,) = greedy_search(enc[b : b + 1, : lens[b]], lens[b : b + 1], model, model.out, max_symbols)
        assert alone.tokens == tokens and alone.score == pytest.approx(score, rel=1e-5)
        lengths.add(len(tokens))
    assert len(lengths) > 1  # the utterances of the batch went their own ways


@pytest.mark.parametrize("ahead", [1, 2, 7, 50])
def test_frames_ahead_change_nothing(ahead, monkeypatch):
    """Nor do utterances without a frame, which have no label."""
    model, lens = Predictor(2, label_bias=-2.0), torch.tensor([12, 0, 7, 9, 0])
    enc = torch.randn(5, 12, J, generator=torch.Generator().manual_seed(0)) * 2
    monkeypatch.setattr(transducer, "AHEAD", ahead)
    found = greedy_search(enc, lens, model, model.out, max_symbols=2)
    for b, hypothesis in enumerate(found):
        tokens, score, per_frame = plain_search(model, enc[b, : lens[b]], 2)
        assert hypothesis.tokens == tokens and hypothesis.score == pytest.approx(score, rel=1e-5)
        assert len(per_frame) == lens[b]
    assert 0 < sum(len(hypothesis.tokens) for hypothesis in found) < 2 * lens.sum()
    (nothing,) = greedy_search(enc[:1], lens[1:2], model, model.out)
    assert nothing.tokens == [] and nothing.score == 0.0


def test_as_many_steps_as_labels():
    """Not one for every frame; and what is called is told which rows it sees."""
    model, lens = Predictor(1, label_bias=-5.0), torch.tensor([40, 31, 22])
    enc = torch.randn(3, 40, J, generator=torch.Generator().manual_seed(0)) * 2
    rows = {"output": [], "predict": []}

    def see(name, count):
        seen = remaining()
        rows[name].append(list(range(3)) if seen is None else seen.tolist())
        assert len(rows[name][-1]) == count

    def output_layer(x):
        assert x.shape[1:] == (transducer.AHEAD, J)
        see("output", len(x))
        return model.out(x)

    def predict(labels, state):
        see("predict", len(labels))
        return model(labels, state)

    found = greedy_search(enc, lens, predict, output_layer)
    blank_runs = -(-lens // transducer.AHEAD)
    most = max(len(found[b].tokens) + int(blank_runs[b]) for b in range(3))
    assert len(rows["output"]) <= most < int(lens.max()) + min(len(hypothesis.tokens) for hypothesis in found)
    assert sum(map(len, rows["predict"])) == 3 + sum(len(hypothesis.tokens) for hypothesis in found)


def test_symbols_per_frame_are_bounded():
    model = Predictor(seed=0, label_bias=50.0)
    enc = torch.randn(2, 6, J)
    first, second = greedy_search(enc, torch.tensor([6, 4]), model, model.out, max_symbols=3)
    assert (len(first.tokens), len(second.tokens)) == (18, 12)
    tokens, score, per_frame = plain_search(model, enc[0], 3)
    assert per_frame == [3] * 6 and first.tokens == tokens and first.score == pytest.approx(score, rel=1e-6)
    assert first.score < -6 * 40  # the forced blanks are paid for


def test_padded_frames_are_not_searched():
    model = Predictor(seed=2)
    enc = torch.randn(2, 8, J)
    enc[1, 3:] = torch.nan
    _, found = greedy_search(enc, torch.tensor([8, 3]), model, model.out)
    tokens, score, _ = plain_search(model, enc[1, :3], 5)
    assert found.tokens == tokens and found.score == pytest.approx(score, rel=1e-5)


def test_search_leaves_its_inputs_alone():
    model = Predictor(seed=1)
    enc = torch.randn(2, 5, J)
    lens = torch.tensor([5, 4])
    before = enc.clone(), lens.clone()
    greedy_search(enc, lens, model, model.out)
    assert torch.equal(enc, before[0]) and torch.equal(lens, before[1])
