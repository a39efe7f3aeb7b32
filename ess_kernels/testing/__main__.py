"""`python -m ess_kernels.testing fuzz --minutes N --seed S`: see `ess_kernels.testing.fuzz`."""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if nothing failed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m ess_kernels.testing", description="Tests that go on for ever.")
    fuzzing = parser.add_subparsers(required=True).add_parser(
        "fuzz",
        help="try random hard operators on every backend",
        description="Tries random hard operators on every backend against an oracle with an error bar, and prints how "
        "many counts and entropies were tried, wrong, silent (wrong without a warning), redone and unresolved, and the "
        "smallest failing input as a program. Its last line has the figures in one sentence. Exit status 1 if anything "
        "was silent, refused or raised.",
    )
    fuzzing.add_argument("--minutes", type=float, default=3.0, help="how long (default 3); shrinking comes on top")
    fuzzing.add_argument("--seed", type=int, help="the same seed gives the same operators; default: a fresh one")
    fuzzing.add_argument("--backend", action="append", metavar="NAME", help="may be repeated; default: all usable ones")
    fuzzing.add_argument("--family", action="append", metavar="NAME", help="may be repeated; default: all")
    fuzzing.add_argument("--device", default="cpu", help="where the tensors lie (default cpu)")
    fuzzing.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found there")
    options = parser.parse_args(arguments)
    logger = logging.getLogger("ess_kernels")
    level = logger.level
    # fallbacks and overflows are what is being tried here
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return _fuzz(options)
    finally:
        logger.setLevel(level)


def _fuzz(options: argparse.Namespace) -> int:
    from ..backends import NAMES
    from .fuzz import fuzz
    from .fuzz.case import LAYOUTS

    if unknown := set(options.backend or ()) - set(NAMES):
        sys.exit(f"--backend: expected some of {', '.join(NAMES)}, got {', '.join(sorted(unknown))}")
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    if unknown := set(options.family or ()) - {*LAYOUTS, "recurrence"}:
        sys.exit(f"--family: expected some of {', '.join(LAYOUTS)}, recurrence, got {', '.join(sorted(unknown))}")
    if options.json is not None:
        options.json.touch()  # an unwritable file is found now, not after the run
    print(f"seed {seed}", flush=True)
    report = fuzz(
        60 * options.minutes,
        seed,
        options.backend,
        say=lambda line: print(line, file=sys.stderr, flush=True),
        families=options.family or (),
        device=options.device,
    )
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    if report.kinds:
        print(report.failures(PROGRAMS), end="\n\n")
    print(report.table(), report.line(), sep="\n\n")
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
