"""The command line: `ess-kernels demo` and `ess-kernels doctor`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from ess_kernels.demo import Report

BACKENDS = ("auto", "reference", "torch", "native", "triton")
DEFAULT_PLOT = Path("ess_demo.png")

HINT = """\
ESS at position i cannot exceed the cap min(n, i, L-i), n being the TSS: the fall at the end of the text is that cap."""


class UserError(Exception):
    """Something that the caller can put right: one line on stderr, exit code 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for a user's error, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        code = options.run(options)
        sys.stdout.flush()  # so that a pipe's reader who has left shows here, not when the interpreter ends
        return code
    except UserError as error:
        print(f"ess-kernels: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe (head, less) has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    from ess_kernels import __version__

    parser = argparse.ArgumentParser(prog="ess-kernels", description="Effective state-size of causal sequence mixers.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser(
        "demo",
        help="measure a small embedded language model on a text",
        description="Runs an embedded byte-level language model with four mixers (Mamba-2, gated linear attention, "
        "linear attention, softmax attention) on a text and measures every layer, head and position. Needs no network.",
    )
    source = demo.add_mutually_exclusive_group()
    source.add_argument("--text", help="the text to run on (default: a passage in the package)")
    source.add_argument("--text-file", metavar="F", type=Path, help="a file to read the text from; - is standard input")
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
    import ess_kernels

    print(ess_kernels.show_config())
    return 0


def _demo(options: argparse.Namespace) -> int:
    # Everything that can be refused is refused before the work begins.
    _require("safetensors", "reads the demo's weights")
    drawing = not options.no_plot
    if drawing and options.plot is None and not _installed("matplotlib"):
        print(f"ess-kernels: no picture: {_missing('matplotlib', 'draws it')}", file=sys.stderr)
        drawing = False
    if drawing:
        _require("matplotlib", "draws the picture (--no-plot goes without)")
        _check_picture(options.plot or DEFAULT_PLOT)
    plot = (options.plot or DEFAULT_PLOT) if drawing else None
    for path in (options.json, plot):
        if path is not None:
            _check_writable(path)
    text = _text(options)

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

    print(_table(report))
    if options.json is not None:
        _write(options.json, (json.dumps(report.to_json()) + "\n").encode())
        print(f"numbers: {options.json}")
    if plot is not None:
        _draw(report, plot)
        print(f"picture: {plot}")
    return 0


def _text(options: argparse.Namespace) -> bytes:
    from ess_kernels.demo.measure import MAX_BYTES, default_text

    if options.text is not None:
        name, text = "--text", os.fsencode(options.text)
    elif options.text_file is None:
        return default_text()
    else:
        name = f"--text-file {options.text_file}"
        try:
            if str(options.text_file) == "-":
                text = sys.stdin.buffer.read(MAX_BYTES + 1)
            else:
                with options.text_file.open("rb") as file:
                    text = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise UserError(f"{name}: {error.strerror or error}") from error
    if len(text) < 2:
        raise UserError(f"{name}: expected at least 2 bytes of text, got {len(text)}")
    if len(text) > MAX_BYTES:
        raise UserError(f"{name}: expected at most {MAX_BYTES} bytes of text (attention is L x L), got more")
    return text


def _table(report: Report) -> str:
    from ess_kernels import __version__
    from ess_kernels.demo.measure import TOLERANCES

    counts = [f"ESS {_short(tolerance)}" for tolerance in TOLERANCES]
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
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    align = [str.ljust if name == "mixer" else str.rjust for name in head]
    lines = ["  ".join(put(cell, width) for put, cell, width in zip(align, row, widths)) for row in [head, *rows]]
    lines.insert(1, "  ".join("-" * width for width in widths))
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


def _short(tolerance: float) -> str:
    return f"{tolerance:.0e}".replace("e-0", "e-")


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


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path}: is a directory")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{path}: cannot be written")


def _check_picture(path: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in kinds:  # without a suffix matplotlib writes and adds .png
        raise UserError(
            f"--plot {path}: expected a file that ends in {', '.join(f'.{kind}' for kind in sorted(kinds))}"
        )


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _run() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    _run()
