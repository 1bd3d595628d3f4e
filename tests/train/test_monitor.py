"""The curves of a run, and its TensorBoard events."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from pelasr.train.events import Events
from pelasr.train.monitor import curves, plot_curves


def history(languages, epochs, metric="wer"):
    """Validations after each epoch, of losses and rates that fall."""
    entries = []
    for epoch in epochs:
        dev = {name: {"loss": 50 / (1 + epoch), metric: 90 / (1 + epoch)} for name in languages}
        train = 40 / (1 + epoch) if epoch else None
        entries.append({"epoch": epoch, "step": 10 * epoch, "train_loss": train, "dev": dev, "mean": dev[languages[0]]})
    return entries


@pytest.mark.parametrize(("count", "epochs"), [(1, [0]), (1, range(4)), (9, range(0, 31, 3)), (25, [0, 1])])
def test_curves_say_what_they_are(count, epochs):
    languages = [f"l{number}" for number in range(count)]
    figure = curves(history(languages, epochs))
    figure.draw_without_rendering()
    loss, rate = figure.axes
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    dev = [f"dev {language}" for language in languages]
    assert names == dev + ["dev, mean"] * (len(languages) > 1) + ["train"] * (len(epochs) > 1)
    assert (loss.get_title(), rate.get_title()) == ("loss (nats an utterance)", "dev WER (%)")
    for axes in figure.axes:
        assert all(float(tick) == round(tick) for tick in axes.get_xticks())
    looks = [(line.get_color(), line.get_linestyle()) for line in rate.lines]
    assert len(set(looks)) == len(looks) == len(dev) + (len(dev) > 1)  # told apart


def test_curves_of_translation(tmp_path):
    plot_curves(history(["en-de"], [0, 1], "bleu"), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert curves(history(["en-de"], [0, 1], "bleu")).axes[1].get_title() == "dev BLEU"


def test_curves_of_languages_with_metrics_of_their_own():
    entries = history(["hi"], [0, 1])
    for entry, other in zip(entries, history(["zh"], [0, 1], "cer"), strict=True):
        entry["dev"] |= other["dev"]
        entry["mean"] = {"loss": 1.0, "error": 2.0}
    axes = curves(entries).axes[1]
    assert axes.get_title() == "dev ERROR" and len(axes.lines) == 3


def test_events_are_read_back(tmp_path):
    events = Events(tmp_path / "tensorboard")
    for step in (10, 20):
        events.add_scalar("train/loss", step / 8, step)
    events.flush()
    content, found = next((tmp_path / "tensorboard").iterdir()).read_bytes(), []
    while content:  # length, its checksum, event, its checksum
        (size,) = struct.unpack("Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    assert found[0].file_version == "brain.Event:2"
    assert [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in found[1:]] == [
        (10, "train/loss", 1.25),
        (20, "train/loss", 2.5),
    ]
    events.close()
