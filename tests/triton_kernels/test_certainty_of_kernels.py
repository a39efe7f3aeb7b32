"""What kernels may lose without a word: NaN in a maximum, digits in the inverse of a triangle, bits in an offset."""

from functools import cache

import pytest
import torch
import triton
import triton.language as tl

import ess_kernels as ek
from ess_kernels.backends.sources import source_of
from ess_kernels.backends.triton.recurrence import parts
from ess_kernels.backends.triton.staircase.descent import Roots, descend
from ess_kernels.backends.triton.tiles import (
    diagonal16,
    factor16,
    indices16,
    larger,
    largest,
    ldl16,
    least_row,
    reciprocal,
    smaller,
    solve16,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAN = float("nan")
# many positions of long matrices: half a minute in the interpreter
thorough = [] if DEVICE == "cuda" else [pytest.mark.thorough]
slow = [] if DEVICE == "cuda" else [pytest.mark.slow]


@triton.jit
def watching_kernel(X, OUT):
    i = tl.arange(0, 16)
    x = tl.load(X + i)
    first, second = tl.load(X), tl.load(X + 1)
    tl.store(OUT, largest(x))
    tl.store(OUT + 1, largest(largest(x[:, None] + tl.zeros([16, 16], tl.float64), 1)))
    tl.store(OUT + 2, larger(first, second))
    tl.store(OUT + 3, smaller(first, second))
    tl.store(OUT + 4, least_row(x))


@pytest.mark.parametrize("at", [None, 0, 1, 7, 15])
def test_nan_is_not_lost(at):
    x = torch.linspace(3, 1, 16, dtype=torch.float64, device=DEVICE)
    out = torch.zeros(5, dtype=torch.float64, device=DEVICE)
    if at is not None:
        x[at] = -torch.tensor(NAN)
    watching_kernel[(1,)](x, out)
    if at is None:
        assert out.tolist() == [3.0, 3.0, 3.0, float(x[1]), 1.0]
    else:
        assert out[:2].isnan().all() and out[4] == 0.0
        assert bool(out[2].isnan()) == bool(out[3].isnan()) == (at < 2)


def nodes(m):
    """Four nodes whose matrices are far from singular, and room for their answers."""
    torch.manual_seed(m)
    A = torch.randn(4, 2 * m, 2 * m, dtype=torch.float64)
    A = A + A.mT + 8 * torch.eye(2 * m, dtype=torch.float64) * torch.arange(2 * m).lt(m).mul(-2).add(1)
    rkc = torch.stack([A[:, :m, :m], A[:, :m, m:].triu(), A[:, m:, m:]], 1).contiguous().to(DEVICE)
    state = [torch.zeros(4, dtype=torch.float64, device=DEVICE) for _ in range(3)]
    index = torch.arange(4, device=DEVICE)
    answer = [torch.zeros(4 * m, dtype=torch.float64, device=DEVICE) for _ in range(3)]
    return Roots(rkc, *state, index * m, torch.full_like(index, m)), answer


@cache
def growth_with_nan(m):
    """`[4, m]`: a node with NaN in R, one with NaN in C, one that is all numbers, one whose own growth is NaN."""
    roots, answer = nodes(m)
    roots.least.fill_(1.0)
    # the last of R is an entry of every position but those after it, the first of C of all but the first
    roots.rkc[0, 0, m - 1, m - 1] = roots.rkc[1, 2, 0, 0] = roots.growth[3] = NAN
    descend(roots, *answer, False)
    return answer[1].view(4, m)


@pytest.mark.parametrize("m", [8, 16, 32, pytest.param(64, marks=slow)])
@pytest.mark.parametrize("where", ["R", "C", "growth"])
def test_nan_in_a_node_reaches_its_positions(m, where):
    """An infinite growth wherever the position rests on what is no number; the node in between does not notice."""
    growth = growth_with_nan(m)
    touched = {"R": growth[0, 1:], "C": growth[1, 1:], "growth": growth[3]}[where]
    assert bool(torch.isinf(touched).all())
    assert bool(growth[2].isfinite().all())


@triton.jit
def solving_kernel(A, U):
    ii, jj = indices16()
    B = ldl16(tl.load(A + ii * 16 + jj))
    tl.debug_barrier()
    tl.store(A + ii * 16 + jj, factor16(B, reciprocal(diagonal16(B))))
    columns = tl.arange(0, 16)
    solve16(A, 16, U + columns, 16, columns < 15)


def test_solving_loses_no_more_than_substitution():
    """Errors in proportion to `|L| |L^-1 V|`, however large `L^-1` is: a product with it would lose half the digits."""
    torch.manual_seed(3)
    lower = torch.eye(16, dtype=torch.float64) + 2 * torch.randn(16, 16, dtype=torch.float64).tril(-1)
    A, V = (lower @ lower.mT).to(DEVICE), (lower @ torch.randn(16, 16, dtype=torch.float64)).to(DEVICE)
    U = V.clone()
    solving_kernel[(1,)](A, U)
    assert torch.equal(U[:, 15], V[:, 15])
    # what was written: `D L^T` above the diagonal, `1 / D` on it
    one = torch.eye(16, dtype=torch.float64, device=DEVICE)
    L, V, U = (A.triu(1) * A.diagonal()[:, None] + one).mT, V[:, :15], U[:, :15]
    allowed = 16 * torch.finfo(torch.float64).eps * (L.abs() @ U.abs())
    assert bool(((L @ U - V).abs() <= allowed).all())
    product = torch.linalg.inv(L) @ V
    assert not bool(((L @ product - V).abs() <= allowed).all())


def silent_counts(T, tau):
    """Positions where a count of `T` `[L, L]` is wrong, not unresolved, and no singular value within its width."""
    counts, certificate = ek.tolerance_ess(T.to(DEVICE), tau, backend="triton", certificate=True)
    counts, width, unresolved = (x.cpu() for x in (counts, certificate.width, certificate.unresolved))
    silent, checked = [], 0
    for i in range(1, len(T)):
        values = torch.linalg.svdvals(T[i:, :i])
        distance = (values - tau).abs().min()
        # float64 singular values know no better
        if distance <= 256 * torch.finfo(torch.float64).eps * values[0]:
            continue
        checked += 1
        wrong = counts[i - 1] != (values > tau).sum() and not unresolved[i - 1]
        if wrong and distance > width[i - 1] * tau:
            silent.append(i)
    assert checked > 0.9 * (len(T) - 1)
    return silent


def integers(g, *shape):
    return torch.randint(-1, 2, shape, generator=g).double()


def huge_and_small(seed, length, rank, power):
    """Integers of low rank times `2^power`, and small ones of full rank."""
    g = torch.Generator().manual_seed(seed)
    u, v = integers(g, length, rank), integers(g, length, rank)
    return 2.0**power * (u @ v.mT) + integers(g, length, length)


@pytest.mark.parametrize(
    "length, power, rank",
    [(40, 18, 2), pytest.param(72, 18, 2, marks=thorough), pytest.param(100, 10, 3, marks=slow)],
)
def test_counts_beside_huge_integers(length, power, rank):
    """With 72 tokens eleven counts were wrong by products with inverses of panels, and one where these were refined."""
    assert silent_counts(huge_and_small(7 * power + length + rank, length, rank, power), 1.0) == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("power", [10, 18, 25, 32])
@pytest.mark.parametrize("length", [40, 72, 100, 130])
def test_more_counts_beside_huge_integers(length, power, rank):
    for seed in range(2):
        assert silent_counts(huge_and_small(1000 * seed + 7 * power + rank, length, rank, power), 1.0) == []


@pytest.mark.parametrize(
    "head", [pytest.param(0, marks=thorough), *(pytest.param(head, marks=pytest.mark.slow) for head in (1, 2))]
)
def test_counts_of_sharp_attention_of_one_dimension(head):
    """Softmax of an outer product: few directions, graded over many orders of magnitude."""
    g = torch.Generator().manual_seed(97)
    q, k = (torch.randn(1, 3, 97, 1, dtype=torch.float64, generator=g) for _ in range(2))
    T = ek.operators.attention(3 * q, k).dense()[0, head]
    assert silent_counts(T, 1e-7 * float(torch.linalg.matrix_norm(T.tril(-1), 2))) == []


def test_strides_that_int32_does_not_hold(tmp_path):
    """Tokens 6e7 numbers apart: 48 of them are further than 2^31. A sparse file, of which a few pages are touched."""
    length, n, step = 50, 20, 60_000_000
    torch.manual_seed(0)
    values = [torch.randn(length, n).bfloat16() for _ in range(3)]
    values[2] = -values[2].abs() / 16
    strided = []
    for name, x in zip("qkg", values, strict=True):
        size = (length - 1) * step + n
        if DEVICE == "cpu":
            room = torch.from_file(str(tmp_path / name), shared=True, size=size, dtype=torch.bfloat16)
        else:
            room = torch.empty(size, dtype=torch.bfloat16, device=DEVICE)
        view = room.as_strided((1, length, 1, n), (step, step, n, 1))
        view.copy_(x.view(1, length, 1, n))
        strided.append(view)
    close = [x.view(1, length, 1, n).to(DEVICE) for x in values]
    unit = torch.ones(1, dtype=torch.float64, device=DEVICE)
    built = []
    for q, k, g in (strided, close):
        op = ek.operators.gla(q, k, g)
        built.append(parts.build(source_of(op, op.all_heads()), unit, unit, 64))
    for name, one, other in zip(("X", "Y", "Z", "Phi"), *(vars(b).values() for b in built), strict=False):
        assert torch.equal(one, other), name
