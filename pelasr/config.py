"""Configuration: flat YAML in ESPnet's grammar, overridden on the command line, checked against signatures.

There is no schema: a key is known because a function that reads it has an argument of that name, and its default is
that argument's default. `encoder: conformer` chooses a class, `encoder_conf: {...}` holds its arguments.
"""

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any, TypeVar

import yaml

from pelasr.errors import PelasrError, brief, nearest
from pelasr.files import read_bytes

LIMIT = 1 << 20  # bytes of a file
NODES, DEPTH, LONGEST = 50_000, 10, 10_000  # values and nesting of a file, characters of a value
BITS = 2000  # of a whole number
RUNNING = RLock()  # held while a file of a recipe is run, which may ask for another
Kind = TypeVar("Kind")
# YAML 1.1 wants a point in a number with an exponent; people write `1e-3`.
FLOAT = "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789")


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As in YAML, where a key that comes twice is an error; PyYAML takes the last."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                name = self.construct_object(key)
                if name in seen:
                    raise ValueError(f"line {key.start_mark.line + 1}: the key {name!r} comes a second time")
                seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """YAML's `1:59:59` makes long numbers of few characters, which Python then refuses to print."""
        value = super().construct_yaml_int(node)
        if value.bit_length() > BITS:
            raise ValueError(f"line {node.start_mark.line + 1}: a number of too many digits")
        return value


_Loader.add_implicit_resolver(*FLOAT)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text from anywhere.

    Raises ValueError for what is no YAML, and for what no file of ours holds and a hostile one might: keys that come
    twice, anchors, aliases, tags, deep nesting, too many values or too long ones, values that YAML stumbles over.
    """
    try:
        _check_events(text)
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _check_events(text: str) -> None:
    """A look at a text's events, which cost no more than it is long."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if mark := getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise ValueError(f"line {line}: it has anchors, aliases or tags ({mark})")
        if depth > DEPTH or count > NODES or len(getattr(event, "value", "")) > LONGEST:
            raise ValueError(f"line {line}: it has too many values, too long ones, or too deeply nested ones")


def _parse(text: str, where: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise PelasrError(f"{where}: not valid YAML: {brief(error, 300)}") from None


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; raises PelasrError with the file and line of a fault."""
    try:
        text = read_bytes(path, LIMIT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PelasrError(f"{path}: not UTF-8: {error}") from None
    content = _parse(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise PelasrError(f"{path}: expected `key: value` lines, found {type(content).__name__}")
    return content


def override(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A new configuration in which `overrides` win; mappings such as `encoder_conf` are merged, not replaced."""
    merged = dict(config)
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = {**merged[key], **value}
        merged[key] = value
    return merged


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """`--max_epoch 3 --optim_conf lr=0.001` to {"max_epoch": 3, "optim_conf": {"lr": 0.001}}; values are YAML."""
    values: dict[str, list[str]] = {}
    key = None
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            values.setdefault(key, []).extend([value] if equals else [])
        elif key is None:
            raise PelasrError(f"unexpected argument {argument!r}: options are `--key value`")
        else:
            values[key].append(argument)
    return {key: _parse_value(key, given) for key, given in values.items()}


def two_configurations(
    path: Path, adapter: Path | None, arguments: list[str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Of a backbone, and of an adapter if there is one, whose options have the prefix `adapt_` (`adapter_conf` is its
    own)."""
    given, for_adapter = parse_overrides(arguments), given_for_adapter(arguments)
    for_backbone = {key: value for key, value in given.items() if not key.startswith("adapt")}
    if for_adapter and adapter is None:
        raise PelasrError(
            f"--{next(key for key in given if key.startswith('adapt'))}: of which adapter? add --adapter FILE"
        )
    adapted = override(load_yaml(adapter), for_adapter) if adapter is not None else None
    return override(load_yaml(path), for_backbone), adapted


def given_for_adapter(arguments: list[str]) -> dict[str, Any]:
    """Those overrides that are an adapter's."""
    given = parse_overrides(arguments)
    return {key.removeprefix("adapt_"): value for key, value in given.items() if key.startswith("adapt")}


def suggest(arguments: list[str], keys: Iterable[str], others: Iterable[str]) -> None:
    """Raise PelasrError for the first override that is no key, if one of the `others`, options of a recipe that are no
    keys of its configuration, is likest to it."""
    keys, others = list(keys), list(others)
    for name in parse_overrides(arguments):
        alike = difflib.get_close_matches(name, [*keys, *others], n=1)
        if name not in keys and alike and alike[0] in others:
            raise PelasrError(f"unknown key {name!r}; did you mean --{alike[0]}?")


def _parse_value(key: str, given: list[str]) -> Any:
    if not given:
        raise PelasrError(f"--{key}: a value is missing")
    if key.endswith("_conf") and all("=" in value for value in given):
        pairs = (value.split("=", 1) for value in given)
        return {name: _parse(value, f"--{key}") for name, value in pairs}
    if len(given) > 1:
        raise PelasrError(f"--{key}: more than one value ({' '.join(given)})")
    return _parse(given[0], f"--{key}")


def arguments_of(function: Callable) -> dict[str, inspect.Parameter]:
    """Named arguments of a function, or of a class's constructor."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def check_keys(config: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise PelasrError at the first key of `config` that is not `known`."""
    known = list(known)
    for key in config:
        if key not in known:
            raise PelasrError(f"{where}: unknown key {key!r}; {nearest(key, known)}")


def require_keys(config: Iterable[str], required: Iterable[str], where: str) -> None:
    """Raise PelasrError at the first of `required` that is not in `config`."""
    for key in required:
        if key not in config:
            raise PelasrError(f"{where}: the key {key!r} is missing")


VALUES: dict[type, tuple[str, Callable[[Any], bool]]] = {  # by the annotation of an argument: what it takes
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a number", lambda value: type(value) in (int, float) and abs(value) < float("inf")),
    str: ("a word", lambda value: isinstance(value, str)),
}


def find_module(package: str, name: str, what: str, others: Iterable[str] = ()) -> ModuleType:
    """The module of a name that a configuration says: `<package>.<name>`, or in a recipe's folder, where its stages
    run, `local/<last part of the package>/<name>.py`, so that a recipe may have a method, say, of its own.

    `what` it is and the names that the package has for `others` things are for the error, which lists what there is.
    """
    kind = package.rpartition(".")[2]
    own = {path.stem: path for path in Path("local", kind).glob("*.py") if path.stem != "__init__"}
    files = Path(__file__).parent.joinpath(*package.split(".")[1:]).glob("*.py")
    ours = {path.stem for path in files} - {"__init__", *others}
    if name not in [*ours, *own]:  # in a list, for what a file says may be a list itself
        raise PelasrError(f"{what} {brief(name)!r}; {nearest(name, ours | own.keys())}")
    if name in ours:
        return import_module(f"{package}.{name}")
    with RUNNING:
        return _run_file(f"local.{kind}.{name}", own[name].resolve())


def _run_file(name: str, path: Path) -> ModuleType:
    """A file of a recipe as the module of this name, which may have been another recipe's before."""
    if name not in sys.modules or sys.modules[name].__file__ != str(path):
        spec = spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # as of any file of Python
        sys.modules[name] = module = module_from_spec(spec)  # before it is run: a dataclass in it looks for it there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def class_in(module: ModuleType, base: type[Kind]) -> type[Kind]:
    """The class of this kind that a module defines; what it imports is not meant. Raises PelasrError if there is
    none."""
    classes = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, base)]
    found = next((each for each in classes if each.__module__ == module.__name__), None)
    if found is None:
        raise PelasrError(f"{module.__file__}: it has no class of the kind {base.__name__}")
    return found


def construct(cls: Callable, conf: dict[str, Any] | None, where: str, **given: Any) -> Any:
    """Call `cls(**given, **conf)`.

    Raises PelasrError for a key that is no argument of it, with the nearest match, for a value that cannot be that
    argument's, and for whatever the call itself raises.
    """
    conf = {} if conf is None else conf
    if not isinstance(conf, dict):
        raise PelasrError(f"{where}: expected `key: value` lines, found {brief(repr(conf))}")
    known = {name: argument for name, argument in arguments_of(cls).items() if name not in given}
    check_keys(conf, known, where)
    for name, value in conf.items():
        what, is_kind = VALUES.get(known[name].annotation, ("", lambda value: True))
        if not is_kind(value):
            raise PelasrError(f"{where}: {name}: expected {what}, found {brief(repr(value))}")
    try:
        return cls(**given, **conf)
    except PelasrError:
        raise
    except Exception as error:  # a library's own complaint about a value (typeguard raises a class of its own)
        raise PelasrError(f"{where}: {brief(str(error) or type(error).__name__, 300)}") from error
