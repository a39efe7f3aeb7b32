"""The emulator on what Triton compiles: products of all shapes that kernels use, and races that are planted.

Run with `pytest tests/gpu_tools --ptx-emulator`; without the emulator there is nothing to test here.
"""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl

if torch.cuda.is_available() or triton.knobs.runtime.interpret:
    pytest.skip("needs --ptx-emulator", allow_module_level=True)

from ess_kernels.testing.driver import Driver, launching_on
from gpu_tools.emulator.machine import Machine


@triton.jit
def product(A, B, C, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, TURNED: tl.constexpr):
    i, j, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    if TURNED:
        a = tl.trans(tl.load(A + k[:, None] * M + i[None, :]))
        b = tl.trans(tl.load(B + j[:, None] * K + k[None, :]))
    else:
        a, b = tl.load(A + i[:, None] * K + k[None, :]), tl.load(B + k[:, None] * N + j[None, :])
    tl.store(C + i[:, None] * N + j[None, :], tl.dot(a, b, out_dtype=tl.float64))


@triton.jit
def reversed_copy(A, B, BARRIER: tl.constexpr):
    """Threads store, and load what threads of other warps have stored."""
    i = tl.arange(0, 256)
    p = tl.program_id(0)
    tl.store(A + p * 256 + i, i.to(tl.float64))
    if BARRIER:
        tl.debug_barrier()
    tl.store(B + p * 256 + i, tl.load(A + p * 256 + 255 - i))


@triton.jit
def written_by_all(A):
    tl.store(A + tl.arange(0, 256), tl.program_id(0).to(tl.float64))


@triton.jit
def shifted(A, B):
    i = tl.arange(0, 256)
    tl.store(B + i, tl.load(A + i + 1))


@pytest.mark.parametrize("warps", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "M, N, K", [(16, 16, 16), (16, 32, 16), (16, 64, 16), (32, 32, 32), (64, 32, 16), (64, 64, 16), (64, 64, 64)]
)
def test_products(M: int, N: int, K: int, warps: int) -> None:
    a, b = torch.randn(M, K, dtype=torch.float64), torch.randn(K, N, dtype=torch.float64)
    for turned in (False, True):
        A, B = (a.mT.contiguous(), b.mT.contiguous()) if turned else (a, b)
        c = torch.zeros(M, N, dtype=torch.float64)
        product[(1,)](A, B, c, M, N, K, turned, num_warps=warps)
        torch.testing.assert_close(c, a @ b, rtol=1e-13, atol=1e-13)


@pytest.fixture
def apart():
    """A machine whose findings fail no test."""
    with launching_on(Machine(Driver.machine.capability)) as machine:
        yield machine


@pytest.mark.parametrize("barrier, expected", [(True, set()), (False, {"race"})])
def test_races_between_warps(apart: Machine, barrier: bool, expected: set[str]) -> None:
    A, B = torch.zeros(2, 512, dtype=torch.float64).unbind()
    reversed_copy[(2,)](A, B, barrier, num_warps=4)
    assert apart.findings.kinds() == expected
    if barrier:
        torch.testing.assert_close(B, torch.arange(255, -1, -1).double().repeat(2), rtol=0, atol=0)


@pytest.mark.parametrize("backwards", [False, True])
def test_programs_that_share_an_address(apart: Machine, backwards: bool) -> None:
    apart.backwards = backwards
    A = torch.zeros(256, dtype=torch.float64)
    written_by_all[(3,)](A, num_warps=2)
    assert apart.findings.kinds() == {"programs"} and A.unique().tolist() == [0.0 if backwards else 2.0]


def test_addresses_out_of_bounds(apart: Machine) -> None:
    shifted[(1,)](*(torch.zeros(256, dtype=torch.float64) for _ in range(2)), num_warps=2)
    (finding,) = apart.findings.counts
    assert finding.kind == "bounds" and finding.where.startswith("test_compiled.py:")
    assert apart.warps == {"shifted": 2} and apart.executed > 0
