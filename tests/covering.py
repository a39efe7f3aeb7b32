"""A choice from a product of parameters: every value of every parameter, without every combination of them.

    @covering(name=OPERATORS, length=LENGTHS, each=2)
    def test_counts(name, length): ...

Two dozen operators, sixteen lengths and two backends are 768 tests, and nearly all of them repeat what others showed.
The chosen ones are default tests. The rest of the product is marked `slow`: it can be run, and `.ci/run` takes a share.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def chosen(sizes: Sequence[int], each: int) -> set[tuple[int, ...]]:
    """The combinations that run by default, as indices into axes of these sizes.

    Every value of the longest axis comes with `each` combinations of the other axes' values. These take turns, so that
    none comes more often than others, and neighbours on the longest axis, which are often akin, have different ones.
    """
    if 0 in sizes:
        return set()
    longest = max(range(len(sizes)), key=lambda axis: sizes[axis])
    others = [size for axis, size in enumerate(sizes) if axis != longest]
    # first a few that have every value among them, for there may be more combinations than turns
    first = [tuple(i % size for size in others) for i in range(max(others, default=1))]
    combinations = list(dict.fromkeys([*first, *itertools.product(*map(range, others))]))
    count, each = len(combinations), min(each, len(combinations))
    found = set()
    for turn in range(each * sizes[longest]):
        # one further in every round: what alternates on the longest axis as well would always meet the same otherwise
        other = combinations[(turn + turn // count) % count]
        found.add((*other[:longest], turn // each, *other[longest:]))
    return found


def covering(each: int = 1, indirect: Sequence[str] = (), **parameters: Iterable[Any]) -> pytest.MarkDecorator:
    """`pytest.mark.parametrize` over the whole product, of which all but the chosen combinations are `slow`.

    Args:
        each: how many combinations of the other parameters every value of the longest one comes with.
        indirect: the parameters that are fixtures.
        parameters: the values of each; a dictionary has the words for them in the names of tests as its keys.
    """
    axes = [values if isinstance(values, dict) else {str(v): v for v in values} for values in parameters.values()]
    default = chosen([len(axis) for axis in axes], each)
    rows = []
    for combination in itertools.product(*(range(len(axis)) for axis in axes)):
        words, values = zip(*(list(axis.items())[index] for axis, index in zip(axes, combination)))
        marks = () if combination in default else (pytest.mark.slow,)
        rows.append(pytest.param(*values, id="-".join(words), marks=marks))
    return pytest.mark.parametrize(tuple(parameters), rows, indirect=list(indirect))
