"""The command line: `ess-kernels demo`, `analyze` and `doctor`. Without torch it still starts, and says so."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from ess_kernels._limits import MAX_DEMO_BYTES
from ess_kernels._printable import printable
from ess_kernels._version import __version__
from ess_kernels.commands import analyze as analyze_command
from ess_kernels.commands import dataset as dataset_command
from ess_kernels.commands import demo as demo_command
from ess_kernels.commands import doctor as doctor_command
from ess_kernels.commands.errors import UserError
from ess_kernels.commands.terminal import note, silence

_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"

BACKENDS = ("auto", "reference", "torch", "native", "triton")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 from a doctor who finds that nothing can work, 2 for a user's
    error, 3 where shards of a data set have no result, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return options.run(options)
    except UserError as error:
        note(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _forget_interrupt()
        return 130
    except BrokenPipeError:  # the reader of a pipe (head, less) has left
        silence()
        return 0


def _forget_interrupt() -> None:
    """Makes Python end with the code that it is given. Where Ctrl-C falls into a string that `exec` runs, as it can
    while dataclasses are made, Python notes an unhandled interrupt although it was caught, and at its end kills itself
    by SIGINT instead. Only the next string that `exec` runs takes the note away."""
    exec("")


class _Parser(argparse.ArgumentParser):
    """As argparse has it, with the control characters of what was typed made visible in its errors."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ess-kernels", description="Effective state-size of causal sequence mixers.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    _add_demo(commands)
    _add_analyze(commands)
    doctor = commands.add_parser("doctor", help="versions, backends, and why each is or is not in use")
    doctor.set_defaults(run=doctor_command.run)
    return parser


def _add_demo(commands: _Commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="measure a small embedded language model on a text",
        description="Runs an embedded byte-level language model with four mixers (Mamba-2, gated linear attention, "
        "linear attention, softmax attention) on a text and measures every layer, head and position. Needs no network. "
        f"A text has 2 to {MAX_DEMO_BYTES} bytes.",
    )
    source = demo.add_mutually_exclusive_group()
    limit = f"at most {MAX_DEMO_BYTES} bytes"
    source.add_argument("--text", help=f"the text to run on, {limit} (default: a passage in the package)")
    source.add_argument(
        "--text-file", metavar="F", type=Path, help=f"a file to read the text from, {limit}; - is standard input"
    )
    schema = "ess_kernels/demo/schema.json"
    demo.add_argument("--json", metavar="F", type=Path, help=f"write everything measured (schema: {schema})")
    demo.add_argument("--html", metavar="F.html", type=Path, help="write a report with an explorer, in one file")
    picture = demo.add_mutually_exclusive_group()
    kinds = f"a .png, .pdf or .svg file (default: {demo_command.DEFAULT_PLOT})"
    picture.add_argument("--plot", metavar="F", type=Path, help=f"where to draw ESS against position: {kinds}")
    picture.add_argument("--no-plot", action="store_true", help="draw nothing")
    demo.add_argument("--backend", choices=BACKENDS, default="auto", help="what computes the ESS (default: auto)")
    demo.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    demo.set_defaults(run=demo_command.run)


def _add_analyze(commands: _Commands) -> None:
    analyze = commands.add_parser(
        "analyze",
        help="measure a checkpoint of transformers on a text",
        description="Loads a causal language model from safetensors files, runs it once on a text, and measures every "
        "mixer at every position. Runs no code of the checkpoint and opens no connection, unless asked to. With "
        "--inputs it runs on many prompts, and goes on where an earlier run was ended.",
    )
    analyze.add_argument(
        "checkpoint",
        metavar="PATH_OR_NAME",
        nargs="?",
        help="a folder, or a name in the Hugging Face cache; with --inputs also demo, the embedded model",
    )
    source = analyze.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", metavar="T", help="the text to run on")
    source.add_argument("--text-file", metavar="F", type=Path, help="a file to read the text from; - is standard input")
    source.add_argument("--tokens-file", metavar="F", type=Path, help="the tokens' numbers, as a JSON list")
    source.add_argument(
        "--inputs",
        metavar="FILES",
        nargs="+",
        help="many prompts: .parquet files, * for anything; or activations, .safetensors files, without a checkpoint",
    )
    analyze.add_argument("--max-length", metavar="N", type=int, help="take the first N tokens only")
    analyze.add_argument("--delimiter", metavar="D", help="mark this text in pictures, and say how far ESS falls there")

    what = analyze.add_argument_group("what is measured")
    what.add_argument(
        "--atol", metavar="A", type=float, nargs="+", default=[1e-1, 1e-3, 1e-5], help="tolerances (1e-1 1e-3 1e-5)"
    )
    kinds = ("entropy", "tolerance")
    what.add_argument(
        "--metrics", metavar="M", choices=kinds, nargs="+", default=kinds, help=f"{' or '.join(kinds)}; both"
    )
    what.add_argument("--positions", metavar="I", type=int, nargs="+", help="positions, 1 to L - 1 (all)")
    what.add_argument("--layers", metavar="GLOB", nargs="+", help="names of modules, * for anything (all)")
    what.add_argument("--dry-run", action="store_true", help="say what would be measured, and how long it would take")

    files = analyze.add_argument_group("files to write")
    files.add_argument("--html", metavar="F.html", type=Path, help="a report in one file")
    files.add_argument("--json", metavar="F.json", type=Path, help="everything measured")
    files.add_argument("--parquet", metavar="F.parquet", type=Path, help="the same, for data frames")
    files.add_argument("--plot", metavar="F", type=Path, help="a picture, layers by positions: .png, .pdf or .svg")

    loading = analyze.add_argument_group("how the model is loaded")
    loading.add_argument("--dtype", choices=("float32", "bfloat16", "auto"), default="auto", help="default: as stored")
    loading.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    loading.add_argument("--attention", choices=("sdpa", "eager"), help="default: what transformers chooses")
    loading.add_argument("--download", action="store_true", help="fetch what is missing from the Hugging Face hub")
    loading.add_argument(
        "--trust-remote-code", action="store_true", help="run the checkpoint's own code: it can do whatever you can"
    )
    _add_dataset(analyze)
    analyze.set_defaults(run=_run_analyze)


def _add_dataset(analyze: _Parser) -> None:
    many = analyze.add_argument_group("many prompts, with --inputs")
    many.add_argument("--out", metavar="RUN", type=Path, help="the directory for results; the same one goes on with it")
    many.add_argument("--id-column", metavar="C", help="the column of ids (id)")
    many.add_argument("--text-column", metavar="C", help="the column of texts, or of lists of tokens' numbers (text)")
    many.add_argument("--max-tokens", metavar="N", type=int, help="prompts with more tokens are left out (2048)")
    many.add_argument("--workers", metavar="N", type=int, help="how many processes (this one alone), or Ray actors (1)")
    many.add_argument("--engine", choices=("local", "ray"), help="ray: processes of a Ray cluster (local)")
    many.add_argument("--restart", action="store_true", default=None, help="delete what is in RUN, and begin anew")


def _run_analyze(options: argparse.Namespace) -> int:
    if options.inputs is not None:
        return dataset_command.run(options)
    dataset_command.check_unused(options)
    return analyze_command.run(options)


def _run() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    _run()
