"""An analysis as plain values for JSON (`schema.json` beside this file), and back.

What comes back was read from a file that anybody may have written: whatever does not fit is a `ValueError` that says
where, and nothing in a file is ever run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ess_kernels.analysis.result import Analysis, LayerResult

SCHEMA = "ess-kernels/analysis/1"  # changes when a field changes its meaning or goes away


def to_plain(analysis: Analysis) -> dict[str, Any]:
    """Everything, tensors as nested lists; a number that is not finite becomes None."""
    return {**_head(analysis), "layers": [{**about(layer), **_tensors(layer)} for layer in analysis.layers.values()]}


def without_tensors(analysis: Analysis) -> dict[str, Any]:
    """Everything but the tensors, of which only the shapes and the tolerances stay."""
    layers = []
    for layer in analysis.layers.values():
        measured = {"entropy": layer.entropy is not None, "tolerance": list(layer.tolerance)}
        layers.append({**about(layer), "positions": layer.positions.tolist(), "measured": measured})
    return {**_head(analysis), "layers": layers}


def _head(analysis: Analysis) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "versions": dict(analysis.versions),
        "model": analysis.model,
        "tolerances": list(analysis.tolerances),
        "tokens": analysis.tokens,
        "notes": list(analysis.notes),
        "skipped": dict(analysis.skipped),
        "seconds": number(analysis.seconds),
    }


def about(layer: LayerResult) -> dict[str, Any]:
    """What is known of a layer beside its tensors."""
    return {
        "name": layer.name,
        "mixer": layer.mixer,
        "route": layer.route,
        "state_size": layer.state_size,
        "length": layer.length,
        "batch": layer.cap.shape[0],
        "heads": _heads(layer),
        "unresolved": number(layer.unresolved),
        "capture_error": number(layer.capture_error),
        "check": layer.check,
        "dtype": layer.dtype,
        "backends": dict(layer.backends),
        "seconds": number(layer.seconds),
        "certificates": [
            {
                "atol": atol,
                "width": [[number(width) for width in row] for row in widths.tolist()],
                "unresolved": layer.unresolved_positions[atol].tolist(),
            }
            for atol, widths in layer.widths.items()
        ],
    }


def _heads(layer: LayerResult) -> int:
    measured = [layer.entropy] if layer.entropy is not None else list(layer.tolerance.values())
    return measured[0].shape[1] if measured else 0


def _tensors(layer: LayerResult) -> dict[str, Any]:
    entropy = layer.entropy
    return {
        "positions": layer.positions.tolist(),
        "cap": layer.cap.tolist(),
        "valid": layer.valid.tolist(),
        "entropy": None
        if entropy is None
        else [[[number(x) for x in head] for head in row] for row in entropy.tolist()],
        "tolerance": [{"atol": atol, "counts": counts.tolist()} for atol, counts in layer.tolerance.items()],
    }


def number(x: float) -> float | None:
    """None in place of what JSON has no word for."""
    return x if math.isfinite(x) else None


def from_plain(plain: Any, source: str) -> Analysis:
    """The analysis that `to_plain` made `plain` of.

    Args:
        source: the file, for messages.

    Raises:
        ValueError: something else than an analysis.
    """
    return build(plain, source, _layer)


def build(plain: Any, source: str, make_layer: Any) -> Analysis:
    """An analysis from plain values, its layers made by `make_layer(plain_layer)` in their order."""
    from ess_kernels.analysis.result import Analysis

    if not isinstance(plain, Mapping) or plain.get("schema") != SCHEMA:
        found = plain.get("schema") if isinstance(plain, Mapping) else type(plain).__name__
        raise ValueError(f"{source}: expected a file of Analysis.save with schema {SCHEMA!r}, got {found!r}")
    try:
        layers = [make_layer(layer) for layer in plain["layers"]]
        tokens = plain["tokens"]
        return Analysis(
            layers={layer.name: layer for layer in layers},
            skipped={str(name): str(reason) for name, reason in plain["skipped"].items()},
            model=str(plain["model"]),
            tolerances=tuple(map(float, plain["tolerances"])),
            tokens=None if tokens is None else [[str(token) for token in row] for row in tokens],
            notes=tuple(map(str, plain["notes"])),
            versions={str(name): str(version) for name, version in plain["versions"].items()},
            seconds=float_of(plain["seconds"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{source}: not a whole analysis: {type(error).__name__}: {error}") from error


def _layer(plain: Mapping[str, Any]) -> LayerResult:
    batch, heads = int(plain["batch"]), int(plain["heads"])
    positions = integers(plain["positions"]).reshape(-1)
    shape = (batch, heads, len(positions))
    entropy = plain["entropy"]
    if entropy is not None:
        rows = [[[float_of(x) for x in head] for head in row] for row in entropy]
        entropy = torch.tensor(rows, dtype=torch.float64).reshape(shape)
    return make_layer(
        plain,
        positions=positions,
        cap=integers(plain["cap"]).reshape(batch, len(positions)),
        valid=torch.tensor(plain["valid"], dtype=torch.bool).reshape(batch, len(positions)),
        entropy=entropy,
        tolerance={float(each["atol"]): integers(each["counts"]).reshape(shape) for each in plain["tolerance"]},
    )


def make_layer(
    plain: Mapping[str, Any],
    *,
    positions: Tensor,
    cap: Tensor,
    valid: Tensor,
    entropy: Tensor | None,
    tolerance: Mapping[float, Tensor],
) -> LayerResult:
    """A layer from what `about` said of it and its tensors."""
    from ess_kernels.analysis.result import LayerResult

    batch, heads = int(plain["batch"]), int(plain["heads"])
    certificates = {float(each["atol"]): each for each in plain.get("certificates", ())}  # older files have none
    return LayerResult(
        name=str(plain["name"]),
        mixer=str(plain["mixer"]),
        route=str(plain["route"]),
        state_size=None if plain["state_size"] is None else int(plain["state_size"]),
        length=int(plain["length"]),
        positions=positions,
        cap=cap,
        valid=valid,
        entropy=entropy,
        tolerance=tolerance,
        unresolved=float_of(plain["unresolved"]),
        capture_error=float_of(plain["capture_error"]),
        check=str(plain["check"]),
        dtype=str(plain["dtype"]),
        backends={str(metric): str(backend) for metric, backend in plain["backends"].items()},
        seconds=float_of(plain["seconds"]),
        widths={
            atol: torch.tensor([[float_of(x) for x in row] for row in each["width"]], dtype=torch.float64).reshape(
                batch, heads
            )
            for atol, each in certificates.items()
        },
        unresolved_positions={
            atol: integers(each["unresolved"]).reshape(batch, heads) for atol, each in certificates.items()
        },
    )


def integers(nested: Any) -> Tensor:
    return torch.tensor(nested, dtype=torch.int64)


def float_of(x: Any) -> float:
    """NaN for None."""
    return math.nan if x is None else float(x)
