"""What the compiled kernels make of eliminations, against the engine's own formulas in PyTorch."""

import ctypes
import math

import pytest
import torch
from identical import assert_same_bits, running

from ess_kernels.backends.native import abi, call
from ess_kernels.backends.native.certainty import CompiledCertainty, judge_counts, judge_entropy
from ess_kernels.backends.native.memory import borrow, give_back
from ess_kernels.backends.native.nodes import Nodes
from ess_kernels.engine.certain import EliminatingEngine
from ess_kernels.engine.certainty import BLURRED, ENTROPY_BOUND, EPS, HOPELESS, SMALL_ROW, SURE, TINY_ROW, Counts
from ess_kernels.engine.lost import SPAN as LOST_SPAN
from ess_kernels.engine.quadrature import FINE, STANDARD
from ess_kernels.engine.staircase import Eliminated
from ess_kernels.engine.wanted import grouped

pytestmark = pytest.mark.usefixtures("level")

SPECIAL = [0.0, 1.0, SURE / EPS, math.nextafter(SURE / EPS, math.inf), 1e300, math.inf, math.nan]
SPECIAL_ROWS = [0.0, TINY_ROW, 2 * TINY_ROW, SMALL_ROW, math.nextafter(SMALL_ROW, 1.0), math.inf, math.nan]


def eliminated(*shape: int) -> Eliminated:
    """Random answers, with every special growth beside every special row."""
    value = torch.randint(0, 300, shape).double()
    growth, least = (10 ** torch.empty(shape, dtype=torch.float64).uniform_(*ends) for ends in ((-1, 14), (-18, 1)))
    pairs = torch.cartesian_prod(torch.tensor(SPECIAL).double(), torch.tensor(SPECIAL_ROWS).double())
    places = torch.randperm(growth.numel())[: len(pairs)]
    growth.view(-1)[places], least.view(-1)[places] = pairs[: len(places)].unbind(1)
    return Eliminated(value, growth, least)


def blurs(N: int, M: int, L: int) -> torch.Tensor:
    """Random blurs of spans of positions, with every special one."""
    blur = 10 ** torch.empty(N, M, -(-L // LOST_SPAN), dtype=torch.float64).uniform_(-12, 1)
    places = torch.randperm(blur.numel())[:4]
    blur.view(-1)[places] = torch.tensor([0.0, BLURRED, math.inf, math.nan]).double()[: len(places)]
    return blur


@pytest.mark.parametrize("shape", [(1, 1, 700), (3, 5, 203), (17, 2, 33), (40, 1, 2)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("blurs", [None, blurs])
def test_counts(shape, threads, blurs):
    torch.manual_seed(sum(shape))
    N, M, L = shape
    answer = eliminated(*shape)
    possible, asked = torch.rand(N, M) < 0.8, torch.rand(L) < 0.9
    asked[0] = False
    blur = None if blurs is None else blurs(N, M, L)
    expected, some = Ruled(L, 8).judge(answer, possible, asked, blur)
    with running(threads=threads):
        found, found_some = judge_counts(answer, possible, asked, blur)
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


class Ruled(EliminatingEngine):
    """An engine of which only the rules are wanted."""

    def __init__(self, length: int, group: int):
        self.length, self.group = length, group

    eliminate = estimate = known_zero = values_at = None


class Compiled(CompiledCertainty, Ruled):
    pass


def both(compute, length: int, group: int, *arguments):
    """What PyTorch and the kernels make of the same; and for more threads than one, the same bits."""
    expected, found = (compute(kind(length, group), *arguments) for kind in (Ruled, Compiled))
    with running(threads=3):
        again = compute(Compiled(length, group), *arguments)
    for x, y, z in zip(expected, found, again, strict=True):
        assert x.dtype == y.dtype
        assert_same_bits(x, y)
        assert_same_bits(y, z)
    return found


def stored(x: torch.Tensor) -> torch.Tensor:
    """`[N, M, L - 1]` as judgements are kept."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


SHAPES = [(1, 1, 700, 32), (3, 5, 203, 8), (40, 2, 33, 33), (2, 3, 2, 8)]


@pytest.mark.parametrize(("N", "M", "L", "group"), SHAPES)
@pytest.mark.parametrize("typical", [True, False])
@pytest.mark.parametrize("sure", [0.0, 0.5, 1.0])
def test_group_widths(N, M, L, group, typical, sure):
    torch.manual_seed(N + L)
    width = 10 ** torch.empty(N, M, L - 1, dtype=torch.float64).uniform_(-9, 1)
    width[torch.rand(width.shape) < 0.3] = math.inf
    width[0] = math.inf  # a head without a finite one
    if not typical:
        width[torch.rand(width.shape) < 0.02] = math.nan
        width[torch.rand(width.shape) < 0.02] = HOPELESS
    doubtful = (torch.rand(width.shape) > sure) & (torch.rand(N, M, 1) < 0.7)
    asked = torch.rand(L) < 0.9
    asked[0] = False
    doubtful &= asked[1:]
    arguments = (asked, stored(doubtful), stored(width), typical)
    (chosen,) = both(lambda engine, *a: [engine.group_widths(*a)], L, group, *arguments)
    doubtful_groups = grouped(torch.nn.functional.pad(doubtful, (1, 0)), group).any(-1)
    assert bool(chosen[~doubtful_groups].isinf().all())
    if typical:
        assert bool(chosen[0].isinf().all())


@pytest.mark.parametrize(("N", "M", "L", "group"), SHAPES)
@pytest.mark.parametrize("blurs", [None, blurs])
def test_compare(N, M, L, group, blurs):
    torch.manual_seed(N * L)
    blur = None if blurs is None else blurs(N, M, L) * 1e-4
    value = torch.randint(0, 3, (N, 2 * M, L)).double()
    answer = eliminated(N, 2 * M, L)._replace(value=value)
    move = 10 ** torch.empty(N, M, -(-L // group), dtype=torch.float64).uniform_(-8, -2)
    move[torch.rand(move.shape) < 0.3] = math.nan
    doubtful = torch.rand(N, M, L - 1) < 0.7
    width = torch.rand(N, M, L - 1).double()
    width[torch.rand(width.shape) < 0.2] = math.nan
    counts = torch.full((N, M, L - 1), 7)

    def compute(engine):
        open_, result = (
            stored(doubtful).clone(),
            Counts(*(stored(x).clone() for x in (counts, width, doubtful, doubtful))),
        )
        left = engine.compare(answer, move, blur, open_, result)
        assert left == bool(open_.any())
        return result.counts, result.width, open_

    counted, widths, left = both(compute, L, group)
    settled = doubtful & ~left
    if L > 100:
        assert bool(settled.any()) and bool(left.any())
    assert bool((widths[settled] == 0).all()) and bool((counted[settled] < 3).all())
    assert bool((counted[~settled] == 7).all())


@pytest.mark.parametrize("quadrature", [STANDARD, FINE])
@pytest.mark.parametrize(("heads", "length", "group"), [(1, 700, 16), (5, 203, 32), (3, 3, 16), (2, 50, 7)])
def test_entropy(quadrature, heads, length, group):
    torch.manual_seed(heads)
    total = torch.rand(heads, length).double() * 50
    total[torch.rand(heads, length) < 0.2] = 0.0
    mixed, nodes = torch.randn(heads, length).double() * total / 3, Nodes(quadrature)
    rounding = 10 ** torch.empty(heads, -(-length // group), dtype=torch.float64).uniform_(-18, -8)
    cap = torch.randint(1, 65, (length,)).double()
    rounding[0] = 0.0
    expected = quadrature.estimate_from_sums(total, mixed, cap, rounding.repeat_interleave(group, -1)[:, :length])
    found = judge_entropy(nodes, total, mixed, cap, rounding, group)
    with running(threads=3):
        for mine, again in zip(found, judge_entropy(nodes, total, mixed, cap, rounding, group)):
            assert_same_bits(mine, again)
    for mine, theirs in zip(found, expected[:2]):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0.0)
    assert bool((found[1] > ENTROPY_BOUND).any())


def good_jobs() -> dict[str, abi.Job]:
    """Jobs that the kernels do, on arrays of zeros and ones."""
    ones, nodes = torch.ones(8).double(), Nodes(STANDARD)
    sizes = {"heads": 1, "tolerances": 1, "length": 2, "group": 8}
    limits = dict.fromkeys(("eps", "sure", "tiny_row", "small_row", "blurred", "hopeless"), 1.0)
    blur = abi.Blur(ones.data_ptr(), 8)
    found = {}
    for kernel in ("judge_counts", "group_widths", "compare_counts", "judge_entropy"):
        job = abi.JOBS[kernel]()
        job.alive = ones, nodes
        for name, kind in job._fields_:
            if kind is ctypes.c_void_p:
                setattr(job, name, ones.data_ptr())
            elif name not in ("typical", "reserved"):
                setattr(job, name, {**sizes, **limits, "blur": blur, "quadrature": nodes.pointer}[name])
        found[kernel] = job
    return found


@pytest.mark.parametrize("kernel", good_jobs())
def test_refusals(kernel):
    def refused(reason, **fields):
        job = good_jobs()[kernel]
        for name, value in fields.items():
            setattr(job, name, value)
        with pytest.raises(ValueError, match=f"ess_{kernel}: {reason}"):
            call.run(job)

    good = good_jobs()[kernel]
    call.run(good)
    fields = dict(good._fields_)
    for name in {"heads", "tolerances", "length", "group"} & fields.keys():
        refused("size", **{name: 0})
    if kernel != "judge_entropy":
        refused("size", length=1)
    if "reserved" in fields:
        refused("size", reserved=1)
    if "blur" in fields:
        refused("size", blur=abi.Blur(good.blur.width, 0))
        good.blur = abi.Blur(None, 8)  # there need not be one
        call.run(good)
    pointers = [name for name, kind in fields.items() if kind is ctypes.c_void_p or name == "quadrature"]
    assert len(pointers) == {"judge_counts": 9, "group_widths": 4, "compare_counts": 7, "judge_entropy": 7}[kernel]
    for name in pointers:
        refused("null", **{name: None})


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
