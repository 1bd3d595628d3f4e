"""The verbs `pelasr import` and `pelasr export`: models of other toolkits; `pelasr.importers` is what they do."""

import argparse
from pathlib import Path
from typing import Any

from pelasr.cli.arguments import add_verb
from pelasr.errors import PelasrError
from pelasr.terminal import split_words

ALL = "all"


def add_exchange(verbs: Any) -> None:
    """Add both verbs, with a verb of their own for each kind of model, to a parser's."""
    parser = add_verb(verbs, "import", None, "Make an experiment of another toolkit's model.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="kind")
    sub = add_verb(kinds, "mms", _import_mms, "MMS, of transformers: a backbone, and a pack for each language.")
    sub.add_argument("folder", type=Path, metavar="DIR", help="folder of the model")
    sub.add_argument("--langs", required=True, help="by the model's codes or by keys, such as hin or hi; or all")
    sub.add_argument("exp", type=Path, metavar="EXP", help="experiment to make, or to add the languages to")

    parser = add_verb(verbs, "export", None, "Write an experiment as another toolkit reads it.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="kind")
    sub = add_verb(kinds, "mms", _export_mms, "MMS, for transformers: a model, and an adapter for each language.")
    sub.add_argument("exp", type=Path, metavar="EXP", help="experiment with packs")
    sub.add_argument("--langs", default=ALL, help="languages, by keys; default: all that have packs")
    sub.add_argument("folder", type=Path, metavar="DIR", help="folder to write")


def _import_mms(known: argparse.Namespace, rest: list[str]) -> None:
    from pelasr.importers.mms import import_mms

    import_mms(known.folder, _languages(known.langs), known.exp)


def _export_mms(known: argparse.Namespace, rest: list[str]) -> None:
    from pelasr.importers.to_mms import export_mms

    export_mms(known.exp, _languages(known.langs), known.folder)


def _languages(words: str) -> list[str] | None:
    """Those of `--langs`; None for all."""
    found = split_words("--langs", words)
    if not found:
        raise PelasrError("--langs: names no language; name some, or all")
    return None if found == [ALL] else found
