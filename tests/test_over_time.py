"""What is accumulated over time, against a loop over the tokens."""

import pytest
import torch

from ess_kernels.operators import over_time
from ess_kernels.operators.matrix_states import read_states
from ess_kernels.testing import assert_close

LENGTHS = [0, 1, 2, 3, 8, 13]


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_sums_and_maxima(length, dim):
    torch.manual_seed(length)
    x, g = (randn(length, 2, 3).movedim(0, dim) for _ in range(2))
    g = torch.where(g > 1, -torch.inf, -g.abs())
    total, largest = torch.zeros(2, 3).double(), torch.full((2, 3), -torch.inf).double()
    sums, maxima = [], []
    for t in range(length):
        total = g.select(dim, t).exp() * total + x.select(dim, t)
        largest = torch.maximum(largest + g.select(dim, t), x.select(dim, t))
        sums.append(total)
        maxima.append(largest)
    if length:
        assert_close("sums", over_time.decayed_sum(x, g.exp(), dim), torch.stack(sums, dim))
        assert_close("maxima", over_time.decayed_maximum(x, g, dim), torch.stack(maxima, dim))
        assert_close("no decay", over_time.decayed_sum(x, torch.ones_like(x), dim), over_time.cumsum(x, dim))
        assert_close("logarithm", over_time.logcumsumexp(x, dim), over_time.cumsum(x.exp(), dim).log())
    before = over_time.previous(x, dim, 7.0)
    assert before.shape == x.shape
    if length:
        assert bool((before.select(dim, 0) == 7).all())
        assert torch.equal(before.narrow(dim, 1, length - 1), x.narrow(dim, 0, length - 1))


def test_bad_data_stay_visible_from_their_token_on():
    good = torch.full((5,), 0.5, dtype=torch.float64)
    bad = good.clone()
    bad[2] = torch.nan
    from_there = [False, False, True, True, True]
    for x, decay in ((bad, good), (good, bad)):
        assert over_time.decayed_sum(x, decay, 0).isnan().tolist() == from_there
        assert over_time.decayed_maximum(x, decay, 0).isnan().tolist() == from_there


@pytest.mark.parametrize("size", [1.0, 100.0, 10000.0])
def test_softmax_over_time(size):
    logits = size * randn(2, 20, 3)
    write, gate = over_time.softmax_over_time(logits, 1)
    assert bool((gate <= 0).all()) and bool((gate[:, 0] == 0).all())
    # row i of a state with these writes and gates is the softmax of the logits so far
    for i in (0, 7, 19):
        kept = torch.stack([gate[:, j + 1 : i + 1].sum(1).exp() for j in range(i + 1)], 1)
        assert_close(f"row {i}", write[:, : i + 1] * kept, torch.softmax(logits[:, : i + 1], 1), 1e-9, 1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_states_are_those_of_the_loop(length):
    left, right, decay = randn(2, length, 3, 4), randn(2, length, 3, 5), torch.rand(2, length, 3, 1, 5).double()
    weights = randn(2, length, 3, 4)

    def read(states, w):
        return (w[..., None, :] @ states)[..., 0, :]

    found = read_states(left, right, decay, read, weights)
    assert found.shape == (2, length, 3, 5)
    state = torch.zeros(2, 3, 4, 5).double()
    for t in range(length):
        state = decay[:, t] * state + left[:, t, ..., None] * right[:, t, ..., None, :]
        assert_close(f"token {t}", found[:, t], read(state, weights[:, t]))
