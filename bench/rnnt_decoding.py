#!/usr/bin/env python3
"""Time of the RNN-T's greedy search over a batch beside ESPnet's, which takes one utterance after the other.

    OMP_NUM_THREADS=1 .venv/bin/python bench/rnnt_decoding.py               on the CPU
    .venv/bin/python bench/rnnt_decoding.py --device cuda                   on a GPU

prints one markdown table, in a minute. The model is that of conf/rnnt_mini.yaml with random weights, made sharp; the
encoder output is noise, and the bias of blank such that about half of the frames have a label. (ESPnet's search allows
one label a frame, so pelasr's is given `max_symbols=1`: then both find the same labels, which is asserted.)

*ESPnet* is its `BeamSearchTransducer` of beam 1 on its own prediction and joint network, which have the same weights.
*ESPnet's search* is the same on pelasr's networks: what is left is the difference of the searches. Times are medians of
`--repeats` calls, which take turns: CPU time, so that other work on the machine counts little, or on a GPU real time.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from pelasr.backbones.base import build_backbone
from pelasr.backbones.rnnt import RNNT
from pelasr.config import load_yaml
from pelasr.score.environment import environment
from pelasr.search.transducer import greedy_search
from pelasr.stages.settings import split_options

CONF = Path(__file__).parents[1] / "conf/rnnt_mini.yaml"
VOCABULARY, FRAMES, BLANK = 450, 45, 5.2
BATCHES = (1, 8, 32)
TARGETS = {1: 1.0, 8: 2.0, 32: 4.0}  # times as fast as ESPnet, at least

Search = Callable[[Tensor, Tensor], list[list[int]]]


def build() -> RNNT:
    torch.manual_seed(0)
    family, options, _ = split_options(load_yaml(CONF), str(CONF))
    model = build_backbone(family, options, VOCABULARY, 1)
    with torch.no_grad():
        for parameter in (*model.joint.parameters(), *model.prediction.parameters()):
            parameter *= 4
        model.joint.lin_out.bias[0] += BLANK
    return model.eval()


def ours(model: RNNT) -> Search:
    def predict(labels: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        output, state = model.prediction(labels[:, None], state)
        return model.joint.lin_dec(output[:, 0]), state

    def search(enc: Tensor, lens: Tensor) -> list[list[int]]:
        found = greedy_search(model.joint.lin_enc(enc), lens, predict, model.joint.lin_out, max_symbols=1)
        return [hypothesis.tokens for hypothesis in found]

    return search


def espnets(decoder: Any, joint: nn.Module) -> Search:
    from espnet2.asr.transducer.beam_search_transducer import BeamSearchTransducer

    search = BeamSearchTransducer(decoder, joint, beam_size=1)
    return lambda enc, lens: [search(x[:frames])[0].yseq[1:] for x, frames in zip(enc, lens.tolist(), strict=True)]


def espnets_network(model: RNNT) -> nn.Module:
    """ESPnet's prediction network with the weights of pelasr's."""
    from espnet2.asr.decoder.transducer_decoder import TransducerDecoder

    (layer,) = model.prediction.layers
    decoder = TransducerDecoder(VOCABULARY, hidden_size=layer.lstm.hidden_size).eval()
    decoder.embed.load_state_dict(model.prediction.embed.state_dict())
    decoder.decoder[0].load_state_dict(layer.lstm.state_dict())
    return decoder.to(model.joint.lin_out.weight.device)


class AsESPnets:
    """pelasr's prediction network as ESPnet's search asks for one."""

    blank_id = 0

    def __init__(self, model: RNNT):
        self.prediction, self.dunits, self.odim = model.prediction, model.prediction.output_size, VOCABULARY

    def set_device(self, device: torch.device) -> None:
        self.device = device

    def init_state(self, size: int) -> None:
        """The network's own first state."""

    def score(self, hypothesis: Any, cache: dict) -> tuple[Tensor, tuple[Tensor, ...], None]:
        label = torch.full((1, 1), hypothesis.yseq[-1], device=self.device)
        output, state = self.prediction(label, hypothesis.dec_state)
        return output[0, 0], state, None


@torch.no_grad()
def measure(searches: dict[str, Search], enc: Tensor, lens: Tensor, repeats: int) -> tuple[dict[str, float], int]:
    """Median seconds of each search, after a call that does not count, and the number of labels they find."""
    clock = time.process_time if enc.device.type == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in searches}
    found: dict[str, list[list[int]]] = {}
    for _ in range(repeats + 1):
        for name, search in searches.items():
            start = clock()
            found[name] = search(enc, lens)  # lists: a GPU has finished
            times[name].append(clock() - start)
    assert all(labels == found["pelasr"] for labels in found.values()), "the searches find other labels"
    return {name: median(each[1:]) for name, each in times.items()}, sum(map(len, found["pelasr"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=25, help="timed calls of each search")
    arguments = parser.parse_args()
    facts = environment()
    machine = facts.get("gpu") if arguments.device == "cuda" else f"{facts['cpu']}, {facts['cores']} cores"
    print(f"{machine}; threads: {torch.get_num_threads()}; torch {facts['torch']}; medians of {arguments.repeats}\n")
    with redirect_stdout(StringIO()):  # ESPnet tells that there is no flash attention
        model = build().to(arguments.device)
        searches = {
            "pelasr": ours(model),
            "ESPnet": espnets(espnets_network(model), model.joint),
            "ESPnet's search": espnets(AsESPnets(model), model.joint),
        }
    columns = ["utterances", "labels each", *(f"{name} ms" for name in searches)]
    columns += ["ESPnet / pelasr (target)", "ESPnet's search / pelasr"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    draw = torch.Generator().manual_seed(0)
    for size in BATCHES:
        enc = torch.randn(size, FRAMES, model.encoder.output_size, generator=draw)
        lens = torch.randint(FRAMES - 9, FRAMES + 1, (size,), generator=draw)
        enc, lens = (part.to(arguments.device) for part in (enc, lens))
        seconds, labels = measure(searches, enc, lens, arguments.repeats)
        ratios = [seconds[name] / seconds["pelasr"] for name in searches if name != "pelasr"]
        cells = [size, f"{labels / size:.1f}", *(f"{1000 * each:.1f}" for each in seconds.values())]
        print("| " + " | ".join(map(str, cells)) + f" | {ratios[0]:.1f} (>= {TARGETS[size]:g}) | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
