"""First-order MAML: its gradient, and the episodes that it is taken over."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pelasr.data.batch import Collate, Example
from pelasr.errors import PelasrError
from pelasr.train.meta import Episodes, first_order
from pelasr.train.options import MetaOptions, TrainingOptions


@pytest.mark.parametrize("steps", [1, 4])
def test_the_gradient_is_that_of_the_query_where_the_support_leads(steps):
    torch.manual_seed(0)
    model, options = nn.Linear(3, 2), MetaOptions(inner_steps=steps, inner_lr=0.1)
    (x, y), (u, v) = ((torch.randn(5, 3), torch.randn(5, 2)) for _ in range(2))

    def loss(net, x, y):
        return (net(x) - y).square().mean()

    before, moved = copy.deepcopy(model), copy.deepcopy(model)
    adam = torch.optim.Adam(moved.parameters(), lr=0.1)
    for _ in range(steps):
        adam.zero_grad()
        loss(moved, x, y).backward()
        adam.step()
    adam.zero_grad()
    wanted = loss(moved, u, v)
    wanted.backward()

    parameters = list(model.parameters())
    found = first_order(parameters, lambda: loss(model, x, y), lambda: loss(model, u, v), options, grad_clip=1e9)
    assert found == pytest.approx(wanted.item()) and found != pytest.approx(loss(before, u, v).item())
    for mine, old, expected in zip(parameters, before.parameters(), moved.parameters(), strict=True):
        assert torch.equal(mine, old) and torch.allclose(mine.grad, expected.grad, atol=1e-7)


def test_it_finds_where_a_step_leads_furthest():
    """Tasks are to reach +1 or -1; from the middle each is a step away, from elsewhere one of them is not."""
    point, options = nn.Parameter(torch.tensor(0.7)), MetaOptions(inner_steps=5, inner_lr=0.2)
    optimizer = torch.optim.Adam([point], lr=0.02)
    for number in range(200):
        target = 1.0 if number % 2 else -1.0
        first_order([point], lambda t=target: (point - t).square(), lambda t=target: (point - t).square(), options, 5.0)
        optimizer.step()
    assert abs(point.item()) < 0.1


def test_a_gradient_that_is_not_finite_is_an_error():
    point = nn.Parameter(torch.tensor(0.0))
    with pytest.raises(PelasrError, match="not finite; lower inner_lr or outer_lr of meta_conf"):
        first_order([point], lambda: point.log(), lambda: point.log(), MetaOptions(), 5.0)


class Sound:
    def __init__(self, frames):
        self.frames = frames

    def load(self):
        return np.zeros((self.frames, 2), dtype=np.float32)


def examples(language, count, frames=3):
    return [Example(f"{language}{n}", "train", Sound(frames), [1], language, "a") for n in range(count)]


def episodes(**options):
    sets = {"hi": examples("hi", 20), "ta": examples("ta", 7), "ur": examples("ur", 5)}
    return Episodes(sets, Collate(list(sets)), TrainingOptions(**options))


def test_every_language_has_its_turn():
    drawn = [episodes(batch_size=4).draw(number) for number in range(30)]
    languages = [support.ids[0][:2] for support, _ in drawn]
    assert all(sorted(languages[n : n + 3]) == ["hi", "ta", "ur"] for n in range(0, 30, 3))
    assert len({tuple(languages[n : n + 3]) for n in range(0, 30, 3)}) > 1
    for (support, query), language in zip(drawn, languages, strict=True):
        size = {"hi": 4, "ta": 3, "ur": 2}[language]
        assert len(set(support.ids)) == len(set(query.ids)) == size and not set(support.ids) & set(query.ids)
        assert {name[:2] for name in support.ids + query.ids} == {language}
        assert support.languages == ["meta"] * size
        assert support.language_ids.tolist() == [["hi", "ta", "ur"].index(language)] * size


def test_episodes_follow_from_the_seed_and_their_number():
    def ids(seed, number):
        return [batch.ids for batch in episodes(batch_size=4, seed=seed).draw(number)]

    assert ids(0, 5) == ids(0, 5) and ids(0, 5) != ids(1, 5)
    assert len({tuple(map(tuple, ids(0, number))) for number in range(9)}) == 9


def test_batches_by_frames():
    support, query = episodes(batch_frames=9).draw(0)
    assert len(support) == len(query) == min(3, {"hi": 3, "ta": 3, "ur": 2}[support.ids[0][:2]])


def test_an_episode_takes_two_utterances():
    with pytest.raises(PelasrError, match="--start meta: hi has too few utterances"):
        Episodes({"hi": examples("hi", 1)}, Collate(["hi"]), TrainingOptions())
