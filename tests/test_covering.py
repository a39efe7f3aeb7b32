"""The choice from a product of parameters has every value, and as many combinations as there are turns for."""

import itertools

import pytest
from covering import chosen, covering


@pytest.mark.parametrize("sizes", [(5,), (7, 2), (2, 7), (3, 3, 3), (9, 2, 2, 2), (4, 3, 4), (8, 3, 2)])
@pytest.mark.parametrize("each", [1, 2, 3, 100])
def test_every_value_comes(sizes, each):
    found = chosen(sizes, each)
    for axis, size in enumerate(sizes):
        assert {combination[axis] for combination in found} == set(range(size))
    longest = sizes.index(max(sizes))
    others = {(*c[:longest], *c[longest + 1 :]) for c in found}
    count = len(list(itertools.product(*map(range, sizes)))) // max(sizes)
    assert len(found) == max(sizes) * min(each, count)
    # all but a few, for rounds are not aligned with turns
    assert len(others) >= min(count, len(found) - len(found) // count)


def test_what_alternates_meets_both():
    """Even and odd values of the longest axis come with either value of the other one."""
    assert {(index % 2, other) for index, other in chosen((8, 2), 1)} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_nothing_of_nothing():
    assert chosen((3, 0), 2) == set()


def test_the_rest_is_slow():
    rows = covering(name=["a", "b", "c"], order={"after": False, "before": True}).args[1]
    assert [(row.id, row.values, len(row.marks)) for row in rows] == [
        ("a-after", ("a", False), 0),
        ("a-before", ("a", True), 1),
        ("b-after", ("b", False), 1),
        ("b-before", ("b", True), 0),
        ("c-after", ("c", False), 1),
        ("c-before", ("c", True), 0),
    ]
