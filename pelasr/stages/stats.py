"""Stage 3: features or an index of the audio, and statistics."""

from pathlib import Path
from typing import TYPE_CHECKING

from pelasr.data.place import Place
from pelasr.done import Marker
from pelasr.files import locked
from pelasr.progress import say

if TYPE_CHECKING:
    from pelasr.data.hears import Hears


def make_stats(place: Place, sets: list[str], nj: int, hears: "Hears", dump: bool = True) -> bool:
    """Stage 3: what the backbone `hears` of every utterance, and if it wants them its mean and variance over the
    training data. `dump`: as for `make_features`."""
    from itertools import chain

    from pelasr.data.features import feature_stats, save_stats
    from pelasr.data.hears import USUAL
    from pelasr.data.speech import hear_all, speech_sha256

    made = make_features(place, sets, nj, hears, dump)
    train = {path: place.dump / path.name for path in place.dirs("train")} if hears.has_stats else {}
    inputs = {str(dump_dir): speech_sha256(data, dump_dir, hears) for data, dump_dir in train.items()}
    inputs |= {"hears": hears.facts()} if hears != USUAL else {}
    marker = Marker(place.exp / ".done" / "stats.json", inputs)
    if train and not marker.done:
        features = (hear_all(dump_dir, data, hears, nj) for data, dump_dir in train.items())
        save_stats(place.stats, *feature_stats(chain.from_iterable(features), hears))
        marker.write(done=True, outputs=[place.stats])
        return True
    if not made:
        say(f"stage 3: {'features and statistics are' if train else 'the index of the audio is'} made already")
    return made


def make_features(place: Place, sets: list[str], nj: int, hears: "Hears", dump: bool | None = True) -> bool:
    """Features of every utterance of sets, where they are missing, or of other data than now; for what is not dumped
    the index by which the audio is known again. `dump`: false: features are not dumped either, unless they are there
    already; None: nor where there is an index."""
    from pelasr.data.audio_index import index_audio, index_marker
    from pelasr.data.features import delete_features, extract, marker_of
    from pelasr.data.speech import is_dumped

    dump, either = hears.dumped and dump is not False, dump is not True

    def is_done(data: Path, dump_dir: Path) -> bool:
        if hears.dumped and marker_of(data, dump_dir, hears).done:
            return True
        return (either or not hears.dumped) and not is_dumped(dump_dir, hears) and index_marker(data, dump_dir).done

    pairs = [(path, place.dump / path.name) for path in place.dirs(*sets)]
    if all(is_done(*pair) for pair in pairs):
        return False
    with locked(place.dump / ".lock"):  # experiments that are decoded side by side may both want those of a language
        missing = [pair for pair in pairs if not is_done(*pair)]
        if dump:
            for _ in extract(missing, nj, hears):
                pass
            return bool(missing)
        for _ in index_audio([pair for pair in missing if not index_marker(*pair).done], nj):
            pass
        for _, dump_dir in missing:
            if is_dumped(dump_dir, hears):  # of other audio than now: they must not be taken for what is not dumped
                delete_features(dump_dir)
        return bool(missing)
