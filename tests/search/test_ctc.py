"""CTC's searches against all label sequences, against a search written another way, and against CTC's loss."""

import math
from collections import defaultdict

import pytest
import torch
from ctc_paths import all_sequences
from torch.nn import functional as F

from pelasr.search.ctc import ctc_beam_search, ctc_best_path

NEVER = -math.inf


def random_logits(seed, *shape, sharpness=1.0):
    return sharpness * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_search(logits, beam_size):
    """Hannun et al.'s algorithm on probabilities, prefix by prefix: log probability by prefix of what is left."""
    beam = {(): (1.0, 0.0)}
    for frame in logits.double().softmax(-1).tolist():
        after = defaultdict(lambda: [0.0, 0.0])
        for prefix, (blank, label) in beam.items():
            after[prefix][0] += (blank + label) * frame[0]
            for token in range(1, len(frame)):
                if prefix and token == prefix[-1]:
                    after[prefix][1] += label * frame[token]
                    after[*prefix, token][1] += blank * frame[token]
                else:
                    after[*prefix, token][1] += (blank + label) * frame[token]
        best = sorted(after, key=lambda prefix: -sum(after[prefix]))[:beam_size]
        beam = {prefix: after[prefix] for prefix in best}
    return {prefix: math.log(sum(parts)) for prefix, parts in beam.items() if sum(parts)}


@pytest.mark.parametrize("seed", range(10))
def test_a_wide_beam_finds_the_best_of_all_sequences(seed):
    logits = random_logits(seed, 3, 5, 4, sharpness=seed / 3)
    lens = torch.tensor([5, 3, 4])
    for row, found in enumerate(ctc_beam_search(logits, lens, 1000)):
        every = all_sequences(logits[row, : lens[row]])
        assert found.score == pytest.approx(max(every.values()), abs=1e-9)
        assert every[tuple(found.tokens)] == pytest.approx(found.score, abs=1e-9)


@pytest.mark.parametrize("beam_size", [2, 3, 5, 8])
@pytest.mark.parametrize("size", [2, 3, 9, 40])
def test_as_the_plain_algorithm(size, beam_size):
    """Prefixes leave a narrow beam and come back, and are merged with what they became before."""
    logits = random_logits(size, 6, 60, size, sharpness=2.0)
    lens = torch.tensor([60, 59, 41, 17, 2, 1])
    for row, found in enumerate(ctc_beam_search(logits, lens, beam_size)):
        left = plain_search(logits[row, : lens[row]], beam_size)
        best = max(left, key=lambda prefix: left[prefix])
        assert tuple(found.tokens) == best
        assert found.score == pytest.approx(left[best], abs=1e-9)


def test_the_score_is_that_of_the_loss_and_better_than_the_best_path():
    logits, lens = random_logits(1, 8, 100, 30, sharpness=3.0), torch.full((8,), 100)

    def log_probs(hypotheses):
        labels = torch.tensor([token for found in hypotheses for token in found.tokens])
        sizes = torch.tensor([len(found.tokens) for found in hypotheses])
        frames = logits.double().log_softmax(-1).transpose(0, 1)
        return -F.ctc_loss(frames, labels, lens, sizes, reduction="none")

    found, path = ctc_beam_search(logits, lens, 64), ctc_best_path(logits, lens)
    scores = torch.tensor([each.score for each in found], dtype=torch.double)
    exact = log_probs(found)
    assert (exact >= scores - 1e-9).all()  # paths that left the beam are not counted
    torch.testing.assert_close(scores, exact, atol=1.0, rtol=0)
    gain = exact - log_probs(path)
    assert (gain > -1e-9).all() and (gain > 0.05).any()


def test_a_batch_changes_nothing():
    logits, lens = random_logits(2, 5, 80, 20, sharpness=3.0), torch.tensor([80, 79, 40, 3, 1])
    together = ctc_beam_search(logits, lens, 6)
    for row, size in enumerate(lens.tolist()):
        assert [together[row]] == ctc_beam_search(logits[row : row + 1, :size], lens[row : row + 1], 6)


def test_tokens_of_others_never_come():
    """Rows whose other columns are minus infinity find what they find without these columns."""
    logits, lens = random_logits(3, 2, 50, 12), torch.full((2,), 50)
    own = [[0, 2, 5, 11], [0, 3, 4, 5, 9]]
    masked = torch.full_like(logits, NEVER)
    for row, columns in enumerate(own):
        masked[row, :, columns] = logits[row][:, columns]
    for row, found in enumerate(ctc_beam_search(masked, lens, 16)):
        [alone] = ctc_beam_search(logits[row : row + 1][..., own[row]], lens[:1], 16)
        assert found.tokens == [own[row][token] for token in alone.tokens]
        assert found.score == pytest.approx(alone.score, abs=1e-9)


def test_blank_alone():
    logits = torch.full((1, 4, 3), NEVER)
    logits[..., 0] = 1.0
    for scores in (logits, logits[..., :1]):
        [found] = ctc_beam_search(scores, torch.tensor([4]), 4)
        assert (found.tokens, found.score) == ([], 0.0)


def test_one_wide_is_the_best_path():
    logits, lens = random_logits(4, 3, 9, 5), torch.tensor([9, 4, 7])
    assert ctc_beam_search(logits, lens, 1) == ctc_best_path(logits, lens)


def test_the_beam_sums_over_paths():
    """The best path is blank, but more paths lead to the label."""
    frame = torch.tensor([0.6, 0.4]).log()
    logits, lens = frame.repeat(1, 2, 1), torch.tensor([2])
    assert ctc_best_path(logits, lens)[0].tokens == []
    [found] = ctc_beam_search(logits, lens, 2)
    assert found.tokens == [1] and found.score == pytest.approx(math.log(0.64))
