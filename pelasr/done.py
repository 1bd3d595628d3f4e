"""Done-files: what a stage read, whether it came to its end, and what it made."""

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pelasr.errors import PelasrError, brief
from pelasr.files import atomic_write, read_bytes, sha256_file, sha256_json

KEYS = {"done": bool, "inputs": dict, "outputs": dict, "sha256": str}  # the last one of the others


class Marker:
    """A stage's done-file. A stage is done if it came to its end with these inputs, and its outputs are what it made.

    Args:
        path: the file.
        inputs: names and hashes (or values) of everything that decides the stage's output.
        strict: an unreadable file is an error; otherwise as good as none, for stages that are soon made again.
    """

    def __init__(self, path: Path, inputs: dict[str, Any], strict: bool = False):
        self.path = path
        self.inputs = json.loads(json.dumps(inputs))  # as it will be read back: tuples are lists
        self.found = self._read(strict)
        if self.found is not None and not self.changed:
            self.inputs = self.found["inputs"]  # with the hash of that time: an option that was null may be gone since

    def _read(self, strict: bool) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            found = json.loads(read_bytes(self.path).decode("utf-8"))
            if not all(isinstance(found[key], kind) for key, kind in KEYS.items()):
                raise ValueError(f"want the keys {' '.join(KEYS)}")
            if found.pop("sha256") != sha256_json(found):
                raise ValueError("altered")
        except (PelasrError, ValueError, KeyError, TypeError, RecursionError) as error:
            if not strict:
                return None
            raise PelasrError(
                f"{self.path}: damaged, so nobody knows which settings {self.path.parent} was made with ({error});"
                " restore the file, or delete the folder to start again"
            ) from None
        return found

    @property
    def finished(self) -> bool:
        """Whether the stage came to its end with these inputs, whatever has become of its outputs."""
        return self.found is not None and self.found["done"] and not self.changed

    @property
    def done(self) -> bool:
        return self.finished and not self.damaged

    @property
    def damaged(self) -> list[Path]:
        """Outputs that are missing, or not as the stage left them."""
        outputs = self.found["outputs"] if self.found is not None else {}
        paths = {self.path.parent / name: fingerprint for name, fingerprint in outputs.items()}
        return [path for path, fingerprint in paths.items() if _fingerprint(path) != fingerprint]

    def made(self, part: str) -> dict[str, str]:
        """Outputs of the run that wrote the file, of one name or within one folder, and their hashes."""
        outputs = self.found["outputs"] if self.found is not None else {}
        return {name: sha for name, sha in outputs.items() if name == part or name.startswith(f"{part}/")}

    def faults(self) -> dict[str, str]:
        """What is wrong with outputs that are not as the stage left them, by name, in a line each."""
        return {
            path.name: f"{path}: {'damaged: not as it was made' if path.exists() else 'missing, though it was made'}"
            for path in self.damaged
        }

    def check_outputs(self) -> None:
        """Raise PelasrError naming the first output that is not as the stage left it."""
        for fault in self.faults().values():
            raise PelasrError(f"{fault}; restore it, or delete {self.path.parent} and run the stage again")

    @property
    def sha256(self) -> str:
        """Hash of the inputs."""
        return sha256_json(self.inputs)

    @property
    def changed(self) -> list[str]:
        """What differs from the run that wrote the file, as `key: before -> now`."""
        if self.found is None:
            return []
        before = self.found["inputs"]
        keys = [key for key in {**before, **self.inputs} if before.get(key) != self.inputs.get(key)]
        return [f"{key}: {_shown(before.get(key))} -> {_shown(self.inputs.get(key))}" for key in keys]

    def write(self, done: bool, outputs: Iterable[Path] | None = None) -> None:
        """`outputs`: files that the stage has made, which are looked at when it is asked whether it is done; None:
        those of before. Of an archive (`.ark`) the size alone is looked at: its entries have their own checksums."""
        if outputs is None:
            made = self.found["outputs"] if self.found is not None else {}
        else:
            made = {os.path.relpath(path, self.path.parent): _fingerprint(path) for path in outputs}
        self.found = {"done": done, "inputs": self.inputs, "outputs": made}
        with atomic_write(self.path) as stream:
            json.dump({**self.found, "sha256": sha256_json(self.found)}, stream, indent=1, ensure_ascii=False)

    def lock(self) -> None:
        """Make the folder this process's own until it ends. Raises PelasrError if another process works in it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path.with_suffix(".lock"), "w")  # noqa: SIM115 - held until the process ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PelasrError(f"{self.path.parent}: another process is training here; wait for it or end it") from None


def _fingerprint(path: Path) -> str | int | None:
    if not path.is_file():
        return None
    return path.stat().st_size if path.suffix == ".ark" else sha256_file(path)


def _shown(value: Any) -> str:
    return brief(json.dumps(value, ensure_ascii=False), 60)


def required(path: Path, stage: int, cure: str = "") -> str:
    """Hash of a file that an earlier stage makes, or that there is another cure for where it is missing."""
    if not path.exists():
        raise PelasrError(f"{path}: no such file; {cure or f'run stage {stage} first'}")
    return sha256_file(path)
