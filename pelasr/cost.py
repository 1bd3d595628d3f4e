"""What a fit or a decoding took: `cost.json` in its folder."""

import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pelasr.done import Marker

COST = "cost.json"


@dataclass(frozen=True)
class Cost:
    """Seconds; peak memory, of the process on a CPU, of what torch allocated on a GPU; and on what.

    The seconds are those of the work itself: of a fit's steps and validations; or of a decoding's encoder and search,
    of the processor on a CPU. Starting, and reading a test set, are left out.
    """

    seconds: float
    memory_mb: int
    device: str
    threads: int

    @property
    def where(self) -> str:
        """`cpu, 2 threads`: two costs can be compared if it is the same."""
        return f"{self.device}, {self.threads} thread{'s' * (self.threads != 1)}"


def write_cost(folder: Path, seconds: float, device: Any) -> None:
    """Say what the work in a folder took, on a torch.device, by this process's peak memory so far."""
    import torch

    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) >> 20 if on_gpu else _peak_mb()
    name = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    cost = Cost(round(seconds, 3), peak, name, torch.get_num_threads())
    Marker(folder / COST, asdict(cost)).write(done=True)


def read_cost(folder: Path) -> Cost | None:
    """What `write_cost` wrote; None where there is none, as of work of earlier versions, or none that is as it was
    written: no work is lost for want of it."""
    found = Marker(folder / COST, {}).found
    return Cost(**found["inputs"]) if found is not None else None


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
