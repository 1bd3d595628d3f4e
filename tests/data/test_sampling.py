"""Shares of the languages, and batches that follow from seed and epoch alone, for any number of processes."""

from collections import Counter

import numpy as np
import pytest

from pelasr.data.sampling import BatchSampler, language_shares, sorted_batches
from pelasr.errors import PelasrError

# Training utterances of Kannan et al. 2019, table 1, in thousands.
PAPER = {"hi": 16000, "mr": 4100, "bn": 3900, "te": 2400, "gu": 2200, "ta": 1800, "ml": 1500, "kn": 1200, "ur": 443}
COUNTS = {"hi": 300, "ta": 97, "ur": 11}


def corpus(counts=COUNTS, seed=0):
    """Lengths and languages of utterances in a random order."""
    rng = np.random.default_rng(seed)
    languages = rng.permutation([language for language, count in counts.items() for _ in range(count)]).tolist()
    return rng.integers(50, 1500, len(languages)).tolist(), languages


def sampler(counts=COUNTS, batch_size=16, **options):
    return BatchSampler(*corpus(counts), batch_size, **options)


def drawn(sampler, epochs):
    return Counter(index for epoch in range(epochs) for batch in sampler.epoch(epoch) for index in batch)


def test_shares_of_the_paper():
    natural, uniform = language_shares(PAPER), language_shares(PAPER, alpha=1)
    assert natural["hi"] == pytest.approx(0.477, abs=5e-4) and natural["ur"] == pytest.approx(0.013, abs=5e-4)
    assert all(share == pytest.approx(0.111, abs=5e-4) for share in uniform.values())
    s = {language: n + 0.25 * (16000 - n) for language, n in PAPER.items()}
    quarter = language_shares(PAPER, alpha=0.25)
    assert quarter == pytest.approx({language: s[language] / sum(s.values()) for language in s})


def test_shares_sum_to_one_and_are_monotone():
    alphas = np.linspace(0, 1, 21)
    shares = [language_shares(PAPER, alpha) for alpha in alphas]
    assert all(sum(each.values()) == pytest.approx(1) for each in shares)
    for language, sign in [("hi", -1), ("kn", 1), ("ur", 1)]:
        assert (sign * np.diff([each[language] for each in shares]) > 0).all()
    for language in PAPER:  # whichever way a share goes, it never turns
        steps = np.diff([each[language] for each in shares])
        assert (steps > 0).all() or (steps < 0).all()


def test_shares_out_of_range():
    for alpha in (-0.1, 1.1):
        with pytest.raises(PelasrError, match=f"alpha: {alpha} is not between 0"):
            language_shares(PAPER, alpha)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("epoch", [0, 1, 17])
def test_natural_shares_draw_every_utterance_once(world_size, epoch):
    ranks = [sampler(rank=rank, world_size=world_size) for rank in range(world_size)]
    found = [index for rank in ranks for batch in rank.epoch(epoch) for index in batch]
    assert sorted(found) == list(range(408))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("world_size", [2, 3])
def test_batches_are_the_same_for_any_number_of_processes(alpha, world_size):
    for epoch in range(3):
        whole = list(sampler(alpha=alpha).epoch(epoch))
        parts = [list(sampler(alpha=alpha, rank=r, world_size=world_size).epoch(epoch)) for r in range(world_size)]
        assert {len(part) for part in parts} == {len(whole)}
        for batch, *shared in zip(whole, *parts, strict=True):
            assert sorted(batch) == sorted(index for part in shared for index in part)
            assert max(map(len, shared)) - min(map(len, shared)) <= 1


def test_batches_follow_from_seed_and_epoch():
    first = list(sampler(seed=3).epoch(5))
    again = sampler(seed=3)
    list(again.epoch(0))
    assert list(again.epoch(5)) == first
    assert list(sampler(seed=4).epoch(5)) != first
    other = list(again.epoch(6))
    together = {frozenset(batch) for batch in first}
    assert sum(frozenset(batch) in together for batch in other) < len(other) / 4  # other batches, not another order


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_padding_is_small(alpha):
    lengths, languages = corpus({"hi": 3000, "ur": 600})
    by_length = BatchSampler(lengths, languages, 16, alpha=alpha)
    lengths = np.array(lengths)

    def waste(batches):
        padded = sum(len(batch) * lengths[batch].max() for batch in batches)
        return 1 - sum(lengths[batch].sum() for batch in batches) / padded

    rng = np.random.default_rng(0)
    random = np.array_split(rng.permutation(len(lengths)), len(by_length))
    assert waste(random) > 0.4
    assert waste(list(by_length.epoch(0))) < 0.15


def test_batches_do_not_come_by_length():
    """Short and long ones alternate, so that the gradient does not drift within an epoch."""
    lengths, languages = corpus()
    means = [np.mean([lengths[index] for index in batch]) for batch in sampler().epoch(0)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5


@pytest.mark.parametrize("counts", [COUNTS, {"hi": 12, "ta": 9, "ur": 3}, {"hi": 9, "ta": 4}, {"hi": 64}])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.6, 1.0])
@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 4), (4, 3), (5, 2), (8, 1), (3, 3)])
def test_every_process_has_work_in_every_step(counts, alpha, batch_size, world_size):
    for epoch in range(20):
        parts = [
            list(sampler(counts, batch_size, alpha=alpha, rank=rank, world_size=world_size).epoch(epoch))
            for rank in range(world_size)
        ]
        steps = len(sampler(counts, batch_size, alpha=alpha, world_size=world_size))
        assert [len(part) for part in parts] == [steps] * world_size
        assert all(batch for part in parts for batch in part)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("counts", [{"hi": 250, "ta": 59, "ur": 11}, {"hi": 30, "ta": 17, "ur": 3}])
def test_no_batch_is_larger_than_asked_for(counts, alpha):
    """A batch that just fits the memory must not grow by an utterance in some epoch."""
    batches = sampler(counts, batch_size=10, alpha=alpha)
    assert max(len(batch) for epoch in range(30) for batch in batches.epoch(epoch)) <= 10


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_remainder_too_small_to_share(world_size):
    """7 utterances in batches of 3: the last would hold 1, which 2 processes cannot share."""
    parts = [list(sampler({"hi": 7}, 3, rank=rank, world_size=world_size).epoch(0)) for rank in range(world_size)]
    assert all(batch for part in parts for batch in part)
    assert sorted(index for part in parts for batch in part for index in batch) == list(range(7))


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_shares_are_kept(alpha):
    lengths, languages = corpus()
    shares = language_shares(COUNTS, alpha)
    for epoch in range(3):
        found = Counter(languages[index] for batch in sampler(alpha=alpha).epoch(epoch) for index in batch)
        for language, share in shares.items():
            assert found[language] == pytest.approx(408 * share, abs=2)


@pytest.mark.parametrize("alpha", [0.25, 0.7, 1.0])
def test_utterances_of_a_language_take_turns(alpha):
    """After any number of epochs no utterance has been drawn twice more than another of its language."""
    lengths, languages = corpus()
    batches = sampler(alpha=alpha)
    for epochs in (1, 2, 5, 20):
        found = drawn(batches, epochs)
        for language in COUNTS:
            times = [found[index] for index, other in enumerate(languages) if other == language]
            assert max(times) - min(times) <= 1
    assert min(found[index] for index in range(408)) > 0  # nothing is never seen


def test_a_new_pass_has_a_new_order():
    """Utterances of a small language do not keep the same company."""
    batches = sampler({"hi": 100, "ur": 30}, batch_size=10, alpha=1.0)
    lengths, languages = corpus({"hi": 100, "ur": 30})
    company = [
        {frozenset(i for i in batch if languages[i] == "ur") for batch in batches.epoch(epoch)} for epoch in (0, 1)
    ]
    assert len(company[0] & company[1]) < 3


def test_too_few():
    with pytest.raises(PelasrError, match="batch_size: 2 is less than the 3 processes"):
        sampler(batch_size=2, world_size=3)
    with pytest.raises(PelasrError, match="2 utterances are too few for 3 processes"):
        sampler({"hi": 2}, batch_size=3, world_size=3)


def test_sorted_batches():
    lengths = [5, 9, 1, 9, 7]
    assert sorted_batches(lengths, 2) == [[1, 3], [4, 0], [2]]
    assert sorted_batches([], 2) == []


def pairs(count=300, targets=8):
    """Utterances that are each translated into several languages: lengths, languages and sources."""
    lengths = np.random.default_rng(1).integers(50, 900, count).tolist()
    rows = [(length, f"en-{target}", f"u{n}") for target in range(targets) for n, length in enumerate(lengths)]
    return [list(column) for column in zip(*rows, strict=True)]


def test_targets_of_the_same_audio_come_together():
    lengths, languages, sources = pairs()
    batches = BatchSampler(lengths, languages, 64, sources=sources)
    for epoch in range(2):
        order = list(batches.epoch(epoch))
        assert sorted(index for batch in order for index in batch) == list(range(2400))
        loads = sum(len({sources[index] for index in batch}) for batch in order)
        assert loads <= 300 + len(order)  # cut in two only where a batch ends
        assert {len(batch) for batch in order} <= {63, 64}
    company = [{frozenset(sources[i] for i in batch) for batch in batches.epoch(epoch)} for epoch in (0, 1)]
    assert len(company[0] & company[1]) < 3


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_an_utterance_drawn_again_goes_its_own_way(alpha):
    """Audio of several targets is kept together; copies of one utterance that is drawn often are sorted as others."""
    lengths, languages = corpus({"hi": 1800, "ur": 50})
    alone = BatchSampler(lengths, languages, 16, alpha=alpha, sources=[f"u{n}" for n in range(1850)])
    rng = np.random.default_rng([0, 3])
    draws = rng.permutation(np.concatenate([alone._draw(language, 3) for language in ("hi", "ur")]))
    keys = np.array(lengths)[draws] * rng.uniform(0.85, 1.15, len(draws))
    buckets = np.array_split(np.arange(1850), 116 // 64)
    order = np.concatenate([draws[bucket[np.argsort(keys[bucket], kind="stable")]] for bucket in buckets])
    wanted = np.array_split(order, 116)
    assert list(alone.epoch(3)) == [wanted[number].tolist() for number in rng.permutation(116)]


@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_by_frames(world_size):
    lengths, languages = corpus()
    parts = [
        list(BatchSampler(lengths, languages, None, batch_frames=6000, rank=rank, world_size=world_size).epoch(0))
        for rank in range(world_size)
    ]
    batches = [sum(together, []) for together in zip(*parts, strict=True)]
    assert sorted(index for batch in batches for index in batch) == list(range(408))
    assert len(batches) == -(-sum(lengths) // 6000)
    assert all(part for parts_of_one in parts for part in parts_of_one)
    frames = np.array([sum(lengths[index] for index in batch) for batch in batches])
    assert abs(frames - frames.mean()).max() <= max(lengths) and frames.mean() <= 6000


def test_frames_of_long_utterances_leave_work_for_every_process():
    """One utterance is more than a batch: no process may get nothing."""
    for rank in range(2):
        order = list(BatchSampler([900] * 9, ["hi"] * 9, None, batch_frames=100, rank=rank, world_size=2).epoch(0))
        assert len(order) == 4 and all(order)


def test_batches_by_frames_waste_little():
    """None holds the longest utterances of one bucket and the shortest of the next."""
    lengths = np.random.default_rng(0).lognormal(5.7, 0.7, 30_000).clip(30, 3000).astype(int)
    batches = list(BatchSampler(lengths.tolist(), ["en"] * 30_000, None, batch_frames=10_000).epoch(0))
    padded = np.array([len(batch) * lengths[batch].max() for batch in batches])
    assert len(batches) > 10 * BatchSampler.BATCHES_PER_BUCKET
    assert padded.max() < 3 * 10_000 and np.median(padded) < 1.25 * 10_000


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_many_batches_of_an_utterance_for_each_process(world_size):
    """As many steps as there can be, in several buckets: still nothing is empty, nothing is lost."""
    lengths = np.random.default_rng(0).integers(100, 900, 400).tolist()
    parts = [
        list(BatchSampler(lengths, ["hi"] * 400, None, batch_frames=1, rank=rank, world_size=world_size).epoch(0))
        for rank in range(world_size)
    ]
    assert all(len(part) == 400 // world_size and all(part) for part in parts)
    assert sorted(index for part in parts for batch in part for index in batch) == list(range(400))


def test_batches_to_search_hold_no_more_frames_than_allowed():
    """Padding included; without a limit they are what they are."""
    lengths = [50, 100, 70, 400, 100, 60, 110]
    assert sorted_batches(lengths, 3) == [[3, 6, 1], [4, 2, 5], [0]] == sorted_batches(lengths, 3, 10_000)
    assert sorted_batches(lengths, 3, 300) == [[3], [6, 1], [4, 2, 5], [0]]
    assert sorted_batches(lengths, 64, 1) == [[3], [6], [1], [4], [2], [5], [0]]
