"""The command line: `pelasr <verb>`. A verb's imports are its own, so that help is instant."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from pelasr.cli.exchange import add_exchange
from pelasr.cli.packs import add_packs
from pelasr.cli.settings import add_settings
from pelasr.cli.stages import add_stages
from pelasr.cli.transcribe import add_speech
from pelasr.terminal import at_terminal, with_underscores
from pelasr.version import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb; a PelasrError is printed without a traceback, exit code 1."""
    given = with_underscores(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    known, rest = parser.parse_known_args(given)
    if rest and not known.overridable:
        parser.error(f"unknown option {rest[0]!r} of `pelasr {known.verb}`; see `pelasr {known.verb} --help`")
    with at_terminal(resumes="exp_dir" in known), _recorded(known, given) as run:
        if known.run(known, rest):
            run["outcome"] = "done"


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their options. `run` is what a verb does: it takes what was parsed and what was not, and a stage
    returns whether it had anything to do; `overridable`: what was not parsed are keys of the configuration."""
    parser = argparse.ArgumentParser(
        prog="pelasr", description="Multilingual speech recognition and translation with adapters."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for add in (add_stages, add_settings, add_speech, add_packs, add_exchange):
        add(verbs)
    return parser


def _recorded(known: argparse.Namespace, given: Sequence[str]) -> AbstractContextManager[dict[str, str]]:
    """Record the run where results pages look for it, if it is that of a stage."""
    if "exp_dir" not in known or known.verb in ("table", "methods"):
        return nullcontext({})
    from pelasr.score.environment import recorded

    return recorded(known.exp_dir / "times.jsonl", known.verb, given)
