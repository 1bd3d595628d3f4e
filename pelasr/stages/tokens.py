"""Stage 2: token lists."""

from pathlib import Path

from pelasr.data.kaldi import data_sha256, read_data_dir, text_of
from pelasr.data.language import split_pair
from pelasr.data.place import Place
from pelasr.done import Marker
from pelasr.errors import PelasrError
from pelasr.progress import say
from pelasr.stages.experiment import Experiment


def make_tokens(place: Place, chosen: list[Experiment], sets: list[str], token_type: str, vocab_size: int) -> bool:
    """Stage 2: the token lists of the experiments' training texts, and what they cannot write of other sets' texts.

    An experiment's own `token_type` and `vocab_size` count before those given. Without experiments: of the languages.
    """
    wanted: dict[Path, tuple[Place, str, int]] = {}
    if not chosen:
        wanted[place.tokens] = place, token_type, vocab_size
    for experiment in chosen:
        kind = experiment.tokens.get("token_type", token_type), experiment.tokens.get("vocab_size", vocab_size)
        for part in experiment.backbones(place).values():
            if wanted.setdefault(part.tokens, (part, *kind)) != (part, *kind):
                raise PelasrError(
                    f"{experiment.name}: its tokens in {part.tokens} are another experiment's too: {kind}"
                )
    made = [_make_token_list(part, sets, kind, size) for part, kind, size in wanted.values()]
    return any(made)


def _make_token_list(place: Place, sets: list[str], token_type: str, vocab_size: int) -> bool:
    from pelasr.data.tokenizer import Tokenizer, train_graphemes, train_unigram, unknown_report

    inputs = {
        "token_type": token_type,
        "vocab_size": vocab_size,
        "data": data_sha256(place.dirs("train", *sets)),
        "languages": place.languages,
    }
    marker = Marker(place.exp / ".done" / f"{place.tokens.name}.json", inputs)
    if marker.done:
        say(f"stage 2: {place.tokens}/tokens.txt is made already")
        return False
    texts = [text for language in place.languages for text in _texts(place, "train", language)]
    targets = dict.fromkeys(split_pair(language)[1] for language in place.languages)
    tags = [f"<lang:{target}>" for target in targets if target]
    if token_type == "char":
        Tokenizer(train_graphemes(texts, tags)).save(place.tokens)
    else:
        train_unigram(texts, vocab_size, place.tokens, tags)
    tokenizer = Tokenizer.load(place.tokens)
    say(f"{len(tokenizer.tokens)} tokens in {place.tokens}/tokens.txt")
    texts_of = {f"{name}_{key}": _texts(place, name, key) for name in sets for key in place.languages}
    for name, (unknown, total, which) in unknown_report(tokenizer, texts_of).items():
        shown = " ".join(f"{character}({count})" for character, count in which.most_common(10))
        say(f"{name}: {unknown} of {total} characters unknown ({100 * unknown / max(total, 1):.2f} %) {shown}".rstrip())
    made = [place.tokens / name for name in ("tokens.txt", "spm.model")]
    marker.write(done=True, outputs=[path for path in made if path.exists()])
    return True


def _texts(place: Place, name: str, language: str) -> list[str]:
    folders = place.folders(name, language)
    return [text_of(utterance, language) for folder in folders for utterance in read_data_dir(folder, language)]
