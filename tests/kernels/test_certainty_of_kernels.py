"""What kernels may lose without a word: NaN in a maximum, digits in the inverse of a triangle, bits in an offset."""

import pytest
import torch
import triton
import triton.language as tl

import ess_kernels as ek
from ess_kernels.backends.sources import source_of
from ess_kernels.backends.triton import parts
from ess_kernels.backends.triton.staircase import Roots, descend
from ess_kernels.backends.triton.tiles import (
    diagonal16,
    factor16,
    indices16,
    inverse_factor16,
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
    """Three nodes whose matrices are far from singular, and room for their answers."""
    torch.manual_seed(m)
    A = torch.randn(3, 2 * m, 2 * m, dtype=torch.float64)
    A = A + A.mT + 8 * torch.eye(2 * m, dtype=torch.float64) * torch.arange(2 * m).lt(m).mul(-2).add(1)
    rkc = torch.stack([A[:, :m, :m], A[:, :m, m:].triu(), A[:, m:, m:]], 1).contiguous().to(DEVICE)
    state = [torch.zeros(3, dtype=torch.float64, device=DEVICE) for _ in range(3)]
    index = torch.arange(3, device=DEVICE)
    answer = [torch.zeros(3 * m, dtype=torch.float64, device=DEVICE) for _ in range(3)]
    return Roots(rkc, *state, index * m, torch.full_like(index, m)), answer


@pytest.mark.parametrize("m", [8, 16, 32, 64])
@pytest.mark.parametrize("where", ["R", "C", "growth"])
def test_nan_in_a_node_reaches_its_positions(m, where):
    """An infinite growth wherever the position rests on what is no number; other nodes do not notice."""
    roots, answer = nodes(m)
    roots.least.fill_(1.0)
    if where == "growth":
        roots.growth[1] = NAN
    else:
        # the last of R is an entry of every position but those after it, the first of C of all but the first
        part, at = (0, m - 1) if where == "R" else (2, 0)
        roots.rkc[1, part, at, at] = NAN
    descend(roots, *answer, False)
    growth = answer[1].view(3, m)
    touched = growth[1] if where == "growth" else growth[1][1:]
    assert bool(torch.isinf(touched).all())
    assert bool(growth[[0, 2]].isfinite().all())


@triton.jit
def solving_kernel(A, V, L, U):
    ii, jj = indices16()
    B = ldl16(tl.load(A + ii * 16 + jj))
    lower = factor16(B, reciprocal(diagonal16(B)))
    tl.store(L + ii * 16 + jj, lower)
    tl.store(U + ii * 16 + jj, solve16(lower, inverse_factor16(B), tl.load(V + ii * 16 + jj)))


def test_solving_loses_no_more_than_substitution():
    """Errors in proportion to `|L| |L^-1 V|`, however large `L^-1` is: a product with it would lose half the digits."""
    torch.manual_seed(3)
    lower = torch.eye(16, dtype=torch.float64) + 2 * torch.randn(16, 16, dtype=torch.float64).tril(-1)
    A, V = (lower @ lower.mT).to(DEVICE), (lower @ torch.randn(16, 16, dtype=torch.float64)).to(DEVICE)
    L, U = torch.zeros_like(A), torch.zeros_like(A)
    solving_kernel[(1,)](A, V, L, U)
    allowed = 16 * torch.finfo(torch.float64).eps * (L.abs() @ U.abs())
    assert bool(((L @ U - V).abs() <= allowed).all())
    product = torch.linalg.inv(L) @ V
    assert not bool(((L @ product - V).abs() <= allowed).all())


@pytest.mark.xfail(strict=True, reason="nodes of 64 solve by products, and growth does not say so")
def test_no_count_is_wrong_where_inverses_of_panels_are_huge():
    """Integers of rank two times 2^18 and small ones: eleven counts were wrong, with a width of zero; one still is."""
    L = 72
    g = torch.Generator().manual_seed(7 * 18 + L + 2)
    u, v = (torch.randint(-1, 2, (1, L, 2), generator=g).double() for _ in range(2))
    T = 2.0**18 * (u @ v.mT) + torch.randint(-1, 2, (1, L, L), generator=g).double()
    counts, certificate = ek.tolerance_ess(T.to(DEVICE), 1.0, backend="triton", certificate=True)
    width, unresolved = (x.cpu()[0] for x in (certificate.width, certificate.unresolved))
    T, counts = T[0].tril(-1), counts.cpu()[0]
    for i in range(1, L):
        values = torch.linalg.svdvals(T[i:, :i])
        silent = (values - 1.0).abs().min() > width[i - 1] and not unresolved[i - 1]
        assert not silent or counts[i - 1] == (values > 1.0).sum(), i


def test_strides_that_int32_does_not_hold(tmp_path):
    """Tokens 6e7 numbers apart: 48 of them are further than 2^31. A sparse file, of which a few pages are touched."""
    length, n, step = 64, 96, 60_000_000
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
