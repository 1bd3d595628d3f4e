"""Where a recipe keeps its data, features and models."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pelasr.data.language import split_pair
from pelasr.files import sha256_json


@dataclass(frozen=True)
class Place:
    """Where a recipe keeps its things, and the languages or pairs it is about.

    `recipe`: the recipe's, where an experiment is about others.
    """

    data: Path
    dump: Path
    exp: Path
    languages: list[str]
    recipe: list[str] | None = None

    def of(self, languages: list[str]) -> "Place":
        """The same for an experiment on languages of its own."""
        return replace(self, languages=languages, recipe=self.recipe or self.languages)

    @property
    def tokens(self) -> Path:
        return self.exp / (f"tokens_{label(self.languages)}" if self.recipe else "tokens")

    @property
    def stats(self) -> Path:
        return self.exp / "stats.npz"

    def folders(self, name: str, language: str) -> list[Path]:
        """Data directories of a set in a language.

        Usually `<set>_<language>` alone. A pair without audio of its own (`en-de`) is in its source language's, and a
        source language without a directory of its own in those of the recipe's pairs.
        """
        own = self.data / f"{name}_{language}"
        source, target = split_pair(language)
        if own.is_dir():
            return [own]
        if target:
            return [self.data / f"{name}_{source}"]
        pairs = [key for key in self.recipe or self.languages if split_pair(key)[0] == language != key]
        return [self.data / f"{name}_{key}" for key in pairs] or [own]

    def folder(self, name: str, language: str) -> Path:
        """The data directory that a set is scored against."""
        return self.folders(name, language)[0]

    def dirs(self, *sets: str) -> list[Path]:
        """Data directories of sets in all languages, each once."""
        found = [path for name in sets for language in self.languages for path in self.folders(name, language)]
        return list(dict.fromkeys(found))

    def sets(self, *sets: str) -> dict[Path, tuple[str, str]]:
        """Data directories with the names of their sets, and the languages that their utterances are in."""
        return {
            path: (name, split_pair(language)[0])
            for name in sets
            for language in self.languages
            for path in self.folders(name, language)
        }

    def targets(self, *sets: str) -> dict[Path, list[str]]:
        """Target languages that data directories must have translations into."""
        found: dict[Path, list[str]] = {}
        for name in sets:
            for language in self.languages:
                if target := split_pair(language)[1]:
                    for path in self.folders(name, language):
                        found.setdefault(path, []).append(target)
        return found


def label(languages: Sequence[str]) -> str:
    """A name of several languages for a file; names of files have a limit."""
    joined = "_".join(languages)
    return joined if len(joined) <= 100 else f"{len(languages)}_languages_{sha256_json(list(languages))[:8]}"
