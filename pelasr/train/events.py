"""TensorBoard events of a run."""

import time
from pathlib import Path

from pelasr.files import naming


class Events:
    """Scalars in a folder, as `tensorboardX.SummaryWriter` writes them, but without its thread: that dies of a full
    disk, and the run would wait for it for ever."""

    def __init__(self, folder: Path):
        from tensorboardX.event_file_writer import EventsWriter

        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with naming(folder):
            self._writer = EventsWriter(str(folder / "events"))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write a number."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] - made at run time
        from tensorboardX.summary import scalar

        with naming(self.folder):
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(tag, value)))

    def flush(self) -> None:
        """What was written can be seen now."""
        with naming(self.folder):
            self._writer.flush()

    def close(self) -> None:
        with naming(self.folder):
            self._writer.close()
