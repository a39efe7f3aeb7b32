"""What constructors refuse, in words that name the argument, what was expected and what came; and hidden bad data."""

import numpy as np
import pytest
import torch

from ess_kernels import operators
from ess_kernels._checks import check_positions, check_same_device, check_tolerances
from ess_kernels.operators import (
    convolution,
    dense,
    gated_convolution,
    gla,
    gla_s6,
    linear_attention,
    recurrence,
    retention,
    selective_scan,
    short_convolution,
    simple_gla,
    ssd,
    wla,
)
from ess_kernels.operators.dense import as_operator

q = k = torch.randn(2, 5, 4, 3)
gates = -torch.rand(2, 5, 4)
D = torch.rand(2, 4, 5)
A = -torch.rand(4, 3)
BC = torch.randn(2, 3, 5)
dt, groups = torch.rand(2, 5, 4), torch.randn(2, 5, 2, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: dense(torch.zeros(3, 4)), ValueError, ["T", "[..., L, L]", "[3, 4]"]),
        (lambda: dense(torch.zeros(3)), ValueError, ["T", "[..., L, L]", "[3]"]),
        (lambda: dense(torch.zeros(3, 3, dtype=torch.complex64)), TypeError, ["T", "complex64"]),
        (lambda: dense([[1.0]]), TypeError, ["T", "tensor", "list"]),
        (lambda: as_operator("T"), TypeError, ["op", "operator", "str"]),
        (lambda: gla(q[0], k, q), ValueError, ["q", "4 axes [B, T, H, K]", "[5, 4, 3]"]),
        (lambda: gla(q, k[:, :, :1], q), ValueError, ["k", "[B, T, H, K] = [2, 5, 4, 3]", "[2, 5, 1, 3]"]),
        (lambda: gla(q, k, gates), ValueError, ["g", "[2, 5, 4, 3]", "[2, 5, 4]"]),
        (lambda: gla(q, k, None), TypeError, ["g", "tensor", "NoneType"]),
        (lambda: gla(q, k, q, scale=True), TypeError, ["scale", "number", "bool"]),
        (lambda: gla(q, k, q, scale=float("nan")), ValueError, ["scale", "finite", "nan"]),
        (lambda: gla(q[..., :0], k[..., :0], q[..., :0]), ValueError, ["q", "K", "at least 1", "0"]),
        (lambda: linear_attention(q, k, normalize=1), TypeError, ["normalize", "bool", "int"]),
        (lambda: retention(q, k.long()), TypeError, ["k", "float", "int64"]),
        (lambda: simple_gla(q, k), ValueError, ["g, g_gamma", "exactly one", "none"]),
        (lambda: simple_gla(q, k, g=gates, g_gamma=gates[0, 0]), ValueError, ["g, g_gamma", "exactly one", "both"]),
        (lambda: simple_gla(q, k, g=q), ValueError, ["g", "[B, T, HV] = [2, 5, 4]", "[2, 5, 4, 3]"]),
        (lambda: simple_gla(q, k, g_gamma=gates), ValueError, ["g_gamma", "[HV] = [4]", "[2, 5, 4]"]),
        (lambda: wla(q, k, q), ValueError, ["g", "[H, K] = [4, 3]", "[2, 5, 4, 3]"]),
        (lambda: gla_s6(q, k, gates[0], 10), ValueError, ["dt", "[B, T, H]", "[5, 4]"]),
        (lambda: gla_s6(q, k, -gates, 0), ValueError, ["alpha", "positive", "0"]),
        (lambda: gla_s6(q, k, -gates, "10"), TypeError, ["alpha", "positive", "str"]),
        (lambda: ssd(dt, A, groups, groups), ValueError, ["A", "[H] = [4]", "[4, 3]"]),
        (lambda: ssd(dt, A[:, 0], q[:, :, :3], q[:, :, :3]), ValueError, ["B", "G", "4 heads", "3"]),
        (lambda: ssd(dt, A[:, 0], groups, q), ValueError, ["C", "[2, 5, 2, 3]", "[2, 5, 4, 3]"]),
        (lambda: ssd(dt, A[:, 0], groups, groups, dt_bias=dt), ValueError, ["dt_bias", "[H] = [4]", "[2, 5, 4]"]),
        (lambda: ssd(dt, A[:, 0], groups, groups, dt_limit=3), TypeError, ["dt_limit", "pair", "3"]),
        (lambda: ssd(dt, A[:, 0], groups, groups, dt_limit=(2, 1)), ValueError, ["dt_limit", "low <= high", "(2, 1)"]),
        (lambda: ssd(dt, A[:, 0], groups, groups, dt_softplus=1), TypeError, ["dt_softplus", "bool", "int"]),
        (lambda: selective_scan(D, A.cfloat(), BC, BC), ValueError, ["B", "2 L", "[2, 3, 10]", "[2, 3, 5]"]),
        (lambda: selective_scan(D, A, BC.cfloat(), BC), TypeError, ["B", "as A is", "complex64"]),
        (lambda: selective_scan(D, A[:3], BC, BC), ValueError, ["A", "[D, N] = [4, 3]", "[3, 3]"]),
        (lambda: selective_scan(D, A, BC.mT, BC), ValueError, ["B", "[B, N, L] = [2, 3, 5]", "[2, 5, 3]"]),
        (lambda: selective_scan(D, A, BC, A.T), ValueError, ["C", "[D, N] = [4, 3]", "[3, 4]"]),
        (
            lambda: selective_scan(D, A, BC, torch.zeros(2, 3, 3, 5)),
            ValueError,
            ["C", "groups G that divides the 4 heads", "3"],
        ),
        (lambda: selective_scan(D, A, BC, None), TypeError, ["C", "tensor", "NoneType"]),
        (lambda: selective_scan(D, A, BC, BC, delta_bias=A), ValueError, ["delta_bias", "[D] = [4]", "[4, 3]"]),
        (lambda: recurrence(q, q, q, diagonal="yes"), TypeError, ["diagonal", "bool", "str"]),
        (lambda: recurrence(q, q, q, diagonal=False), ValueError, ["A", "[2, 5, 4, 3, 3]", "[2, 5, 4, 3]"]),
        (lambda: recurrence(q, q, k[0], diagonal=True), ValueError, ["C", "[2, 5, 4, 3]", "[5, 4, 3]"]),
        (lambda: recurrence(q.cfloat(), q, q, diagonal=False), TypeError, ["A", "complex64"]),
        (lambda: recurrence(A[0], A[0], A[0], diagonal=True), ValueError, ["B", "[*batch, L, n]", "[3]"]),
        (lambda: recurrence(q, q, q, diagonal=True, length=-1), ValueError, ["length", "at least 0", "-1"]),
        (lambda: convolution(q), ValueError, ["k", "2 axes [H, L]", "[2, 5, 4, 3]"]),
        (lambda: gated_convolution(D, BC[0], D), ValueError, ["k", "[D, L] = [4, 5]", "[3, 5]"]),
        (lambda: gated_convolution(D, D[0], D[0]), ValueError, ["x1", "[B, D, L] = [2, 4, 5]", "[4, 5]"]),
        (lambda: short_convolution(A[:, :0], 5), ValueError, ["weight", "W", "at least 1", "0"]),
        (lambda: short_convolution(A, 5.0), TypeError, ["length", "integer", "float"]),
        (lambda: short_convolution(A, -5), ValueError, ["length", "at least 0", "-5"]),
    ],
)
def test_constructors_refuse(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


def test_devices_must_agree():
    with pytest.raises(ValueError, match=r"k: expected q's device cpu, got meta"):
        check_same_device(q=q, mask=None, k=k.to("meta"))
    with pytest.raises(ValueError, match="g: expected q's device cpu, got meta"):
        gla(q, k, q.to("meta"))


def test_positional_gates_keep_upstreams_order():
    with pytest.raises(TypeError):
        simple_gla(q, k, gates)
    with pytest.raises(TypeError):
        operators.attention(q, k, 1.0)


# --- non-finite values that a later step would hide ---------------------------------------------------------


def marked(op):
    return (~op.finite(op.all_heads())).reshape(op.batch_shape)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("options", [{}, {"dt_softplus": True}, {"dt_limit": (0.0, 1.0)}])
def test_bad_steps_of_mamba2(value, options):
    """softplus(-inf) = 0 and clamp(inf) = 1 are fair numbers."""
    bad = dt.clone()
    bad[1, 2, 3] = value
    assert marked(ssd(bad, A[:, 0], groups, groups, **options)).nonzero().tolist() == [[1, 3]]
    bias = torch.zeros(4)
    bias[2] = value
    assert marked(ssd(dt, A[:, 0], groups, groups, dt_bias=bias, **options)).nonzero().tolist() == [[0, 2], [1, 2]]
    rates = A[:, 0].clone()
    rates[2] = value
    assert marked(ssd(dt, rates, groups, groups, **options)).nonzero().tolist() == [[0, 2], [1, 2]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("options", [{}, {"delta_softplus": True}])
def test_bad_steps_of_mamba(value, options):
    bad = D.clone()
    bad[1, 2, 3] = value
    assert marked(selective_scan(bad, A, BC, BC, **options)).nonzero().tolist() == [[1, 2]]
    rates = A.clone()
    rates[2, 1] = value
    assert marked(selective_scan(D, rates, BC, BC, **options)).nonzero().tolist() == [[0, 2], [1, 2]]
    bias = torch.zeros(4)
    bias[0] = value
    assert marked(selective_scan(D, A, BC, BC, delta_bias=bias, **options)).nonzero().tolist() == [[0, 0], [1, 0]]


def test_finite_input_that_overflows():
    big = torch.full((4,), 1e200, dtype=torch.float64)
    assert marked(ssd(1e200 * dt.double(), -big, groups, groups)).all()
    assert marked(selective_scan(1e200 * D.double(), -big[:, None].expand(4, 3), BC, BC)).all()
    assert marked(gla(q, k, torch.full_like(q, 1e4))).all()
    assert marked(gla_s6(q, k, torch.full((2, 5, 4), 1e300, dtype=torch.float64), 1e-20)).all()
    large = q.double().abs() * 1e200
    assert marked(linear_attention(large, large, normalize=True)).all()
    ones = torch.ones(2, 3, 5, dtype=torch.float64)
    op = gated_convolution(1e200 * ones, 1e200 * ones[0], ones)
    assert marked(op).all()
    # the bound overflows, no entry does: large outputs meet small kernels only
    rare = 1e-200 * ones
    rare[..., 0] = 1e200
    lags = 1e-200 * ones[0]
    lags[:, 0] = 1e200
    assert not marked(gated_convolution(rare, lags, ones)).any()


def test_minus_infinity_is_a_fair_gate_and_plus_infinity_is_not():
    g = -torch.rand(2, 5, 4, 3)
    g[0, 2, 1] = -torch.inf
    op = gla(q, k, g)
    assert not marked(op).any()
    assert (op.dense()[0, 1, 2:, :2] == 0).all()
    g[1, 3, 0, 2] = torch.inf
    assert marked(gla(q, k, g)).nonzero().tolist() == [[1, 0]]


def test_a_bad_tap_on_the_diagonal_marks_too():
    for taps in (1, 4):
        weight = torch.randn(3, taps)
        weight[1, -1] = torch.nan
        assert marked(short_convolution(weight, 5)).tolist() == [False, True, False]


# --- positions and tolerances -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "positions", [[3, 1, 3], (3, 1, 3), np.array([3, 1, 3]), torch.tensor([3, 1, 3]), [np.int64(3), torch.tensor(1), 3]]
)
def test_positions_keep_their_order(positions):
    got = check_positions(positions, 5)
    assert got.dtype == torch.int64 and got.tolist() == [3, 1, 3]


def test_positions_default_to_all():
    assert check_positions(None, 5).tolist() == [1, 2, 3, 4]
    assert check_positions(range(1, 5, 2), 5).tolist() == [1, 3]
    assert [check_positions(None, length).tolist() for length in (0, 1, 2)] == [[], [], [1]]
    assert check_positions([], 5).dtype == torch.int64


@pytest.mark.parametrize(
    ("positions", "error", "words"),
    [
        ([1, 0], ValueError, ["positions", "1..4", "0"]),
        ([1, 5, -1], ValueError, ["positions", "1..4", "5"]),
        ([-1], ValueError, ["positions", "1..4", "-1"]),
        ([True], ValueError, ["positions", "integers", "True"]),
        (np.array([True]), ValueError, ["positions", "integers", "True"]),
        (torch.tensor([True]), ValueError, ["positions", "integers", "bool"]),
        ([1.0], ValueError, ["positions", "integers", "1.0"]),
        (torch.tensor([1.0]), ValueError, ["positions", "integers", "float32"]),
        (torch.tensor([[1]]), ValueError, ["positions", "1 axis", "[1, 1]"]),
        (3, TypeError, ["positions", "sequence", "int"]),
        ("12", TypeError, ["positions", "sequence", "str"]),
    ],
)
def test_positions_refuse(positions, error, words):
    with pytest.raises(error) as caught:
        check_positions(positions, 5)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("atol", "rtol", "pairs", "listed"),
    [
        (None, None, [(1e-3, 0)], False),
        (0.1, None, [(0.1, 0)], False),
        (None, 0.1, [(0, 0.1)], False),
        (0, 1, [(0, 1)], False),
        ([0.1], None, [(0.1, 0)], True),
        ([0.1, 0.2], 0.5, [(0.1, 0.5), (0.2, 0.5)], True),
        (torch.tensor([0.25, 0.5]), (0.5, 1), [(0.25, 0.5), (0.5, 1)], True),
        (np.float64(0.1), np.array([0.2]), [(0.1, 0.2)], True),
        ([], None, [], True),
    ],
)
def test_tolerances(atol, rtol, pairs, listed):
    absolute, relative, got = check_tolerances(atol, rtol)
    assert list(zip(absolute.tolist(), relative.tolist())) == pairs and got is listed
    assert absolute.dtype == relative.dtype == torch.float64


@pytest.mark.parametrize(
    ("atol", "rtol", "error", "words"),
    [
        (-1.0, None, ValueError, ["atol", ">= 0", "-1.0"]),
        (None, [0.1, float("nan")], ValueError, ["rtol", ">= 0", "nan"]),
        ([0.1, 0.2], [0.1], ValueError, ["atol and rtol", "equal length", "2 and 1"]),
        ([[0.1]], None, ValueError, ["atol", "1-D", "[1, 1]"]),
        ("small", None, TypeError, ["atol", "number", "'small'"]),
        (None, True, TypeError, ["rtol", "number", "True"]),
        (1j, None, TypeError, ["atol", "number", "1j"]),
    ],
)
def test_tolerances_refuse(atol, rtol, error, words):
    with pytest.raises(error) as caught:
        check_tolerances(atol, rtol)
    assert all(word in str(caught.value) for word in words), caught.value
