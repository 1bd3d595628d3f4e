"""What a training reads, as its done-file has it."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from pelasr.backbones.format import read_backbone
from pelasr.data.hears import Hears
from pelasr.data.kaldi import data_sha256
from pelasr.data.place import Place
from pelasr.done import Marker, required
from pelasr.errors import PelasrError
from pelasr.files import sha256_json
from pelasr.train.options import TrainingOptions

# Options that change how fast a run is made, or where, but not what comes out.
WITHOUT_EFFECT = ("num_workers", "checkpoint_seconds")


def other_run(folder: Path, marker: Marker) -> str:
    return f"{folder} holds a run with other settings ({'; '.join(marker.changed)})"


def training_settings(training: TrainingOptions) -> dict[str, Any]:
    """The options of a training that decide what comes out, as they will be read back."""
    options = {key: value for key, value in asdict(training).items() if key not in WITHOUT_EFFECT}
    return json.loads(json.dumps(options))


def with_settings(training: TrainingOptions, found: dict[str, Any]) -> TrainingOptions:
    """The options with those settings that a done-file has of a training. What is no option any more is left out: it
    was null wherever it was not used."""
    known = {field.name for field in fields(TrainingOptions)}
    return replace(training, **{key: value for key, value in found.items() if key in known})


def consumed(place: Place, hears: Hears | None) -> dict[str, Any]:
    """What a training reads: languages, texts and speech, as the backbone hears it."""
    dirs = place.dirs("train", "dev")
    return {
        "languages": place.languages,
        "data_sha256": data_sha256(dirs),
        "features_sha256": features_of(place, dirs, hears),
    }


def features_of(place: Place, dirs: list[Path], hears: Hears | None) -> str:
    """Hash of the features of data directories, or of the audio where a backbone `hears` that; None: of features of any
    kind. Raises PelasrError if there are none, or of other audio than now."""
    from pelasr.data.speech import speech_sha256

    return sha256_json([speech_sha256(path, place.dump / path.name, hears) for path in dirs])


def weights_sha256(folder: Path, weights: str, cure: str = "") -> str:
    """Hash of a trained backbone's file. Raises PelasrError if it is not there, or not as it was described."""
    path = folder / f"{weights}.safetensors"
    found = required(path, 4, cure)
    if read_backbone(folder).weights.get(weights) != found:
        raise PelasrError(
            f"{path}: damaged: not the file that stage 4 wrote; restore it from a copy, or train it again"
        )
    return found
