"""The report's text: tables and data put into the templates beside this file, everything escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from ess_kernels._text_table import short_tolerance

from ..result import Analysis, LayerResult
from ..summary import flag_legend, flags_of
from ..table import metrics_of as metrics_of_layer
from ..values import find_metric, layer_means, metric_label, metrics_of
from .payload import MOST_NUMBERS, payload_of, rounded


def report_html(
    analysis: Analysis,
    *,
    delimiter: str | None = None,
    title: str | None = None,
    most_numbers: int = MOST_NUMBERS,
) -> str:
    """An analysis as one HTML page with everything in it: style, script and data.

    The page opens no connection, and its Content-Security-Policy forbids all; it runs no script but its own. Names,
    tokens, notes and reasons are shown as text, whatever they hold.

    Args:
        analysis: what `analyze` returned.
        delimiter: marks the positions that have just read this text, where the analysis has tokens.
        title: of the page; None: "Effective state-size of" the model.
        most_numbers: so many numbers go into the explorer, of four significant digits. Beyond that heads are reduced
            to mean, smallest and largest, then positions are thinned, and then rows of the batch left out; the page
            says so. The tables are of all numbers.

    Returns:
        The page.
    """
    payload = payload_of(analysis, delimiter, most_numbers)
    style, script = _template("report.css"), _template("report.js")
    parts = {
        "policy": f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
        "title": escape(title or f"Effective state-size of {analysis.model}"),
        "style": style,
        "script": script,
        "facts": _facts(analysis, delimiter),
        "layers": _layer_table(analysis),
        "skipped": _skipped(analysis),
        "notes": _notes(analysis, payload.thinned),
        "data": _json(payload.data),
    }
    # one pass: what was put in is not looked at again
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _template("report.html"))


def write_report(
    analysis: Analysis, path: str | os.PathLike[str], *, delimiter: str | None = None, title: str | None = None
) -> None:
    """Write `report_html` to a file, UTF-8.

    Raises:
        OSError: the file cannot be written.
    """
    page = report_html(analysis, delimiter=delimiter, title=title)
    Path(path).write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def _template(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The name of an inline style or script in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(data: Any) -> str:
    """JSON that no text in it can end, in a script element or in a line of JavaScript."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII: U+2028 and U+2029 are escaped as well
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _facts(analysis: Analysis, delimiter: str | None) -> str:
    layers = list(analysis.layers.values())
    lengths = sorted({layer.length for layer in layers})
    rows = sorted({layer.cap.shape[0] for layer in layers})
    counts = sorted({len(layer.positions) for layer in layers})
    facts = {
        "Model": analysis.model,
        "Measured": ", ".join(metric_label(metric) for metric in metrics_of(analysis)) or "nothing",
        "Layers": f"{len(layers)} measured, {len(analysis.skipped)} skipped",
        "Rows": f"{_numbers(rows)} of {_numbers(lengths)} tokens; positions measured: {_numbers(counts)}",
        "Positions": "position i is the boundary: H_i = T[i:, :i], from the tokens before i to the outputs from i on",
        "Cap": "min(TSS, i, L - i): no ESS can be larger. The fall at the end of a text is that cap.",
        "Tolerances": ", ".join(map(short_tolerance, analysis.tolerances)) or "none",
        "Versions": ", ".join(f"{name} {version}" for name, version in analysis.versions.items()),
        "Time": f"{analysis.seconds:.3g} s in all, {sum(layer.seconds for layer in layers):.3g} s of it metrics",
    }
    if delimiter is not None:
        facts["Delimiter"] = repr(delimiter)
    return "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())


def _numbers(values: list[int]) -> str:
    return " or ".join(map(str, values)) or "no"


def _layer_table(analysis: Analysis) -> str:
    metrics = metrics_of(analysis)
    head = ["layer", "mixer", "heads", "TSS", *map(metric_label, metrics)]
    head += ["flags", "capture error", "check", "route", "dtype"]
    rows = [_row(head)]
    for number, layer in enumerate(analysis.layers.values()):
        measured = metrics_of_layer(layer)
        cells = [
            layer.mixer,
            str(measured[0].ess.shape[1]) if measured else "",
            "i" if layer.state_size is None else str(layer.state_size),
            *(_mean_and_share(layer, metric) for metric in metrics),
            ", ".join(flags_of(layer)),
            f"{layer.capture_error:.0e}" if math.isfinite(layer.capture_error) else "-",
            layer.check,
            layer.route,
            layer.dtype,
        ]
        button = f'<th scope="row"><button type="button" data-layer="{number}">{escape(layer.name)}</button></th>'
        rows.append(f"<tr>{button}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return f"<thead>{rows[0]}</thead>\n<tbody>\n" + "\n".join(rows[1:]) + "\n</tbody>"


def _mean_and_share(layer: LayerResult, metric: str | float) -> str:
    if find_metric(layer, metric) is None:
        return "-"
    value, share = (rounded(x) for x in layer_means(layer, metric))
    if value is None:
        return "bad data"
    return f"{value:g}" if share is None else f"{value:g} ({100 * share:.0f} %)"


def _row(names: Sequence[str]) -> str:
    return "<tr>" + "".join(f'<th scope="col">{escape(name)}</th>' for name in names) + "</tr>"


def _skipped(analysis: Analysis) -> str:
    if not analysis.skipped:
        return "<p>None: every module that mixes over time was measured.</p>"
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(reason)}</td></tr>'
        for name, reason in analysis.skipped.items()
    )
    return f'<div class="wide"><table class="reasons"><thead>{_row(["module", "reason"])}</thead>\n{rows}</table></div>'


def _notes(analysis: Analysis, thinned: list[str]) -> str:
    notes = [
        *analysis.notes,
        *thinned,
        "The table has means over valid positions, heads and rows of the batch, and in brackets the mean share of the "
        "cap. Bad data are never averaged there; in the explorer, heads with bad data are left out.",
        *flag_legend(analysis),
        "Check: “independent” rebuilt what the mixer passed on from other tensors than those that it multiplied; "
        "“attribution only” read T from the model's own softmax output: a small capture error then proves which layer "
        "T belongs to, and no formula.",
    ]
    return "\n".join(f"<li>{escape(note)}</li>" for note in notes)
