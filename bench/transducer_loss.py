#!/usr/bin/env python3
"""Time and memory of `pelasr.nn.transducer.transducer_loss`, forward and backward, beside the plain way of writing it.

    OMP_NUM_THREADS=2 .venv/bin/python bench/transducer_loss.py                 on the CPU
    .venv/bin/python bench/transducer_loss.py --device cuda --repeats 20        on a GPU

prints one markdown table. *fused* is pelasr's loss. *plain* writes the joint network out, (B, T, U+1, V), and leaves
the gradient to autograd: tanh, output layer, log_softmax, blank and label gathered, a recursion over the frames with
logcumsumexp over the labels. *torchaudio* is its rnnt_loss on the same logits, where it is installed.

Time is the best of `--repeats` calls; the implementations take turns, so that whatever else the machine does meets all
of them. With a thread for every core the machine must be idle all the same: threads wait for each other.

Memory is measured apart, one call in a fresh process for each: after a warm-up on a tiny batch the kernel's high-water
mark of the resident set is set back (`/proc/self/clear_refs`), and what it then rises by over the call is the peak, on
Linux only; on a GPU it is what `torch.cuda.max_memory_allocated` rises by. The error is |g - g'| / |g'| over all
gradients together, g' being those of the plain loss in float64.
"""

import argparse
import functools
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pelasr.nn.transducer import transducer_loss
from pelasr.score.environment import environment


@dataclass(frozen=True)
class Case:
    """Sizes of a batch; `full`: all lengths are T and U, otherwise they are drawn from half to full."""

    batch: int
    frames: int
    labels: int
    vocabulary: int
    joint: int
    full: bool
    time_target: float = 0.0


CASES = [
    Case(24, 45, 35, 450, 128, True, 0.6),
    Case(24, 45, 35, 450, 128, False, 0.45),
    Case(8, 150, 40, 1000, 256, True, 0.85),
    Case(8, 150, 40, 1000, 256, False, 0.5),
]
TINY = Case(2, 4, 3, 11, 8, True)
MEMORY_TARGET = 0.25


def plain_loss(
    enc: Tensor, pred: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, enc_lens: Tensor, target_lens: Tensor
) -> Tensor:
    """As `transducer_loss`, at the precision of its arguments."""
    log_probs = joint(enc, pred, weight, bias).log_softmax(-1)
    blank = log_probs[..., 0]
    index = targets[:, None, :, None].expand(-1, enc.shape[1], -1, -1)
    label = log_probs[:, :, :-1].gather(-1, index)[..., 0]
    along = F.pad(label.cumsum(-1), (1, 0))
    rows = [along[:, 0]]
    for t in range(1, enc.shape[1]):
        rows.append(along[:, t] + (rows[-1] + blank[:, t - 1] - along[:, t]).logcumsumexp(-1))
    end = torch.arange(len(enc), device=enc.device), enc_lens - 1, target_lens
    return -(torch.stack(rows, 1)[end] + blank[end])


def torchaudio_loss(
    enc: Tensor, pred: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, enc_lens: Tensor, target_lens: Tensor
) -> Tensor:
    """As `transducer_loss`, by torchaudio."""
    from torchaudio.functional import rnnt_loss

    lengths = targets.int(), enc_lens.int(), target_lens.int()
    return rnnt_loss(joint(enc, pred, weight, bias), *lengths, blank=0, clamp=-1, reduction="none")


def joint(enc: Tensor, pred: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Logits (B, T, U+1, V)."""
    return F.linear((enc[:, :, None] + pred[:, None]).tanh(), weight, bias)


def implementations() -> dict[str, Callable]:
    """Losses by name; torchaudio's where it can be imported."""
    found = {"fused": transducer_loss, "plain": plain_loss}
    try:
        from torchaudio.functional import rnnt_loss  # noqa: F401
    except (ImportError, OSError):  # OSError: built for another torch
        return found
    return found | {"torchaudio": torchaudio_loss}


def inputs(case: Case, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters with gradients, (enc, pred, weight, bias), and (targets, enc_lens, target_lens), from a fixed seed."""
    draw = torch.Generator().manual_seed(0)
    parameters = [
        torch.randn(case.batch, case.frames, case.joint, generator=draw),
        torch.randn(case.batch, case.labels + 1, case.joint, generator=draw),
        torch.randn(case.vocabulary, case.joint, generator=draw) / case.joint**0.5,
        torch.zeros(case.vocabulary),
    ]
    targets = torch.randint(1, case.vocabulary, (case.batch, case.labels), generator=draw)
    lengths = [torch.full((case.batch,), largest) for largest in (case.frames, case.labels)]
    if not case.full:
        for length in lengths:  # the first utterance stays at full length: the batch is as long as it says
            length[1:] = torch.randint(int(length[0]) // 2, int(length[0]) + 1, (case.batch - 1,), generator=draw)
    return [p.to(device).requires_grad_() for p in parameters], [x.to(device) for x in (targets, *lengths)]


def gradients(loss: Callable, parameters: list[Tensor], data: list[Tensor]) -> tuple[Tensor, ...]:
    """One forward and backward pass."""
    return torch.autograd.grad(loss(*parameters, *data).sum(), parameters)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def best_seconds(case: Case, device: str, repeats: int) -> dict[str, float]:
    """Shortest time of each implementation, which take turns, after one call of each that does not count."""
    parameters, data = inputs(case, device)
    losses = implementations()
    best = dict.fromkeys(losses, float("inf"))
    for repeat in range(repeats + 1):
        for name, loss in losses.items():
            synchronise(device)
            start = time.perf_counter()
            gradients(loss, parameters, data)
            synchronise(device)
            if repeat:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def gradient_errors(case: Case, device: str) -> dict[str, float]:
    """Relative error of each implementation's gradients (float32) against the plain loss in float64."""
    parameters, data = inputs(case, device)
    exact = flat(gradients(plain_loss, [p.detach().double().requires_grad_() for p in parameters], data))
    return {
        name: float((flat(gradients(loss, parameters, data)) - exact).norm() / exact.norm())
        for name, loss in implementations().items()
    }


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in tensors])


def peak_megabytes(name: str, case: Case, device: str) -> float:
    """What one call adds to the memory in use, at its highest; to be called in a process of its own."""
    loss = implementations()[name]
    gradients(loss, *inputs(TINY, device))  # libraries and threads
    parameters, data = inputs(case, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        gradients(loss, parameters, data)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water_kilobytes()
    gradients(loss, parameters, data)
    return (high_water_kilobytes() - before) / 2**10


def high_water_kilobytes() -> int:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def row(case: Case, device: str, repeats: int) -> list[str]:
    """A line of the table."""
    seconds, errors = best_seconds(case, device, repeats), gradient_errors(case, device)
    megabytes = {}
    for name in seconds:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            megabytes[name] = process.submit(peak_megabytes, name, case, device).result()
    peer = "torchaudio"
    ratio = functools.partial("{:.2f} (<= {})".format)
    return [
        f"({case.batch}, {case.frames}, {case.labels}, {case.vocabulary}; {case.joint})",
        "full" if case.full else "half to full",
        f"{1000 * seconds['fused']:.0f}",
        f"{1000 * seconds['plain']:.0f}",
        f"{1000 * seconds[peer]:.0f}" if peer in seconds else "not installed",
        ratio(seconds["fused"] / seconds["plain"], case.time_target),
        f"{megabytes['fused']:.0f}",
        f"{megabytes['plain']:.0f}",
        f"{megabytes[peer]:.0f}" if peer in megabytes else "not installed",
        ratio(megabytes["fused"] / megabytes["plain"], MEMORY_TARGET),
        f"{errors['fused']:.0e}",
        f"{errors['plain']:.0e}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each implementation")
    arguments = parser.parse_args()
    facts = environment()
    machine = facts.get("gpu") if arguments.device == "cuda" else f"{facts['cpu']}, {facts['cores']} cores"
    print(f"{machine}; threads: {torch.get_num_threads()}; torch {facts['torch']}; best of {arguments.repeats}\n")
    columns = ["(B, T, U, V; joint)", "lengths", "fused ms", "plain ms", "torchaudio ms", "time ratio (target)"]
    columns += ["fused MB", "plain MB", "torchaudio MB", "memory ratio (target)", "fused error", "plain error"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for case in CASES:
        print(f"| {' | '.join(row(case, arguments.device, arguments.repeats))} |", flush=True)


if __name__ == "__main__":
    main()
