"""Docstrings of the constructors name every argument, where arguments belong."""

import inspect

import pytest

from ess_kernels import operators

CONSTRUCTORS = [
    name for name in operators.__all__ if name != "as_operator" and inspect.isfunction(getattr(operators, name))
]


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_argument_is_described(name):
    constructor = getattr(operators, name)
    parameters = [
        parameter
        for parameter, about in inspect.signature(constructor).parameters.items()
        if about.kind not in (about.VAR_POSITIONAL, about.VAR_KEYWORD)
    ]
    if not parameters:
        return  # refused by name
    documented = inspect.getdoc(constructor).partition("Args:")[2].partition("\n\n")[0]
    entries = [line.strip().partition(":")[0] for line in documented.splitlines() if ":" in line]
    named = {word.strip() for entry in entries for word in entry.split(",")}
    assert set(parameters) <= named, sorted(set(parameters) - named)
