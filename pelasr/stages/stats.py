"""Stage 3: features, and their statistics."""

from typing import TYPE_CHECKING

from pelasr.data.place import Place
from pelasr.done import Marker
from pelasr.files import locked
from pelasr.progress import say

if TYPE_CHECKING:
    from pelasr.data.features import LogMel


def make_stats(place: Place, sets: list[str], nj: int, hears: "LogMel") -> bool:
    """Stage 3: what the backbone `hears` of every utterance, and its mean and variance over the training data."""
    from pelasr.data.features import feature_stats, features_sha256, save_stats

    made = make_features(place, sets, nj, hears)
    train = {path: place.dump / path.name for path in place.dirs("train")}
    inputs = {str(dump): features_sha256(data, dump) for data, dump in train.items()}
    marker = Marker(place.exp / ".done" / "stats.json", inputs)
    if not marker.done:
        save_stats(place.stats, *feature_stats(train.values(), hears))
        marker.write(done=True, outputs=[place.stats])
    elif not made:
        say("stage 3: features and statistics are made already")
        return False
    return True


def make_features(place: Place, sets: list[str], nj: int, hears: "LogMel") -> bool:
    """Features of every utterance of sets, where they are missing, or of other data than now."""
    from pelasr.data.features import extract, marker_of

    pairs = [(path, place.dump / path.name) for path in place.dirs(*sets)]
    if all(marker_of(*pair, hears).done for pair in pairs):
        return False
    with locked(place.dump / ".lock"):  # experiments that are decoded side by side may both want those of a language
        missing = [pair for pair in pairs if not marker_of(*pair, hears).done]
        for _ in extract(missing, nj, hears):
            pass
        return bool(missing)
