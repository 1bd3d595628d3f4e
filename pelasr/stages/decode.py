"""Stage 6: hypotheses of test sets. What is finished is not done again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pelasr.backbones.format import read_backbone
from pelasr.backbones.source import Source
from pelasr.data.kaldi import data_sha256
from pelasr.data.language import split_pair
from pelasr.data.place import Place
from pelasr.done import Marker, required
from pelasr.errors import PelasrError, nearest
from pelasr.progress import say
from pelasr.search.lm import LMOptions
from pelasr.stages.experiment import AS_USUAL, Decoding, Experiment
from pelasr.train.inputs import features_of, weights_sha256


def decode(
    place: Place, experiment: Experiment, sets: list[str], only: list[str], ngpu: int, how: Decoding = AS_USUAL
) -> bool:
    """Stage 6: hypotheses and scores of sets and languages, as `<exp>/<experiment>/decode/<set>_<language>`."""
    folder = place.exp / experiment.name
    if experiment.serve:  # it is there to see what one language's pack does to all
        only = [*place.languages, *([experiment.serve] if experiment.serve not in place.languages else [])]
    if new := [language for language in only if language not in place.languages]:
        _prepare_new(place, experiment, new, sets)
    markers = decoded(place, experiment, sets, only, how)
    missing = {key: marker for key, marker in markers.items() if not marker.done}
    if not missing:
        say(f"stage 6: {folder}/decode is made already")
        return False
    from pelasr.decode.sets import Service, Wanted, decode_sets

    packs = folder / "packs" if experiment.adapted else None
    for marker in missing.values():
        marker.write(done=False)  # what is there will be overwritten
    for source, part in experiment.backbones(place).items():
        wanted = [
            Wanted(name, language, served_by(place, experiment, language, how))
            for name, language in missing
            if language in part.languages or language not in place.languages
        ]
        if wanted:
            service = Service(Source(source, experiment.weights), packs, experiment.serve)
            decode_sets(part, service, wanted, folder / "decode", ngpu, how.beam_size, how.lm)
            for each in wanted:
                output = folder / "decode" / f"{each.set}_{each.language}"
                made = [output / file for file in ("text", "scores", "limited")]
                missing[each.set, each.language].write(done=True, outputs=made)
    return True


def served_by(place: Place, experiment: Experiment, language: str, how: Decoding) -> str:
    """As which language a language is decoded: itself, if it is not new or has a pack."""
    if experiment.serve or how.decode_as is None or language in place.languages:
        return language
    if how.decode_as not in place.languages:
        raise PelasrError(f"--decode_as: {nearest(how.decode_as, place.languages)}")
    has_pack = experiment.adapted and (place.exp / experiment.name / "packs" / language / "pack.yaml").exists()
    return language if has_pack else how.decode_as


def _prepare_new(place: Place, experiment: Experiment, new: list[str], sets: list[str]) -> None:
    """Features of the sets that there are of new languages, whose packs may come from elsewhere."""
    from pelasr.backbones.store import heard_by
    from pelasr.stages.stats import make_features

    hears = heard_by(next(iter(experiment.backbones(place))), experiment.weights)
    for language in new:
        part = replace(place, languages=[language])
        there = [name for name in sets if part.folder(name, language).is_dir()]
        for name in set(sets) - set(there):
            say(f"stage 6: no {part.folder(name, language)}: {language} is not decoded on {name}")
        make_features(part, there, 1, hears, dump=None)


def decoded(
    place: Place, experiment: Experiment, sets: list[str], languages: list[str], how: Decoding = AS_USUAL
) -> dict[tuple[str, str], Marker]:
    """Done-files of what an experiment decodes, {(set, language): marker}; of languages that are new to the backbone
    too, unless it has none that could serve them."""
    folder, markers = place.exp / experiment.name, {}
    new = [language for language in languages if language not in place.languages]
    for source, part in experiment.backbones(place).items():
        backbone, heard = weights_sha256(source, experiment.weights), read_backbone(source).heard
        if not experiment.adapted:
            new = [language for language in new if how.decode_as or _can_serve(experiment, source, language)]
        for language in [language for language in part.languages if language in languages] + new:
            inputs = {"backbone": backbone} | ({"beam_size": how.beam_size} if how.beam_size else {})
            inputs |= {"lm": _lm_inputs(how.lm, language)} if how.lm else {}
            served = served_by(place, experiment, language, how)
            inputs |= {"decode_as": served} if served != language else {}
            if experiment.adapted:
                inputs["pack"] = required(folder / "packs" / (experiment.serve or served) / "pack.yaml", 5)
            for name in [name for name in sets if language in part.languages or place.folder(name, language).is_dir()]:
                data = [place.folder(name, language)]
                read = {"data": data_sha256(data), "features": features_of(place, data, heard)}
                output = folder / "decode" / f"{name}_{language}"
                markers[name, language] = Marker(output / "done.json", inputs | read)
    return markers


def _lm_inputs(lm: LMOptions, language: str) -> dict[str, Any]:
    file = lm.file(language)
    return {"sha256": required(file, 6, "name a language model with --lm"), "weight": lm.weight, "bonus": lm.bonus}


def _can_serve(experiment: Experiment, source: Path, language: str) -> bool:
    """Whether a backbone without adapters can be given a language that it was not trained on: not if there is one for
    each language, or no tag of the target."""
    from pelasr.data.tokenizer import Tokenizer

    target = split_pair(language)[1]
    return not experiment.each and (not target or f"<lang:{target}>" in Tokenizer.load(source / "tokens").tokens)
