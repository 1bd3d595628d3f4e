"""What a new language did to the old ones: by construction nothing, measured all the same."""

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from pelasr.adapters.bank import Bank
from pelasr.backbones.base import Backbone
from pelasr.backbones.store import load_backbone
from pelasr.data.batch import Batch, Collate, batches, load_examples
from pelasr.data.kaldi import read_data_dir, text_of
from pelasr.data.place import Place
from pelasr.data.sampling import sorted_batches
from pelasr.data.tokenizer import UNKNOWN_ID
from pelasr.decode.recognise import encode
from pelasr.packs.pack import load_bank, read_pack
from pelasr.progress import say, track
from pelasr.score.environment import commit
from pelasr.score.results import KEYS, append_results
from pelasr.search.hypothesis import Hypothesis
from pelasr.stages.experiment import AS_USUAL, Decoding, Experiment
from pelasr.stages.score import data_of, facts_of, find_task_of, has_copies
from pelasr.version import __version__

BATCH_SIZE = 32


@dataclass
class Change:
    """Of one old language: its utterances, how many hypotheses changed, and the largest change of a logit."""

    utterances: int = 0
    hypotheses: int = 0
    logits: float = 0.0


def measure(
    place: Place, experiment: Experiment, new: str, name: str, beam_size: int | None = None
) -> dict[str, Change]:
    """Decode the set `name` of all old languages and a new one in mixed batches, once with the packs of the old
    languages alone, once with the new one's as well: {old language: its change}.

    The batches are the same both times, so that not a bit may differ. Before, the new language's utterances are taken
    for the first old one's.
    """
    source = place.exp / experiment.backbone
    backbone = load_backbone(source, experiment.weights)
    packs, old = place.exp / experiment.name / "packs", place.languages
    before, after = load_bank(packs, old, backbone), load_bank(packs, [*old, new], backbone)
    examples = [
        example
        for language in [*old, new]
        for example in load_examples(
            place, name, language, backbone.tokenizer.with_own(after.own_tokens(language)), hears=backbone.module.hears
        )
    ]
    collate = Collate(backbone.languages, new=[new])
    beam_size = beam_size or backbone.module.beam_size
    changes: dict[str, Change] = defaultdict(Change)
    order = sorted_batches([example.frames for example in examples], BATCH_SIZE, backbone.module.batch_frames)
    found = batches(examples, order, collate)
    for batch in track(found, len(order), f"{name} before and after {new}"):
        taken = [language if language in old else old[0] for language in batch.languages]
        with before.route(taken):
            first = _run(backbone.module, before, _shared(batch, len(backbone.tokenizer)), beam_size)
        with after.route(batch.languages):
            second = _run(backbone.module, after, batch, beam_size)
        for row, language in enumerate(batch.languages):
            if language in old:
                change = changes[language]
                change.utterances += 1
                if first[1][row].tokens != second[1][row].tokens:
                    change.hypotheses += 1
                # Beyond the language's own tokens there are columns of others, minus infinity in its rows.
                count = len(backbone.tokenizer) + len(before.own_tokens(language))
                difference = (first[0][row, :, :count] - second[0][row, :, :count]).abs().nan_to_num(nan=torch.inf)
                change.logits = max(change.logits, float(difference.max()))
    return {language: changes[language] for language in old}


@torch.no_grad()
def _run(backbone: Backbone, bank: Bank, batch: Batch, beam_size: int) -> tuple[Tensor, list[Hypothesis]]:
    """Logits of the reference's labels (B, ., V), and the hypotheses."""
    enc, lens = encode(backbone, bank, batch)
    logits = backbone.logits(enc, lens, batch.targets, batch.target_lens, batch.prefix)
    return logits, backbone.search(enc, lens, batch.prefix, beam_size)


def _shared(batch: Batch, shared: int) -> Batch:
    """The batch as a model without own tokens can be given it: they are unknown."""
    known = {"targets": batch.targets, "prefix": batch.prefix}
    known = {k: v if v is None else v.where(v < shared, UNKNOWN_ID) for k, v in known.items()}
    return replace(batch, **known)


def measure_forgetting(
    place: Place, chosen: list[Experiment], new: list[str], sets: list[str], recipe: str, how: Decoding = AS_USUAL
) -> bool:
    """Stage 7, after languages were added: whether anything changed for the others, as lines of results with the
    metrics `changed_by_<language>` (hypotheses) and `logits_changed_by_<language>` (largest difference)."""
    lines = []
    for experiment in chosen:
        if not experiment.adapted or experiment.serve:
            continue
        if has_copies(read_pack(place.exp / experiment.name / "packs" / new[0])):
            say(f"{experiment.name}: every language has a model of its own, so nothing can change for another")
            continue
        for name, language in product(sets, new):
            changes = measure(place, experiment, language, name, how.beam_size)
            facts = {"recipe": recipe, "experiment": experiment.name, "set": name, "scorer": f"pelasr {__version__}"}
            facts |= facts_of(place, experiment, place.languages, how) | {"commit": commit()}
            facts |= {"data_sha256": data_of(place, experiment, name), "task": find_task_of(place, experiment).name}
            for old, change in changes.items():
                words = sum(len(text_of(u, old).split()) for u in read_data_dir(place.folder(name, old), old))
                facts |= {"language": old, "utterances": change.utterances, "reference_words": words}
                for metric, value in (("changed_by", change.hypotheses), ("logits_changed_by", change.logits)):
                    facts |= dict.fromkeys(("value", "lo", "hi"), value) | {"metric": f"{metric}_{language}"}
                    lines.append({key: facts[key] for key in KEYS})
            changed = sum(change.hypotheses for change in changes.values())
            largest = max(change.logits for change in changes.values())
            say(
                f"{experiment.name}, {name}: with {language} {changed} hypotheses of"
                f" {' '.join(place.languages)} changed; the largest difference of a logit is {largest:g}"
            )
    append_results(place.exp / "results.jsonl", lines)
    return bool(lines)
