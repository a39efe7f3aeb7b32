"""`ess-kernels demo`: a small embedded language model, measured on a text."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ess_kernels import _requirements, environment
from ess_kernels._limits import MAX_DEMO_BYTES
from ess_kernels._printable import printable
from ess_kernels._text_table import short_tolerance, text_table
from ess_kernels._version import __version__
from ess_kernels.commands.errors import UserError
from ess_kernels.commands.extras import installed, missing, require
from ess_kernels.commands.files import check_distinct, check_writable, picture, write
from ess_kernels.commands.terminal import note, say
from ess_kernels.commands.texts import given_text

if TYPE_CHECKING:
    from ess_kernels.demo import Report

DEFAULT_PLOT = Path("ess_demo.png")

HINT = """\
ESS at position i cannot exceed the cap min(n, i, L-i), n being the TSS: the fall at the end of the text is that cap."""


def run(options: argparse.Namespace) -> int:
    # Everything that can be refused is refused before the work begins.
    if problem := _requirements.problem():
        raise UserError(problem)
    require("safetensors", "reads the demo's weights")
    drawing = not options.no_plot
    if drawing and options.plot is None and not installed("matplotlib"):
        note(f"no picture: {missing('matplotlib', 'draws it')}")
        drawing = False
    if drawing:
        require("matplotlib", "draws the picture (--no-plot goes without)")
    plot = picture(options.plot or DEFAULT_PLOT) if drawing else None
    files = {"--json": options.json, "--html": options.html, "--plot": plot}
    check_distinct({"--text-file": options.text_file, **files})
    for option, path in files.items():
        if path is not None:
            check_writable(option, path)
    text = _text(options)
    try:
        environment.default_memory_budget()
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
            write(options.json, lambda path: path.write_text(json.dumps(report.to_json()) + "\n"))
        if options.html is not None:
            _write_report(report, options.html)
        if plot is not None:
            _draw(report, plot)
    finally:
        say(_table(report))
    if options.json is not None:
        say(f"numbers: {printable(options.json)}")
    if options.html is not None:
        say(f"report: {printable(options.html)}")
    if plot is not None:
        say(f"picture: {printable(plot)}")
    return 0


def _text(options: argparse.Namespace) -> bytes:
    from ess_kernels.demo import default_text

    if options.text is None and options.text_file is None:
        return default_text()
    name, text = given_text(options.text, options.text_file, MAX_DEMO_BYTES + 1)
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


def _write_report(report: Report, path: Path) -> None:
    from ess_kernels.analysis.html import write_report

    title = "Effective state-size of the demo's four mixers"
    write(path, lambda temporary: write_report(report.analysis(), temporary, title=title))


def _draw(report: Report, path: Path) -> None:
    from ess_kernels.analysis.plots import plot_overview
    from ess_kernels.demo.measure import TOLERANCES

    title = f"Effective state-size on {report.length} bytes of text: mean over heads, band from min to max"
    figure = plot_overview(report.analysis(), metric=TOLERANCES[1], title=title)
    write(path, figure.savefig)
