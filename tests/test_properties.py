"""What holds for every operator, tried on random ones: no reference values, only relations that theory promises."""

import os

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.operators import Operator
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import documents, orthogonal, powers, randn

settings.register_profile(
    "ess_kernels",
    deadline=None,
    max_examples=20,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ess_kernels")

seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(2, 44)
exponents = st.floats(-6, 0)
FAMILIES = ["dense", "attention", "linear", "gla", "recurrence", "convolution", "scan"]


def random_operator(family: str, length: int, seed: int) -> Operator:
    torch.manual_seed(seed)
    n = int(torch.randint(1, 9, ()))
    decay = 10 ** float(3 * torch.rand(()) - 2)
    if family == "dense":
        return operators.dense(randn(2, length, length) * powers(0, -float(3 * torch.rand(())), length))
    if family == "attention":
        return operators.attention(5 * decay * randn(1, 2, length, n), randn(1, 2, length, n))
    if family == "convolution":
        return operators.convolution(randn(2, length) * torch.exp(-decay * torch.arange(length).double()))
    if family == "scan":
        rates = -decay * torch.rand(2, n).double()
        return operators.selective_scan(
            torch.rand(1, 2, length).double(), rates, randn(1, n, length), randn(1, n, length)
        )
    q, k = randn(1, length, 2, n), randn(1, length, 2, n)
    if family == "linear":
        return operators.linear_attention(q, k)
    if family == "gla":
        g = -decay * torch.rand(1, length, 2, n).double()
        return operators.gla(q, k, g.masked_fill(torch.rand(g.shape) < 0.02, -torch.inf))
    A = randn(2, length, n, n) / (n**0.5 + decay)
    return operators.recurrence(A, randn(2, length, n), randn(2, length, n), diagonal=False)


any_operator = st.builds(random_operator, st.sampled_from(FAMILIES), lengths, seeds)


def caps(op: Operator) -> torch.Tensor:
    i = torch.arange(1, op.length)
    cap = torch.minimum(i, op.length - i)
    return cap if op.state_size is None else cap.clamp_max(op.state_size)


def largest(op: Operator) -> float:
    values = ek.singular_values(op, range(1, op.length), 1)
    return max(float(values.max()), 1e-300)


def same_counts(one, other, unresolved):
    assert torch.equal(one[~unresolved], other[~unresolved])


@given(any_operator, exponents)
def test_neighbours_interlace(op, exponent):
    """From one position to the next one row leaves and one column enters."""
    counts = ek.tolerance_ess(op, largest(op) * 10**exponent)
    assert bool((counts.diff(dim=-1).abs() <= 1).all())
    assert bool((counts[..., 0] <= 1).all()) and bool((counts[..., -1] <= 1).all())


@given(any_operator, st.lists(exponents, min_size=2, max_size=5))
def test_fewer_values_exceed_a_larger_tolerance(op, tolerances):
    tau = largest(op) * 10 ** torch.tensor(sorted(tolerances)).double()
    counts = ek.tolerance_ess(op, tau)
    assert bool((counts.diff(dim=0) <= 0).all())
    assert bool((counts >= 0).all()) and bool((counts <= caps(op)).all())
    relative = ek.tolerance_ess(op, rtol=10 ** torch.tensor(sorted(tolerances)).double())
    assert bool((relative.diff(dim=0) <= 0).all()) and bool((relative <= caps(op)).all())


@given(any_operator)
def test_entropy_lies_between_one_and_the_rank(op):
    entropy = ek.entropy_ess(op)
    rank = ek.tolerance_ess(op, rtol=1e-14)
    nonzero = ek.tolerance_ess(op, 0.0) > 0
    assert bool((entropy[nonzero] >= 1).all()) and bool((entropy[~nonzero] == 0).all())
    assert bool((entropy <= rank * (1 + 1e-4))[nonzero].all())
    assert bool((entropy <= caps(op)).all())


@given(any_operator, exponents)
def test_singular_values_agree_with_counts(op, exponent):
    tau = largest(op) * 10**exponent
    counts, certificate = ek.tolerance_ess(op, tau, certificate=True)
    values = ek.singular_values(op, range(1, op.length))
    same_counts(counts, (values > tau).sum(-1), certificate.unresolved)


@given(lengths, st.integers(1, 8), seeds, exponents)
def test_a_change_of_state_basis_changes_nothing(length, n, seed, exponent):
    torch.manual_seed(seed)
    q, k = randn(1, length, 1, n), randn(1, length, 1, n)
    M = orthogonal(n) * powers(-1, 1, n) @ orthogonal(n)
    plain, changed = operators.linear_attention(q, k), operators.linear_attention(q @ M, k @ torch.linalg.inv(M).T)
    # a different rounding of the same T: a tolerance within 1e-10 of a singular value is no fair question
    tau = largest(plain) * 10**exponent
    values = ek.singular_values(plain, range(1, length))
    fair = ((values - tau).abs() > 1e-10 * values[..., :1]).all(-1)
    assert torch.equal(ek.tolerance_ess(plain, tau)[fair], ek.tolerance_ess(changed, tau)[fair])
    assert_close("entropy", ek.entropy_ess(changed), ek.entropy_ess(plain), rtol=2e-4)


@given(any_operator, exponents)
def test_time_reversal(op, exponent):
    """`ESS_i(T) = ESS_{L-i}(J T^T J)`: what the future sees of the past, read backwards."""
    T = op.dense().tril(-1)
    back = T.mT.flip(-1, -2)
    tau = largest(op) * 10**exponent
    counts, certificate = ek.tolerance_ess(T, tau, certificate=True)
    reversed_counts, other = ek.tolerance_ess(back, tau, certificate=True)
    same_counts(counts, reversed_counts.flip(-1), certificate.unresolved | other.unresolved.flip(-1))
    assert_close("entropy", ek.entropy_ess(back).flip(-1), ek.entropy_ess(T), rtol=2e-4)


@given(any_operator, exponents)
def test_a_structure_and_its_matrix_agree(op, exponent):
    tau = largest(op) * 10**exponent
    values = ek.singular_values(op, range(1, op.length))
    fair = ((values - tau).abs() > 1e-11 * values[..., :1]).all(-1)
    assert torch.equal(ek.tolerance_ess(op, tau)[fair], ek.tolerance_ess(op.dense(), tau)[fair])
    assert_close("entropy", ek.entropy_ess(op.dense()), ek.entropy_ess(op), rtol=2e-4)


@given(
    lengths,
    st.sampled_from(["dense", "gla", "linear", "recurrence", "convolution"]),
    seeds,
    exponents,
    st.integers(-200, 200),
)
def test_powers_of_two_scale_out_bit_by_bit(length, family, seed, exponent, power):
    c = 2.0**power
    op = random_operator(family, length, seed)
    if family == "dense":
        scaled = operators.dense(c * op.dense())
    elif family == "convolution":
        scaled = operators.convolution(c * op.k)
    elif family == "recurrence":
        scaled = operators.recurrence(op.A, op.B, c * op.C, diagonal=False)
    else:
        scaled = operators.gla(c * op.q, op.k, op.g)
    tau = torch.tensor([largest(op) * 10**exponent, largest(op) * 1e-9]).double()
    for x, y in zip(
        ek.tolerance_ess(op, tau, certificate=True)[1], ek.tolerance_ess(scaled, c * tau, certificate=True)[1]
    ):
        assert torch.equal(x, y)
    assert torch.equal(ek.tolerance_ess(op, tau), ek.tolerance_ess(scaled, c * tau))
    assert torch.equal(ek.entropy_ess(op), ek.entropy_ess(scaled))
    some = [1, length - 1]
    assert torch.equal(c * ek.singular_values(op, some), ek.singular_values(scaled, some))


@given(lengths, seeds, st.sampled_from([0.0, 1e200, float("nan"), float("inf")]))
def test_the_diagonal_and_what_is_above_it_do_not_matter(length, seed, value):
    torch.manual_seed(seed)
    T = randn(length, length)
    other = torch.where(torch.ones(length, length).bool().triu(), value, T)
    assert torch.equal(ek.tolerance_ess(T, 0.3), ek.tolerance_ess(other, 0.3))
    assert torch.equal(ek.entropy_ess(T), ek.entropy_ess(other))


@given(lengths, st.integers(1, 12), seeds)
def test_a_short_convolution_remembers_its_taps(length, taps, seed):
    torch.manual_seed(seed)
    op = operators.short_convolution(randn(2, taps), length)
    i = torch.arange(1, length)
    rank = torch.minimum(i, length - i).clamp_max(taps - 1)
    assert bool((ek.tolerance_ess(op, 0.0) <= rank).all()) and bool((ek.entropy_ess(op) <= rank).all())
    # the last tap that reaches back is what makes the rank full
    long = operators.convolution(
        torch.nn.functional.pad(op.dense()[:, :, 0][:, :taps], (0, max(0, length - taps)))[:, :length]
    )
    assert torch.equal(ek.tolerance_ess(long, rtol=1e-13), ek.tolerance_ess(op, rtol=1e-13))


@given(st.lists(st.integers(1, 14), min_size=2, max_size=4), seeds)
def test_nothing_passes_the_border_of_a_document(sizes, seed):
    torch.manual_seed(seed)
    starts = torch.tensor(sizes).cumsum(0)[:-1].tolist()
    length = sum(sizes)
    g = -torch.rand(1, length, 1, 4).double()
    g[:, starts] = -torch.inf
    packed = [
        operators.gla(randn(1, length, 1, 4), randn(1, length, 1, 4), g),
        operators.attention(randn(1, 1, length, 4), randn(1, 1, length, 4), attn_mask=documents(length, *starts)),
        operators.dense(randn(1, 1, length, length) * documents(length, *starts)),
    ]
    for op in packed:
        counts, entropy = ek.tolerance_ess(op, 0.0), ek.entropy_ess(op)
        border = torch.tensor(starts) - 1
        assert bool((counts[..., border] == 0).all()) and bool((entropy[..., border] == 0).all())
        # and every document is as if it were alone
        for first, size in zip([0, *starts], sizes):
            T = op.dense()[..., first : first + size, first : first + size]
            inside = slice(first, first + size - 1)
            assert torch.equal(counts[..., inside] > 0, ek.tolerance_ess(T, 0.0) > 0)
            assert_close("entropy", entropy[..., inside], ek.entropy_ess(T), rtol=2e-4)


@given(lengths, seeds)
def test_identical_keys_are_one_memory(length, seed):
    """All a query can learn from the past is how long it was."""
    torch.manual_seed(seed)
    op = operators.attention(randn(1, 2, length, 3), randn(1, 2, 1, 3).expand(1, 2, length, 3))
    assert bool((ek.tolerance_ess(op, rtol=1e-12) == 1).all())
    assert_close("entropy", ek.entropy_ess(op), torch.ones(1, 2, length - 1).double(), rtol=1e-4)


@given(any_operator, st.data())
def test_positions_are_independent(op, data):
    some = data.draw(st.lists(st.integers(1, op.length - 1), min_size=1, max_size=6))
    index = torch.tensor(some) - 1
    tau = largest(op) * 1e-3
    assert torch.equal(ek.tolerance_ess(op, tau, positions=some), ek.tolerance_ess(op, tau)[..., index])
    assert_close("entropy", ek.entropy_ess(op, some), ek.entropy_ess(op)[..., index], rtol=1e-4)


# --- an oracle from control theory ------------------------------------------------------------------------------------


def gramian(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`sum_t A^t b b^T A^tT` of a stable A, by doubling the number of terms."""
    P = b[:, None] * b
    for _ in range(60):
        P = P + A @ P @ A.T
        A = A @ A
    return P


@given(st.integers(1, 6), seeds)
def test_long_time_invariant_systems_tend_to_hankel_singular_values(n, seed):
    torch.manual_seed(seed)
    A = randn(n, n)
    A = A * 0.8 / max(float(torch.linalg.eigvals(A).abs().max()), float(torch.linalg.matrix_norm(A, 2)) / 1.2)
    b, c = randn(n), randn(n)
    P, Q = gramian(A, b), gramian(A.T, c)
    assert_close("Lyapunov", P, A @ P @ A.T + b[:, None] * b, rtol=1e-9, atol=1e-9)
    hankel = torch.linalg.eigvals(P @ Q).real.clamp_min(0).sqrt().sort(descending=True).values
    op = operators.recurrence(A, b, c, diagonal=False, length=400)
    values = ek.singular_values(op, [200], n)[0]
    assert_close("values", values, hankel, rtol=1e-6, atol=1e-6 * float(hankel[0]))
    # the window cuts off what a longer one would see: values only grow with it
    shorter = ek.singular_values(operators.recurrence(A, b, c, diagonal=False, length=20), [10], n)[0]
    assert bool((shorter <= values + 1e-9 * values[0]).all())
