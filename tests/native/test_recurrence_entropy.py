"""The compiled entropy of recurrences: sums of log-determinants at every position against a dense T's values."""

import ctypes
import math

import pytest
import torch
from covering import covering
from every_position import singular_values
from identical import levels

from ess_kernels.backends.native import abi
from ess_kernels.backends.native.choice import library
from ess_kernels.engine.blocks import block_parts, cut
from ess_kernels.engine.boundary import observe_gramians, reach_roots
from ess_kernels.engine.quadrature import FINE, STANDARD
from ess_kernels.operators.structure import Tokens

LEVELS = {1: "baseline", 2: "avx2", 3: "avx512"}
# the numbers of those of this machine
HERE = {name: number for number, name in LEVELS.items() if name in levels()}


@pytest.fixture(scope="module", params=LEVELS, ids=LEVELS.get)
def level(request):
    found = library()
    if found.handle is None:
        pytest.skip(f"native library: {found.reason}")
    if not found.handle.ess_level_name(request.param):
        pytest.skip("this machine has no such vectors")
    return request.param


def aligned(x):
    """A contiguous copy of float64 `x` at a multiple of 64 bytes."""
    memory = torch.empty(x.numel() + 8, dtype=torch.float64)
    skip = -memory.data_ptr() // 8 % 8
    return memory[skip : skip + x.numel()].view(x.shape).copy_(x)


def fill_up(x, n, dims):
    """Zeros beyond the state size in the last `dims` dimensions."""
    return torch.nn.functional.pad(x, (0, n - x.shape[-1]) * dims)


class Recurrence:
    """Heads `[N, L, n]` of a gated recurrence (`gate` `[N, L, n]` or `[N, L, n, n]`), parts as kernels read them."""

    def __init__(self, read, write, gate, c):
        self.tokens = Tokens(read, write, gate, False)
        self.length = read.shape[1]
        blocks = block_parts(cut(self.tokens, c))
        n = read.shape[-1] + -read.shape[-1] % 8
        dense = gate.dim() > read.dim()
        roots = reach_roots(blocks)  # F^T row-major is F column-major
        self.arrays = [
            aligned(x)
            for x in (
                fill_up(blocks.X, n, 1),
                fill_up(blocks.Z, n, 1),
                blocks.Y.flip(-2),
                fill_up(blocks.Phi.mT if dense else blocks.Phi, n, 2 if dense else 1),
                fill_up(roots, n, 2),
                fill_up(observe_gramians(blocks), n, 2),
            )
        ]
        heads, count = blocks.X.shape[:2]
        self.parts = abi.Recurrence(heads, count, n, c, int(dense), 0, *(x.data_ptr() for x in self.arrays))

    def dense(self):
        read, write, gate = (getattr(self.tokens, name) for name in ("read", "write", "transition"))
        N, L, n = read.shape
        T, states = read.new_zeros(N, L, L), read.new_zeros(N, n, L)
        for t in range(L):
            states = gate[:, t, :, None] * states if gate.dim() == 3 else gate[:, t] @ states
            T[:, t] = (read[:, t, None] @ states)[:, 0]
            states[:, :, t] = write[:, t]
        return T

    def sums(self, level, quadrature=STANDARD, scale=None, wanted=None, threads=1):
        """`total`, `mixed`, `[2, N, L]`; NaN at positions that the kernel leaves alone."""
        handle = library().handle
        table = torch.tensor(quadrature.table, dtype=torch.float64).T
        more = -len(quadrature) % 8
        table = torch.cat([table, torch.tensor([[1.0], [0.0], [0.0]]).double().expand(-1, more)], 1).contiguous()
        nodes = abi.Quadrature(
            table.shape[1], *(row.data_ptr() for row in table), *quadrature.errors, *quadrature.slopes
        )
        heads, count = self.parts.heads, self.parts.blocks
        out = torch.full((2, heads, self.length), torch.nan, dtype=torch.float64)
        wanted = torch.ones(heads, count, dtype=torch.uint8) if wanted is None else wanted
        self.rounding, self.units = torch.full((2, heads, count), torch.nan, dtype=torch.float64)
        job = abi.RecurrenceEntropy(
            parts=ctypes.pointer(self.parts),
            length=self.length,
            scale=None if scale is None else scale.data_ptr(),
            quadrature=ctypes.pointer(nodes),
        )
        outputs = {"total": out[0], "mixed": out[1], "rounding": self.rounding, "unit": self.units}
        for name, x in {"wanted": wanted, **outputs}.items():
            setattr(job, name, x.data_ptr())
        run = abi.Run(threads, level, None, 0)
        run.workspace_bytes = handle.ess_recurrence_entropy_workspace(run, job)
        assert run.workspace_bytes > 0
        # NaN to start with: nothing may be read before it is written
        work = torch.full((run.workspace_bytes // 8 + 8,), torch.nan, dtype=torch.float64)
        run.workspace = work.data_ptr() + -work.data_ptr() % 64
        assert handle.ess_recurrence_entropy(run, job) == 0
        return out


def recurrence(N, L, n, c, decay=0.05, seed=0, unit=1.0):
    torch.manual_seed(seed)
    read, write, gate = (torch.randn(N, L, n, dtype=torch.float64) for _ in range(3))
    return Recurrence(read / math.sqrt(n) * unit, write, torch.exp(-decay * torch.nn.functional.softplus(gate)), c)


def entropies(values):
    """Entropy-ESS from singular values `[P, S]`, and their sum."""
    total = values.sum(-1)
    p = values / torch.where(total > 0, total, 1.0)[:, None]
    return torch.where(total > 0, torch.special.entr(p).sum(-1).exp(), 0.0), total


def same_sums(out, expected):
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


def check(recurrence, level, quadrature=STANDARD, slack=1.0, positions=None):
    """Entropies at all (or some) positions within the quadrature's own bound; returns the largest relative error."""
    T, (total, mixed) = recurrence.dense(), recurrence.sums(level, quadrature)
    singular = singular_values(T) if positions is None else []
    # the smallest node of FINE is below the rounding errors of squares, which may leave nothing of a pivot there
    known = torch.isfinite(total + mixed)
    assert bool(known.all()) or (quadrature is FINE and float(known.double().mean()) > 0.5)
    worst, n, L = 0.0, recurrence.tokens.read.shape[-1], recurrence.length
    for head in range(T.shape[0]):
        assert abs(total[head, 0]) < 1e-6 and abs(mixed[head, 0]) < 1e-5  # nothing lies before the first position
        for i in positions or range(1, L):
            values = singular[i][head, None] if positions is None else torch.linalg.svdvals(T[head, i:, :i])[None]
            expected = float(entropies(values)[0])
            if not bool(known[head, i]):
                continue
            if expected == 0:
                assert abs(float(total[head, i])) < 1e-6
                continue
            N, E = float(total[head, i]), float(mixed[head, i])
            cap = min(n, i, L - i)
            unit, rounding = (float(x[head, i // recurrence.parts.c]) for x in (recurrence.units, recurrence.rounding))
            bound = float(quadrature.estimate_from_sums(*torch.tensor([N, E, cap, rounding]).double()).bound)
            assert abs(N * unit / float(values.sum()) - 1) <= slack * bound + 1e-9
            error = abs(math.exp(math.log(N) - E / N) / expected - 1)
            assert error <= slack * bound + 1e-9, (head, i, error, bound)
            worst = max(worst, error)
    return worst


@covering(each=4, n=[8, 13, 24, 64], c=[8, 16, 32, 64], level=HERE, indirect=["level"])
def test_entropy_against_singular_values(level, n, c):
    assert check(recurrence(2, 90, n, c), level) < 1e-4


@pytest.mark.parametrize("n, c", [(128, 32), (256, 32), (256, 64)])
def test_large_states(level, n, c):
    assert check(recurrence(1, 300, n, c, 0.01), level, positions=[1, 40, 150, 299]) < 1e-4


@pytest.mark.parametrize("decay", [0.0, 1e-3, 1.0, 20.0])
def test_decays(level, decay):
    check(recurrence(1, 100, 16, 16, decay), level, slack=2.0)


@pytest.mark.parametrize("n", [16, 40])
def test_fine_nodes(level, n):
    assert check(recurrence(1, 80, n, 16), level, FINE) < 1e-6


def test_repeated_keys(level):
    case = recurrence(1, 96, 32, 16, 0.01)
    read, write, gate = case.tokens.read, case.tokens.write, case.tokens.transition
    write = write[:, :3].repeat(1, 32, 1)
    check(Recurrence(read, write, gate, 16), level, slack=2.0)
    # one direction only: S has rank one
    ones = torch.ones_like(gate)
    total, mixed = Recurrence(read, write[:, :1].expand_as(write), ones, 16).sums(level)
    ess = torch.exp(total.log() - mixed / total)[0, 1:]
    torch.testing.assert_close(ess, torch.ones_like(ess), rtol=0, atol=2e-5)


def test_dense_transitions(level):
    torch.manual_seed(3)
    N, L, n = 1, 70, 12
    read, write = (torch.randn(N, L, n, dtype=torch.float64) for _ in range(2))
    key = torch.nn.functional.normalize(write, dim=-1)
    gate = torch.eye(n, dtype=torch.float64) - 0.5 * key[..., :, None] * key[..., None, :]
    assert check(Recurrence(read, key, gate, 16), level) < 1e-4


@pytest.mark.parametrize("unit", [1e-100, 1e80])
def test_units(level, unit):
    plain, scaled = recurrence(1, 64, 16, 16), recurrence(1, 64, 16, 16, unit=unit)
    same_sums(scaled.sums(level), plain.sums(level))
    # powers of two change nothing at all
    assert torch.equal(recurrence(1, 64, 16, 16, unit=2.0**300).sums(level), plain.sums(level))


def test_zero_operators_and_blocks(level):
    case = recurrence(1, 64, 16, 16)
    read, write, gate = case.tokens.read, case.tokens.write, case.tokens.transition
    assert torch.equal(Recurrence(read * 0, write, gate, 16).sums(level), torch.zeros(2, 1, 64, dtype=torch.float64))
    # nothing is written before position 32, and nothing reads what comes after 48
    write[:, :32] = 0
    write[:, 48:] = 0
    read[:, 48:] = 0
    check(Recurrence(read, write, gate, 16), level, slack=2.0)


def test_given_scale(level):
    case = recurrence(2, 64, 16, 16, seed=5)
    T = case.dense()
    scale = torch.tensor([200.0, 1e4], dtype=torch.float64)
    sums = case.sums(level, FINE, scale)
    table = torch.tensor(FINE.table, dtype=torch.float64)
    for head in range(2):
        for i in (1, 15, 16, 40, 63):
            values = torch.linalg.svdvals(T[head, i:, :i])
            logdets = torch.log1p(values.square() / (table[:, :1] * scale[head])).sum(-1)
            expected = torch.stack([logdets @ table[:, 1], logdets @ table[:, 2]])
            same_sums(sums[:, head, i], expected)
    # far above the operator: numbers, and no more than zero at zero; far below it rounding errors leave nothing
    for extreme in (1e300, 0.0):
        out = case.sums(level, STANDARD, torch.full((2,), extreme, dtype=torch.float64))
        assert bool(torch.isfinite(out).all())
    assert bool((out == 0).all())
    out = case.sums(level, STANDARD, torch.full((2,), 1e-300, dtype=torch.float64))
    assert bool(out[:, :, 32:].isnan().any()) and not bool(out.isinf().any())


def test_threads_and_batches_change_nothing(level):
    case = recurrence(3, 100, 24, 16, seed=7)
    out = case.sums(level)
    assert torch.equal(case.sums(level, threads=4), out)
    for head in range(3):
        alone = [x[head : head + 1] for x in (case.tokens.read, case.tokens.write, case.tokens.transition)]
        assert torch.equal(Recurrence(*alone, 16).sums(level), out[:, head : head + 1])


def test_only_wanted_blocks(level):
    case = recurrence(2, 70, 16, 16, seed=8)
    wanted = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.uint8)
    out = case.sums(level, wanted=wanted)
    written = torch.zeros(2, 70, dtype=torch.bool)
    written[0, 16:32] = written[0, 64:] = True
    assert torch.equal(~out.isnan(), written.expand(2, 2, 70))
    assert torch.equal(out[:, written], case.sums(level)[:, written])


def test_bad_arguments(level):
    case = recurrence(1, 32, 16, 16)
    numbers = torch.ones(8, dtype=torch.float64)
    wanted, out = torch.ones(2, dtype=torch.uint8), torch.zeros(32, dtype=torch.float64)
    run = abi.Run(1, level, None, 0)
    outputs = dict.fromkeys(("total", "mixed", "rounding", "unit"), out.data_ptr())
    null, size, workspace = 1, 2, 5

    def code(nodes=None, **fields):
        table = dict.fromkeys(("t", "total_weight", "mixed_weight"), numbers.data_ptr())
        quadrature = abi.Quadrature(**{"nodes": 8, **table, **(nodes or {})})
        given = {"parts": ctypes.pointer(case.parts), "quadrature": ctypes.pointer(quadrature), "length": 32}
        given |= {"wanted": wanted.data_ptr(), **outputs}
        return library().handle.ess_recurrence_entropy(run, abi.RecurrenceEntropy(**{**given, **fields}))

    assert code() == workspace
    for name in ("parts", "quadrature", "wanted", *outputs):
        assert code(**{name: None}) == null
    for name in ("t", "total_weight", "mixed_weight"):
        assert code({name: None}) == null
    assert code(length=33) == size
    for count in (12, 0, -8, 72):
        assert code({"nodes": count}) == size
    for wrong in (numbers * 0, numbers * math.nan):
        assert code({"t": wrong.data_ptr()}) == size
    assert bool((out == 0).all())
