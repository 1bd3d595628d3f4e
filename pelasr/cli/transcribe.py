"""The verbs `pelasr transcribe` and `pelasr translate`: audio files in, a line of text for each out."""

import argparse
import codecs
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelasr.cli.arguments import add_search, add_verb, lm_of
from pelasr.data.tables import encoding_of, iconv
from pelasr.errors import DataError, PelasrError, printable
from pelasr.files import text_bytes
from pelasr.progress import track, warn

if TYPE_CHECKING:
    import numpy as np

    from pelasr.decode.long_audio import Transcript

PIPE = "-"
# What libsndfile reads, by the names that such files have.
SUFFIXES = {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".nist", ".oga", ".ogg", ".opus", ".rf64"}
SUFFIXES |= {".snd", ".sph", ".voc", ".w64", ".wav"}


def add_speech(verbs: Any) -> None:
    """Add the two verbs to a parser's."""
    for run in (transcribe, translate):
        _add_options(add_verb(verbs, run.__name__, run, run.__doc__ or ""))


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="files, folders of files, or - for standard input")
    parser.add_argument("--model", type=Path, required=True, metavar="EXP", help="experiment, such as exp/A5")
    language = parser.add_mutually_exclusive_group(required=True)
    language.add_argument("--lang", help="language, such as hi, or pair, such as en-de, of all files")
    what = "lines of `name language`, where a name is a path as given, or the file's name with or without its suffix"
    language.add_argument("--lang_file", type=Path, metavar="FILE", help=what)
    parser.add_argument("--packs", type=Path, metavar="DIR", help="packs <DIR>/<language>; default: the experiment's")
    parser.add_argument("--no_adapter", action="store_true", help="the backbone alone, for comparison")
    parser.add_argument("--json", action="store_true", help="print scores and times too, a JSON object a line")
    parser.add_argument("--ngpu", type=int, default=0, help="1: on a GPU")
    add_search(parser)


def transcribe(known: argparse.Namespace, rest: list[str]) -> None:
    """Write down what is said in audio files."""
    _run(known, pairs=False)


def translate(known: argparse.Namespace, rest: list[str]) -> None:
    """Translate what is said in audio files."""
    _run(known, pairs=True)


def _run(known: argparse.Namespace, pairs: bool) -> None:
    """Raises PelasrError, after all that can be read is written, for files that could not be read."""
    from pelasr.decode.long_audio import join
    from pelasr.model import Model

    names, lm = find_audio(known.audio), lm_of(known)
    languages = read_languages(known.lang_file, names) if known.lang_file else [known.lang] * len(names)
    _check_kind(languages, pairs)
    model = Model(known.model, known.packs, not known.no_adapter, "cuda" if known.ngpu else "cpu")
    for language in dict.fromkeys(languages):
        if model.alone and model.translates == pairs and language not in model.languages:
            warn(f"{language}: the backbone was trained on {' '.join(model.languages)}, not on it")
    faults: dict[int, str] = {}
    windows = model.recognise(_read(names, faults), languages, known.beam_size, lm)
    found = join(track(windows, len(names), known.verb, lambda window: sum(piece.share for piece in window)))
    number = -1
    try:
        for number, (name, transcript) in enumerate(zip(map(printable, names), found, strict=True)):
            if number not in faults:
                if not transcript.segments:
                    warn(f"{name}: {1000 * transcript.duration:.0f} ms of audio are too short: its text is empty")
                print(_as_json(name, transcript) if known.json else f"{name} {transcript.text}".rstrip(), flush=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{number + 1} of {len(names)} files are done") from None
    if faults:
        raise DataError([*faults.values(), f"{len(faults)} of {len(names)} files could not be read"])


def find_audio(given: Sequence[str]) -> list[str]:
    """The audio files that are named, in order, and those below folders, sorted by path. Raises PelasrError for a
    folder without any."""
    found = []
    for name in given:
        if name == PIPE or not Path(name).is_dir():
            found.append(name)
            continue
        paths = (path for path in Path(name).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        inside = sorted(str(path) for path in paths if not path.name.startswith("."))
        if not inside:
            ends = " ".join(sorted(SUFFIXES))
            raise PelasrError(f"{printable(name)}: no audio files in this folder; their names end in {ends}")
        found += inside
    return found


def read_languages(path: Path, names: Sequence[str]) -> list[str]:
    """The language of each file, by lines of `name language`. A name is a path as given, a file's name, or that
    without its suffix; the longest counts. Raises PelasrError for lines that are none, and for a file without one."""
    try:
        content = text_bytes(path)
    except PelasrError as error:
        raise PelasrError(f"{path}: cannot be read: {str(error).removeprefix(f'{path}: ')}") from None
    if encoding := encoding_of(content):
        raise PelasrError(f"{path}: {encoding}, not UTF-8; cure: {iconv(encoding, shlex.quote(str(path)))}")
    lines = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape").splitlines()
    known: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        words = line.rsplit(maxsplit=1)
        if len(words) < 2:
            raise PelasrError(f"{path}:{number}: want `name language`, found {line.strip()!r}")
        name, language = words[0].strip(), words[1]
        if known.setdefault(name, language) != language:
            both = f"{printable(name)} is {language} here and {known[name]} above"
            raise PelasrError(f"{path}:{number}: {both}; keep one line")
    languages = []
    for name in names:
        found = [key for key in (name, Path(name).name, Path(name).stem) if key in known]
        if not found:
            stem = printable(Path(name).stem)
            raise PelasrError(f"{path}: no language of {printable(name)}; add a line `{stem} language`")
        languages.append(known[found[0]])
    return languages


def _check_kind(languages: Sequence[str], pairs: bool) -> None:
    """Raise PelasrError for a language where pairs are translated, or a pair where languages are transcribed."""
    from pelasr.data.language import is_pair

    for language in dict.fromkeys(languages):
        if is_pair(language) and not pairs:
            raise PelasrError(f"transcribe: {language!r} is a pair of languages; want one such as hi, or use translate")
        if pairs and not is_pair(language):
            raise PelasrError(f"translate: {language!r} is no pair such as en-de; name source and target")


def _read(names: Sequence[str], faults: dict[int, str]) -> "Iterator[np.ndarray]":
    """The samples of each file; of one that cannot be read none, and what is wrong with it in `faults`."""
    import numpy as np

    from pelasr.data.audio import read_file

    for number, name in enumerate(names):
        try:
            yield read_file(sys.stdin.buffer if name == PIPE else name)
        except DataError as error:
            faults[number] = str(error)
            yield np.zeros(0, dtype=np.float32)


def _as_json(name: str, transcript: "Transcript") -> str:
    """Times in seconds, scores as log probabilities."""
    segments = [
        {
            "start": round(part.start, 3),
            "end": round(part.end, 3),
            "text": part.text,
            "score": round(part.score or 0.0, 4),
        }
        for part in transcript.segments
    ]
    line: dict[str, Any] = {"file": name, "language": transcript.language, "text": transcript.text}
    line |= {"score": round(transcript.score, 4), "duration": round(transcript.duration, 3)}
    return json.dumps(line | {"seconds": round(transcript.seconds, 3), "segments": segments}, ensure_ascii=False)
