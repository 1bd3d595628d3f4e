#!/usr/bin/env python3
"""Time of a batch of several languages beside the same batch in one language and beside a loop over the languages.

    OMP_NUM_THREADS=1 .venv/bin/python bench/routing.py                     on the CPU
    .venv/bin/python bench/routing.py --device cuda                         on a GPU
    OMP_NUM_THREADS=1 .venv/bin/python bench/routing.py --methods "lora conv" --models rnnt_mini

prints two markdown tables, in twenty minutes. The models are those of conf/{rnnt_mini,st_mini,ssl_mini}.yaml with
random weights, the adapters those of METHODS below, all methods that mix languages, with weights that are the same for
all languages: so the three ways of processing 32 utterances do the same work and find the same, which is asserted.

*Decoding* is encoder and search: greedy for the RNN-T, whose bias of blank is such that an utterance has some twenty
tokens, a beam of 5 and 8 to 16 tokens for translation, the best path of CTC. *Training* is a loss and the gradients of
the adapters. *Mixed* is one batch of 8 languages, *one* the same 32 utterances in one language, *loop* 8 batches of a
language each.

The second table has PEFT's batches of several adapters (`adapter_names`), which loop over the adapters at every map, on
linear maps of the same shapes alone, LoRA of rank 8: q and v of st_mini.yaml for the encoder's frames and for a step of
the beam search, and maps of the joint size of rnnt_mini.yaml for frames and for a step of the greedy search.

Times are medians of `--repeats` calls, which take turns: of the process on a CPU, which other work disturbs less than a
clock (so use one thread), of a clock on a GPU.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from pelasr.adapters.bank import Bank
from pelasr.adapters.freeze import freeze
from pelasr.adapters.own import HEAD, OwnParts
from pelasr.backbones.base import backbone_options, build_backbone
from pelasr.backbones.ctc import CTC
from pelasr.backbones.rnnt import RNNT
from pelasr.backbones.st import ST
from pelasr.config import load_yaml
from pelasr.data.tokenizer import SPECIAL
from pelasr.errors import PelasrError
from pelasr.score.environment import environment
from pelasr.search.attention import CachedDecoder
from pelasr.search.beam import beam_search

CONF = Path(__file__).parents[1] / "conf"
LANGUAGES = [f"language{n}" for n in range(8)]
UTTERANCES, VOCABULARY, END, BEAM = 32, 400, 399, 5
MODELS = ("rnnt_mini", "st_mini", "ssl_mini")
METHODS = {  # with their options; where a backbone has no such sites, the second
    "adapterbias": [{}, {"sites": "layer"}],
    "bitfit": [{}],
    "chapter": [{"bottleneck": 64}],
    "cnn": [{}],
    "conv": [{}],
    "dora": [{"dora": True}],
    "houlsby": [{"bottleneck": 64}],
    "ladder": [{}],
    "layerwise": [{"bottleneck": 64, "features": 64}, {"bottleneck": 64, "sites": ["ffn", "layer_norm"]}],
    "lora": [{}],
    "mam": [{"frames": 10, "bottleneck": 64}],
    "norm": [{}],
    "output": [{}],
    "parallel": [{"bottleneck": 64}, {"bottleneck": 64, "sites": "layer"}],
    "prefix": [{"frames": 10}],
    "reprogramming": [{"frames": 100}],
    "simadapter": [{"method": "houlsby", "method_conf": {"bottleneck": 64}, "sources": LANGUAGES}],
}
MIXED, ONE, LOOP = "mixed", "one", "loop"
SHAPES = {  # name: (maps, D_in, D, frames or hypotheses)
    "q and v, frames": (14, 96, 96, 60),
    "q and v, beam search": (14, 96, 96, 5),
    "joint, frames": (2, 256, 256, 40),
    "joint, greedy search": (2, 256, 256, 1),
}


def build(name: str) -> nn.Module:
    """A backbone with random weights, frozen."""
    torch.manual_seed(0)
    conf = load_yaml(CONF / f"{name}.yaml")
    options = {key: value for key, value in conf.items() if key in backbone_options(conf["backbone"])}
    with redirect_stdout(StringIO()):  # ESPnet tells that there is no flash attention
        tokens = len(SPECIAL) if conf["backbone"] == "ctc" else VOCABULARY  # or own ones of each language
        model = build_backbone(conf["backbone"], options, tokens, len(LANGUAGES))
    if isinstance(model, RNNT):
        model.joint.lin_out.bias.data[0] += 1.3
    freeze(model)
    return model.eval()


def make_bank(name: str, options: dict | None, model: nn.Module) -> Bank:
    """A bank of eight languages with the same random weights."""
    bank = Bank(name, options, model)
    own = [f"<{n}>" for n in range(VOCABULARY - len(SPECIAL))]
    for language in LANGUAGES:
        has_own = isinstance(model, CTC) and HEAD in model.own_sites().values()
        bank.add(language, OwnParts(model, own, vector=False) if has_own else None)
    tensors = {key: torch.randn_like(tensor) * 0.02 for key, tensor in bank.tensors(LANGUAGES[0]).items()}
    with torch.no_grad():
        for language in LANGUAGES:
            for key, tensor in bank.tensors(language).items():
                tensor += tensors[key].to(tensor.device) - tensor
    return bank.eval()


class Data:
    """Utterances of 2 to 2.5 s of noise, log-mel or a waveform, with 8 to 16 tokens; the rows' languages take turns."""

    def __init__(self, device: str, waveform: bool = False):
        torch.manual_seed(0)
        frames = torch.randint(200, 251, (UTTERANCES,))
        self.lens, self.counts = (part.to(device) for part in (frames, torch.randint(8, 17, (UTTERANCES,))))
        if waveform:
            self.lens = 160 * self.lens
        self.feats = torch.randn(UTTERANCES, int(self.lens.max()), 1 if waveform else 80, device=device)
        self.targets = torch.randint(1, END, (UTTERANCES, int(self.counts.max())), device=device)
        self.ids = torch.zeros(UTTERANCES, dtype=torch.long, device=device)
        self.languages = [LANGUAGES[n % len(LANGUAGES)] for n in range(UTTERANCES)]

    def encode(self, model: nn.Module, rows: list[int]) -> tuple[Tensor, Tensor]:
        return model.encode(self.feats[rows], self.lens[rows], self.ids[rows])

    def decode(self, model: nn.Module, rows: list[int]) -> list[list[int]]:
        """Tokens of some of the utterances."""
        with torch.no_grad():
            enc, lens = self.encode(model, rows)
            if isinstance(model, ST):
                start = lens.new_full((len(rows), 1), END)
                found = beam_search(CachedDecoder(model.decoder, enc, lens), start, self.counts[rows], END, BEAM)
            else:
                found = model.search(enc, lens)
        return [hypothesis.tokens for hypothesis in found]

    def train(self, model: nn.Module, rows: list[int]) -> list[list[int]]:
        """A step without the optimizer; the losses, as integers, of some of the utterances."""
        enc, lens = self.encode(model, rows)
        loss = model.loss(enc, lens, self.targets[rows], self.counts[rows]).total
        loss.sum().backward()
        return [[round(value)] for value in loss.tolist()]


def ways(bank: Bank, languages: list[str], work: Callable[[list[int]], list]) -> dict[str, Callable[[], list]]:
    """The three ways of doing the work on all utterances; each returns what it finds of every one."""

    def routed(rows: list[int], names: list[str]) -> list:
        with bank.route(names):
            return work(rows)

    def loop() -> list:
        found: list = [None] * len(languages)
        for language in LANGUAGES:
            rows = [row for row, other in enumerate(languages) if other == language]
            for row, one in zip(rows, routed(rows, [language] * len(rows)), strict=True):
                found[row] = one
        return found

    everything = list(range(len(languages)))
    return {
        MIXED: lambda: routed(everything, languages),
        ONE: lambda: routed(everything, languages[:1] * len(languages)),
        LOOP: loop,
    }


def measure(calls: dict[str, Callable[[], list]], repeats: int, device: str) -> dict[str, float]:
    """Median milliseconds of each call, all of which find the same; the first round does not count."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        results = []
        for name, call in calls.items():
            start = clock()
            results.append(call())
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(clock() - start)
        assert all(result == results[0] for result in results), "the ways find different things"
    return {name: 1000 * float(torch.tensor(found).median()) for name, found in seconds.items()}


def try_bank(method: str, model: nn.Module) -> Bank | None:
    """A bank of a method that there may be on a model; None where nothing is trained."""
    for options in METHODS[method]:
        try:
            bank = make_bank("lora" if method == "dora" else method, options, model)
        except PelasrError:
            continue
        return bank if any(parameter.requires_grad for parameter in bank.parameters()) else None
    return None


def measure_models(models: list[str], methods: list[str], repeats: int, device: str) -> list[list[str]]:
    """A row for each method that there may be on a model: of decoding and of training the milliseconds of the mixed
    batch, and what it takes of the others."""
    table = []
    for model_name, method in product(models, methods):
        model = build(model_name).to(device)
        data = Data(device, isinstance(model, CTC))
        bank = try_bank(method, model)
        if bank is None:
            continue
        bank.to(device)
        row = [model_name, method]
        for work in (data.decode, data.train):
            calls = ways(bank, data.languages, lambda rows, do=work, model=model: do(model, rows))
            ms = measure(calls, repeats, device)
            row += [f"{ms[MIXED]:.0f}", *(f"{ms[MIXED] / ms[other]:.2f}" for other in (ONE, LOOP))]
        table.append(row)
    return table


class Maps(nn.Module):
    """Linear maps, one after the other."""

    def __init__(self, count: int, width_in: int, width: int):
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(width_in, width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.linear:
            x = linear(x)
        return x

    def sites(self) -> dict[str, dict[str, int]]:
        return {"linear": {f"linear.{n}": linear.out_features for n, linear in enumerate(self.linear)}}


def pefts(maps: Maps) -> nn.Module:
    """The maps with PEFT's LoRA of eight adapters."""
    from peft import LoraConfig, get_peft_model

    names = [f"linear.{n}" for n in range(len(maps.linear))]
    config = LoraConfig(r=8, target_modules=names, init_lora_weights=False)
    model = get_peft_model(maps, config, adapter_name=LANGUAGES[0])
    for language in LANGUAGES[1:]:
        model.add_adapter(language, config)
    return model.eval()


@torch.no_grad()
def measure_maps(repeats: int, device: str) -> list[list[str]]:
    table = []
    languages = [LANGUAGES[n % len(LANGUAGES)] for n in range(UTTERANCES)]
    for name, (count, width_in, width, steps) in SHAPES.items():
        torch.manual_seed(0)
        ours, theirs = Maps(count, width_in, width).to(device), pefts(Maps(count, width_in, width)).to(device)
        bank = make_bank("lora", {"rank": 8}, ours).to(device)
        x = torch.randn(UTTERANCES, steps, width_in, device=device)

        def routed(names: list[str], bank: Bank = bank, maps: Maps = ours, x: Tensor = x) -> None:
            with bank.route(names):
                for _ in range(10):
                    maps(x)

        def peft(names: list[str], model: nn.Module = theirs, x: Tensor = x) -> None:
            for _ in range(10):
                model(x, adapter_names=names)

        calls = {
            "pelasr mixed": lambda routed=routed: routed(languages),
            "pelasr one": lambda routed=routed: routed(languages[:1] * UTTERANCES),
            "PEFT mixed": lambda peft=peft: peft(languages),
            "PEFT one": lambda peft=peft: peft(languages[:1] * UTTERANCES),
        }
        ms = measure(calls, repeats, device)
        shape = f"{count} x ({width_in}, {width}), {UTTERANCES} x {steps} rows"
        ratio = ms["pelasr mixed"] / ms["PEFT mixed"]
        table.append([name, shape, *(f"{value / 10:.2f}" for value in ms.values()), f"{ratio:.2f}"])
    return table


def show(columns: list[str], table: list[list[str]]) -> None:
    print(f"\n|{'|'.join(columns)}|\n|{'---|' * len(columns)}")
    for row in table:
        print(f"|{'|'.join(row)}|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", type=str.split, default=list(MODELS), help="some of them")
    parser.add_argument("--methods", type=str.split, default=list(METHODS), help="some of them")
    parser.add_argument("--repeats", type=int, default=11, help="timed calls of each way")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    facts = environment()
    machine = facts.get("gpu") if arguments.device == "cuda" else f"{facts['cpu']}, {facts['cores']} cores"
    repeats = f"medians of {arguments.repeats}"
    print(f"{machine}; threads: {torch.get_num_threads()}; torch {facts['torch']}; {repeats}")
    columns = ["model", "adapters", "decoding ms", "of one (<= 1.25)", "of the loop"]
    columns += ["training ms", "of one (<= 1.3)", "of the loop"]
    show(columns, measure_models(arguments.models, arguments.methods, arguments.repeats, arguments.device))
    columns = ["maps", "shape", "pelasr mixed ms", "pelasr one ms", "PEFT mixed ms", "PEFT one ms", "pelasr / PEFT"]
    show(columns, measure_maps(arguments.repeats, arguments.device))


if __name__ == "__main__":
    main()
