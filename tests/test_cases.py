"""What `CASES` says beside the names is true of the operators."""

import pytest

from ess_kernels.backends.sources import supported_heads
from ess_kernels.operators.structure import StateSpace, Tiled
from ess_kernels.testing.cases import CASES, build, names


@pytest.mark.parametrize("name", names())
def test_what_is_said_beside_the_name(name):
    about, op = CASES[name], build(name)
    assert (op.length, op.state_size) == (about.length, about.state_size)
    if about.kind == "tiled":
        assert isinstance(op, Tiled)
    else:
        assert isinstance(op, StateSpace)
        assert (op.diagonal, op.rank_one) == (about.kind == "diagonal", about.kind == "rank one")
    # every case is finite, so that heads with diagonal transitions are refused by kernels for growth alone
    assert bool(op.finite(op.all_heads()).all())
    if about.kind == "diagonal":
        assert bool(supported_heads(op, op.all_heads())[0].all()) == (not about.growing)
    else:
        assert not about.growing


def test_names_are_chosen_by_what_is_said():
    assert names("dense: length", "gla: length 1", longer_than=2) == [
        "gla: length 101, state 50",
        "dense: length 3",
        "dense: length 5",
    ]
    assert set(names("short", kind="tiled")) == {"short_convolution: one tap"}
    assert len(names()) == sum(len(names(kind=kind)) for kind in ("diagonal", "rank one", "full", "tiled"))
