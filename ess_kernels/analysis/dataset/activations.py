"""Activations in a safetensors file: the arguments of operators' constructors, `layer/argument`, without a model.

The file's metadata say for each layer which constructor of `ess_kernels.operators` takes them, `{layer: constructor}`;
arguments that are no tensors are there too, as JSON: `{"layer/normalize": "true"}`. A file has one batch.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ess_kernels import operators
from ess_kernels.analysis.measure import fields_of, measure
from ess_kernels.analysis.result import LayerResult
from ess_kernels.analysis.selection import is_selected
from ess_kernels.operators.structure import Operator

from . import optional
from .prompts import is_of_the_machine, one_line
from .settings import Settings

# functions that take no tensors of a mixer: operators, or a function
NO_CONSTRUCTORS = frozenset({"as_operator", "sum_of", "tiles"})
ID = "id"  # a name in the metadata that is no layer's


@dataclass(frozen=True)
class Layer:
    """A layer of a file: what was found, or what is wrong with it."""

    name: str
    result: LayerResult | None
    problem: str | None


def constructors() -> dict[str, Callable[..., Operator]]:
    """The functions whose arguments can be read from a file, by name."""
    named = {name: getattr(operators, name) for name in operators.__all__ if name not in NO_CONSTRUCTORS}
    return {name: function for name, function in named.items() if not inspect.isclass(function)}


def read(path: Path, settings: Settings) -> tuple[str, Iterator[Layer]]:
    """The file's id, its name unless the metadata have one, and its layers in the order of their names.

    Memory is that of one layer.

    Raises:
        OSError, safetensors.SafetensorError: the file cannot be read, at once or on the way.
    """
    with optional.safe_open()(path, framework="pt") as file:
        notes = file.metadata() or {}
    return notes.get(ID, path.stem), _layers(path, notes, settings)


def _layers(path: Path, notes: Mapping[str, str], settings: Settings) -> Iterator[Layer]:
    with optional.safe_open()(path, framework="pt") as file:
        arguments: dict[str, dict[str, str]] = {name: {} for name in notes if name != ID and "/" not in name}
        for key in file.keys():  # noqa: SIM118 - it is no mapping
            layer, _, argument = key.rpartition("/")
            arguments.setdefault(layer, {})[argument] = key
        for layer in sorted(arguments):
            if not is_selected(layer, None if settings.layers is None else list(settings.layers)):
                continue
            tensors = {name: file.get_tensor(key) for name, key in arguments[layer].items()}
            try:
                result, problem = _measured(layer, tensors, notes, settings), None
            except Exception as error:  # whatever a constructor says of its arguments
                result, problem = None, str(error) if isinstance(error, _Problem) else one_line(error)
                if not isinstance(error, _Problem) and is_of_the_machine(problem):  # no part may depend on that
                    raise
            yield Layer(layer, result, problem)


class _Problem(ValueError):
    """Why a layer has no operator, in words of this file's own."""


def _measured(layer: str, tensors: dict[str, Any], notes: Mapping[str, str], settings: Settings) -> LayerResult:
    kind = notes.get(layer)
    if not layer or "" in tensors:
        raise _Problem(f"expected tensors called layer/argument, got {', '.join(sorted(tensors))!r}")
    if kind is None:
        raise _Problem(f"the file's metadata do not say which constructor takes it: expected {layer!r} there")
    known = constructors()
    if kind not in known:
        raise _Problem(f"expected a constructor of ess_kernels.operators, got {kind!r}")
    options = {
        name.removeprefix(f"{layer}/"): _option(name, text)
        for name, text in notes.items()
        if name.rpartition("/")[0] == layer and "/" in name
    }
    if both := tensors.keys() & options.keys():
        raise _Problem(f"{sorted(both)[0]} is given twice: as a tensor, and in the metadata")
    parameters = inspect.signature(known[kind]).parameters
    for name in (*tensors, *options):
        if name not in parameters:
            raise _Problem(f"{kind} takes no argument {name!r}; it takes {', '.join(parameters)}")
    op = known[kind](**tensors, **options)
    if op.length < 2 or op.num_heads == 0:
        raise _Problem(f"expected at least 2 tokens and a head, got {op.length} and {op.num_heads}")
    positions = places(settings.positions, op.length)
    found = measure(op, atol=settings.atol, positions=positions, metrics=settings.metrics, backend=settings.backend)
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    return LayerResult(
        name=layer,
        mixer=kind,
        route="file",
        state_size=op.state_size,
        length=op.length,
        capture_error=math.nan,
        check="not captured",
        dtype=dtype,
        **fields_of(found),
    )


def places(positions: tuple[int, ...] | None, length: int) -> list[int] | None:
    """The positions asked for that a sequence of this length has; None: all."""
    return None if positions is None else [i for i in positions if i < length]


def _option(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Problem(f"expected JSON in the metadata's {name!r}, got {text[:80]!r}") from error
