"""Complex diagonal state spaces, which become real ones of twice as many states: `T` by loops in complex arithmetic."""

import math

import pytest
import torch
from torch.nn.functional import softplus

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase, assert_close

TOLERANCES = [10.0**-k for k in range(1, 8)]


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def cnormal(*shape):
    return torch.complex(randn(*shape), randn(*shape))


def complex_loop(A, B, C, reads_before):
    """`Re(C_i A .. A B_j)` of `[*batch, L, n]`, one state a written token, in complex arithmetic."""
    *batch, length, _ = B.shape
    T = torch.zeros(*batch, length, length, dtype=torch.float64)
    for j in range(length):
        state = B[..., j, :]
        if not reads_before:
            T[..., j, j] = (C[..., j, :] * state).sum(-1).real
        for i in range(j + 1, length):
            if not reads_before:
                state = A[..., i, :] * state
            T[..., i, j] = (C[..., i, :] * state).sum(-1).real
            if reads_before:
                state = A[..., i, :] * state
    return T


class TestComplexRecurrence(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.recurrence)
    decays = ("A",)
    options = {"diagonal": True}
    reads = dict.fromkeys("ABC", (0,))
    state_size = 8
    real_or_complex = ("A", "B", "C")

    def make_inputs(self, length):
        A = torch.polar(torch.rand(2, length, 4).double(), 9 * randn(2, length, 4))
        return {"A": A, "B": cnormal(2, length, 4), "C": cnormal(2, length, 4)}

    def dense(self, A, B, C):
        return complex_loop(A, B, C, True)


class TestComplexReads(TestComplexRecurrence):
    """Only the reads are complex."""

    def make_inputs(self, length):
        return {"A": torch.rand(2, length, 4).double() - 0.5, "B": randn(2, length, 4), "C": cnormal(2, length, 4)}


class TestConstantComplexRecurrence(TestComplexRecurrence):
    has_rows = False
    options = {"diagonal": True, "length": 9}
    lengths = (9,)

    def make_inputs(self, length):
        return {name: x[:, 0].clone() for name, x in super().make_inputs(length).items()}

    def dense(self, A, B, C):
        return complex_loop(*(x[:, None].expand(-1, 9, -1) for x in (A, B, C)), True)


class TestComplexSelectiveScan(OperatorTestCase):
    """With groups, complex tensors for B and C."""

    constructor = staticmethod(operators.selective_scan)
    options = {"delta_softplus": True}
    reads = {"delta": (0, 1), "A": (None, 0), "B": (0, 1), "C": (0, 1), "delta_bias": (None, 0)}
    state_size = 6
    decays = ("A",)
    other_sizes = ("B", "C")
    real_or_complex = ("A", "B", "C")

    def make_inputs(self, length):
        return {
            "delta": randn(2, 4, length),
            "A": torch.complex(-torch.rand(4, 3).double(), 9 * randn(4, 3)),
            "B": cnormal(2, 2, 3, length),
            "C": cnormal(2, 2, 3, length),
            "delta_bias": randn(4),
        }

    def dense(self, delta, A, B, C, delta_bias):
        return scan(softplus(delta + delta_bias[:, None]), A, B, C)


def scan(steps, A, B, C):
    """Twice the real part, as upstream's reference function has it; B and C complex `[B, G, N, L]`."""
    steps = steps[..., None]
    B, C = (x.repeat_interleave(steps.shape[1] // x.shape[1], 1).mT for x in (B, C))
    return complex_loop((steps * A[:, None]).exp(), steps * B, 2 * C, False)


class TestPackedSelectiveScan(TestComplexSelectiveScan):
    """B and C as upstream has them: real and imaginary parts by turns, along the time."""

    options = {}
    real_or_complex = ("A",)

    def make_inputs(self, length):
        return {
            "delta": torch.rand(2, 4, length).double(),
            "A": torch.complex(-torch.rand(4, 3).double(), 9 * randn(4, 3)),
            "B": randn(2, 2, 3, 2 * length),
            "C": randn(2, 2, 3, 2 * length),
        }

    def dense(self, delta, A, B, C):
        return scan(delta, A, *(torch.complex(x[..., ::2], x[..., 1::2]) for x in (B, C)))

    def test_wrong_dtypes_are_refused_by_name(self):
        """Complex B and C lack the factor of two in their length: a `ValueError` that says so."""
        inputs = self.inputs(3)
        with pytest.raises(ValueError, match=r"^B: expected shape \[B, G, N, L\] = \[2, 2, 3, 3\]"):
            operators.selective_scan(**{**inputs, "B": inputs["B"].cfloat()})


class TestS4D(OperatorTestCase):
    constructor = staticmethod(operators.s4d)
    has_rows = False
    options = {"length": 9}
    lengths = (9,)
    reads = dict.fromkeys(("log_dt", "log_A_real", "A_imag", "C"), (0,))
    state_size = 8

    def make_inputs(self, length):
        return {
            "log_dt": randn(3) - 2,
            "log_A_real": randn(3, 4),
            "A_imag": math.pi * torch.arange(4).double().expand(3, 4) + randn(3, 4),
            "C": cnormal(3, 4),
        }

    def dense(self, log_dt, log_A_real, A_imag, C):
        """The kernel of upstream's `S4DKernel.forward`, laid out as a Toeplitz matrix."""
        dt = torch.exp(log_dt)
        A = -torch.exp(log_A_real) + 1j * A_imag
        dtA = A * dt.unsqueeze(-1)
        powers = torch.exp(dtA.unsqueeze(-1) * torch.arange(9))
        K = 2 * torch.einsum("hn,hnl->hl", C * (torch.exp(dtA) - 1.0) / A, powers).real
        return torch.stack([K[:, (i - torch.arange(9)).clamp(min=0)] * (torch.arange(9) <= i) for i in range(9)], 1)


def test_s4d_with_a_rate_of_almost_zero():
    """The hold `(e^x - 1) / A` neither cancels nor divides by zero."""
    log_dt = torch.tensor([-3.0]).double()
    for log_A, A_imag in ((-60.0, 0.0), (-800.0, 0.0), (-30.0, 1e-9)):
        one = torch.ones(1, 1).double()
        op = operators.s4d(log_dt, log_A * one, A_imag * one, torch.complex(one, one), 4)
        assert_close("T", op.dense()[0], 2 * math.exp(-3) * torch.ones(4, 4).double().tril(), rtol=1e-9)


# --- hard cases -------------------------------------------------------------------------------------------------------


def hard_cases(L=192, n=8):
    """Transitions, writes and reads `[L, n]`, and the factor of the real part, by name."""
    torch.manual_seed(0)
    k = torch.arange(n).double()
    cases = {}
    for dt in (0.01, 0.1, 3.0):  # angles of up to 70 a step
        pole = torch.complex(-0.5 * torch.ones(n).double(), math.pi * k)
        a = torch.exp(pole * dt)
        cases[f"S4D-Lin, dt = {dt}"] = (a.expand(L, n), ((a - 1) / pole).expand(L, n), 2 * cnormal(n).expand(L, n))
    nu = torch.exp(-0.1 * torch.rand(n).double())
    a = torch.polar(nu, 2 * math.pi * torch.rand(n).double())
    cases["LRU"] = (a.expand(L, n), ((1 - nu**2).sqrt() * cnormal(n)).expand(L, n), cnormal(n).expand(L, n))
    dt = softplus(randn(L, 1))
    rates = torch.complex(-0.3 * torch.ones(n).double(), 3 * randn(n))
    cases["selective"] = (torch.exp(dt * rates), dt * cnormal(L, n), 2 * cnormal(L, n))
    a = torch.exp(torch.complex(-5 * torch.rand(L, n).double(), 9 * randn(L, n)))
    a[::11] = 0
    cases["strong decay and zeros"] = (a, cnormal(L, n), cnormal(L, n))
    a = torch.polar(torch.ones(L, n).double(), randn(L, n))
    a[7::31, ::2] *= 1e-200  # beyond the root of the smallest number, and below the normal ones
    a[9::31, 1::2] *= 1e-310
    cases["tiny transitions"] = (a, cnormal(L, n), cnormal(L, n))
    return cases


HARD = hard_cases()


@pytest.mark.parametrize("name", HARD)
def test_hard_operators_are_right_to_twelve_digits(name):
    A, B, C = HARD[name]
    T = complex_loop(A, B, C, True)
    op = operators.recurrence(A, B, C, diagonal=True)
    assert_close("T", op.dense(), T, atol=1e-12 * float(T.abs().max()))


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("name", HARD)
def test_counts_of_hard_operators_at_every_position(name, backend):
    A, B, C = HARD[name]
    T = complex_loop(A, B, C, True)
    tolerances = [atol * float(torch.linalg.svdvals(T)[0]) for atol in TOLERANCES]
    op = operators.recurrence(A, B, C, diagonal=True)
    counts, certificate = ek.tolerance_ess(op, tolerances, backend=backend, certificate=True)
    values = [torch.linalg.svdvals(T[i:, :i])[:16] for i in range(1, op.length)]
    wanted = torch.tensor([[int((s > atol).sum()) for s in values] for atol in tolerances])
    assert torch.equal(counts, wanted)
    assert not certificate.unresolved.any()
    assert_close("entropy", ek.entropy_ess(op, backend=backend), ek.reference.reference_entropy_ess(op), rtol=1e-4)


def test_phases_do_not_drift():
    """After 20000 steps, against powers in twice the digits."""
    mpmath = pytest.importorskip("mpmath")
    L, angles = 20000, [0.0, 0.01, 0.3, 3.1, 70.0]
    A = torch.polar(torch.ones(5).double(), torch.tensor(angles).double())
    op = operators.recurrence(A, torch.ones_like(A), torch.ones_like(A), diagonal=True, length=L)
    tokens = op.tokens(op.all_heads())
    found = torch.complex(tokens.read[0, -1, :5], tokens.read[0, -1, 5:])
    with mpmath.workdps(40):
        exact = [mpmath.mpc(complex(a)) ** (L - 1) for a in A]
        exact = torch.tensor([complex(x / abs(x)) for x in exact], dtype=torch.complex128)
    assert float((found - exact).abs().max()) < 2e-12


def test_two_real_states_for_one_complex_state():
    """A rotation as a real 2 x 2 matrix has the same operator."""
    L, n = 40, 3
    A = torch.polar(torch.full((L, n), 0.95).double(), randn(L, n))
    B, C = cnormal(L, n), cnormal(L, n)
    turn = torch.cat(
        [
            torch.cat([torch.diag_embed(A.real), -torch.diag_embed(A.imag)], -1),
            torch.cat([torch.diag_embed(A.imag), torch.diag_embed(A.real)], -1),
        ],
        -2,
    )
    real = operators.recurrence(turn, torch.cat([B.real, B.imag], -1), torch.cat([C.real, -C.imag], -1), diagonal=False)
    op = operators.recurrence(A, B, C, diagonal=True)
    assert_close("T", op.dense(), real.dense(), rtol=1e-12, atol=1e-12)
    assert torch.equal(ek.tolerance_ess(op, TOLERANCES), ek.tolerance_ess(real, TOLERANCES))


def test_gradients_of_entropy_through_complex_inputs():
    L, n = 6, 2
    A = torch.polar(0.5 + torch.rand(L, n).double() / 2, randn(L, n))
    given = [x.requires_grad_() for x in (A, cnormal(L, n), cnormal(L, n))]
    weights = torch.linspace(0.5, 2, L - 1).double()
    found, wanted = (
        torch.autograd.grad((metric(operators.recurrence(*given, diagonal=True)) * weights).sum(), given)
        for metric in (ek.entropy_ess, ek.reference.reference_entropy_ess)
    )
    for x, y in zip(found, wanted, strict=True):
        assert_close("gradient", torch.view_as_real(x), torch.view_as_real(y), rtol=1e-3, atol=1e-4)


def test_inputs_that_are_only_marked_as_conjugate():
    """Also at the first call of a compiled graph."""
    inputs = [cnormal(2, 9, 3).conj() / 3 for _ in range(3)]

    def entropy(*tensors):
        return ek.entropy_ess(operators.recurrence(*(x.conj() for x in tensors), diagonal=True))

    torch._dynamo.reset()
    assert torch.equal(torch.compile(entropy, fullgraph=True, backend="aot_eager")(*inputs), entropy(*inputs))


def test_bad_numbers_mark_their_head():
    A, B, C = (cnormal(2, 9, 3) / 3 for _ in range(3))
    A[1, 4, 1] = complex(0.1, torch.nan)
    counts = ek.tolerance_ess(operators.recurrence(A, B, C, diagonal=True), 0.1)
    assert (counts[1] == -1).all() and (counts[0] >= 0).all()


c, r = cnormal(5, 3), randn(5, 3)
delta, rates = torch.rand(2, 4, 5).double(), cnormal(4, 3)
BAD = [
    (lambda: operators.recurrence(c, r, r, diagonal=False), TypeError, ["A", "diagonal=True", "complex128"]),
    (lambda: operators.recurrence(randn(5, 3, 3), r, c, diagonal=False), TypeError, ["C", "diagonal=True"]),
    (lambda: operators.recurrence(c, r.long(), c, diagonal=True), TypeError, ["B", "complex64", "int64"]),
    (lambda: operators.recurrence(c[:4], c, c, diagonal=True), ValueError, ["A", "[5, 3]", "[4, 3]"]),
    (
        lambda: operators.selective_scan(delta, rates, randn(2, 3, 5), cnormal(2, 3, 5)),
        ValueError,
        ["B", "2 L", "[2, 3, 10]", "[2, 3, 5]"],
    ),
    (
        lambda: operators.selective_scan(delta, rates.real, cnormal(2, 3, 5), randn(2, 3, 5)),
        TypeError,
        ["B", "as A is", "complex128"],
    ),
    (lambda: operators.ssd(delta.mT, r[:4, 0], cnormal(2, 5, 2, 3), randn(2, 5, 2, 3)), TypeError, ["B", "complex128"]),
    (lambda: operators.s4d(randn(4), randn(4, 3), randn(4, 3), randn(4, 3), 9), TypeError, ["C", "complex64"]),
    (lambda: operators.s4d(randn(4), randn(4, 3), cnormal(4, 3), rates, 9), TypeError, ["A_imag", "complex128"]),
    (lambda: operators.s4d(randn(3), randn(4, 3), randn(4, 3), rates, 9), ValueError, ["log_A_real", "[H, N]"]),
    (lambda: operators.s4d(randn(4), randn(4, 3), randn(4, 3), rates, -1), ValueError, ["length", "at least 0"]),
]


@pytest.mark.parametrize("call, kind, words", BAD)
def test_bad_input(call, kind, words):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(words[0])
    assert all(word in str(caught.value) for word in words)
