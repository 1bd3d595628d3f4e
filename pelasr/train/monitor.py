"""What a person sees of a run: progress, a history per validation, TensorBoard events, curves as a picture."""

import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from pelasr.errors import PelasrError
from pelasr.files import atomic_write, read_bytes
from pelasr.progress import Meter, log
from pelasr.train.evaluate import LanguageScores, macro
from pelasr.train.events import Events
from pelasr.train.schedule import metric_of

HISTORY = "history.json"


def entry_of(epoch: int, step: int, train_loss: float | None, scores: dict[str, LanguageScores]) -> dict[str, Any]:
    """A validation as a history has it: epoch, step, train_loss, dev {language: {loss, wer}}, mean {loss, wer}, with
    `cer`, `bleu` or a metric of another task (and `higher_is_better: 1` where it is no error) in the place of `wer`
    where that is what is measured; and `candidates`, the languages whose weights may be kept, or `mean` for a
    backbone."""
    dev = {language: score.facts() for language, score in scores.items()}
    mean = macro(scores).facts()
    return {"epoch": epoch, "step": step, "train_loss": train_loss, "dev": dev, "mean": mean, "candidates": []}


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The validations of a run, in order, see `entry_of`. Raises PelasrError if they cannot be read."""
    path = folder / HISTORY
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except (PelasrError, ValueError) as error:
        raise PelasrError(f"{path}: cannot be read ({error}); restore it, or delete {folder} to start again") from None


class Monitor:
    """Shows and records one run; a context manager around its loop. Other processes than the first are not `active`."""

    def __init__(self, folder: Path, total_steps: int, active: bool):
        self.folder, self.total, self.active = folder, total_steps, active
        self.events: Events | None = None
        self.begun = False
        self._open = ExitStack()

    def __enter__(self) -> "Monitor":
        if self.active:
            self.events = self._open.enter_context(closing(Events(self.folder / "tensorboard")))
            self.meter = self._open.enter_context(Meter(f"{self.folder}: training", self.total))
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def say(self, message: str) -> None:
        """A line for the log, which says whose it is: several runs may write to one terminal."""
        if self.active:
            log(f"{self.folder}: {message}")

    def resume(self, history: list[dict[str, Any]]) -> None:
        """Write the validations of a checkpoint again; say so where what is there is not they."""
        if not self.active:
            return
        path = self.folder / HISTORY
        # A run may have been killed between its last validation and the checkpoint.
        if not path.is_file() or not path.read_bytes().startswith(_text(history)[:-2].encode()):
            self.say(f"{HISTORY} was deleted or altered; it is written again, from the checkpoint")
        self._write(history)

    def _write(self, history: list[dict[str, Any]]) -> None:
        with atomic_write(self.folder / HISTORY) as stream:
            stream.write(_text(history))

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """An optimizer step was made; `loss` is the mean of the epoch so far."""
        if self.events is None:
            return
        if not self.begun:  # where the run goes on from, which a bar that began at 0 would take for quick work
            self.meter.begin(step - 1)
            self.begun = True
        self.meter.update(step, f"loss {loss:.2f}, lr {learning_rate:.1e}")
        if step % 10 == 0:
            self.events.add_scalar("train/loss", loss, step)
            self.events.add_scalar("train/lr", learning_rate, step)

    def validated(self, history: list[dict[str, Any]]) -> None:
        """Record the last validation of a history."""
        self._write(history)
        entry = history[-1]
        dev = {**entry["dev"], "mean": entry["mean"]}
        metrics = {name: metric_of(scores) for name, scores in dev.items()}
        train = f"train loss {entry['train_loss']:.2f}, " if entry["train_loss"] is not None else ""
        values = [f"{name} {scores[metrics[name]]:.1f}" for name, scores in dev.items()]
        loss, mean = f"{entry['mean']['loss']:.2f}", values.pop().removeprefix("mean ")
        label = metrics["mean"].upper()
        self.say(f"epoch {entry['epoch']}: {train}dev loss {loss}, dev {label} {mean} ({' '.join(values)})")
        if self.events is not None:
            for name, scores in dev.items():
                self.events.add_scalar(f"dev_loss/{name}", scores["loss"], entry["step"])
                self.events.add_scalar(f"dev_{metrics[name]}/{name}", scores[metrics[name]], entry["step"])
            self.events.flush()
        plot_curves(history, self.folder / "curves.png")


def _text(history: list[dict[str, Any]]) -> str:
    return json.dumps(history, indent=1)


def plot_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Write what `curves` draws as PNG."""
    figure = curves(history)
    with atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=100)


def curves(history: list[dict[str, Any]]) -> Any:
    """A matplotlib figure of loss on train and dev, and of WER or BLEU on dev, by language over the epochs, and of
    their mean."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    epochs, languages = [entry["epoch"] for entry in history], list(history[-1]["dev"])
    metric = metric_of(history[-1]["mean"])
    unit = " (%)" if metric in ("wer", "cer") else ""
    labels = {"loss": "loss (nats an utterance)", metric: f"dev {metric.upper()}{unit}"}
    span = max(epochs[-1], 1)
    palette: Any = colormaps["tab10" if len(languages) <= 10 else "tab20"]
    colours = palette.colors
    for axes, (key, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for number, language in enumerate(languages if len(languages) > 1 else []):
            found = [entry["dev"][language] for entry in history]  # whose metrics may differ by language
            values = [scores["loss" if key == "loss" else metric_of(scores)] for scores in found]
            look = {"color": colours[number % len(colours)], "linewidth": 1, "marker": ".", "markersize": 4}
            axes.plot(epochs, values, "-:"[number // len(colours) % 2], label=f"dev {language}", **look)
        name = "dev, mean" if len(languages) > 1 else f"dev {languages[0]}"
        axes.plot(epochs, [entry["mean"][key] for entry in history], "k.-", label=name, linewidth=2)
        train = [(entry["epoch"], entry["train_loss"]) for entry in history if entry["train_loss"] is not None]
        if key == "loss" and train:
            axes.plot(*zip(*train, strict=True), "k.--", label="train", linewidth=1)
        axes.set(xlabel="epoch", title=label, xlim=(-0.04 * span, 1.04 * span), ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right center", fontsize="small", ncols=1 + len(names) // 20)
    return figure
