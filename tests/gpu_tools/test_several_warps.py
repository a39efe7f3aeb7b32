"""One small launch of every kernel that runs with more than one warp, against its twin in PyTorch.

These are for the emulator (`pytest tests/gpu_tools/test_several_warps.py --ptx-emulator`), which follows every thread
through layouts, shared memory and barriers: with one warp there is next to nothing of that to go wrong. They also run
on a GPU. In Triton's interpreter, which has no warps, they are skipped.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("Triton's interpreter has no warps: use --ptx-emulator", allow_module_level=True)

from ess_kernels import operators
from ess_kernels.backends.sources import source_of
from ess_kernels.backends.triton.attention import products, softmax
from ess_kernels.backends.triton.matrix import elimination, halves
from ess_kernels.backends.triton.recurrence import boundary, parts, rank_one, roots, scans, weights
from ess_kernels.backends.triton.spectra import bidiagonal, leading
from ess_kernels.engine.blocks import Blocks
from ess_kernels.engine.quadrature import STANDARD
from ess_kernels.engine.thin_products import Bands
from ess_kernels.operators.structure import Tokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
definite_or_not = pytest.mark.parametrize("definite", [False, True], ids=["counts", "log-determinants"])


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """The largest error is at most this part of the largest number."""
    assert found.shape == expected.shape and not found.isnan().any()
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


# --- attention --------------------------------------------------------------------------------------------------------


def attention_operator(masked: bool) -> operators.Operator:
    q, k = normal(0, 1, 1, 70, 16), normal(1, 1, 1, 70, 16)
    return operators.attention(q, k, attn_mask=normal(2, 70, 70) if masked else None)


@pytest.mark.parametrize("masked", [False, True], ids=["4 warps", "8 warps"])
def test_attention_tiles(masked: bool) -> None:
    """Row sums and tiles."""
    op = attention_operator(masked)
    close(softmax.tiles(op, op.all_heads()), op.rows(op.all_heads(), 0, 70))


@pytest.mark.parametrize("masked", [False, True], ids=["4 warps", "8 warps"])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_attention_products(masked: bool, transposed: bool) -> None:
    op = attention_operator(masked)
    positions, X = torch.tensor([40], device=DEVICE), normal(3, 1, 1, 70, 16)
    found = products.thin_product(op, op.all_heads(), positions, X, transposed)
    close(found, Bands(op, op.all_heads(), 1 << 30)(positions, X, transposed))


# --- recurrences ------------------------------------------------------------------------------------------------------


def test_parts() -> None:
    """Of Mamba's kernels, whose rates need two warps beyond 16 states."""
    delta, A = torch.rand(1, 1, 32, dtype=torch.float64, device=DEVICE) * 0.3, -normal(0, 1, 20).abs()
    op = operators.selective_scan(delta, A, normal(1, 1, 20, 32), normal(2, 1, 20, 32))
    heads, one = op.all_heads(), torch.ones(1, dtype=torch.float64, device=DEVICE)
    found, expected = parts.build(source_of(op, heads), one, one, 32), parts.build_in_torch(op.tokens(heads), 32)
    close(found.X[..., :20], expected.X)
    close(found.Z[..., :20], expected.Z)
    close(found.Phi[..., :20], expected.Phi)
    close(found.Y, expected.Y)


@pytest.mark.parametrize("updates", [False, True], ids=["delta rule", "own updates"])
def test_parts_of_rank_one_transitions(updates: bool) -> None:
    """The builder reads ready-made factors with two warps beyond 16 states; the substitution of its parts has one."""
    L, n, c = 20, 20, 32
    key = torch.nn.functional.normalize(normal(0, 1, L, n), dim=-1)
    decay = torch.exp(-normal(1, 1, L, n).abs() / 10)
    update = -key * normal(2, 1, L, n).sigmoid() if updates else None
    tokens = Tokens(normal(3, 1, L, n), key, decay, False, decay * key, update)
    found, expected = rank_one.build(tokens, c), rank_one.build_in_torch(tokens, c)
    close(found.X[..., :n], expected.X)
    close(found.Z[..., :n], expected.Z)
    close(found.Phi[:, :n, :n], expected.Phi)
    close(found.Y, expected.Y)


@pytest.mark.parametrize("n, heads", [(32, 1), (64, 64)], ids=["2 warps", "4 warps"])
def test_gramians(n: int, heads: int) -> None:
    c = 16
    blocks = Blocks(normal(0, 2 * heads, c, n), normal(2, 2 * heads, c, c), normal(1, 2 * heads, c, n),
                    normal(3, 2 * heads, n).sigmoid())  # fmt: skip
    for found, expected in zip(scans.gramians(blocks, heads), scans.gramians_in_torch(blocks, heads)):
        close(found, expected)


@pytest.mark.parametrize("n, heads", [(32, 1), (64, 64)], ids=["2 warps", "4 warps"])
def test_gramians_of_dense_products(n: int, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one head, launched as if there were so many."""
    c, number, rule = 16, 2, scans.launch(n, heads)
    monkeypatch.setattr(scans, "launch", lambda *_: rule)
    Phi = normal(3, number, n, n) / math.sqrt(n)
    blocks = Blocks(normal(0, number, c, n), normal(2, number, c, c), normal(1, number, c, n), Phi)
    for found, expected in zip(scans.gramians(blocks, 1), scans.gramians_in_torch(blocks, 1)):
        close(found, expected)


def gramian(n: int) -> tuple[Tensor, Tensor]:
    """`P` `[1, n, n]` of full rank, and a mass `[1, n]`."""
    A = normal(0, 1, n, 2 * n)
    return A @ A.mT / n, normal(1, 1, n).abs()


def test_shifted_roots() -> None:
    P, mass = gramian(192)
    F, size = roots.shifted_roots(P, mass)
    close(F.mT @ F, P, 1e-13)
    close(size, roots.shifted_roots_in_torch(P, mass)[1])


def test_pivoted_roots() -> None:
    P, mass = gramian(128)
    for found, expected in zip(roots.pivoted_roots(P, mass), roots.pivoted_roots_in_torch(P, mass)):
        close(found, expected, 1e-11)


@definite_or_not
def test_boundary(definite: bool) -> None:
    n, c = 128, 64
    Q, F, X, Z = (normal(seed, 1, size, n) / math.sqrt(n) for seed, size in ((0, n), (1, n), (2, c), (3, c)))
    Q = Q @ Q.mT
    S, AE = F @ Q @ F.mT, torch.cat([F @ X.mT, F @ Q @ Z.mT], 2)
    outside = boundary.Outside(S, AE, Z @ Q @ Z.mT, normal(4, 1, c, c).tril(-1) / math.sqrt(n))
    which, tau = torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.full((1,), 0.3, device=DEVICE).double()
    arguments = (outside, which, tau, 0 * tau, which, which, definite)
    found, expected = boundary.eliminate(*arguments), boundary.eliminate_in_torch(*arguments)
    close(found.rkc, expected.rkc, 1e-9)
    close(found.value, expected.value)


# --- dense operators --------------------------------------------------------------------------------------------------


@definite_or_not
def test_rows(definite: bool) -> None:
    """A panel solved for the columns right of it."""
    h, width, size = 64, 112, 32
    M, reciprocals, sign = normal(0, 2, h, width), normal(2, 2, h), torch.ones(2, dtype=torch.float64, device=DEVICE)
    M[:, :h, :h] = M[:, :h, :h] @ M[:, :h, :h].mT + h * torch.eye(h, dtype=torch.float64, device=DEVICE)
    elimination.diagonal(M, size, reciprocals, 0 * sign, normal(3, 2, width), normal(4, 2, h), sign, 0, definite)
    results = []
    for function in (elimination.rows, elimination.rows_twin):
        rows, growth = M.clone(), torch.ones(2, width, dtype=torch.float64, device=DEVICE)
        scaled, reach = torch.zeros_like(M), M.new_zeros(2, -(-width // elimination.ROWS_WIDTH), h)
        function(rows, size, scaled, reciprocals, growth, reach, 0, definite)
        results.append((rows, scaled, growth, reach))
    for found, expected in zip(*results):
        assert torch.equal(found, expected) if definite and not expected.any() else close(found, expected) is None


def close_layouts(function, twin, arguments: tuple, definite: bool) -> None:
    """What a kernel lays out for the next elimination, `[E | V1 | V2]` and what is kept, against its twin."""
    h, results = 32, []
    for lay_out in (function, twin):
        M, following = normal(8, 2, h, 3 * h), normal(9, 2, 3, h, h)
        lay_out(*arguments, M, following, definite)
        results.append((M, following))
    for found, expected in zip(*results):
        close(found, expected, 1e-15)


@definite_or_not
def test_children(definite: bool) -> None:
    parent, side = torch.tensor([0, 0], device=DEVICE), torch.tensor([0, 1], device=DEVICE)
    arguments = (normal(0, 1, 3, 50, 50), normal(1, 1, 3, 50, 50), parent, side)
    close_layouts(halves.children, halves.children_twin, arguments, definite)


@definite_or_not
@pytest.mark.parametrize("left", [False, True], ids=["last", "first"])
def test_edge(left: bool, definite: bool) -> None:
    head, inverse = torch.tensor([0, 1], device=DEVICE), torch.tensor([2.0, 0.5], dtype=torch.float64, device=DEVICE)
    arguments = (normal(0, 2, 70, 70).tril(-1), normal(1, 2, 50, 50), head, inverse, left)
    close_layouts(halves.edge, halves.edge_twin, arguments, definite)


# --- small spectra and entropy ----------------------------------------------------------------------------------------


def bidiagonal_values(squares: Tensor, n: int) -> Tensor:
    """Singular values `[1, n]` of the bidiagonal matrix from its squares, diagonal and upper ones in turn."""
    entries = squares[0, : 2 * n - 1].double().sqrt()
    return torch.linalg.svdvals(torch.diag(entries[::2]) + torch.diag(entries[1::2], 1))[None]


def test_bidiagonalise() -> None:
    A = normal(0, 1, 64, 64)
    squares = A.new_zeros(1, 128)
    bidiagonal.reduce_in_registers(A, squares, None)
    close(bidiagonal_values(squares, 64), torch.linalg.svdvals(A))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leading_steps(dtype: torch.dtype) -> None:
    """The kernel for matrices too large for registers, on a small one; it is left with a corner that is bidiagonal."""
    n = 20
    A = normal(0, 1, n, n, dtype=dtype)
    squares, rest = A.new_zeros(1, 2 * n), A.clone()
    leading.reduce_leading(rest, squares, n - 1)
    squares[0, 2 * n - 2] = rest[0, -1, -1] ** 2
    close(bidiagonal_values(squares, n), torch.linalg.svdvals(A.double()), 50 * torch.finfo(dtype).eps)


def test_weights() -> None:
    logdets = normal(0, 1, len(STANDARD), 300).abs().cumsum(1)
    cap = torch.full((300,), 20.0, dtype=torch.float64, device=DEVICE)
    arguments = (logdets, cap, torch.full((1, 300), 1e-14, dtype=torch.float64, device=DEVICE))
    for found, expected in zip(weights.estimate(STANDARD, *arguments), STANDARD.estimate(*arguments), strict=True):
        close(found, expected)
