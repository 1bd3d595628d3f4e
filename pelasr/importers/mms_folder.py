"""What a folder of MMS (Pratap et al. 2024) holds beside the encoder, as transformers stores it: for each language an
adapter with an output layer, and a vocabulary."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelasr.backbones.format import LARGEST
from pelasr.backbones.pretrained import CONFIG, Pretrained, pickle_error, read_pretrained
from pelasr.data.codes import is_code, language_key
from pelasr.data.tokenizer import BOS, SPACE, can_be_own, hide
from pelasr.errors import PelasrError, brief, nearest
from pelasr.files import no_file, read_json, sha256_file, sha256_json
from pelasr.nn.speech_encoder import default_conf
from pelasr.storage import check_size, check_tensors, is_count, load_weights

CURE = "give the folder of an MMS model as transformers stores it"
ADAPTER, VOCAB, TOKENIZER = "adapter", "vocab.json", "tokenizer_config.json"
# Names of special tokens by those of transformers' tokenizer; the first is CTC's blank.
NAMES = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>"}
NAMES |= {"word_delimiter_token": "|"}
ID = re.compile("[0-9]{1,9}")
OFF = -1e4  # bias of a token that a model does not have
PREFIX = "wav2vec2."
PARTS = {"norm": "norm", "linear_1": "down", "linear_2": "up"}  # of an adapter: MMS's names and houlsby's


@dataclass(frozen=True)
class Language:
    """What a model has of a language, in pelasr's numbering: own tokens, and tensors of a pack. `sha256`: of the file
    and the vocabulary."""

    code: str
    own_tokens: list[str]
    tensors: dict[str, Tensor]
    sha256: str


@dataclass(frozen=True)
class MMS:
    """A folder: its encoder, with so many layers of a size, the width of the adapters, vocabularies by code, names of
    special tokens, and tokens that the tokenizer has added to a vocabulary, by their ids."""

    pretrained: Pretrained
    num_layers: int
    size: int
    width: int
    vocabularies: dict[str, Any]
    names: dict[str, str]
    added: dict[int, str]

    @property
    def folder(self) -> Path:
        return self.pretrained.folder

    @property
    def codes(self) -> list[str]:
        """Of the languages that there are adapters of."""
        paths = [path for end in ("safetensors", "bin") for path in self.folder.glob(f"{ADAPTER}.*.{end}")]
        return sorted({path.stem.removeprefix(f"{ADAPTER}.") for path in paths})

    def choose(self, wanted: list[str] | None) -> dict[str, str]:
        """{language key: code} of the languages wanted, by codes or keys; None: all. Raises PelasrError for one that
        there is no adapter of, and for two that are the same."""
        found: dict[str, str] = {}
        codes = self.codes
        for word in codes if wanted is None else wanted:
            code = word if word in codes else _same_language(word, codes)
            if code is None:
                raise PelasrError(f"{self.folder}: no adapter of {brief(word)!r}; {nearest(word, codes)}")
            if not is_code(code):
                raise PelasrError(f"{self.folder}: {brief(code)!r} is no code of a language; rename the adapter's file")
            key = language_key(code)
            if key in found:
                raise PelasrError(f"{self.folder}: {found[key]} and {code} are both {key}; name one of them")
            found[key] = code
        if not found:
            raise PelasrError(f"{self.folder}: no {ADAPTER}.<language>.safetensors; {CURE}")
        return found

    def read(self, code: str) -> Language:
        """A language's adapter. Raises PelasrError for a vocabulary or a file that is not as it must be, naming the
        first token or tensor."""
        path = self.folder / f"{ADAPTER}.{code}.safetensors"
        pickle = path.with_suffix(".bin")
        if no_file(path) and not no_file(pickle):
            raise pickle_error(pickle, path)
        ids = self._ids(code)
        found = self._load(path, len(ids))
        ids = self._with_added(ids, code, found["lm_head.bias"].shape[0])
        order = [ids.get(self.names[key]) for key in ("pad_token", "unk_token", "eos_token")]
        own: dict[str, int] = {}
        for token, number in ids.items():
            if number in order:
                continue
            name = self._own_name(token, code)
            if name in own:
                raise PelasrError(f"{self.folder / VOCAB}: {code}: two tokens are {brief(name)}; {CURE}")
            own[name] = number
        bos = own.pop(BOS, None)
        rows = sorted(own.items(), key=lambda item: item[1])
        if bos is not None and not _is_off(found, bos):
            rows.insert(0, (BOS, bos))
        order += [number for _, number in rows]
        tensors = {
            f"encoder.layers.{layer}/{ours}.{kind}": found[tensor_name(layer, theirs, kind)]
            for layer in range(self.num_layers)
            for theirs, ours in PARTS.items()
            for kind in ("weight", "bias")
        }
        tensors["ctc/weight"] = reordered(found["lm_head.weight"], order, 0.0)
        tensors["ctc/bias"] = reordered(found["lm_head.bias"], order, OFF)
        sha256 = sha256_json([sha256_file(path), ids, self.names])
        return Language(code, [token for token, _ in rows], tensors, sha256)

    def _ids(self, code: str) -> dict[str, int]:
        """A language's vocabulary, one token for each id from 0 on."""
        where = f"{self.folder / VOCAB}: {code}"
        found = self.vocabularies.get(code)
        if found is None:
            raise PelasrError(f"{where}: no vocabulary of this language; {nearest(code, self.vocabularies)}")
        if not isinstance(found, dict) or not found:
            raise PelasrError(f"{where}: expected ids by tokens, found {brief(found)}; {CURE}")
        tokens: dict[int, str] = {}
        for token, number in found.items():
            if not is_count(number):
                raise PelasrError(f"{where}: the id of {brief(token)!r} is {brief(number)}, no number from 0 on")
            if number in tokens:
                raise PelasrError(f"{where}: {brief(tokens[number])!r} and {brief(token)!r} have the same id {number}")
            tokens[number] = token
        return {token: number for number, token in sorted(tokens.items())}

    def _with_added(self, ids: dict[str, int], code: str, size: int) -> dict[str, int]:
        """A vocabulary of `size` ids, with what the tokenizer has added after it. Raises PelasrError for other ids."""
        where, found = f"{self.folder / VOCAB}: {code}", dict(ids)
        for number in range(len(found), size):
            token = self.added.get(number)
            if token is None or token in found:
                break
            found[token] = number
        if size != len(found):
            raise PelasrError(f"{where}: {len(found)} tokens, but the adapter has an output layer for {size}")
        if gaps := set(range(size)) - set(found.values()):
            raise PelasrError(f"{where}: {size} tokens, but none has the id {min(gaps)}")
        if self.names["pad_token"] not in found:
            raise PelasrError(f"{where}: no {self.names['pad_token']!r}, which is CTC's blank")
        return found

    def _own_name(self, token: str, code: str) -> str:
        """What a token is called as a language's own."""
        if token == self.names["word_delimiter_token"]:
            return SPACE
        if token == self.names["bos_token"]:
            return BOS
        if len(token) == 1 and not can_be_own(token):
            token = hide(token)
        if token == SPACE or not can_be_own(token):
            raise PelasrError(f"{self.folder / VOCAB}: {code}: {brief(token)!r} is no token of text")
        return token

    def _load(self, path: Path, tokens: int) -> dict[str, Tensor]:
        """The tensors of an adapter's file for so many tokens, or some more that were added, in float32."""
        cure = "fetch it again"
        if missing := no_file(path):
            raise PelasrError(f"{path}: {missing}; {cure}")
        check_size(path, self._expected(tokens + len(self.added)), cure)
        half = (torch.float16, torch.bfloat16)
        found = {
            name: tensor.float() if tensor.dtype in half else tensor
            for name, tensor in load_weights(path, cure=cure).items()
        }
        size = found["lm_head.bias"].numel() if "lm_head.bias" in found else tokens
        check_tensors(found, self._expected(size), str(path))
        return found

    def _expected(self, tokens: int) -> dict[str, Tensor]:
        """The tensors of an adapter's file, without memory for them."""
        shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (tokens, self.size), "lm_head.bias": (tokens,)}
        for layer in range(self.num_layers):
            for part in ("norm.weight", "norm.bias", "linear_2.bias"):
                shapes[tensor_name(layer, *part.split("."))] = (self.size,)
            shapes[tensor_name(layer, "linear_1", "weight")] = (self.width, self.size)
            shapes[tensor_name(layer, "linear_1", "bias")] = (self.width,)
            shapes[tensor_name(layer, "linear_2", "weight")] = (self.size, self.width)
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def read_mms(folder: Path) -> MMS:
    """What a folder says of its encoder, adapters and vocabularies. Raises PelasrError for what is no MMS model."""
    pretrained = read_pretrained(folder)
    width = read_json(folder / CONFIG, CURE).get("adapter_attn_dim")
    if pretrained.encoder != "wav2vec2" or not pretrained.encoder_conf.get("do_stable_layer_norm"):
        raise PelasrError(f"{folder / CONFIG}: MMS is a wav2vec 2.0 model with do_stable_layer_norm; {CURE}")
    if not is_count(width) or not 0 < width <= LARGEST:
        raise PelasrError(f"{folder / CONFIG}: adapter_attn_dim: {brief(width)}: no width of adapters; {CURE}")
    vocabularies = read_json(folder / VOCAB, CURE)
    if not any(isinstance(each, dict) for each in vocabularies.values()):
        raise PelasrError(f"{folder / VOCAB}: want a vocabulary for each language, by its code; {CURE}")
    path = folder / TOKENIZER
    said = read_json(path, CURE) if path.exists() else {}
    special = {key: name if said.get(key) is None else said[key] for key, name in NAMES.items()}
    names = {key: _content(token, path, key) for key, token in special.items()}
    if len({*names.values()}) < len(names):
        raise PelasrError(f"{path}: two special tokens have one name: {' '.join(names.values())}")
    decoder = said.get("added_tokens_decoder", {})
    added = decoder.items() if isinstance(decoder, dict) else ()
    ids = {int(number): _content(token, path, number) for number, token in added if ID.fullmatch(number)}
    conf = {**default_conf(pretrained.encoder), **pretrained.encoder_conf}
    return MMS(pretrained, conf["num_hidden_layers"], conf["hidden_size"], width, vocabularies, names, ids)


def _content(token: Any, path: Path, key: str) -> str:
    """A token's text, which may be within a description of it."""
    found = token.get("content") if isinstance(token, dict) else token
    if not isinstance(found, str) or not found or any("\ud800" <= character <= "\udfff" for character in found):
        raise PelasrError(f"{path}: {brief(key)}: expected a token, found {brief(token)}; {CURE}")
    return found


def _same_language(word: str, codes: list[str]) -> str | None:
    """The code of the language that another code or a key means."""
    keys = {word, key_of(word)} - {""}
    return next((code for code in codes if key_of(code) in keys), None)


def key_of(code: str) -> str:
    """The key of a language; empty for what is no code of one."""
    try:
        return language_key(code)
    except PelasrError:
        return ""


def tensor_name(layer: int, part: str, kind: str) -> str:
    """Of a tensor in an adapter's file."""
    return f"{PREFIX}encoder.layers.{layer}.adapter_layer.{part}.{kind}"


def _is_off(found: dict[str, Tensor], row: int) -> bool:
    """Whether an output is there for the sake of the numbering alone."""
    return not found["lm_head.weight"][row].any() and float(found["lm_head.bias"][row]) == OFF


def reordered(rows: Tensor, order: Sequence[int | None], missing: float) -> Tensor:
    """Rows in another order; those that there are none of are filled."""
    filled = torch.full_like(rows[0], missing)
    return torch.stack([filled if number is None else rows[number] for number in order])
