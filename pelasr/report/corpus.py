"""What a results page says of the data: sets, languages, utterances, hours and speakers."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pelasr.data.hears import FRAMES_PER_HOUR
from pelasr.data.kaldi import read_data_dir
from pelasr.data.language import split_pair
from pelasr.data.place import Place
from pelasr.data.speech import has_frames, read_num_frames
from pelasr.files import atomic_write, read_json, read_text

CURE = "delete it; stage 7 writes it again"


def write_corpus(place: Place, sets: Sequence[str], added: Sequence[str] = ()) -> None:
    """Write `<exp>/corpus.json` from data directories and features: of the place's languages, and of those that were
    `added` later.

    Keys: `made_with`, the recipe's own options when stage 1 made the data; `languages`, of each (of pairs that share
    their speech, all together) its name and its sets' utterances, hours and speakers, None if they are not known.
    """
    groups: dict[tuple[Path, ...], list[str]] = {}
    for language in [*place.languages, *added]:
        groups.setdefault(tuple(path for name in sets for path in place.folders(name, language)), []).append(language)
    made_with = place.exp / "made_with"
    corpus = {
        "made_with": shlex.join(shlex.split(read_text(made_with, "delete it"))) if made_with.exists() else "",
        "languages": [
            {"name": _name(languages), "sets": {name: _count(place, name, languages[0]) for name in sets}}
            for languages in groups.values()
        ],
    }
    with atomic_write(place.exp / "corpus.json") as stream:
        json.dump(corpus, stream, indent=1, ensure_ascii=False)


def read_corpus(exp: Path) -> dict[str, Any]:
    """What `write_corpus` wrote; empty when there is no file."""
    path = exp / "corpus.json"
    return read_json(path, CURE, ("made_with", "languages")) if path.exists() else {}


def _name(languages: Sequence[str]) -> str:
    if len(languages) == 1:
        return languages[0]
    return f"{split_pair(languages[0])[0]} into {' '.join(str(split_pair(pair)[1]) for pair in languages)}"


def _count(place: Place, name: str, language: str) -> dict[str, Any] | None:
    """Of a set in a language; None if it has none."""
    folders = [path for path in place.folders(name, language) if path.is_dir()]
    utterances = [utterance for path in folders for utterance in read_data_dir(path, language)]
    if not utterances:
        return None
    dumps = [place.dump / path.name for path in folders]
    known = all(map(has_frames, dumps))
    frames = sum(sum(read_num_frames(dump).values()) for dump in dumps if known)
    # Where speakers are not known an utterance is its own (the cure for a missing utt2spk).
    speakers = {utterance.speaker for utterance in utterances if utterance.speaker != utterance.id}
    return {
        "utterances": len(utterances),
        "hours": round(frames / FRAMES_PER_HOUR, 4) if known else None,
        "speakers": len(speakers) or None,
    }
