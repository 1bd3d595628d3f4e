"""What the data scripts of the corpora share: the command line, what is there already, the data directories."""

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from minicorpus import versions
from minicorpus.meanings import Draw
from pelasr.data import Utterance, write_data_dir
from pelasr.errors import PelasrError
from pelasr.files import atomic_write, read_json
from pelasr.progress import log
from pelasr.terminal import at_terminal

SPLITS = ("train", "dev", "test")


def command_line(purpose: str, sizes: dict[str, str], option: str, choices: Sequence[str], make: Callable) -> None:
    """Read the options of a data script and call `make(data, chosen, size, seed, nj)`; a fault ends it in one line.

    sizes: what each size is, for the help; `option` chooses some of the languages `choices`, by default all.
    """
    parser = argparse.ArgumentParser(description=purpose)
    help_of_size = "; ".join(f"{size}: {what}" for size, what in sizes.items())
    parser.add_argument("--size", choices=sizes, default="tiny", help=help_of_size)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nj", type=int, default=2, help="processes; the bytes do not depend on it")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder to write to")
    metavar = option.strip("-").upper()
    everything = " ".join(choices)
    parser.add_argument(option, dest="chosen", metavar=metavar, default=everything, help="which languages, in quotes")
    arguments = parser.parse_args()
    with at_terminal(resumes=True):
        make(arguments.data, arguments.chosen.split(), arguments.size, arguments.seed, arguments.nj)


def check_chosen(chosen: Iterable[str], choices: Sequence[str], corpus: str) -> None:
    """Raise PelasrError unless `corpus` has every language of `chosen`."""
    if unknown := [language for language in chosen if language not in choices]:
        raise PelasrError(f"no such language: {' '.join(unknown)}; {corpus} has {' '.join(choices)}")


@dataclass(frozen=True)
class Plan:
    """What is made of a language: utterances by split, drawn by `draw` and spoken at a level of augmentation. Sentences
    are told apart in all languages of `targets`; translations are written into those of `chosen`."""

    draw: Draw
    counts: dict[str, int]
    augmentation: int
    seed: int
    targets: Sequence[str] = ()
    chosen: Sequence[str] = ()


def make_missing(
    done_file: Path, settings: dict[str, dict], nj: int, plan: Callable[[str], Plan], files: Sequence[str] = ("text",)
) -> None:
    """Make every language of `settings` that is not beside `done_file` yet with these settings.

    `files` are those that each data directory must have. Speech that is there with these settings is kept; `plan` is
    called only for what is to be made. Raises PelasrError where a wheel is missing.
    """
    wheels = versions()
    data = done_file.parent
    done = read_json(done_file, "delete it; the corpus is made again") if done_file.exists() else {}
    # As it will be read back: tuples are lists.
    settings = json.loads(json.dumps({language: {**own, **wheels} for language, own in settings.items()}))
    spoken = {
        language for language, own in settings.items() if done.get(language) == own and _wavs(data, language).exists()
    }
    missing = [language for language in settings if not (language in spoken and _is_written(data, language, files))]
    if not missing:
        log(f"{data}: {' '.join(settings)} already there")
        return

    from minicorpus.speech import workers

    with workers(nj) as pool:
        for language in missing:
            done.pop(language, None)  # what is half made must not count as what was there before
            _save(done_file, done)
            _make_language(data, language, plan(language), None if language in spoken else pool)
            done[language] = settings[language]
            _save(done_file, done)


def _save(done_file: Path, done: dict[str, dict]) -> None:
    with atomic_write(done_file) as stream:
        json.dump(done, stream, indent=1, sort_keys=True)


def _wavs(data: Path, language: str) -> Path:
    return data / "wav" / language


def _is_written(data: Path, language: str, files: Sequence[str]) -> bool:
    return all((data / f"{split}_{language}" / file).exists() for split in SPLITS for file in files)


def _make_language(data: Path, language: str, plan: Plan, pool: ProcessPoolExecutor | None) -> None:
    """Speak the sentences of a language (without a `pool`: they are spoken) and write its three data directories."""
    from minicorpus.sentences import draw_splits
    from minicorpus.speakers import SPEAKERS
    from minicorpus.speech import Request, speak_all

    requests, utterances = [], {}
    for split, sentences in draw_splits(plan.draw, language, plan.counts, plan.seed, plan.targets).items():
        utterances[split] = []
        for number, sentence in enumerate(sentences):
            speaker = SPEAKERS[split][number % len(SPEAKERS[split])]
            name = f"{speaker.id}-{language}-{split}-{number:05d}"
            path = _wavs(data, language) / split / f"{name}.wav"
            requests.append(Request(name, language, sentence.spoken, speaker, plan.augmentation, plan.seed, path))
            translations = {target: sentence.translations[target] for target in plan.chosen}
            utterances[split].append(
                Utterance(name, name, os.fspath(path), None, None, sentence.text, speaker.id, language, translations)
            )
    if pool:
        shutil.rmtree(_wavs(data, language), ignore_errors=True)
        speak_all(requests, pool, f"speech {language}")
    for split in SPLITS:
        write_data_dir(data / f"{split}_{language}", utterances[split])
