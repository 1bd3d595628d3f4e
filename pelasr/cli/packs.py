"""The verbs `pelasr packs <verb>` and their options; `pelasr.packs.manage` is what they do."""

import argparse
from pathlib import Path
from typing import Any

from pelasr.cli.arguments import add_verb
from pelasr.errors import PelasrError


def add_packs(verbs: Any) -> None:
    """Add `packs`, with its own verbs, to a parser's."""
    parser = add_verb(verbs, "packs", None, "List, show, verify, merge, export and import packs.")
    verbs = parser.add_subparsers(dest="pack_verb", required=True, metavar="verb")

    sub = add_verb(verbs, "list", _list, "List the packs below folders.")
    sub.add_argument("folders", type=Path, nargs="+", metavar="DIR")

    sub = add_verb(verbs, "show", _show, "Print a pack's description.")
    sub.add_argument("pack", type=Path, metavar="PACK")

    sub = add_verb(verbs, "verify", _verify, "Check packs: hashes, and with --model shapes, backbone and tokens.")
    sub.add_argument("packs", type=Path, nargs="+", metavar="PACK")
    _add_model(sub, required=False)

    sub = add_verb(verbs, "merge", _merge, "Average packs of the same making, or fold one into the backbone's weights.")
    sub.add_argument("packs", type=Path, nargs="+", metavar="PACK")
    sub.add_argument("--weights", type=float, nargs="+", help="one for each pack; default: all alike")
    sub.add_argument("--language", help="the language of the merged pack")
    sub.add_argument("--fold", action="store_true", help="write a backbone that has the pack in its weights")
    sub.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the pack, or of the backbone")
    _add_model(sub)

    sub = add_verb(verbs, "export", _export, "Write a folder for a model hub: the pack and a model card.")
    sub.add_argument("pack", type=Path, metavar="PACK")
    sub.add_argument("output", type=Path, metavar="DIR")

    sub = add_verb(verbs, "import", _import, "Check a pack and copy it to the packs of an experiment.")
    sub.add_argument("pack", type=Path, metavar="DIR")
    _add_model(sub)


def _add_model(sub: argparse.ArgumentParser, required: bool = True) -> None:
    text = "folder of the experiment that the packs are for, such as exp/A5, or of a backbone"
    sub.add_argument("--model", type=Path, required=required, metavar="EXP", help=text)


def _list(known: argparse.Namespace, rest: list[str]) -> None:
    from pelasr.packs.manage import list_packs

    list_packs(known.folders)


def _show(known: argparse.Namespace, rest: list[str]) -> None:
    from pelasr.packs.manage import show_pack

    show_pack(known.pack)


def _verify(known: argparse.Namespace, rest: list[str]) -> None:
    from pelasr.packs.manage import verify_packs

    verify_packs(known.packs, known.model)


def _merge(known: argparse.Namespace, rest: list[str]) -> None:
    from pelasr.packs.manage import fold_pack, merge_packs

    if not known.fold:
        if known.language is None:
            raise PelasrError("merge: --language is missing: what language is the merged pack?")
        merge_packs(known.packs, known.weights, known.language, known.output, known.model)
    elif len(known.packs) > 1 or known.weights or known.language:
        raise PelasrError("merge: --fold takes one pack, and neither --weights nor --language")
    else:
        fold_pack(known.packs[0], known.output, known.model)


def _export(known: argparse.Namespace, rest: list[str]) -> None:
    from pelasr.packs.manage import export_pack
    from pelasr.tasks.base import task_of

    export_pack(known.pack, known.output, task_of)


def _import(known: argparse.Namespace, rest: list[str]) -> None:
    from pelasr.packs.manage import import_pack

    import_pack(known.pack, known.model)
