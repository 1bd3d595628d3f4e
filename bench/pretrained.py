#!/usr/bin/env python3
"""Throughput and memory of pretrained encoders beside a loop as transformers' Trainer has it, on the same encoder.

    OMP_NUM_THREADS=1 .venv/bin/python bench/pretrained.py               the encoder of conf/ssl_mini.yaml, on the CPU
    .venv/bin/python bench/pretrained.py --config conf/hubert_base.yaml --device cuda --utterances 32 --seconds 15

prints a markdown table. Both sides have the same encoder of random weights, and the script asserts that both put out
the same for an utterance. The audio is noise, an utterance half of `--seconds` to all of it, with 5 labels a second of
64 tokens, and lies on the device: reading and collating are not timed.

*Fine-tuning* trains all but the convolutions over samples, *output layer* that alone, in pelasr one for each of eight
languages in the batch. *Houlsby packs*: these, and adapters of width 64 after each layer; in training beside
transformers' fine-tuning, in decoding beside its model, which has no adapters. A step is forward, backward, clipping
and AdamW (transformers': fused, as Trainer's); decoding is encoder and best path. Neither side drops layers or masks
frames. A group norm that an encoder begins with is over the padding too in transformers, over each utterance alone in
pelasr. bf16 is autocast: pelasr trains so on GPUs, its stage 6 is in fp32.

Medians of calls that take turns: of the process' time on a CPU, which other work disturbs less than a clock (so use one
thread), of a clock on a GPU. Memory is the most that a way has on the GPU, with its weights and its optimizer.
"""

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn

from pelasr.adapters.finetune import make_bank
from pelasr.adapters.freeze import freeze
from pelasr.adapters.own import OwnParts
from pelasr.backbones.base import Backbone, build_backbone
from pelasr.backbones.pretrained import file_names
from pelasr.config import load_yaml
from pelasr.data.batch import Batch
from pelasr.data.hears import RATE
from pelasr.data.tokenizer import SPECIAL
from pelasr.decode.recognise import search
from pelasr.nn.layers import within
from pelasr.nn.speech_encoder import CLASSES
from pelasr.score.environment import environment
from pelasr.train.loop import Objective

LANGUAGES = [f"language{n}" for n in range(8)]
TOKENS = [*SPECIAL, *(f"<{n}>" for n in range(64 - len(SPECIAL)))]
FULL, OUTPUT, PACKS, TRAINING, DECODING = "fine-tuning", "output layer", "houlsby packs", "training", "decoding"
WAYS = {FULL: ("full", {}, 1), OUTPUT: ("output", {}, 8), PACKS: ("houlsby", {"bottleneck": 64}, 8)}
ROWS = [(TRAINING, FULL, FULL), (TRAINING, OUTPUT, OUTPUT), (TRAINING, PACKS, FULL)]  # and what each is beside
ROWS += [(DECODING, OUTPUT, OUTPUT), (DECODING, PACKS, OUTPUT)]


def make_batch(utterances: int, seconds: float, device: str) -> Batch:
    """The longest utterance first."""
    torch.manual_seed(0)
    lens = (torch.linspace(1.0, 0.5, utterances) * seconds * RATE).long()
    feats = torch.randn(utterances, int(lens[0]), 1) * within(lens, int(lens[0]))[..., None]
    counts = (lens * 5 // RATE).clamp(min=1)
    targets = torch.randint(len(SPECIAL), len(TOKENS), (utterances, int(counts.max())))
    no = [""] * utterances
    return Batch(no, no, no, feats, lens, targets, counts, torch.zeros_like(lens)).to(torch.device(device))


def make_encoder(config: dict[str, Any], device: torch.device) -> Backbone:
    """pelasr's, frozen; always with the same weights."""
    torch.manual_seed(0)
    model = build_backbone("ctc", {**config, "objective": "none"}, len(SPECIAL), len(LANGUAGES)).to(device)
    freeze(model)
    return model


def ours(config: dict[str, Any], way: str, batch: Batch) -> dict[str, Callable[[], object]]:
    method, options, count = WAYS[way]
    backbone = make_encoder(config, batch.feats.device)
    bank = make_bank(method, options, backbone)
    for language in LANGUAGES[:count]:
        own = OwnParts(backbone, TOKENS[len(SPECIAL) :], vector=False)
        nn.init.normal_(own.tensors()["ctc/weight"], std=0.02)
        bank.add(language, own)
    bank.to(batch.feats.device)
    batch = replace(batch, languages=[LANGUAGES[n % count] for n in range(len(batch))])
    objective = Objective(backbone, bank)
    optimizer = torch.optim.AdamW(objective.groups(), lr=1e-5)

    def train() -> None:
        objective.train()
        with objective.route(batch):
            objective(batch).mean().backward()
        norms = [nn.utils.clip_grad_norm_(group["params"], 5.0) for group in optimizer.param_groups]
        assert all(bool(norm.isfinite()) for norm in norms)
        optimizer.step()
        optimizer.zero_grad()

    def decode() -> list:
        objective.eval()
        return search(backbone, bank, batch)[0]

    return {TRAINING: train, DECODING: decode}


def theirs(config: dict[str, Any], way: str, batch: Batch) -> dict[str, Callable[[], object]]:
    same = make_encoder(config, batch.feats.device)
    name, masks = CLASSES[config["encoder"]], {"mask_time_prob": 0.0, "apply_spec_augment": False}
    conf = getattr(transformers, f"{name}Config")(**config["encoder_conf"], **masks, vocab_size=len(TOKENS))
    model: Any = getattr(transformers, f"{name}ForCTC")(conf).to(batch.feats.device)
    state, there = same.state_dict(), model.base_model.state_dict()
    model.base_model.load_state_dict({other: state[own] for own, other in file_names(same).items() if other in there})
    with torch.no_grad():
        found, _ = same.encode(batch.feats[:1], batch.lens[:1], None)
        wanted = model.base_model.eval()(batch.feats[:1, :, 0]).last_hidden_state
    torch.testing.assert_close(found, wanted, atol=1e-2, rtol=1e-2)  # on a GPU convolutions have 10 bits
    model.freeze_feature_encoder()  # without, transformers has gradients of the convolutions whatever is frozen
    if way == OUTPUT:
        model.freeze_base_model()
    given = {"input_values": batch.feats[..., 0], "attention_mask": within(batch.lens, batch.feats.shape[1]).long()}
    labels = batch.targets.masked_fill(~within(batch.target_lens, batch.targets.shape[1]), -100)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    lens = model._get_feat_extract_output_lengths(batch.lens).tolist()

    def train() -> None:
        model.train()
        loss = model(**given, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.isnan().item()  # Trainer waits for it, too

    @torch.no_grad()
    def decode() -> list:
        model.eval()
        best = model(**given).logits.argmax(-1).tolist()
        paths = [itertools.groupby(row[:size]) for row, size in zip(best, lens, strict=True)]
        return [[token for token, _ in path if token] for path in paths]

    return {TRAINING: train, DECODING: decode}


def measure(config: dict[str, Any], batch: Batch, precision: str, repeats: int) -> None:
    on_gpu = batch.feats.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    calls, memory = {}, {}  # by side, way and work

    def run(call: Callable[[], object]) -> float:
        start = clock()
        with torch.autocast(batch.feats.device.type, torch.bfloat16, enabled=precision == "bf16"):
            call()
        if on_gpu:
            torch.cuda.synchronize()
        return clock() - start

    for side, way in [*((ours, way) for way in WAYS), (theirs, FULL), (theirs, OUTPUT)]:
        before = torch.cuda.memory_allocated() if on_gpu else 0
        made = side(config, way, batch)
        gc.collect()
        for work, call in made.items():
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            run(call)
            calls[side, way, work] = call
            memory[side, way, work] = f"{(torch.cuda.max_memory_allocated() - before) / 2**30:.2f}" if on_gpu else ""
    times = [{key: run(call) for key, call in calls.items()} for _ in range(repeats)]
    audio = int(batch.lens.sum()) / RATE
    rates = {key: audio / statistics.median(each[key] for each in times) for key in calls}
    for work, way, other in ROWS:
        own, beside = (ours, way, work), (theirs, other, work)
        found = [f"{rates[own]:.0f}", f"{rates[beside]:.0f}", f"{rates[own] / rates[beside]:.2f}"]
        print("| " + " | ".join([precision, work, way, *found, memory[own], memory[beside]]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="conf/ssl_mini.yaml", help="of an encoder that hears the waveform")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=6.0, help="of the longest utterance")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each way")
    arguments = parser.parse_args()
    found = load_yaml(arguments.config)
    config = {"encoder": found["encoder"], "encoder_conf": {**found.get("encoder_conf", {}), "layerdrop": 0.0}}
    facts, batch = environment(), make_batch(arguments.utterances, arguments.seconds, arguments.device)
    machine = facts.get("gpu") if arguments.device == "cuda" else f"{facts['cpu']}, {torch.get_num_threads()} threads"
    print(f"{machine}; torch {facts['torch']}; {arguments.config}, {arguments.utterances} x {arguments.seconds:g} s\n")
    columns = "precision | work | what | pelasr, s of audio a s | transformers | ratio | pelasr GB | transformers GB"
    print(f"| {columns} |\n|{'---|' * 8}")
    for precision in arguments.precision:
        measure(config, batch, precision, arguments.repeats)


if __name__ == "__main__":
    main()
