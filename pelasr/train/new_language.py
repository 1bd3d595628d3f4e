"""What a language that the backbone was not trained on brings of its own, and what that starts from."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from pelasr.adapters.bank import Bank
from pelasr.adapters.finetune import make_bank
from pelasr.adapters.own import HEAD, VECTOR, OwnParts, routed
from pelasr.backbones.store import LoadedBackbone
from pelasr.data.batch import Batch, Collate, load_examples
from pelasr.data.kaldi import read_data_dir, text_of
from pelasr.data.language import split_pair
from pelasr.data.place import Place
from pelasr.data.tokenizer import SPACE, TAG, Tokenizer, can_be_token, unknown_report
from pelasr.decode.recognise import encode
from pelasr.errors import PelasrError
from pelasr.packs.pack import check_making, open_pack
from pelasr.progress import log, say
from pelasr.storage import check_tensors
from pelasr.train.alike import alike, ordinary, romaniser
from pelasr.train.options import AdapterConfig


def own_tokens(tokenizer: Tokenizer, texts: Iterable[str], language: str) -> list[str]:
    """What a language needs beside the shared tokens: the tag of its target if that has none, and the code points that
    are unknown in its texts, as far as they can be tokens, sorted."""
    _, target = split_pair(language)
    tags = [f"<lang:{target}>"] if target and f"<lang:{target}>" not in tokenizer.tokens else []
    unknown = {character for text in texts for character in tokenizer.unknown(text)}
    space = [SPACE] if " " in unknown else []
    return tags + space + sorted(c for c in unknown if c != " " and can_be_token(c))


OWN_FROM = 0.01  # share of unknown characters above which a language gets tokens of its own by default
SAMPLE = 16  # utterances that tell what to start from


def make_own(backbone: LoadedBackbone, place: Place, language: str, tokens: str, report: bool = True) -> OwnParts:
    """A new language's vector, and tokens of its own, with their starting values.

    `tokens`: `own`, what its training texts have beside the shared tokens; `keep`, none but the tag of a new target;
    `auto`, own ones if more than OWN_FROM of the characters are unknown without; all of them where the backbone has no
    output layer. `report`: say so.
    """
    texts = [text_of(u, language) for path in place.folders("train", language) for u in read_data_dir(path, language)]
    new = own_tokens(backbone.tokenizer, texts, language)
    if HEAD in backbone.module.own_sites().values():
        if report:
            say(f"{language}: an output layer of its own, for {len(new)} tokens of its training text")
        return OwnParts(backbone.module, new, vector=True)
    unknown, total, which = unknown_report(backbone.tokenizer, {language: texts})[language]
    rate = unknown / max(total, 1)
    if tokens == "keep" or (tokens == "auto" and rate <= OWN_FROM):
        new = [token for token in new if TAG.fullmatch(token)]
    own = OwnParts(backbone.module, new, vector=True)
    start = _start(backbone, own, place, language)
    if report:
        shown = " ".join(character for character, _ in which.most_common(10))
        lines = [
            f"{language}: new to the backbone; {unknown} of {total} characters of its training text"
            f" ({100 * rate:.2f} %) are unknown to the shared tokens {shown}".rstrip(),
            f"{language}: {len(new)} tokens of its own (tokens: {tokens}){start[0]}",
            *start[1:],
        ]
        say("\n".join(lines))
    return own


@torch.no_grad()
def _start(backbone: LoadedBackbone, own: OwnParts, place: Place, language: str) -> list[str]:
    """Starting values: of the scripts and language vectors that the backbone knows those with which its loss on some
    training utterances is the lowest. Returns what they are, in words, and of the tokens one by one."""
    module, shared = backbone.module, backbone.tokenizer.tokens
    romanise = romaniser() if own.tokens else None
    choices = alike(own.tokens, shared, romanise) if own.tokens else {"": []}
    everyone = range(len(backbone.languages))
    slots = [everyone, *([slot] for slot in everyone)] if VECTOR in module.own_sites().values() else [everyone]
    if len(choices) * len(slots) > 1:
        batch = _sample(backbone, own.tokens, place, language)
        losses = {}
        for number, rows in enumerate(slots):
            own.start_from(module, choices[""], rows)
            with routed([own], None):
                enc, lens = module.encode(batch.feats, batch.lens, batch.language_ids)
            for script, ids in choices.items():
                own.start_from(module, ids, rows)
                with routed([own], None):  # anew: a batch's own parts are stacked once
                    loss = module.loss(enc, lens, batch.targets, batch.target_lens, batch.prefix)
                losses[script, number] = float(loss.total.mean())
        script, number = min(losses, key=losses.__getitem__)
    else:
        script, number = "", 0
    own.start_from(module, choices[script], slots[number])
    vector = backbone.languages[number - 1] if number else ""
    found = [script and f"the letters of {script.title()}", vector and f"the vector of {vector}"]
    start = f", starting from {' and '.join(filter(None, found))}" if any(found) else ""
    return [start, *_rows(language, own.tokens, choices[script], shared, romanise is not None)]


def _rows(
    language: str, own: Sequence[str], ids: Sequence[Sequence[int]], shared: Sequence[str], romanised: bool
) -> list[str]:
    """What the row of each own token starts from."""
    everything = ordinary(shared)
    like = {token: [shared[n] for n in each] for token, each in zip(own, ids, strict=True) if list(each) != everything}
    lines = []
    if like:
        lines.append(f"{language}: " + ", ".join(f"{token} from {' '.join(rows)}" for token, rows in like.items()))
    if rest := [token for token in own if token not in like]:
        install = "" if romanised else " (tools/install.sh translit would find more by their sound)"
        lines.append(f"{language}: {' '.join(rest)} from the mean of all tokens{install}")
    return lines


def nearest_pack(
    backbone: LoadedBackbone, place: Place, language: str, config: AdapterConfig, tokens: str | None, packs: list[Path]
) -> tuple[str, float]:
    """Of several packs that by whose adapters the loss on some training utterances is the lowest: its name, and the
    loss in nats an utterance. `tokens`: see `make_own`.

    Raises PelasrError for a pack of another method or options, and where no loss can be told before the training.
    """
    module = backbone.module
    if HEAD in module.own_sites().values():
        raise PelasrError(
            "--start nearest: every language has an output layer of its own here, so none has a loss before it is"
            " trained; name the language"
        )
    bank = make_bank(config.method, config.options, module)
    new = language not in backbone.languages
    own = make_own(backbone, place, language, tokens or "auto", report=False) if new else None
    bank.add(language, own=own, settled=True)
    bank.eval()
    batch = _sample(backbone, bank.own_tokens(language), place, language)
    losses, fresh = {"fresh": _loss(backbone, bank, batch)}, deepcopy(bank.state_dict())
    for folder in packs:
        pack = open_pack(folder, backbone)
        check_making(pack, bank.method, bank.options)
        bank.load_state_dict(fresh)  # some packs have sites that others lack
        take_adapters(bank, language, pack.tensors, str(folder))
        losses[folder.name] = _loss(backbone, bank, batch)
    found = ", ".join(f"{name} {loss:.2f}" for name, loss in losses.items())
    log(f"{language}: loss on {len(batch)} training utterances by the adapters to start from: {found}")
    name = min((folder.name for folder in packs), key=losses.__getitem__)
    return name, losses[name]


@torch.no_grad()
def take_adapters(bank: Bank, language: str, tensors: Mapping[str, Tensor], where: str) -> None:
    """Give a language's adapters the values of others, `tensors` of `where`, at all sites that both have. Raises
    PelasrError where there are none, or of other shapes."""
    taken = False
    for path, adapter in bank.of(language).items():
        mine = {name: tensors[f"{path}/{name}"] for name in adapter.state_dict() if f"{path}/{name}" in tensors}
        if mine:
            check_tensors(mine, adapter.state_dict(), f"{where}, site {path}")
            adapter.load_state_dict(mine)
            taken = True
    if not taken:
        raise PelasrError(f"{where}: there is nothing for the adapters of {language} to begin as: they share no site")


@torch.no_grad()
def _loss(backbone: LoadedBackbone, bank: Bank, batch: Batch) -> float:
    """Mean over the utterances, in nats."""
    with bank.route(batch.languages):
        enc, lens = encode(backbone.module, bank, batch)
        return float(backbone.module.loss(enc, lens, batch.targets, batch.target_lens, batch.prefix).total.mean())


def _sample(backbone: LoadedBackbone, own_tokens: Sequence[str], place: Place, language: str) -> Batch:
    """Training utterances, evenly from the shortest to the longest."""
    tokenizer = backbone.tokenizer.with_own(own_tokens)
    examples = load_examples(place, "train", language, tokenizer, hears=backbone.module.hears)
    examples.sort(key=lambda example: (example.frames, example.id))
    step = max(1, len(examples) // SAMPLE)
    return Collate(backbone.languages, new=[language])(examples[::step][:SAMPLE])
