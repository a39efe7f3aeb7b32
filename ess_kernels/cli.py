"""The command line: `ess-kernels demo` and `ess-kernels doctor`. Without torch it still starts, and says so."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ess_kernels import _requirements, environment
from ess_kernels._limits import MAX_DEMO_BYTES
from ess_kernels._text_table import short_tolerance, text_table
from ess_kernels._version import __version__

if TYPE_CHECKING:
    from ess_kernels.demo import Report

BACKENDS = ("auto", "reference", "torch", "native", "triton")
DEFAULT_PLOT = Path("ess_demo.png")

HINT = """\
ESS at position i cannot exceed the cap min(n, i, L-i), n being the TSS: the fall at the end of the text is that cap."""


class UserError(Exception):
    """Something that the caller can put right: one line on stderr, exit code 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 from a doctor who finds that nothing can work, 2 for a user's
    error, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return options.run(options)
    except UserError as error:
        print(f"ess-kernels: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe (head, less) has left
        _silence()
        return 0


def _say(text: object) -> None:
    """`print`, flushed at once, so that a closed pipe or a full disk is noticed here."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence()
        raise UserError(f"standard output: {error.strerror or error}") from error


def _silence() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ess-kernels", description="Effective state-size of causal sequence mixers.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

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
    picture = demo.add_mutually_exclusive_group()
    kinds = f"a .png, .pdf or .svg file (default: {DEFAULT_PLOT})"
    picture.add_argument("--plot", metavar="F", type=Path, help=f"where to draw ESS against position: {kinds}")
    picture.add_argument("--no-plot", action="store_true", help="draw nothing")
    demo.add_argument("--backend", choices=BACKENDS, default="auto", help="what computes the ESS (default: auto)")
    demo.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    demo.set_defaults(run=_demo)

    doctor = commands.add_parser("doctor", help="versions, backends, and why each is or is not in use")
    doctor.set_defaults(run=_doctor)
    return parser


def _doctor(options: argparse.Namespace) -> int:
    from ess_kernels.config import show_config

    _say(show_config())
    return 0 if _requirements.problem() is None else 1


def _demo(options: argparse.Namespace) -> int:
    # Everything that can be refused is refused before the work begins.
    if problem := _requirements.problem():
        raise UserError(problem)
    _require("safetensors", "reads the demo's weights")
    drawing = not options.no_plot
    if drawing and options.plot is None and not _installed("matplotlib"):
        print(f"ess-kernels: no picture: {_missing('matplotlib', 'draws it')}", file=sys.stderr)
        drawing = False
    if drawing:
        _require("matplotlib", "draws the picture (--no-plot goes without)")
    plot = _picture(options.plot or DEFAULT_PLOT) if drawing else None
    _check_distinct({"--text-file": options.text_file, "--json": options.json, "--plot": plot})
    for option, path in (("--json", options.json), ("--plot", plot)):
        if path is not None:
            _check_writable(option, path)
    text = _text(options)
    try:
        environment.memory_budget()
    except ValueError as error:
        raise UserError(str(error)) from error

    import torch

    from ess_kernels.demo import measure

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device")
    try:
        report = measure(text, options.backend, options.device)
    except RuntimeError as error:
        if not str(error).startswith("backend "):  # only a backend asked for by name is the user's to change
            raise
        raise UserError(f"--backend {options.backend}: {error}") from error

    # a file that cannot be written must not cost the user the table, nor a closed pipe the files
    try:
        if options.json is not None:
            _write(options.json, (json.dumps(report.to_json()) + "\n").encode())
        if plot is not None:
            _draw(report, plot)
    finally:
        _say(_table(report))
    if options.json is not None:
        _say(f"numbers: {options.json}")
    if plot is not None:
        _say(f"picture: {plot}")
    return 0


def _text(options: argparse.Namespace) -> bytes:
    from ess_kernels.demo import default_text

    if options.text is not None:
        name, text = "--text", os.fsencode(options.text)
    elif options.text_file is None:
        return default_text()
    else:
        name = f"--text-file {options.text_file}"
        try:
            if str(options.text_file) == "-":
                text = sys.stdin.buffer.read(MAX_DEMO_BYTES + 1)
            else:
                with options.text_file.open("rb") as file:
                    text = file.read(MAX_DEMO_BYTES + 1)
        except OSError as error:
            raise UserError(f"{name}: {error.strerror or error}") from error
    if len(text) < 2:
        raise UserError(f"{name}: expected at least 2 bytes of text, got {len(text)}")
    if len(text) > MAX_DEMO_BYTES:
        raise UserError(f"{name}: expected at most {MAX_DEMO_BYTES} bytes of text (attention is L x L), got more")
    return text


def _table(report: Report) -> str:
    from ess_kernels.demo.measure import TOLERANCES

    counts = [f"ESS {short_tolerance(tolerance)}" for tolerance in TOLERANCES]
    head = ["layer", "mixer", "heads", "TSS", "entropy-ESS", *counts, "of cap", "time"]
    rows = [
        [
            str(layer.index),
            layer.title,
            str(layer.heads),
            "i" if layer.state_size is None else str(layer.state_size),
            f"{layer.mean_entropy:.2f}",
            *(f"{mean:.2f}" for mean in layer.mean_tolerance),
            f"{100 * layer.utilisation:.1f} %",
            f"{layer.seconds:.2f} s",
        ]
        for layer in report.layers
    ]
    lines = text_table(head, rows, left=("mixer",))
    used = ", ".join(sorted({name for layer in report.layers for name in layer.backends.values()}))
    first = (
        f"ess-kernels {__version__}: {report.length} bytes of text, {report.bits_per_byte:.2f} bits per byte, "
        f"backend {report.backend}{f' ({used})' if used != report.backend else ''}, {report.device}"
    )
    means = (
        f"Means over the heads and {report.length - 1} positions. ESS 1e-3 is tolerance-ESS, the number of singular\n"
        "values above 0.001; of cap is entropy-ESS as a share of the cap."
    )
    return "\n".join([first, "", *lines, "", means, HINT, f"{report.seconds:.1f} s in all"])


def _draw(report: Report, path: Path) -> None:
    from ess_kernels.analysis.plots import Curves, plot_ess
    from ess_kernels.demo.measure import TOLERANCES

    panels = [
        Curves(
            f"layer {layer.index}: {layer.title}, {layer.heads} heads, "
            + ("state grows with i" if layer.state_size is None else f"state {layer.state_size}"),
            layer.cap,
            layer.entropy_ess,
            layer.tolerance_ess,
        )
        for layer in report.layers
    ]
    title = f"Effective state-size on {report.length} bytes of text: mean over heads, band from min to max"
    figure = plot_ess(panels, TOLERANCES, unit="bytes", title=title)
    try:
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # sys.modules[module] is None: somebody hides it
        return False


def _missing(module: str, purpose: str) -> str:
    return f"{module} {purpose} and is not installed: pip install 'ess-kernels[cli]'"


def _require(module: str, purpose: str) -> None:
    if not _installed(module):
        raise UserError(_missing(module, purpose))


def _check_distinct(files: dict[str, Path | None]) -> None:
    """`UserError` where one file would be written over another; files by the options that name them."""
    named = [(option, path) for option, path in files.items() if path is not None and str(path) != "-"]
    for i, (option, path) in enumerate(named):
        for other, same in named[:i]:
            if _same_file(path, same):
                raise UserError(f"{option} {path}: expected another file than that of {other}")


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:  # one of them does not exist yet
        return os.path.realpath(a) == os.path.realpath(b)


def _check_writable(option: str, path: Path) -> None:
    """`UserError` if the file cannot be written: it is opened for that, and is afterwards as it was."""
    try:
        if path.is_dir():
            raise UserError(f"{option} {path}: is a directory")
        if not path.parent.is_dir():
            raise UserError(f"{option} {path}: there is no directory {path.parent}")
        new = not path.exists()
        if not new and not path.is_file():
            return  # a pipe or a device: to open it may already be to use it
        with path.open("ab"):
            pass
        if new:
            os.unlink(os.path.realpath(path))
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror or error}") from error


def _picture(path: Path) -> Path:
    """The file that matplotlib will write."""
    from matplotlib.backend_bases import FigureCanvasBase

    if not path.suffix:
        return path.with_name(f"{path.name.rstrip('.')}.png") if path.name else path
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise UserError(
            f"--plot {path}: expected a file that ends in {', '.join(f'.{kind}' for kind in sorted(kinds))}"
        )
    return path


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _run() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    _run()
