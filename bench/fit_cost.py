#!/usr/bin/env python3
"""Time and memory of fitting one language: adapters on the frozen backbone beside fine-tuning all of it.

    OMP_NUM_THREADS=2 .venv/bin/python bench/fit_cost.py                                       the laptop's RNN-T
    OMP_NUM_THREADS=2 .venv/bin/python bench/fit_cost.py --config conf/rnnt_kannan2019.yaml    the paper's

prints one markdown table. Every way of fitting has a process of its own, which makes the backbone and takes optimizer
steps (AdamW) on the same noise, as stage 5 does: `--batch` utterances of `--frames` feature frames and `--labels`
labels. Time is the best of `--steps` steps after one that does not count, memory the process's peak beyond what it had
before the first: gradients, the optimizer's state and activations, not the backbone itself. *New language*: with own
tokens and a language vector, whose gradients come from the encoder's very input.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from pelasr.adapters.finetune import make_bank
from pelasr.adapters.freeze import freeze
from pelasr.adapters.own import OwnParts
from pelasr.backbones.base import build_backbone
from pelasr.config import load_yaml
from pelasr.score.environment import environment
from pelasr.stages.settings import split_options

LANGUAGES, VOCABULARY, OWN = 9, 440, 40
WAYS = {
    "full fine-tuning": ("full", {}, 0),
    "houlsby 64": ("houlsby", {"bottleneck": 64}, 0),
    "houlsby 64, new language": ("houlsby", {"bottleneck": 64}, OWN),
    "lora 8, joint network": ("lora", {"sites": "joint", "rank": 8}, 0),
    "bitfit": ("bitfit", {}, 0),
}


def peak() -> float:
    """Of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One way of fitting, in this process."""
    method, options, own = WAYS[name]
    family, backbone_options, training = split_options(load_yaml(arguments.config), arguments.config)
    torch.manual_seed(0)
    model = build_backbone(family, backbone_options, VOCABULARY, LANGUAGES)
    freeze(model)
    bank = make_bank(method, options, model)
    bank.add("xx", own=OwnParts(model, [str(n) for n in range(own)], vector=True) if own else None)
    optimizer = torch.optim.AdamW(bank.tensors("xx").values(), **training.optim_conf)
    size, labels = arguments.batch, arguments.labels
    feats, lens = torch.randn(size, arguments.frames, 80), torch.full((size,), arguments.frames)
    targets, target_lens = torch.randint(2, VOCABULARY + own, (size, labels)), torch.full((size,), labels)
    ids, before, best = torch.zeros(size, dtype=torch.long), peak(), float("inf")
    model.train()
    for step in range(arguments.steps + 1):
        start = time.perf_counter()
        with bank.route(["xx"] * size):
            enc, enc_lens = model.encode(feats, lens, ids)
            model.loss(enc, enc_lens, targets, target_lens).total.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step:
            best = min(best, time.perf_counter() - start)
    return {"parameters": bank.size("xx"), "seconds": best, "memory": peak() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="conf/rnnt_mini.yaml")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=300, help="of 10 ms")
    parser.add_argument("--labels", type=int, default=25)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help="this one alone, as JSON")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments)))
        return
    facts = environment()
    print(f"{facts['cpu']}, {facts['cores']} cores; threads: {torch.get_num_threads()}; torch {facts['torch']}")
    print(f"{arguments.config}, {arguments.batch} x {arguments.frames} frames, {arguments.labels} labels\n")
    columns = ["", "trainable", "ms a step", "of full", "MB", "of full"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    full: dict[str, float] = {}
    for name in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        full = full or found
        ratios = [found[key] / full[key] for key in ("seconds", "memory")]
        cells = [name, f"{found['parameters']:,}", f"{1000 * found['seconds']:.0f}", f"{ratios[0]:.2f}"]
        print("| " + " | ".join([*cells, f"{found['memory']:.0f}", f"{ratios[1]:.2f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
