"""What a new language did to the old ones: by construction nothing, measured all the same."""

from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pelasr.adapters.bank import Bank
from pelasr.backbones.store import load_backbone
from pelasr.data.batch import Batch, Collate, batches, load_examples
from pelasr.data.place import Place
from pelasr.data.sampling import sorted_batches
from pelasr.data.tokenizer import UNKNOWN_ID
from pelasr.decode.recognise import encode
from pelasr.experiment import Experiment
from pelasr.packs.pack import load_bank
from pelasr.progress import track
from pelasr.search.hypothesis import Hypothesis

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
        for example in load_examples(place, name, language, backbone.tokenizer.with_own(after.own_tokens(language)))
    ]
    collate = Collate(backbone.languages, new=[new])
    beam_size = beam_size or backbone.module.beam_size
    changes: dict[str, Change] = defaultdict(Change)
    order = sorted_batches([example.frames for example in examples], BATCH_SIZE)
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
                change.hypotheses += first[1][row].tokens != second[1][row].tokens
                difference = (first[0][row] - second[0][row, :, : first[0].shape[-1]]).abs().nan_to_num(nan=torch.inf)
                change.logits = max(change.logits, float(difference.max()))
    return {language: changes[language] for language in old}


@torch.no_grad()
def _run(backbone: nn.Module, bank: Bank, batch: Batch, beam_size: int) -> tuple[Tensor, list[Hypothesis]]:
    """Logits of the reference's labels (B, ., V), and the hypotheses."""
    enc, lens = encode(backbone, bank, batch)
    logits = backbone.logits(enc, lens, batch.targets, batch.target_lens, batch.prefix)
    return logits, backbone.search(enc, lens, batch.prefix, beam_size)


def _shared(batch: Batch, shared: int) -> Batch:
    """The batch as a model without own tokens can be given it: they are unknown."""
    known = {"targets": batch.targets, "prefix": batch.prefix}
    known = {k: v if v is None else v.where(v < shared, UNKNOWN_ID) for k, v in known.items()}
    return replace(batch, **known)
