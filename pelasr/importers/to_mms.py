"""An experiment as an MMS model that transformers loads: the opposite of `mms.py`, and back again to the same bytes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pelasr.backbones.pretrained import CONFIG, PREPROCESSOR, RATE, WEIGHTS, file_names
from pelasr.backbones.source import find_backbone_of
from pelasr.backbones.store import LoadedBackbone, load_backbone
from pelasr.data.hears import Waveform
from pelasr.data.tokenizer import BOS, SPACE, hidden_in
from pelasr.errors import PelasrError, brief, nearest
from pelasr.files import atomic_write
from pelasr.importers.aside import aside, check_free
from pelasr.importers.mms import METHOD
from pelasr.importers.mms_folder import (
    ADAPTER,
    NAMES,
    OFF,
    PARTS,
    PREFIX,
    TOKENIZER,
    VOCAB,
    key_of,
    reordered,
    tensor_name,
)
from pelasr.packs.pack import Pack, open_pack
from pelasr.progress import say
from pelasr.storage import save_weights

ORDER = ("pad_token", "bos_token", "eos_token", "unk_token")  # special tokens by their ids, from 0 on
METADATA = {"format": "pt"}  # without which transformers loads no file


def export_mms(exp: Path, wanted: Sequence[str] | None, folder: Path) -> None:
    """Write a folder with an experiment's backbone and its languages' adapters, output layers and vocabularies.

    `wanted`: keys of languages; None: all that have packs. The model's own adapter and output layer are those of the
    first one. Raises PelasrError for what MMS is not: another encoder, method, or place of the adapters.
    """
    check_free(folder)
    backbone = load_backbone(*find_backbone_of(exp))
    _check_backbone(backbone, exp)
    there = sorted(path.parent.name for path in exp.glob("packs/*/pack.yaml"))
    if not there:
        raise PelasrError(f"{exp}: no packs, without which there is no MMS; stage 5 fits them")
    for language in wanted or ():
        if language not in there:
            raise PelasrError(f"{exp}: no pack of {language!r}; {nearest(language, there)}")
    chosen = list(wanted or there)
    codes: dict[str, str] = {}
    widths: dict[int, str] = {}
    for language in chosen:
        pack = open_pack(exp / "packs" / language, backbone, language)
        widths.setdefault(_width(pack, backbone), language)
        vocabulary(pack)
        code = _code(pack)
        if code in codes:
            raise PelasrError(f"{exp}: {codes[code]} and {language} are both {code} to MMS; leave one out, by --langs")
        codes[code] = language
    if len(widths) > 1:
        shown = ", ".join(f"{width} of {language}" for width, language in widths.items())
        raise PelasrError(f"{exp}: adapters of several widths ({shown}), where MMS has one; choose by --langs")
    with aside(folder) as made:
        _write_model(made, backbone, open_pack(exp / "packs" / chosen[0], backbone), next(iter(widths)))
        vocabularies = {}
        for code, language in codes.items():
            pack = open_pack(exp / "packs" / language, backbone)
            vocabularies[code] = vocabulary(pack)
            save_weights(made / f"{ADAPTER}.{code}.safetensors", adapter_tensors(pack), METADATA)
        _write_json(made / VOCAB, vocabularies)
        _write_json(made / TOKENIZER, _tokenizer(next(iter(codes))))
        made.rename(folder)
    say(f"{folder}: a model, and {brief(', '.join(f'{language} as {code}' for code, language in codes.items()), 300)}")


def _check_backbone(backbone: LoadedBackbone, exp: Path) -> None:
    """Raise PelasrError for a backbone that is not MMS's."""
    said = backbone.description
    options = said.options
    conf = options.get("encoder_conf") or {}
    encoder = options.get("encoder", "wav2vec2") if said.backbone == "ctc" else f"{said.backbone}'s own"
    kind = "with" if conf.get("do_stable_layer_norm") else "without"
    if encoder != "wav2vec2" or kind == "without":
        raise PelasrError(
            f"{exp}: its encoder is {brief(encoder)} {kind} do_stable_layer_norm, MMS's is wav2vec2 with it"
        )
    if options.get("layers", "last") != "last":
        raise PelasrError(f"{exp}: its output layers see the sum of all layers, MMS's see the last one alone")
    if options.get("objective", "ctc") == "ctc":
        raise PelasrError(f"{exp}: its languages share an output layer, of MMS each has one of its own")


def _width(pack: Pack, backbone: LoadedBackbone) -> int:
    """Of a pack's adapters. Raises PelasrError for a pack that holds anything but MMS's adapters."""
    said = pack.description
    layers = list(backbone.module.sites()["layer"])
    if said.adapter != METHOD:
        raise PelasrError(f"{pack.folder}: its method is {brief(said.adapter)}, MMS's is {METHOD}")
    if sorted(said.sites) != sorted(layers):
        raise PelasrError(f"{pack.folder}: its adapters are not after every layer (`sites: layer`), where MMS's are")
    return len(pack.tensors[f"{layers[0]}/down.bias"])


def _code(pack: Pack) -> str:
    """What MMS calls a pack's language: as it was called where it came from, or by ISO 639-3, or else by its key, in a
    form that is read as it again."""
    said = pack.description
    if "code" in said.training:
        return said.training["code"]
    key = said.language
    codes = [_iso639_3(key), key, key.replace(".", "-").replace("_", "-dialect_")]
    return next((code for code in codes if key_of(code) == key), key)


def _iso639_3(key: str) -> str:
    """The code of a language, without script, region and variant; the key itself where there is none."""
    from langcodes import Language
    from langcodes.tag_parser import LanguageTagError

    try:
        return Language.get(key).to_alpha3()
    except (LanguageTagError, LookupError):
        return key


def vocabulary(pack: Pack) -> dict[str, int]:
    """A language's ids by token. Raises PelasrError for two tokens that MMS would call the same."""
    delimiter = NAMES["word_delimiter_token"]
    tokens = [NAMES[key] for key in ORDER]
    for token in pack.description.own_tokens:
        if token == BOS:
            continue
        name = hidden_in(token) or token
        if name in (*tokens, delimiter):
            raise PelasrError(f"{pack.folder}: its token {brief(token)!r} is what MMS calls another one")
        tokens.append(delimiter if token == SPACE else name)
    return {token: number for number, token in enumerate(tokens)}


def adapter_tensors(pack: Pack) -> dict[str, Tensor]:
    """The tensors of an adapter's file."""
    found = pack.tensors
    own = pack.description.own_tokens
    bos = own.index(BOS) if BOS in own else None
    rest = [number for number, token in enumerate(own) if token != BOS]
    shared = len(found["ctc/bias"]) - len(own)
    # Ours are blank, <unk> and <sos/eos>; a language need not have <s>.
    order = [0, None if bos is None else shared + bos, 2, 1, *(shared + number for number in rest)]
    tensors = {"lm_head.weight": reordered(found["ctc/weight"], order, 0.0)}
    tensors["lm_head.bias"] = reordered(found["ctc/bias"], order, OFF)
    for path in pack.description.sites:
        layer = int(path.rsplit(".", 1)[1])
        for theirs, ours in PARTS.items():
            for kind in ("weight", "bias"):
                tensors[tensor_name(layer, theirs, kind)] = found[f"{path}/{ours}.{kind}"]
    return tensors


def _write_model(folder: Path, backbone: LoadedBackbone, pack: Pack, width: int) -> None:
    """The model, with a language's adapter and output layer; its configuration, and that of what it hears."""
    from transformers import Wav2Vec2Config

    own = adapter_tensors(pack)
    state = backbone.module.state_dict()
    tensors = {PREFIX + theirs: state[ours] for ours, theirs in file_names(backbone.module).items()}
    save_weights(folder / WEIGHTS, tensors | own, METADATA)
    options, hears = backbone.description.options, backbone.module.hears
    config: dict[str, Any] = {"architectures": ["Wav2Vec2ForCTC"], "adapter_attn_dim": width}
    config |= {"vocab_size": len(own["lm_head.bias"]), "ctc_zero_infinity": True}
    config |= {key.replace("token", "token_id"): ORDER.index(key) for key in ORDER[:3]}
    found = Wav2Vec2Config(**options.get("encoder_conf") or {}, **options.get("masks") or {}, **config)
    _write_json(folder / CONFIG, json.loads(found.to_json_string()))
    normalise = isinstance(hears, Waveform) and hears.normalise
    said = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "processor_class": "Wav2Vec2Processor"}
    numbers = {"do_normalize": normalise, "feature_size": 1, "padding_side": "right", "padding_value": 0.0}
    _write_json(folder / PREPROCESSOR, {**said, **numbers, "return_attention_mask": True, "sampling_rate": RATE})


def _tokenizer(code: str) -> dict[str, Any]:
    """Of `tokenizer_config.json`; `code`: the language that is spoken where none is asked for."""
    said = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "processor_class": "Wav2Vec2Processor", "target_lang": code}
    return {**said, **NAMES, "do_lower_case": False, "replace_word_delimiter_char": " "}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_write(path) as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
