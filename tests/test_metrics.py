"""The public calls: arguments, shapes, conventions, and what they promise about the caller's tensors."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.reference import reference_entropy_ess, reference_singular_values, reference_tolerance_ess
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import build, corner, names, powers, rand, randn

BACKENDS = ["torch", "reference"]


@pytest.fixture
def op():
    torch.manual_seed(0)
    return operators.gla(randn(2, 19, 3, 4), randn(2, 19, 3, 4), logsigmoid(randn(2, 19, 3, 4)))


def no_head():
    return operators.gla(*(torch.zeros(0, 9, 3, 4) for _ in range(3)))


# --- positions and tolerances -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "positions",
    [
        [7, 2, 7, 18],
        (7, 2, 7, 18),
        torch.tensor([7, 2, 7, 18]),
        torch.tensor([7, 2, 7, 18]).int(),
        np.array([7, 2, 7, 18]),
    ],
)
def test_positions_in_any_order_and_repeated(op, backend, positions):
    index = torch.tensor([6, 1, 6, 17])
    everywhere = ek.tolerance_ess(op, 0.3, backend=backend)
    assert everywhere.shape == (2, 3, 18)
    assert torch.equal(ek.tolerance_ess(op, 0.3, positions=positions, backend=backend), everywhere[..., index])
    entropy = ek.entropy_ess(op, positions, backend=backend)
    assert_close("entropy", entropy, ek.entropy_ess(op, backend=backend)[..., index], rtol=2e-5)
    assert torch.equal(entropy[..., 0], entropy[..., 2])
    values = ek.singular_values(op, positions, backend=backend)
    assert values.shape == (2, 3, 4, 4) and torch.equal(values[..., 0, :], values[..., 2, :])
    assert bool((values[..., 3, 1:] == 0).all()) and bool((values[..., 1, 2:] == 0).all())


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(
    ("positions", "first"),
    [
        ([3, 0, 19], "0"),
        ([19, 0], "19"),
        ([1, -2], "-2"),
        ([2, True], "True"),
        ([False], "False"),
        (range(5, 25), "19"),
    ],
)
def test_a_wrong_position_is_named(op, backend, positions, first):
    for call in (
        lambda: ek.tolerance_ess(op, positions=positions, backend=backend),
        lambda: ek.entropy_ess(op, positions, backend=backend),
        lambda: ek.singular_values(op, positions, backend=backend),
    ):
        with pytest.raises(ValueError, match=rf"positions.*1\.\.18.*got {first}$"):
            call()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [0, 1])
def test_nothing_to_measure(backend, length):
    q = torch.zeros(2, length, 3, 4)
    for op in (operators.gla(q, q, q), torch.zeros(2, 3, length, length)):
        counts, certificate = ek.tolerance_ess(op, certificate=True, backend=backend)
        assert counts.shape == (2, 3, 0) and counts.dtype == torch.int64
        assert all(x.shape == (2, 3, 0) for x in certificate)
        assert ek.tolerance_ess(op, [1.0, 2.0], backend=backend).shape == (2, 2, 3, 0)
        assert ek.entropy_ess(op, backend=backend).shape == (2, 3, 0)
        assert ek.singular_values(op, [], backend=backend).shape == (2, 3, 0, 0)
        assert ek.singular_values(op, [], k=3, backend=backend).shape == (2, 3, 0, 3)
        with pytest.raises(ValueError, match="positions"):
            ek.entropy_ess(op, [1], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_positions(op, backend):
    assert ek.tolerance_ess(op, 1.0, positions=[], backend=backend).shape == (2, 3, 0)
    assert ek.entropy_ess(op, torch.zeros(0, dtype=torch.int64), backend=backend).shape == (2, 3, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tolerance_defaults(op, backend):
    values = reference_singular_values(op)
    count = lambda threshold: (values > threshold).sum(-1)  # noqa: E731

    def found(*args, **kwargs):
        return ek.tolerance_ess(op, *args, **kwargs, backend=backend)

    assert torch.equal(found(), count(1e-3))
    assert torch.equal(found(0.5), count(0.5))
    assert torch.equal(found(rtol=0.2), count(0.2 * values[..., :1]))
    assert torch.equal(found(0.5, 0.2), count((0.2 * values[..., :1]).clamp_min(0.5)))
    pairs = found([0.5, 0.0, 2.0], [0.0, 0.2, 0.1])
    assert torch.equal(pairs[0], found(0.5)) and torch.equal(pairs[1], found(rtol=0.2))
    assert torch.equal(pairs[2], found(2.0, 0.1))
    assert torch.equal(found([0.5, 2.0], 0.2), torch.stack([found(0.5, 0.2), found(2.0, 0.2)]))
    assert torch.equal(found(0.5, torch.tensor([0.2])), found(0.5, 0.2)[None])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_list_adds_an_axis(op, backend):
    for tolerances in ([0.5], (0.5,), torch.tensor([0.5]), np.array([0.5])):
        assert ek.tolerance_ess(op, tolerances, backend=backend).shape == (1, 2, 3, 18)
    for tolerance in (0.5, 1, torch.tensor(0.5), np.float64(0.5)):
        assert ek.tolerance_ess(op, tolerance, backend=backend).shape == (2, 3, 18)
    assert ek.tolerance_ess(op, [0.5, 1, 2, 3], positions=[4, 5], backend=backend).shape == (4, 2, 3, 2)
    assert ek.tolerance_ess(op, [], backend=backend).shape == (0, 2, 3, 18)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(
    ("atol", "rtol", "error", "words"),
    [
        (-1e-9, None, ValueError, ["atol", "-1e-09"]),
        (None, -0.5, ValueError, ["rtol", "-0.5"]),
        (math.nan, None, ValueError, ["atol", "nan"]),
        ([0.1, math.nan], None, ValueError, ["atol", "nan"]),
        ([0.1, 0.2], [0.1, 0.2, 0.3], ValueError, ["atol", "rtol", "2", "3"]),
        (torch.zeros(2, 2), None, ValueError, ["atol", "[2, 2]"]),
        ("0.1", None, TypeError, ["atol", "0.1"]),
        (True, None, TypeError, ["atol", "True"]),
    ],
)
def test_wrong_tolerances(op, backend, atol, rtol, error, words):
    with pytest.raises(error) as caught:
        ek.tolerance_ess(op, atol, rtol, backend=backend)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_is_a_tolerance_and_zero_operators_have_no_rank(backend):
    counts, certificate = ek.tolerance_ess(torch.eye(6), [0.0, 1e-3], certificate=True, backend=backend)
    assert bool((counts == 0).all()) and not bool(certificate.unresolved.any())
    assert bool((ek.entropy_ess(torch.eye(6), backend=backend) == 0).all())
    T = torch.zeros(6, 6)
    T[4, 1] = 1e-30
    assert ek.tolerance_ess(T, 0.0, backend=backend).tolist() == [0, 1, 1, 1, 0]
    assert ek.tolerance_ess(T, math.inf, backend=backend).tolist() == [0] * 5
    entropy = ek.entropy_ess(T, backend=backend)
    assert_close("entropy", entropy, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]).double(), rtol=1e-5)
    assert entropy[0] == 0 and entropy[4] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_to_the_tolerance_does_not_count(backend):
    """A shift by one: all singular values are exactly 1."""
    T = torch.diag(torch.full((7,), 0.5), -1)
    assert ek.tolerance_ess(T, 0.5 - 1e-9, backend=backend).tolist() == [1] * 7
    assert ek.tolerance_ess(T, 0.5, backend=backend).tolist() == [0] * 7
    assert ek.tolerance_ess(T, rtol=1.0, backend=backend).tolist() == [0] * 7


# --- shapes and types -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_shapes(backend, batch):
    torch.manual_seed(1)
    T = torch.randn(*batch, 9, 9)
    counts, certificate = ek.tolerance_ess(T, [0.1, 1.0], certificate=True, backend=backend)
    assert counts.shape == (2, *batch, 8) and counts.dtype == torch.int64
    assert isinstance(certificate, ek.Certificate) and certificate._fields == ("width", "redone", "unresolved")
    assert [x.dtype for x in certificate] == [torch.float64, torch.bool, torch.bool]
    assert all(x.shape == counts.shape for x in certificate)
    assert all(x.shape == (*batch, 8) for x in ek.tolerance_ess(T, certificate=True, backend=backend)[1])
    entropy = ek.entropy_ess(T, backend=backend)
    assert entropy.shape == (*batch, 8) and entropy.dtype == torch.float64
    values = ek.singular_values(T, [4, 1, 8], backend=backend)
    assert values.shape == (*batch, 3, 4) and values.dtype == torch.float64
    assert torch.equal(ek.tolerance_ess(operators.dense(T), [0.1, 1.0], backend=backend), counts)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_of_nothing(backend):
    op = no_head()
    counts, certificate = ek.tolerance_ess(op, [0.1], certificate=True, backend=backend)
    assert counts.shape == (1, 0, 3, 8) and certificate.width.shape == (1, 0, 3, 8)
    assert ek.entropy_ess(op, backend=backend).shape == (0, 3, 8)
    assert ek.singular_values(op, [3, 4], backend=backend).shape == (0, 3, 2, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_number_of_singular_values(op, backend):
    full = reference_singular_values(op, [9, 2])
    for k in (0, 1, 3, 4, 12, 30):
        values = ek.singular_values(op, [9, 2], k, backend=backend)
        assert values.shape == (2, 3, 2, k)
        expected = torch.nn.functional.pad(full[..., :4], (0, 30))[..., :k]
        assert_close("values", values, expected, rtol=1e-12, atol=1e-13)
    for k, error in ((-1, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="k: expected"):
            ek.singular_values(op, [1], k, backend=backend)


def test_singular_values_want_positions(op):
    with pytest.raises(TypeError):
        ek.singular_values(op)


@pytest.mark.parametrize("subject", ["T", None, 3.0, [[1.0]], np.eye(3)])
def test_not_an_operator(subject):
    for call in (ek.tolerance_ess, ek.entropy_ess, lambda x: ek.singular_values(x, [1])):
        with pytest.raises(TypeError, match="op: expected"):
            call(subject)
    with pytest.raises((ValueError, TypeError)):
        ek.tolerance_ess(torch.zeros(3, 4))
    with pytest.raises(TypeError):
        ek.tolerance_ess(torch.zeros(3, 3, dtype=torch.int64))


# --- backends ---------------------------------------------------------------------------------------------------------


def test_backend_names(op):
    for call in (
        lambda name: ek.tolerance_ess(op, backend=name),
        lambda name: ek.entropy_ess(op, backend=name),
        lambda name: ek.singular_values(op, [3], backend=name),
        lambda name: ek.small_spectra(torch.zeros(2, 2), backend=name),
    ):
        for name in ("auto", "torch", "reference"):
            call(name)
        with pytest.raises(ValueError, match=r"backend: expected one of .*'torch'.*got 'cuda'"):
            call("cuda")
        with pytest.raises((ValueError, TypeError), match="backend"):
            call(None)
        try:
            call("native")
        except RuntimeError as error:
            assert "native" in str(error)


def test_a_wrong_backend_is_refused_even_where_there_is_nothing_to_do():
    with pytest.raises(ValueError, match="backend"):
        ek.tolerance_ess(no_head(), backend="none")


# --- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_what_lies_above_or_on_the_diagonal_is_not_read(backend, value):
    torch.manual_seed(2)
    T = randn(2, 11, 11)
    spoilt = torch.where(torch.ones(11, 11).bool().triu(), value, T)
    assert torch.equal(ek.tolerance_ess(spoilt, 0.4, backend=backend), ek.tolerance_ess(T, 0.4, backend=backend))
    assert torch.equal(ek.entropy_ess(spoilt, backend=backend), ek.entropy_ess(T, backend=backend))
    for x, y in ((spoilt, T),):
        assert torch.equal(
            ek.singular_values(x, [5, 3], backend=backend), ek.singular_values(y, [5, 3], backend=backend)
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_upcast_before_anything_else(backend, dtype):
    torch.manual_seed(3)
    q, k, g = (x.to(dtype) for x in (randn(1, 19, 2, 4), randn(1, 19, 2, 4), -rand(1, 19, 2, 4)))
    low, high = operators.gla(q, k, g), operators.gla(q.double(), k.double(), g.double())
    assert torch.equal(ek.tolerance_ess(low, 0.1, backend=backend), ek.tolerance_ess(high, 0.1, backend=backend))
    assert torch.equal(ek.entropy_ess(low, backend=backend), ek.entropy_ess(high, backend=backend))
    T = randn(2, 9, 9).to(dtype)
    assert torch.equal(ek.entropy_ess(T, backend=backend), ek.entropy_ess(T.double(), backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_in_any_layout_and_never_modified(backend):
    torch.manual_seed(4)
    tensors = [randn(2, 4, 3, 19).permute(0, 3, 2, 1) for _ in range(3)]
    tensors[2] = -tensors[2].abs()
    tensors[2][0, 5] = -math.inf
    copies = [x.clone(memory_format=torch.contiguous_format) for x in tensors]
    found, wanted = operators.gla(*tensors), operators.gla(*copies)
    T = randn(3, 11, 11).mT
    T_copy = T.clone(memory_format=torch.contiguous_format)
    for one, other in ((found, wanted), (T, T_copy)):
        assert torch.equal(
            ek.tolerance_ess(one, [1e-3, 1e-9, 0.0], backend=backend),
            ek.tolerance_ess(other, [1e-3, 1e-9, 0.0], backend=backend),
        )
        assert_close("entropy", ek.entropy_ess(one, backend=backend), ek.entropy_ess(other, backend=backend), rtol=1e-9)
        ek.singular_values(one, [3, 7], backend=backend)
    assert all(torch.equal(x, y) for x, y in zip([*tensors, T], [*copies, T_copy]))


@pytest.mark.parametrize(
    "name", [name for name in names("attention", "ssd", "selective", "rec", "gated") if "length" not in name]
)
def test_no_family_has_its_inputs_modified(name):
    op = build(name)
    before = [x.clone() for x in op.inputs]
    ek.tolerance_ess(op, [1e-3, 1e-9])
    ek.entropy_ess(op)
    ek.singular_values(op, [op.length // 2])
    assert all(torch.equal(x, y) for x, y in zip(op.inputs, before))


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_of_what_requires_grad(op, backend):
    tensors = [x.clone().requires_grad_() for x in op.inputs]
    tracked = operators.gla(*tensors)
    counts = ek.tolerance_ess(tracked, 0.3, backend=backend)
    assert torch.equal(counts, ek.tolerance_ess(op, 0.3, backend=backend)) and not counts.requires_grad
    values = ek.singular_values(tracked, [9], backend=backend)
    assert torch.equal(values, ek.singular_values(op, [9], backend=backend)) and not values.requires_grad
    if backend == "torch":
        with torch.no_grad():
            entropy = ek.entropy_ess(tracked, backend=backend)
        assert not entropy.requires_grad and torch.equal(entropy, ek.entropy_ess(op, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_random_numbers_are_drawn(op, backend):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    ek.tolerance_ess(op, [0.1, 1e-9], backend=backend)
    ek.entropy_ess(op, backend=backend)
    ek.entropy_ess(op.dense(), backend=backend)
    assert torch.equal(torch.rand(3), wanted)


def test_results_lie_on_the_inputs_device(op):
    counts, certificate = ek.tolerance_ess(op, certificate=True)
    everything = [counts, *certificate, ek.entropy_ess(op), ek.singular_values(op, [2])]
    assert all(x.device == op.device for x in everything)


@pytest.mark.gpu
def test_results_on_a_gpu(op):
    for here in (op, operators.attention(randn(2, 2, 40, 8), randn(2, 2, 40, 8))):
        there = type(here).__new__(type(here))
        there.__dict__ = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in here.__dict__.items()}
        there.inputs = tuple(x.cuda() for x in here.inputs)
        counts, certificate = ek.tolerance_ess(there, [0.3, 1e-9], certificate=True)
        assert all(x.is_cuda for x in (counts, *certificate))
        assert torch.equal(counts.cpu(), ek.tolerance_ess(here, [0.3, 1e-9]))
        entropy = ek.entropy_ess(there)
        assert entropy.is_cuda
        assert_close("entropy", entropy.cpu(), ek.entropy_ess(here), rtol=1e-5)


# --- backends against the definition ----------------------------------------------------------------------------------


def test_the_three_metrics_fit_together():
    torch.manual_seed(16)
    values = powers(0, -4, 12)
    T = corner(values)
    assert ek.tolerance_ess(T, 1e-2 * 1.1, positions=[12]).tolist() == [int((values > 1.1e-2).sum())]
    assert_close("values", ek.singular_values(T, [12])[0], values, rtol=1e-10)
    p = values / values.sum()
    assert_close("entropy", ek.entropy_ess(T, [12])[0], torch.exp(-(p * p.log()).sum()), rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_against_the_reference_functions(op, backend):
    assert torch.equal(ek.tolerance_ess(op, [0.3, 1e-3], backend=backend), reference_tolerance_ess(op, [0.3, 1e-3]))
    assert_close("entropy", ek.entropy_ess(op, backend=backend), reference_entropy_ess(op), rtol=1e-5)
