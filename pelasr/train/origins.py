"""What the adapters of a fit begin as: fresh ones, those of another language, or meta-trained ones.

Light: only to look for the nearest pack costs torch.
"""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pelasr.backbones.format import read_backbone
from pelasr.backbones.source import Source
from pelasr.data.place import Place
from pelasr.done import Marker
from pelasr.errors import PelasrError, brief, nearest
from pelasr.packs.format import read_checked
from pelasr.train.inputs import consumed, other_run, training_settings, weights_sha256
from pelasr.train.options import FRESH, META, NEAREST, STARTS, AdapterConfig

# Options of a training by which initial adapters are meta-trained too.
SHARED = ("batch_size", "batch_frames", "grad_clip", "specaug_conf", "seed")


@dataclass(frozen=True)
class MetaRun:
    """The meta-training of initial adapters in a folder, on the languages of a place."""

    folder: Path
    place: Place
    source: Source
    config: AdapterConfig
    marker: Marker

    @property
    def path(self) -> Path:
        """What it makes."""
        return self.folder / "adapters.safetensors"


@dataclass(frozen=True)
class Start:
    """What the fits of an experiment begin from.

    Args:
        word: fresh, nearest, meta, or the language whose pack it is.
        folder: the experiment's.
        place: the recipe's, with the languages that meta-training goes over.
        source: the backbone.
        config: how languages are fitted.
    """

    word: str
    folder: Path
    place: Place
    source: Source
    config: AdapterConfig

    @cached_property
    def meta(self) -> MetaRun | None:
        """The meta-training whose adapters they begin as. Raises PelasrError where another one is in its folder."""
        if self.word != META:
            return None
        folder, training = self.folder / META, training_settings(self.config.training)
        inputs = {
            **{"adapter": self.config.method, "adapter_conf": self.config.options},
            **{"meta_conf": asdict(self.config.meta), **{key: training[key] for key in SHARED}},
            **consumed(self.place, read_backbone(self.source.folder).heard),
            "backbone": weights_sha256(*self.source),
        }
        marker = Marker(folder / "meta.json", inputs, strict=True)
        if marker.changed:
            cure = "delete it and what began from it, or give this one an experiment of its own"
            raise PelasrError(f"{other_run(folder, marker)}: {cure}")
        return MetaRun(folder, self.place, self.source, self.config, marker)

    def inputs(self, run: Path, languages: list[str], tokens: str | None) -> dict[str, Any]:
        """Of a fit of languages in a folder: `start`, and `origins`, what the adapters of each language begin as, for
        its done-file; nothing of one that begins with fresh ones. The nearest pack that the file has already is not
        looked for again. Raises PelasrError where there is no pack to begin from."""
        if self.word == FRESH:
            return {}
        begun = Marker(run / "adapt.json", {}, strict=True).found
        before = begun["inputs"] if begun else {}
        if begun and before.get("start") != self.word:
            return {"start": self.word}  # another fit is there, and this one refused
        return {"start": self.word, "origins": self._origins(before.get("origins", {}), languages, tokens)}

    def _origins(
        self, before: dict[str, dict[str, Any]], languages: list[str], tokens: str | None
    ) -> dict[str, dict[str, Any]]:
        if (meta := self.meta) is not None:
            return dict.fromkeys(languages, {"meta": meta.marker.sha256})
        if self.word != NEAREST:
            return dict.fromkeys(languages, self._of_pack(self.word, languages))
        if before and all(self._is_there(origin) for origin in before.values()):
            return before
        packs = [path.parent for path in sorted(self.folder.glob("packs/*/pack.yaml"))]
        packs = [pack for pack in packs if pack.name not in languages]
        if not packs:
            raise PelasrError(
                f"--start nearest: no pack of another language in {self.folder}/packs; fit others first (--fit_langs),"
                " or say --start fresh"
            )
        from pelasr.backbones.store import load_backbone
        from pelasr.train.new_language import nearest_pack

        backbone, found = load_backbone(*self.source), {}
        for language in languages:
            place = replace(self.place, languages=[language])
            name, loss = nearest_pack(backbone, place, language, self.config, tokens, packs)
            found[language] = {**self._of_pack(name, languages), "loss": round(loss, 4)}
        return found

    def _of_pack(self, name: str, languages: list[str]) -> dict[str, Any]:
        if name in languages:
            raise PelasrError(
                f"--start {name}: {name} is to be fitted itself; to train its pack further say --continue true"
            )
        path = self.folder / "packs" / name / "pack.yaml"
        if not path.is_file():
            there = [path.parent.name for path in sorted(self.folder.glob("packs/*/pack.yaml"))]
            raise PelasrError(
                f"--start {name}: no pack of it in {self.folder}/packs; {nearest(name, [*STARTS, *there])}"
            )
        pack = read_checked(path)
        for key, wanted in (("adapter", self.config.method), ("adapter_conf", self.config.options)):
            if (found := getattr(pack, key)) != wanted:
                raise PelasrError(
                    f"--start {name}: {path}: {key} is {brief(found)}, these adapters' is {brief(wanted)}"
                )
        return {"pack": name, "sha256": pack.safetensors_sha256}

    def _is_there(self, origin: dict[str, Any]) -> bool:
        """Whether a pack is still what a fit began from."""
        path = self.folder / "packs" / origin["pack"] / "pack.yaml"
        return path.is_file() and read_checked(path).safetensors_sha256 == origin["sha256"]
