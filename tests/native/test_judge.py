"""What the compiled kernels make of eliminations, against the engine's own formulas in PyTorch."""

import math

import pytest
import torch
from identical import assert_same_bits, levels, running

from ess_kernels.backends.native import call
from ess_kernels.backends.native.certainty import judge_counts, judge_entropy
from ess_kernels.backends.native.memory import borrow, give_back
from ess_kernels.engine.certainty import ENTROPY_BOUND, EPS, SMALL_ROW, SURE, TINY_ROW
from ess_kernels.engine.positions import Engine
from ess_kernels.engine.quadrature import FINE, STANDARD, LogdetSums
from ess_kernels.engine.staircase import Eliminated

SPECIAL = [0.0, 1.0, SURE / EPS, math.nextafter(SURE / EPS, math.inf), 1e300, math.inf, math.nan]
SPECIAL_ROWS = [0.0, TINY_ROW, 2 * TINY_ROW, SMALL_ROW, math.nextafter(SMALL_ROW, 1.0), math.inf, math.nan]


@pytest.fixture(params=levels(), autouse=True)
def level(request):
    with running(level=request.param):
        yield request.param


def eliminated(*shape: int) -> Eliminated:
    """Random answers, with every special growth beside every special row."""
    value = torch.randint(0, 300, shape).double()
    growth, least = (10 ** torch.empty(shape, dtype=torch.float64).uniform_(*ends) for ends in ((-1, 14), (-18, 1)))
    pairs = torch.cartesian_prod(torch.tensor(SPECIAL).double(), torch.tensor(SPECIAL_ROWS).double())
    places = torch.randperm(growth.numel())[: len(pairs)]
    growth.view(-1)[places], least.view(-1)[places] = pairs[: len(places)].unbind(1)
    return Eliminated(value, growth, least)


@pytest.mark.parametrize("shape", [(1, 1, 700), (3, 5, 203), (17, 2, 33), (40, 1, 2)])
@pytest.mark.parametrize("threads", [1, 3])
def test_counts(shape, threads):
    torch.manual_seed(sum(shape))
    N, M, L = shape
    answer = eliminated(*shape)
    rows, asked = torch.rand(N, M) < 0.8, torch.rand(L) < 0.9
    asked[0] = False
    expected, some = Engine._judge(None, answer, rows, asked)
    with running(threads=threads):
        found, found_some = judge_counts(answer, rows, asked)
    assert found_some == some == bool(expected.redone.any())
    if L > 200:
        assert some and not bool(expected.redone[..., asked[1:]].all())
    for mine, theirs in zip(found, expected):
        assert mine.dtype == theirs.dtype and mine.shape == (N, M, L - 1)
        assert mine.transpose(0, 1).is_contiguous()
        assert_same_bits(mine[..., asked[1:]], theirs[..., asked[1:]])


def test_counts_where_nothing_was_asked():
    """There the elimination has left whatever was in its memory."""
    answer = Eliminated(*torch.full((3, 2, 1, 40), math.nan).double())
    asked = torch.zeros(40, dtype=torch.bool)
    found, some = judge_counts(answer, torch.ones(2, 1, dtype=torch.bool), asked)
    assert not some
    for x in found:
        assert not bool(x.any())


@pytest.mark.parametrize("quadrature", [STANDARD, FINE])
@pytest.mark.parametrize(("heads", "length", "group"), [(1, 700, 16), (5, 203, 32), (3, 3, 16), (2, 50, 7)])
def test_entropy(quadrature, heads, length, group):
    torch.manual_seed(heads)
    total = torch.rand(heads, length).double() * 50
    total[torch.rand(heads, length) < 0.2] = 0.0
    sums = LogdetSums(total, torch.randn(heads, length).double() * total / 3, torch.rand(heads, length).double() * 60)
    rounding = 10 ** torch.empty(heads, -(-length // group), dtype=torch.float64).uniform_(-18, -8)
    cap = torch.randint(1, 65, (length,)).double()
    spread = rounding.repeat_interleave(group, -1)[:, :length]
    expected = quadrature.entropy_of_sums(sums, cap, spread)
    found = judge_entropy(quadrature, sums, cap, rounding, group)
    with running(threads=3):
        for mine, again in zip(found, judge_entropy(quadrature, sums, cap, rounding, group)):
            assert_same_bits(mine, again)
    for mine, theirs in zip(found, expected):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=0.0)
    assert bool((found[1] > ENTROPY_BOUND).any())


def test_refusals():
    numbers = torch.zeros(8).double().data_ptr()
    for sizes in ((0, 1, 2), (1, 0, 2), (1, 1, 0)):
        with pytest.raises(ValueError, match="ess_judge_counts: size"):
            call.run("judge_counts", *sizes, *[numbers] * 10)
        with pytest.raises(ValueError, match="ess_judge_entropy: size"):
            call.run("judge_entropy", *sizes, 1.0, 0.0, 0.0, *[numbers] * 7)
    for missing in range(10):
        with pytest.raises(ValueError, match="ess_judge_counts: null"):
            call.run("judge_counts", 1, 1, 2, *[None if i == missing else numbers for i in range(10)])
    for missing in range(7):
        with pytest.raises(ValueError, match="ess_judge_entropy: null"):
            call.run("judge_entropy", 1, 1, 1, 1.0, 0.0, 0.0, *[None if i == missing else numbers for i in range(7)])


def test_answers_are_not_in_memory_that_is_kept():
    """What a caller has got stays as it is when later calls use the same memory again."""
    import ess_kernels as ek

    op = ek.operators.linear_attention(
        *(torch.randn(1, 60, 2, 8, generator=torch.Generator().manual_seed(i)).double() for i in (1, 2))
    )
    counts, certificate = ek.tolerance_ess(op, atol=[1e-1, 1e-6], backend="native", certificate=True)
    entropy = ek.entropy_ess(op, backend="native")
    before = [x.clone() for x in (counts, *certificate, entropy)]
    memory = borrow("eliminated", 3 * 2 * 4 * 60)
    memory.fill_(math.nan)
    give_back("eliminated", memory)
    ek.tolerance_ess(op, atol=[1e-4, 1e-5], backend="native")
    for x, same in zip((counts, *certificate, entropy), before):
        assert_same_bits(x, same)
