#!/usr/bin/env python3
"""Time of `pelasr.search.beam.beam_search` over a batch beside ESPnet's searches, which take one after the other.

    OMP_NUM_THREADS=2 .venv/bin/python bench/st_decoding.py                 on the CPU
    .venv/bin/python bench/st_decoding.py --device cuda                     on a GPU

prints one markdown table, in about a minute. The decoder is of the size of a small translation model's and is
first trained for `--steps` batches, so that its hypotheses have natural lengths: the encoder output is noise around
what tells the first token and the length, and every token has three likely successors.

*BeamSearch* scores hypothesis after hypothesis, *BatchBeamSearch* those of an utterance together. Both are run with
lengths up to the number of frames, as pelasr's search is: then all find the same hypotheses, which is asserted. *End
detection* is what ESPnet does by default, an estimate of when longer hypotheses are not worth their time; it may miss
some. pelasr stops where nothing better can come. Time is the best of `--repeats` calls, which take turns.
"""

import argparse
import functools
import logging
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO

import torch
from torch import Tensor

from pelasr.backbones.st import ST
from pelasr.score.environment import environment
from pelasr.search.attention import CachedDecoder
from pelasr.search.beam import beam_search

WIDTH, UNITS, LAYERS, HEADS, VOCABULARY = 192, 768, 3, 4, 600
UTTERANCES, FRAMES = 32, 40
COUNTS = torch.tensor([8, 12, 16])  # tokens of a sentence
BEAM, END, TARGET = 5, VOCABULARY - 1, 4.0

Search = Callable[[ST, Tensor, Tensor], list[list[int]]]


def build() -> ST:
    torch.manual_seed(0)
    with redirect_stdout(StringIO()):  # ESPnet tells that there is no flash attention
        return ST(
            VOCABULARY,
            1,
            encoder_conf={"output_size": WIDTH, "attention_heads": HEADS, "num_blocks": 1},
            decoder_conf={"attention_heads": HEADS, "linear_units": UNITS, "num_blocks": LAYERS},
        )


class Language:
    """Sentences, and encoder output that tells their first token and their length."""

    def __init__(self) -> None:
        self.draw = torch.Generator().manual_seed(0)
        self.tokens, self.counts = (torch.randn(n, WIDTH, generator=self.draw) for n in (VOCABULARY, len(COUNTS)))
        self.successors = torch.randint(1, END, (VOCABULARY, 3), generator=self.draw)

    def batch(self, device: str) -> tuple[Tensor, ...]:
        """Encoder output (B, T, D), frames (B,), labels (B, U), their number (B,)."""
        size, longest = (UTTERANCES,), int(COUNTS.max())
        count = torch.randint(len(COUNTS), size, generator=self.draw)
        labels = [torch.randint(1, END, size, generator=self.draw)]
        for _ in range(longest - 1):
            choice = torch.tensor([0.6, 0.25, 0.15]).multinomial(*size, replacement=True, generator=self.draw)
            labels.append(self.successors[labels[-1], choice])
        enc = torch.randn(*size, FRAMES, WIDTH, generator=self.draw)
        enc += (self.tokens[labels[0]] + self.counts[count])[:, None]
        frames = torch.randint(FRAMES // 2, FRAMES + 1, size, generator=self.draw)
        return tuple(part.to(device) for part in (enc, frames, torch.stack(labels, 1), COUNTS[count]))


def train(model: ST, language: Language, steps: int, device: str) -> None:
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=2e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min((step + 1) / 40, (steps - step) / steps + 0.1)
        enc, lens, targets, target_lens = language.batch(device)
        loss = model.loss(enc, lens, targets, target_lens).total.sum() / (target_lens.sum() + UTTERANCES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def ours(model: ST, enc: Tensor, lens: Tensor) -> list[list[int]]:
    start = lens.new_full((len(lens), 1), END)
    found = beam_search(CachedDecoder(model.decoder, enc, lens), start, lens, END, BEAM)
    return [hypothesis.tokens for hypothesis in found]


def espnets(name: str, detection: bool, model: ST, enc: Tensor, lens: Tensor) -> list[list[int]]:
    from espnet.nets.batch_beam_search import BatchBeamSearch
    from espnet.nets.beam_search import BeamSearch

    cls = {"BeamSearch": BeamSearch, "BatchBeamSearch": BatchBeamSearch}[name]
    scorers, weights = {"decoder": model.decoder}, {"decoder": 1.0}
    search = cls(scorers, weights, BEAM, VOCABULARY, sos=END, eos=END, normalize_length=True)
    found = []
    for x, frames in zip(enc, lens.tolist(), strict=True):
        best = search(x[:frames], maxlenratio=0.0 if detection else -frames)[0]
        tokens = best.yseq[1:].tolist()
        found.append(tokens[: tokens.index(END)])
    return found


SEARCHES: dict[str, Search] = {
    "pelasr": ours,
    "ESPnet BeamSearch": functools.partial(espnets, "BeamSearch", False),
    "ESPnet BeamSearch, end detection": functools.partial(espnets, "BeamSearch", True),
    "ESPnet BatchBeamSearch": functools.partial(espnets, "BatchBeamSearch", False),
}


@torch.no_grad()
def measure(model: ST, enc: Tensor, lens: Tensor, repeats: int) -> tuple[dict[str, float], dict[str, list[list[int]]]]:
    """Shortest time and hypotheses of each search, after two utterances that do not count."""
    best, found = dict.fromkeys(SEARCHES, float("inf")), {}
    for repeat in range(repeats + 1):
        rows = slice(None) if repeat else slice(2)
        for name, search in SEARCHES.items():
            start = time.perf_counter()
            found[name] = search(model, enc[rows], lens[rows])  # lists: a GPU has finished
            if repeat:
                best[name] = min(best[name], time.perf_counter() - start)
    return best, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=150, help="batches of training")
    parser.add_argument("--repeats", type=int, default=1, help="timed calls of each search")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    facts = environment()
    machine = facts.get("gpu") if arguments.device == "cuda" else f"{facts['cpu']}, {facts['cores']} cores"
    print(f"{machine}; threads: {torch.get_num_threads()}; torch {facts['torch']}; best of {arguments.repeats}")
    model, language = build().to(arguments.device), Language()
    train(model.train(), language, arguments.steps, arguments.device)
    enc, lens = language.batch(arguments.device)[:2]
    seconds, found = measure(model.eval(), enc, lens, arguments.repeats)
    for name in ("ESPnet BeamSearch", "ESPnet BatchBeamSearch"):
        assert found[name] == found["pelasr"], f"{name} finds other hypotheses"
    count = sum(map(len, found["pelasr"]))
    print(f"{UTTERANCES} utterances, beam {BEAM}; {count / UTTERANCES:.1f} tokens each\n")
    columns = ["search", "ms", "times pelasr's (target)", "same hypotheses"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in SEARCHES:
        ratio = f"{seconds[name] / seconds['pelasr']:.1f}" + (f" (>= {TARGET:g})" if name != "pelasr" else "")
        same = sum(one == two for one, two in zip(found[name], found["pelasr"], strict=True))
        print(f"| {name} | {1000 * seconds[name]:.0f} | {ratio} | {same} of {UTTERANCES} |")


if __name__ == "__main__":
    main()
